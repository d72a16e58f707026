//! Commands as the adapter reads them: a header in the port's list, which names a table with the frame for the device and
//! the memory. Source: AHCI 1.3.1, section 4.2; ATA Command Set 4; Serial ATA 3.3, section 10.

use crate::blkqueue::Part;

/// Bytes of a slot's table: the frame, and the regions of memory.
pub(super) const TABLE_BYTES: usize = 2048;
/// Where the regions lie in a table, and where a TRIM's ranges lie, which has one region.
const REGIONS: usize = 0x80;
pub(super) const TRIM: usize = 0x200;
/// Most regions of a table.
pub(super) const MOST_REGIONS: usize = (TABLE_BYTES - REGIONS) / 16;
/// Longest region.
pub(super) const REGION_BYTES: u32 = 1 << 20;
/// Most sectors of a command.
pub(super) const MOST_SECTORS: u64 = 1 << 16;

/// Bytes of a block of TRIM ranges, ranges in it, and most sectors of a range.
pub(super) const TRIM_BYTES: u32 = 512;
const TRIM_RANGES: u64 = TRIM_BYTES as u64 / 8;
const TRIM_SECTORS: u64 = 0xffff;
/// Most sectors that a TRIM of one block gives up.
pub(super) const TRIM_MOST: u64 = TRIM_RANGES * TRIM_SECTORS;

const HEADER_WRITES: u32 = 1 << 6;
/// Double words of a frame.
const FRAME_WORDS: u32 = 5;
const FRAME_TYPE: u8 = 0x27;
const FRAME_IS_COMMAND: u8 = 0x80;
const DEVICE_LBA: u8 = 0x40;

pub(super) const IDENTIFY: u8 = 0xec;
const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const READ_QUEUED: u8 = 0x60;
const WRITE_QUEUED: u8 = 0x61;
const FLUSH_CACHE_EXT: u8 = 0xea;
const DATA_SET_MANAGEMENT: u8 = 0x06;
const FEATURE_TRIM: u16 = 1;

/// A command for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    code: u8,
    features: u16,
    block: u64,
    count: u16,
    /// The device reads memory.
    writes: bool,
}

impl Command {
    /// Asks the device what it is like.
    pub(super) const fn identify() -> Self {
        Self { code: IDENTIFY, features: 0, block: 0, count: 0, writes: false }
    }

    /// Reads or writes `blocks` blocks, 1 to 65,536: as queued command `tag`, or alone.
    pub(super) fn transfer(writes: bool, tag: Option<u16>, block: u64, blocks: u64) -> Self {
        let blocks = blocks as u16; // 0 stands for 65,536
        match tag {
            Some(tag) => {
                let code = if writes { WRITE_QUEUED } else { READ_QUEUED };
                Self { code, features: blocks, block, count: tag << 3, writes }
            }
            None => {
                let code = if writes { WRITE_DMA_EXT } else { READ_DMA_EXT };
                Self { code, features: 0, block, count: blocks, writes }
            }
        }
    }

    /// Makes every completed write durable.
    pub(super) const fn flush() -> Self {
        Self { code: FLUSH_CACHE_EXT, features: 0, block: 0, count: 0, writes: false }
    }

    /// Gives up the ranges of one block of memory.
    pub(super) const fn trim() -> Self {
        Self { code: DATA_SET_MANAGEMENT, features: FEATURE_TRIM, block: 0, count: 1, writes: true }
    }

    /// The frame, as three words of 64 bits.
    pub(super) fn frame(&self) -> [u64; 3] {
        let [low0, low1, low2, high0, high1, high2, ..] = self.block.to_le_bytes();
        let [features, features_high] = self.features.to_le_bytes();
        let [count, count_high] = self.count.to_le_bytes();
        let first = [FRAME_TYPE, FRAME_IS_COMMAND, self.code, features, low0, low1, low2, DEVICE_LBA];
        let second = [high0, high1, high2, features_high, count, count_high, 0, 0];
        [u64::from_le_bytes(first), u64::from_le_bytes(second), 0]
    }

    /// The header of a command with `regions` regions of memory, whose table is at `table`.
    pub(super) fn header(&self, regions: usize, table: u64) -> [u64; 4] {
        let writes = if self.writes { HEADER_WRITES } else { 0 };
        [u64::from(FRAME_WORDS | writes | (regions as u32) << 16), table, 0, 0]
    }
}

/// Where region `index` lies in a table.
pub(super) const fn region_at(index: usize) -> usize {
    REGIONS + 16 * index
}

/// A region, of a table: an even number of bytes at an even address.
pub(super) fn region(part: &Part) -> [u64; 2] {
    [part.maddr, u64::from(part.len - 1) << 32]
}

/// The ranges of a TRIM of `sectors` sectors, [`TRIM_MOST`] at most, from `sector` on.
pub(super) fn ranges(sector: u64, sectors: u64) -> [u64; TRIM_RANGES as usize] {
    core::array::from_fn(|index| {
        let done = index as u64 * TRIM_SECTORS;
        match sectors.saturating_sub(done).min(TRIM_SECTORS) {
            0 => 0,
            count => sector + done | count << 48,
        }
    })
}
