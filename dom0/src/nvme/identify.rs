//! What a controller and a namespace say of themselves. Source: NVM Express NVM Command Set Specification 1.0, section 4.1.5;
//! Base Specification 2.0, section 5.17.

use alloc::boxed::Box;
use alloc::string::String;

use backends::{DiscardLimits, Geometry};
use ring_abi::types::PAGE_SIZE;

use super::prp::{LIST_ENTRIES, MOST_BYTES};
use crate::blkqueue::SECTOR;

/// Bytes of every answer.
pub(super) const ANSWER_BYTES: usize = 4096;

const PAGE: u64 = PAGE_SIZE as u64;

/// An answer of the controller, in memory that the controller does not reach.
pub(super) struct Answer(pub(super) Box<[u8]>);

impl Answer {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn number<const N: usize>(&self, at: usize) -> u64 {
        let bytes = &self.0[at..at + N];
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Text in a field with spaces behind it. Nothing but plain letters, digits and marks stays.
    fn text(&self, at: usize, len: usize) -> String {
        let bytes = self.0[at..at + len].iter().take_while(|byte| **byte != 0);
        let text: String =
            bytes.map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }).collect();
        text.trim().into()
    }
}

/// What the driver needs to know of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub(super) serial: String,
    pub(super) model: String,
    /// Most bytes of a command.
    pub(super) most_bytes: u64,
    /// The controller understands Dataset Management.
    deallocates: bool,
    /// The controller has a volatile write cache.
    cache: bool,
}

impl Controller {
    pub(super) fn read(answer: &Answer) -> Self {
        let most_bytes = match answer.byte(77) {
            0 => MOST_BYTES,
            exponent => PAGE.checked_shl(exponent.into()).filter(|bytes| *bytes != 0).unwrap_or(MOST_BYTES),
        };
        Self {
            serial: answer.text(4, 20),
            model: answer.text(24, 40),
            most_bytes: most_bytes.min(MOST_BYTES),
            deallocates: answer.number::<2>(520) & 1 << 2 != 0,
            cache: answer.byte(525) & 1 != 0,
        }
    }
}

/// Most blocks of a range of Dataset Management, from what the NVM command set's own answer says.
pub(super) fn most_deallocated(answer: &Answer) -> u32 {
    match answer.number::<4>(4) as u32 {
        0 => u32::MAX,
        blocks => blocks,
    }
}

/// The numbers of the namespaces that are there: the first one, and how many more.
pub(super) fn namespaces(answer: &Answer) -> Option<(u32, usize)> {
    let numbers = || (0..ANSWER_BYTES / 4).map(|index| answer.number::<4>(4 * index) as u32);
    let first = numbers().next().filter(|first| *first != 0)?;
    Some((first, numbers().take_while(|number| *number != 0).count() - 1))
}

/// What namespace `answer` of `controller` is like. `blocks` is the most that one range of Dataset Management has.
///
/// # Errors
/// What the driver cannot use.
pub(super) fn geometry(
    controller: &Controller,
    answer: &Answer,
    blocks: u32,
) -> Result<Geometry, &'static str> {
    let format = usize::from(answer.byte(26) & 0xf);
    let entry = 128 + 4 * format;
    if answer.number::<2>(entry) != 0 {
        return Err("metadata with each block");
    }
    let shift = answer.byte(entry + 2);
    if !(9..=12).contains(&shift) {
        return Err("block size");
    }
    let sectors = answer.number::<8>(0).checked_shl(u32::from(shift) - 9);
    let sectors = sectors.filter(|sectors| *sectors > 0 && *sectors < 1 << 53).ok_or("capacity")?;
    let per_block = 1u32 << (shift - 9);
    let preferred = answer.byte(24) & 1 << 4 != 0;
    // Blocks that are best written together, and given up together; each is counted from 0.
    let group = |at: usize| if preferred { answer.number::<2>(at) as u32 + 1 } else { 1 };
    let discard = DiscardLimits {
        granularity: group(68).saturating_mul(per_block),
        alignment: 0,
        max_sectors: blocks.saturating_mul(per_block) / per_block * per_block,
    };
    let sector_size = 1 << shift;
    let physical = group(64).saturating_mul(sector_size);
    Ok(Geometry {
        sectors,
        sector_size,
        physical_sector_size: if physical.is_power_of_two() { physical } else { sector_size },
        read_only: answer.byte(99) & 1 != 0,
        flush: controller.cache,
        discard: controller.deallocates.then_some(discard),
        seg_max: LIST_ENTRIES.min((controller.most_bytes / PAGE) as usize).max(1),
    })
}

const _: () = assert!(PAGE.is_multiple_of(SECTOR));
