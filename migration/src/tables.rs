//! Page tables in a stream name frames as the guest numbers them, since machine frames mean nothing on another machine.

use ring_abi::pte::{FRAME, P, PSE};

/// Entries of a page table.
pub const ENTRIES: usize = 512;
/// The slots of a level 4 table that are the hypervisor's.
const HYPERVISOR_SLOTS: core::ops::RangeInclusive<usize> = 256..=271;
const PAGE_SHIFT: u32 = 12;

/// What is wrong with a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The slot's entry maps a large page.
    Large(usize),
    /// The slot's entry names a frame that is none of the guest's.
    Foreign(usize, u64),
}

impl core::fmt::Display for TableError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Large(slot) => write!(f, "entry {slot} maps a large page"),
            Self::Foreign(slot, frame) => {
                write!(f, "entry {slot} names frame {frame:#x}, which is not the domain's")
            }
        }
    }
}

/// Replaces, in a table of `level`, each present entry's frame by what `number` gives. Entries that are not present hold what the
/// guest likes, and stay.
fn convert(
    level: u8,
    table: &mut [u64; ENTRIES],
    mut number: impl FnMut(u64) -> Option<u64>,
) -> Result<(), TableError> {
    for (slot, entry) in table.iter_mut().enumerate() {
        if *entry & P == 0 || (level == 4 && HYPERVISOR_SLOTS.contains(&slot)) {
            continue;
        }
        if level > 1 && *entry & PSE != 0 {
            return Err(TableError::Large(slot));
        }
        let frame = (*entry & FRAME) >> PAGE_SHIFT;
        let new = number(frame).ok_or(TableError::Foreign(slot, frame))?;
        *entry = *entry & !FRAME | new << PAGE_SHIFT & FRAME;
    }
    Ok(())
}

/// Makes a table of machine frames one of the guest's frame numbers, which `pfn` gives. The hypervisor's slots become 0.
///
/// # Errors
/// See [`TableError`].
pub fn canonicalise(
    level: u8,
    table: &mut [u64; ENTRIES],
    pfn: impl FnMut(u64) -> Option<u64>,
) -> Result<(), TableError> {
    if level == 4 {
        table[HYPERVISOR_SLOTS].fill(0);
    }
    convert(level, table, pfn)
}

/// Makes a table of the guest's frame numbers one of machine frames, which `mfn` gives.
///
/// # Errors
/// See [`TableError`].
pub fn localise(
    level: u8,
    table: &mut [u64; ENTRIES],
    mfn: impl FnMut(u64) -> Option<u64>,
) -> Result<(), TableError> {
    if level == 4 {
        table[HYPERVISOR_SLOTS].fill(0);
    }
    convert(level, table, mfn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring_abi::pte::{NX, RW, US};

    #[test]
    fn there_and_back_is_the_same_table() {
        let mut table = [0; ENTRIES];
        for (slot, entry) in table.iter_mut().enumerate() {
            *entry = match slot % 3 {
                0 => (slot as u64 + 100) << 12 | P | RW | US | NX | 1 << 52 | 1 << 9,
                1 => (slot as u64) << 12 | 0x6e0, // not present: the guest's
                _ => 0,
            };
        }
        for level in 1..=4 {
            let mut moved = table;
            canonicalise(level, &mut moved, |mfn| mfn.checked_sub(100)).unwrap();
            assert_eq!(moved[258] == 0, level == 4, "a slot of the hypervisor's");
            assert_eq!(moved[3], 3 << 12 | P | RW | US | NX | 1 << 52 | 1 << 9);
            assert_eq!(moved[1], table[1]);
            localise(level, &mut moved, |pfn| Some(pfn + 100)).unwrap();
            let ours = |slot| level == 4 && HYPERVISOR_SLOTS.contains(&slot);
            for slot in 0..ENTRIES {
                assert_eq!(moved[slot], if ours(slot) { 0 } else { table[slot] }, "level {level}, {slot}");
            }
        }
    }

    #[test]
    fn what_is_not_the_guests_is_refused() {
        let mut table = [0; ENTRIES];
        table[7] = 5 << 12 | P;
        assert_eq!(canonicalise(1, &mut table, |_| None), Err(TableError::Foreign(7, 5)));
        table[7] |= PSE;
        assert_eq!(canonicalise(2, &mut table, Some), Err(TableError::Large(7)));
        assert_eq!(canonicalise(1, &mut table, Some), Ok(()), "at level 1 the bit is the memory type's");
        table = [0; ENTRIES];
        table[260] = 5 << 12 | P;
        assert_eq!(canonicalise(4, &mut table, |_| None), Ok(()), "the hypervisor's slots are not looked at");
        assert_eq!(table[260], 0);
    }
}
