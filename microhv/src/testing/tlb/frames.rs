//! Sets of frames.

use alloc::vec::Vec;

/// A set of frames.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames(Vec<u64>);

impl Frames {
    pub(super) fn new(frames: usize) -> Self {
        Self(alloc::vec![0; frames.div_ceil(64)])
    }

    pub(super) fn has(&self, frame: u32) -> bool {
        self.0[frame as usize / 64] >> (frame % 64) & 1 != 0
    }

    pub(super) fn add(&mut self, frame: u32) {
        self.0[frame as usize / 64] |= 1 << (frame % 64);
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }

    pub(super) fn take_from(&mut self, other: &Self) {
        self.0.copy_from_slice(&other.0);
    }

    /// Calls `each` for the frames in both sets.
    pub(super) fn common(&self, other: &Self, mut each: impl FnMut(u32)) {
        for (word, (a, b)) in (0u32..).zip(self.0.iter().zip(&other.0)) {
            let mut bits = a & b;
            while bits != 0 {
                each(word * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }
}
