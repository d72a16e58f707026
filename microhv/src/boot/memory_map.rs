//! Which machine memory is RAM, and which of it is still free, while the hypervisor starts.
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// The most entries of firmware's map that are taken. A BIOS gives about ten, UEFI many more.
pub const FIRMWARE_RANGES: usize = 128;

/// The most separate ranges of free RAM that are followed: each thing set aside may split one.
pub const MAX_RANGES: usize = 32;

/// Bytes of a frame.
const PAGE: u64 = 4096;

/// Machine addresses `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// `bytes` from `start`; ends at the address space's end if that is nearer.
    pub const fn sized(start: u64, bytes: u64) -> Self {
        Self { start, end: start.saturating_add(bytes) }
    }

    /// The range's size in bytes.
    pub const fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// The whole frames within.
    pub const fn inner_pages(self) -> Self {
        Self { start: self.start.saturating_add(PAGE - 1) & !(PAGE - 1), end: self.end & !(PAGE - 1) }
    }

    /// All frames that it touches.
    pub const fn outer_pages(self) -> Self {
        Self { start: self.start & !(PAGE - 1), end: self.end.saturating_add(PAGE - 1) & !(PAGE - 1) }
    }

    /// Whether the range has no byte.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// An entry of the firmware's map as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirmwareRange {
    /// Where the range is.
    pub range: Range,
    /// E820 type: 1 RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS, 5 bad.
    pub kind: u32,
}

/// E820 type of RAM.
const RAM: u32 = 1;

/// Firmware's map and the RAM that is still free. Ranges of `free` are whole frames, sorted, and do not touch.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    firmware: ArrayVec<FirmwareRange, FIRMWARE_RANGES>,
    free: ArrayVec<Range, MAX_RANGES>,
}

impl MemoryMap {
    /// Takes firmware's entries into an empty map. RAM that another entry overlaps is not RAM. Entries too many are left
    /// out.
    pub fn fill(&mut self, entries: impl Iterator<Item = FirmwareRange>) {
        self.firmware.extend(entries.filter(|entry| !entry.range.is_empty()).take(FIRMWARE_RANGES));
        for n in 0..self.firmware.len() {
            if self.firmware[n].kind == RAM {
                self.add(self.firmware[n].range.inner_pages());
            }
        }
        for n in 0..self.firmware.len() {
            if self.firmware[n].kind != RAM {
                self.reserve(self.firmware[n].range);
            }
        }
    }

    /// Whole frames of RAM by firmware's map, in its order.
    pub fn ram(&self) -> impl Iterator<Item = Range> {
        let ram = self.firmware.iter().filter(|entry| entry.kind == RAM);
        ram.map(|entry| entry.range.inner_pages())
    }

    /// Whether firmware calls any of `range` RAM.
    pub fn has_ram(&self, range: Range) -> bool {
        self.ram().any(|ram| ram.start < range.end && range.start < ram.end)
    }

    /// Whether all of `range` is RAM that is not set aside.
    pub fn is_free(&self, range: Range) -> bool {
        self.free.iter().any(|free| free.start <= range.start && range.end <= free.end)
    }

    /// RAM that is not set aside: whole frames, ascending.
    pub fn free(&self) -> &[Range] {
        &self.free
    }

    /// One past the last byte of RAM.
    pub fn ram_end(&self) -> u64 {
        self.ram().map(|range| range.end).max().unwrap_or(0)
    }

    fn add(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        self.free.retain(|old| {
            let apart = old.end < merged.start || merged.end < old.start;
            if !apart {
                merged.start = merged.start.min(old.start);
                merged.end = merged.end.max(old.end);
            }
            apart
        });
        let at = self.free.iter().position(|old| old.start > merged.start).unwrap_or(self.free.len());
        // When full, memory is lost rather than miscounted.
        let _ = self.free.try_insert(at, merged);
    }

    /// Sets every frame that `range` touches aside, since the range is in use.
    #[inline(never)]
    pub fn reserve(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let taken = range.outer_pages();
        let around = |old: Range| {
            let (end, start) = (old.end.min(taken.start), old.start.max(taken.end));
            [Range { start: old.start, end }, Range { start, end: old.end }]
        };
        let parts = self.free.iter().copied().flat_map(around);
        self.free = parts.filter(|part| !part.is_empty()).take(MAX_RANGES).collect();
    }

    /// Sets aside what is in `used`, then all below `low_end`, and takes a page below `page_end` for the start of other CPUs, in which
    /// nothing is used. `None`: there is no such page.
    pub fn set_aside(
        &mut self,
        used: impl Iterator<Item = Range>,
        page_end: u64,
        low_end: u64,
    ) -> Option<u64> {
        used.for_each(|range| self.reserve(range));
        let page = self.take(PAGE, PAGE, page_end);
        self.reserve(Range { start: 0, end: low_end });
        page
    }

    /// Takes `bytes` (rounded up to frames) aligned to `align`, a power of two, from the top of the highest range
    /// below `limit` that has room.
    pub fn take(&mut self, bytes: u64, align: u64, limit: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        let start = self.free.iter().rev().find_map(|range| {
            let start = range.end.min(limit).checked_sub(bytes)? & !(align.max(PAGE) - 1);
            (start >= range.start).then_some(start)
        })?;
        self.reserve(Range::sized(start, bytes));
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled<const N: usize>(entries: [FirmwareRange; N]) -> MemoryMap {
        let mut map = MemoryMap::default();
        map.fill(entries.into_iter());
        map
    }

    fn ram(start: u64, end: u64) -> FirmwareRange {
        FirmwareRange { range: Range { start, end }, kind: 1 }
    }

    fn reserved(start: u64, end: u64) -> FirmwareRange {
        FirmwareRange { range: Range { start, end }, kind: 2 }
    }

    #[test]
    fn partial_frames_are_not_ram() {
        let map = filled([ram(0, 0x9fc00), ram(0x100000, 0x3ffe_0000)]);
        assert_eq!(
            map.free(),
            [Range { start: 0, end: 0x9f000 }, Range { start: 0x100000, end: 0x3ffe_0000 }]
        );
        assert_eq!(map.ram_end(), 0x3ffe_0000);
        let has_ram = |start, end| map.has_ram(Range { start, end });
        assert_eq!([has_ram(0x9f000, 0x100000), has_ram(0x9f000, 0x100001)], [false, true]);
        let is_free = |start, end| map.is_free(Range { start, end });
        assert_eq!([is_free(0x1000, 0x9f000), is_free(0x1000, 0x9f001)], [true, false]);
        assert_eq!([has_ram(0x3ffd_ffff, 1 << 40), has_ram(0x3ffe_0000, 1 << 40)], [true, false]);
    }

    #[test]
    fn reserved_entries_win_over_ram_in_any_order() {
        let map = filled([reserved(0x2800, 0x2900), ram(0, 0x8000)]);
        assert_eq!(map.free(), [Range { start: 0, end: 0x2000 }, Range { start: 0x3000, end: 0x8000 }]);
    }

    #[test]
    fn touching_ranges_become_one() {
        let map = filled([ram(0x4000, 0x8000), ram(0, 0x4000)]);
        assert_eq!(map.free(), [Range { start: 0, end: 0x8000 }]);
    }

    #[test]
    fn the_start_page_lies_in_nothing_that_is_used() {
        let (page_end, low_end) = (0xa_0000, 1 << 20);
        let module = Range { start: 0x8_0800, end: 0xa_0000 };
        let mut map = filled([ram(0, 0xa_0000), ram(0x10_0000, 0x80_0000)]);
        assert_eq!(map.set_aside([module].into_iter(), page_end, low_end), Some(0x7_f000));
        assert_eq!(map.free(), [Range { start: 0x10_0000, end: 0x80_0000 }]);
        let mut map = filled([ram(0, 0xa_0000), ram(0x10_0000, 0x80_0000)]);
        let all = Range { start: 0, end: 0xa_0000 };
        assert_eq!(map.set_aside([all].into_iter(), page_end, low_end), None);
    }

    #[test]
    fn take_is_from_the_top_aligned_and_below_the_limit() {
        let mut map = filled([ram(0, 0x10000), ram(0x20000, 0x40000)]);
        assert_eq!(map.take(1, 0x8000, u64::MAX), Some(0x38000));
        assert_eq!(map.take(0x1000, 1, 0x20000), Some(0xf000));
        assert_eq!(map.take(0x20000, 1, u64::MAX), None);
        assert_eq!(map.take(u64::MAX, 1, u64::MAX), None);
    }

    #[test]
    fn reserving_nothing_or_everything() {
        let mut map = filled([ram(0, 0x10000)]);
        map.reserve(Range { start: 0x4000, end: 0x4000 });
        assert_eq!(map.free().len(), 1);
        map.reserve(Range { start: 0, end: u64::MAX });
        assert!(map.free().is_empty());
    }

    #[test]
    fn ranges_at_the_end_of_the_address_space() {
        let map = filled([ram(u64::MAX - 0x1800, u64::MAX)]);
        assert!(map.free().iter().all(|range| range.start < range.end));
    }
}
