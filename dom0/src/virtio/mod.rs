//! virtio 1.x over PCI: transport, split queue, and the drivers of disks and network cards.
//!
//! A queue takes scatter lists of machine addresses, one page per part, so that a guest's granted frames go to the
//! device as they are. The queue's logic touches no hardware: memory and registers are behind [`Dma`] and
//! [`Registers`], and tests run the logic against a device in memory that checks every descriptor.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS.

mod blk;
#[cfg(test)]
mod fake;
mod net;
mod pv;
mod queue;
mod transport;

use core::future::{Future, poll_fn};
use core::task::{Context, Poll};

pub use blk::{BlkError, VirtioBlk, client_bytes};
pub use net::{CARD_PAGES, MAX_VECTORS, NetError, VirtioNet};
pub use pv::{KernelMemory, KernelPages, Msix, PciDevice, PciPorts, config_space, map_registers};
pub use queue::{MAX_QUEUE_SIZE, Part, QUEUE_PAGES, Queue, QueueError};
pub use transport::{NO_VECTOR, Region, Regions, Transport, TransportError, find_regions};

/// PCI vendor id of every virtio device.
pub const VENDOR: u16 = 0x1af4;
/// PCI device ids of block devices: transitional, and 1.x only.
pub const BLOCK_DEVICES: [u16; 2] = [0x1001, 0x1042];
/// PCI device ids of network cards: transitional, and 1.x only.
pub const NETWORK_DEVICES: [u16; 2] = [0x1000, 0x1041];

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
