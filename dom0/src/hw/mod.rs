//! What drivers stand on: memory that a device uses, registers, interrupts, and receive buffers of network cards.
//!
//! Drivers reach hardware by these traits alone, so that tests run a driver against a device in memory. `kernel.rs` has
//! all of them as a PV kernel has them.

mod buffers;
#[cfg(test)]
pub(crate) mod fake;
mod kernel;

use core::future::{Future, poll_fn};
use core::task::{Context, Poll};

pub use buffers::Buffers;
pub use kernel::{KernelMemory, KernelPages, Message, PciDevice, PciPorts, config_space, map_registers};

/// A range of machine memory addresses that holds registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First machine address.
    pub base: u64,
    /// Length in bytes.
    pub len: u32,
}

/// The event that wakes a driver: an interrupt of the device.
pub trait Interrupt {
    /// Takes the interrupt that came since the last such call, or else has the next one wake the task of `context`.
    fn poll_next(&self, context: &mut Context<'_>) -> Poll<()>;

    /// Waits for the next interrupt. An interrupt that came since the last wait ends the wait at once.
    fn wait(&self) -> impl Future<Output = ()> + Send
    where
        Self: Sync + Sized,
    {
        poll_fn(|context| self.poll_next(context))
    }
}

/// Whole pages that a device reads and writes by machine address. Offsets are in bytes from the first page's start.
///
/// An access of 1, 2, 4 or 8 bytes is atomic and little-endian. No implementation keeps a reference to the bytes, since
/// the device changes the bytes at any time.
pub trait Dma: Send + Sync {
    /// Machine address of the byte at `offset`. The next byte's machine address is higher by 1 only within a page.
    fn maddr(&self, offset: usize) -> u64;
    /// Reads two bytes; every later access comes after this read.
    fn load16(&self, offset: usize) -> u16;
    /// Writes two bytes; every earlier access comes before this write.
    fn store16(&self, offset: usize, value: u16);
    /// Reads a byte.
    fn load8(&self, offset: usize) -> u8;
    /// Writes a byte.
    fn store8(&self, offset: usize, value: u8);
    /// Reads a double word.
    fn load32(&self, offset: usize) -> u32;
    /// Writes a double word.
    fn store32(&self, offset: usize, value: u32);
    /// Writes a quad word.
    fn store64(&self, offset: usize, value: u64);
    /// Writes quad words one behind the other in memory, in no set order; an earlier access may come after these
    /// writes.
    fn write(&self, offset: usize, words: &[u64]);
    /// Copies bytes out, in no set order; a later access may come before these reads.
    fn read_bytes(&self, offset: usize, out: &mut [u8]);
    /// Copies bytes in, in no set order; an earlier access may come after these writes.
    fn write_bytes(&self, offset: usize, bytes: &[u8]);
}

/// A source of memory that a device may use.
pub trait DmaSource: Send {
    /// The memory that this source gives.
    type Memory: Dma;
    /// `pages` zeroed pages, in any machine order; `None` when there are none.
    fn allocate(&self, pages: usize) -> Option<Self::Memory>;
}

/// A range of a device's registers. Offsets are in bytes; a value is read and written whole.
pub trait Registers: Send + Sync {
    /// Reads one byte.
    fn read8(&self, offset: usize) -> u8;
    /// Reads two bytes.
    fn read16(&self, offset: usize) -> u16;
    /// Reads four bytes.
    fn read32(&self, offset: usize) -> u32;
    /// Writes one byte.
    fn write8(&self, offset: usize, value: u8);
    /// Writes two bytes.
    fn write16(&self, offset: usize, value: u16);
    /// Writes four bytes.
    fn write32(&self, offset: usize, value: u32);
}
