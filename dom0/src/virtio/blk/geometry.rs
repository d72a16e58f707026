//! Reads what the device's registers say of the disk.

use backends::{DiscardLimits, Geometry};
use ring_abi::types::PAGE_SIZE;

use super::BlkError;
use super::requests::{PART_MAX, TABLE_ENTRIES};
use crate::virtio::transport::Transport;

const SECTOR: u32 = 512;
const PAGE: u32 = PAGE_SIZE as u32;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;

/// The disk's features that the driver knows.
pub(super) const FEATURES: u64 =
    F_SIZE_MAX | F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_DISCARD;

/// Offsets in the device's registers.
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
}

/// Reads what the disk is like. The second result is the size of the largest part of a request.
pub(super) fn read(transport: &Transport, features: u64, queue: u16) -> Result<(Geometry, u32), BlkError> {
    let has = |feature: u64| features & feature != 0;
    transport.read_device(|device| {
        let sector_size = if has(F_BLK_SIZE) { device.read32(config::BLK_SIZE) } else { SECTOR };
        if !sector_size.is_power_of_two() || !(SECTOR..=PAGE).contains(&sector_size) {
            return Err(BlkError::BadGeometry("block size"));
        }
        let exponent = if has(F_TOPOLOGY) { device.read8(config::PHYSICAL_BLOCK_EXP) } else { 0 };
        let physical_sector_size = sector_size
            .checked_shl(exponent.into())
            .filter(|size| *size >= sector_size)
            .unwrap_or(sector_size);
        // The limit is a multiple of a sector, so that each piece of a segment that is cut is whole sectors.
        let size_max = if has(F_SIZE_MAX) { device.read32(config::SIZE_MAX) } else { u32::MAX };
        let part_max = (size_max.min(PART_MAX) / SECTOR) * SECTOR;
        let size_max = part_max.min(PAGE);
        if size_max == 0 {
            return Err(BlkError::BadGeometry("segment size limit"));
        }
        let pieces = (PAGE).div_ceil(size_max) as usize;
        // Header and status take a descriptor each, and a chain is no longer than the queue.
        let fit = usize::from(queue).min(TABLE_ENTRIES).saturating_sub(2);
        let seg_max = if has(F_SEG_MAX) { device.read32(config::SEG_MAX) as usize } else { 1 };
        let seg_max = seg_max.min(fit) / pieces;
        if seg_max == 0 {
            return Err(BlkError::BadGeometry("number of segments"));
        }
        let max_discard = device.read32(config::MAX_DISCARD_SECTORS);
        let discard = (has(F_DISCARD) && max_discard > 0).then(|| DiscardLimits {
            granularity: device.read32(config::DISCARD_SECTOR_ALIGNMENT).max(sector_size / SECTOR),
            alignment: 0,
            max_sectors: max_discard,
        });
        let geometry = Geometry {
            sectors: device.read64(config::CAPACITY),
            sector_size,
            physical_sector_size,
            read_only: has(F_RO),
            flush: has(F_FLUSH),
            discard,
            seg_max,
        };
        Ok((geometry, part_max))
    })
}
