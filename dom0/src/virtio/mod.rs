//! virtio 1.x over PCI: transport, split queue, and the drivers of disks and network cards.
//!
//! A queue takes scatter lists of machine addresses, one page per part, so that a guest's granted frames go to the
//! device as they are. The queue's logic touches no hardware: memory and registers are behind the traits of
//! `hw`, and tests run the logic against a device in memory that checks every descriptor.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS.

mod blk;
#[cfg(test)]
mod fake;
mod net;
mod queue;
mod transport;

use alloc::format;
use alloc::string::{String, ToString};

pub use blk::{BlkError, VirtioBlk, client_bytes};
pub use net::{CARD_PAGES, MAX_VECTORS, NetError, VirtioNet};
pub use queue::{MAX_QUEUE_SIZE, Part, QUEUE_PAGES, Queue, QueueError};
pub use transport::{NO_VECTOR, Regions, Transport, TransportError, find_regions};

use crate::hw::{PciDevice, map_registers};

/// PCI vendor id of every virtio device.
pub const VENDOR: u16 = 0x1af4;
/// PCI device ids of block devices: transitional, and 1.x only.
pub const BLOCK_DEVICES: [u16; 2] = [0x1001, 0x1042];
/// PCI device ids of network cards: transitional, and 1.x only.
pub const NETWORK_DEVICES: [u16; 2] = [0x1000, 0x1041];

/// Maps a device's registers.
///
/// # Errors
/// The device's registers are not where a virtio 1.x device has its own, or the hypervisor's reason.
pub fn transport(device: &PciDevice<'_>) -> Result<Transport, String> {
    let regions = find_regions(device.config(), device.address(), device.bars());
    Transport::new(&regions.map_err(|error| error.to_string())?, map_registers)
        .map_err(|errno| format!("its registers cannot be mapped: {errno}"))
}
