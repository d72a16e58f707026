//! What a device says of itself. Source: ATA Command Set 4, section 7.13 (IDENTIFY DEVICE).

use alloc::boxed::Box;
use alloc::string::String;

use backends::{DiscardLimits, Geometry};

use super::commands::{MOST_REGIONS, TRIM_MOST};

/// Bytes of the answer.
pub(super) const ANSWER_BYTES: usize = 512;

/// The answer, in memory that the device does not reach.
pub(super) struct Answer(pub(super) Box<[u8]>);

/// What the driver needs to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) model: String,
    pub(super) serial: String,
    /// Commands that the device queues; `None`: the device does one at a time.
    pub(super) queue: Option<u16>,
    pub(super) geometry: Geometry,
}

impl Answer {
    fn word(&self, index: usize) -> u16 {
        u16::from_le_bytes([self.0[2 * index], self.0[2 * index + 1]])
    }

    fn double(&self, index: usize) -> u64 {
        u64::from(self.word(index)) | u64::from(self.word(index + 1)) << 16
    }

    /// Text whose characters are swapped in each word. Nothing but plain letters, digits and marks stays.
    fn text(&self, first: usize, words: usize) -> String {
        let bytes = (first..first + words).flat_map(|index| self.word(index).to_be_bytes());
        let text: String =
            bytes.map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }).collect();
        text.trim().into()
    }

    /// Whether word `index`, which says in its upper bits that it means anything, has bit `bit`.
    fn valid(&self, index: usize, bit: u32) -> bool {
        self.word(index) >> 14 == 1 && self.word(index) >> bit & 1 != 0
    }

    /// What the device is like, for an adapter that queues commands or does not.
    ///
    /// # Errors
    /// What the driver cannot use.
    pub(super) fn read(&self, adapter_queues: bool) -> Result<About, &'static str> {
        // Bit 15: no ATA device. 0xffff: nothing answered.
        if self.word(0) >> 15 != 0 || self.word(49) >> 9 & 1 == 0 {
            return Err("kind of addressing");
        }
        if !self.valid(83, 10) {
            return Err("addressing by 28 bits alone");
        }
        let sector_size = if self.valid(106, 12) {
            let words = self.double(117);
            u32::try_from(words.saturating_mul(2)).unwrap_or(0)
        } else {
            512
        };
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err("sector size");
        }
        let sectors = self.double(100) | self.double(102) << 32;
        let per_block = u64::from(sector_size / 512);
        let sectors = sectors.checked_mul(per_block).filter(|sectors| *sectors > 0 && *sectors <= 1 << 48);
        let sectors = sectors.ok_or("capacity")?;
        let exponent = if self.valid(106, 13) { u32::from(self.word(106) & 0xf) } else { 0 };
        let physical_sector_size =
            sector_size.checked_shl(exponent).filter(|size| *size >= sector_size).unwrap_or(sector_size);
        // Sectors of TRIM ranges are the device's own, and so is 512 here.
        let trims = self.word(169) & 1 != 0 && sector_size == 512;
        let discard = DiscardLimits { granularity: 1, alignment: 0, max_sectors: TRIM_MOST as u32 };
        let geometry = Geometry {
            sectors,
            sector_size,
            physical_sector_size,
            read_only: false,
            // A device that can flush has a cache, or does no harm.
            flush: self.valid(83, 13),
            discard: trims.then_some(discard),
            seg_max: MOST_REGIONS,
        };
        let queues = adapter_queues && self.word(76) != 0xffff && self.word(76) >> 8 & 1 != 0;
        Ok(About {
            model: self.text(27, 20),
            serial: self.text(10, 10),
            queue: queues.then(|| (self.word(75) & 0x1f) + 1),
            geometry,
        })
    }
}
