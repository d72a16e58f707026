//! The bytes of an input, taken from its front.

use std::cell::Cell;
use std::rc::Rc;

/// What is left of an input. Clones take from the same bytes; past the end there are zeros.
#[derive(Clone)]
pub(crate) struct Input {
    bytes: Rc<[u8]>,
    at: Rc<Cell<usize>>,
}

impl Input {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), at: Rc::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at.get() >= self.bytes.len()
    }

    pub(crate) fn u8(&self) -> u8 {
        let at = self.at.get();
        self.at.set(at + 1);
        self.bytes.get(at).copied().unwrap_or(0)
    }

    pub(crate) fn u16(&self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u32(&self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(crate) fn u64(&self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// A number below `bound`, which is at most 256.
    pub(crate) fn below(&self, bound: usize) -> usize {
        usize::from(self.u8()) % bound
    }

    /// Takes up to `length` bytes, fewer at the end.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let at = self.at.get().min(self.bytes.len());
        let end = (at + length).min(self.bytes.len());
        self.at.set(end);
        self.bytes[at..end].to_vec()
    }

    /// A text of up to `length` bytes.
    pub(crate) fn text(&self, length: usize) -> String {
        String::from_utf8_lossy(&self.take(length)).into_owned()
    }
}
