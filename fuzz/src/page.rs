//! A ring page whose other side writes at any time.

use std::cell::RefCell;
use std::rc::Rc;

use ring_abi::ring::RingPage;

use crate::input::Input;

/// Shared memory as the far side would have it: the input says what every read finds. Clones are the same page.
#[derive(Clone)]
pub(crate) struct HostilePage {
    bytes: Rc<RefCell<Vec<u8>>>,
    input: Input,
}

impl HostilePage {
    pub(crate) fn new(length: usize, input: &Input) -> Self {
        Self { bytes: Rc::new(RefCell::new(vec![0; length])), input: input.clone() }
    }

    /// What was last written at `offset`, by either side.
    pub(crate) fn word(&self, offset: usize) -> u32 {
        let bytes = self.bytes.borrow();
        u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
    }

    /// The peer writes.
    pub(crate) fn set(&self, offset: usize, value: &[u8]) {
        self.bytes.borrow_mut()[offset..][..value.len()].copy_from_slice(value);
    }
}

impl RingPage for HostilePage {
    fn ring_bytes(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn load_index(&self, offset: usize) -> u32 {
        let value = match self.input.u8() {
            0..=0x7f => return self.word(offset),
            // Near, where the limits are.
            small @ 0x80..=0xf7 => self.word(offset).wrapping_add(u32::from(small - 0x80)).wrapping_sub(16),
            _ => self.input.u32(),
        };
        self.set(offset, &value.to_le_bytes());
        value
    }

    fn store_index(&self, offset: usize, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    fn copy_out(&self, offset: usize, target: &mut [u8]) {
        if self.input.u8() & 1 != 0 {
            let written = self.input.take(target.len());
            self.set(offset, &written);
        }
        target.copy_from_slice(&self.bytes.borrow()[offset..][..target.len()]);
    }

    fn copy_in(&self, offset: usize, source: &[u8]) {
        self.set(offset, source);
    }
}
