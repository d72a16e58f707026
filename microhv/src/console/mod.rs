//! The console: output on its way to the serial line and on the screen, input that has not been read, and how much guests may
//! make the hypervisor say.

pub mod kept;
pub mod messages;
pub mod output;
mod reports;
pub mod screen;
#[cfg(test)]
mod tests;

use crate::sync::{Mutex, rank};
use alloc::collections::VecDeque;

pub use reports::Reports;

/// Bytes of input kept for the reader; more is lost.
const INPUT_BYTES: usize = 1024;

/// The console's input, and what is said about guests.
#[derive(Debug)]
pub struct Console {
    /// All the room is there from the start: bytes come in interrupts, which allocate nothing.
    input: Mutex<rank::ConsoleInput, VecDeque<u8>>,
    /// The reports about guests that may still be made.
    pub reports: Reports,
}

impl Default for Console {
    fn default() -> Self {
        Self { input: Mutex::new(VecDeque::with_capacity(INPUT_BYTES)), reports: Reports::default() }
    }
}

impl Console {
    /// Keeps a typed byte, unless no domain reads the console.
    pub fn push(&self, byte: u8) {
        let mut input = self.input.lock();
        if input.len() < INPUT_BYTES {
            input.push_back(byte);
        }
    }

    /// Takes typed bytes, the oldest first, as many as fit `to`.
    pub fn take(&self, to: &mut [u8]) -> usize {
        let mut input = self.input.lock();
        let count = to.len().min(input.len());
        for (slot, byte) in to.iter_mut().zip(input.drain(..count)) {
            *slot = byte;
        }
        count
    }
}
