//! The memory for the heads of one queue's packets.

use alloc::vec::Vec;

use ring_abi::types::{Mfn, PAGE_SIZE};

use super::packet::{HEAD_BYTES, Place};

/// Heads in one page.
pub const HEADS_PER_PAGE: usize = PAGE_SIZE / HEAD_BYTES;

/// Most heads of one queue, and so the most packets that the queue has under way.
pub const MAX_HEADS: usize = 64;

/// The pages that hold a queue's heads, as the hypercall for copies names the pages' frames. The owner of the memory
/// reads and writes the heads; the engine only says where the heads lie.
pub(super) struct Heads {
    frames: Vec<Mfn>,
}

impl Heads {
    /// Heads in `frames`, of which no more are used than [`MAX_HEADS`] need.
    pub(super) fn new(frames: Vec<Mfn>) -> Self {
        Self { frames }
    }

    pub(super) fn count(&self) -> usize {
        (self.frames.len() * HEADS_PER_PAGE).min(MAX_HEADS)
    }

    /// Where head `index` begins.
    pub(super) fn place(&self, index: usize) -> Place {
        let (page, offset) = position(index);
        Place::Own { frame: self.frames[page], offset: offset as u16 }
    }
}

/// The page of head `index`, and the head's first byte within the page.
pub(super) const fn position(index: usize) -> (usize, usize) {
    (index / HEADS_PER_PAGE, index % HEADS_PER_PAGE * HEAD_BYTES)
}
