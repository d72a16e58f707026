//! The layout of a new domain's memory: which pseudo-physical frame holds what, and which page tables map it.
//!
//! From the first frame on, mapped from the kernel's base address: kernel, [ramdisk], [P2M list], start_info,
//! xenstore page, console page, page tables (L4, L3, L2, L1), boot stack, and free frames up to a multiple of 4 MiB,
//! at least 512 KiB. Behind that, not in this mapping: [ramdisk], [P2M list and the tables that map it where the
//! kernel wants it].

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Frames are counted from 0 in the domain's own memory.
pub type Pfn = u64;

const PAGE: u64 = 4096;
const ENTRIES: u64 = 512;
/// The mapping ends at a multiple of this.
const END_ALIGN_PAGES: u64 = 1024;
/// Free frames behind the boot stack, if the domain has so many.
const SLACK_PAGES: u64 = 128;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const TABLE_BITS: u64 = P | RW | US | A | D;
const PAGE_BITS: u64 = P | RW | A;
const TABLE_PAGE_BITS: u64 = P | A;
/// Slots of the top table that belong to the hypervisor.
const HYPERVISOR_SLOTS: Range<u64> = 256..272;

/// Why there is no layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The domain has fewer pages than its start-up needs.
    TooSmall {
        /// Pages it takes.
        needed: u64,
        /// Pages it has.
        has: u64,
    },
    /// The kernel wants something at an impossible address.
    Address {
        /// What.
        what: &'static str,
        /// Where.
        va: u64,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { needed, has } => {
                let mib = |pages: &u64| pages.div_ceil(256);
                write!(
                    f,
                    "memory: {} MiB are too small for kernel and ramdisk, which take {} MiB",
                    mib(has),
                    mib(needed)
                )
            }
            Self::Address { what, va } => {
                write!(f, "the kernel wants its {what} at {va:#x}, where it cannot be")
            }
        }
    }
}

/// What the layout must place.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Virtual address of frame 0.
    pub virt_base: u64,
    /// First frame behind the kernel.
    pub kernel_end: Pfn,
    /// Pages of the ramdisk; 0: there is none.
    pub ramdisk_pages: u64,
    /// The ramdisk must be mapped.
    pub map_ramdisk: bool,
    /// Where the kernel wants the P2M list.
    pub init_p2m: Option<u64>,
    /// Pages of the domain.
    pub nr_pages: u64,
}

/// A range of virtual addresses and the frames that it maps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    va: u64,
    frames: Range<Pfn>,
}

/// One page table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    pfn: Pfn,
    /// 1 to 4.
    level: u32,
    /// First address that it maps.
    va: u64,
}

/// A domain's memory at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Virtual address of frame 0.
    pub virt_base: u64,
    /// Pages of the domain.
    pub nr_pages: u64,
    /// Frames of the ramdisk.
    pub ramdisk: Range<Pfn>,
    /// Frames of the P2M list.
    pub p2m: Range<Pfn>,
    /// Where the list is mapped.
    pub p2m_va: u64,
    /// Frames of the list and of the tables for it, when it is not behind the kernel.
    pub p2m_frames: Option<Range<Pfn>>,
    /// Frame of start_info.
    pub start_info: Pfn,
    /// Frame of the xenstore ring.
    pub store: Pfn,
    /// Frame of the console ring.
    pub console: Pfn,
    /// Frames of the page tables, the top one first; not those of `p2m_frames`.
    pub tables: Range<Pfn>,
    /// Frame of the boot stack.
    pub stack: Pfn,
    /// First frame that is not mapped from `virt_base`.
    pub mapped_end: Pfn,
    mappings: Vec<Mapping>,
    all_tables: Vec<Table>,
}

/// Bytes that one entry of a table of this level maps.
const fn entry_span(level: u32) -> u64 {
    PAGE << (9 * (level - 1))
}

/// Tables of `level` that map `pages` pages from `va`.
fn tables_for(va: u64, pages: u64, level: u32) -> u64 {
    if pages == 0 {
        return 0;
    }
    let shift = 12 + 9 * level;
    // The address of the last byte is used, since an end of 2^64 would wrap.
    let last = va + (pages * PAGE - 1);
    (last >> shift) - (va >> shift) + 1
}

/// Tables below the top one that map `pages` pages from `va`.
fn lower_tables(va: u64, pages: u64) -> u64 {
    (1..=3).map(|level| tables_for(va, pages, level)).sum()
}

/// Whether all `pages` pages from `va` are outside the hypervisor's slots and canonical.
fn is_guest_range(va: u64, pages: u64) -> bool {
    let Some(last) = (pages.max(1) * PAGE - 1).checked_add(va) else { return false };
    let slot = |va: u64| va >> 39 & 511;
    let canonical = |va: u64| va >> 47 == 0 || va >> 47 == 0x1ffff;
    let (first_slot, last_slot) = (slot(va), slot(last));
    canonical(va)
        && canonical(last)
        && va >> 47 == last >> 47
        && (last_slot < HYPERVISOR_SLOTS.start || first_slot >= HYPERVISOR_SLOTS.end)
}

impl Layout {
    /// Finds a place for everything.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(parts: &Parts) -> Result<Self, LayoutError> {
        let base = parts.virt_base;
        let mut next = parts.kernel_end;
        let mut take = |pages: u64| {
            let start = next;
            next += pages;
            start..next
        };
        let p2m_pages = (parts.nr_pages * 8).div_ceil(PAGE);
        let mut ramdisk = 0..0;
        if parts.map_ramdisk {
            ramdisk = take(parts.ramdisk_pages);
        }
        let mut p2m = 0..0;
        if parts.init_p2m.is_none() {
            p2m = take(p2m_pages);
        }
        let start_info = take(1).start;
        let store = take(1).start;
        let console = take(1).start;
        let tables_start = next;
        let (tables, mapped_end) = Self::table_count(base, tables_start, parts.nr_pages)?;
        let tables = tables_start..tables_start + tables;
        let stack = tables.end;

        let mut next = mapped_end;
        let mut take = |pages: u64| {
            let start = next;
            next += pages;
            start..next
        };
        if !parts.map_ramdisk {
            ramdisk = take(parts.ramdisk_pages);
        }
        let mut mappings = alloc::vec![Mapping { va: base, frames: 0..mapped_end }];
        let mut p2m_frames = None;
        let mut p2m_va = base.wrapping_add(p2m.start * PAGE);
        if let Some(va) = parts.init_p2m {
            if !is_guest_range(va, p2m_pages) || tops_meet(&mappings[0], va, p2m_pages) {
                return Err(LayoutError::Address { what: "P2M list", va });
            }
            p2m = take(p2m_pages);
            let tables = take(lower_tables(va, p2m_pages));
            p2m_frames = Some(p2m.start..tables.end);
            p2m_va = va;
            mappings.push(Mapping { va, frames: p2m.clone() });
        }
        if next > parts.nr_pages {
            return Err(LayoutError::TooSmall { needed: next, has: parts.nr_pages });
        }
        let mut layout = Self {
            virt_base: base,
            nr_pages: parts.nr_pages,
            ramdisk,
            p2m,
            p2m_va,
            p2m_frames,
            start_info,
            store,
            console,
            tables,
            stack,
            mapped_end,
            mappings,
            all_tables: Vec::new(),
        };
        layout.place_tables();
        Ok(layout)
    }

    /// How many tables the mapping from `base` needs if the first table is at `start`, and where the mapping
    /// ends.
    fn table_count(base: u64, start: Pfn, nr_pages: u64) -> Result<(u64, Pfn), LayoutError> {
        let mut tables = 4;
        loop {
            // The boot stack comes behind the tables.
            let used = start + tables + 1;
            if used > nr_pages {
                return Err(LayoutError::TooSmall { needed: used, has: nr_pages });
            }
            let end = (used + SLACK_PAGES).next_multiple_of(END_ALIGN_PAGES).min(nr_pages);
            if !is_guest_range(base, end) {
                return Err(LayoutError::Address { what: "image", va: base });
            }
            let needed = 1 + lower_tables(base, end);
            if needed <= tables {
                return Ok((tables, end));
            }
            tables = needed;
        }
    }

    fn place_tables(&mut self) {
        let mut all = Vec::new();
        for (index, mapping) in self.mappings.iter().enumerate() {
            let mut pfn = match index {
                0 => {
                    all.push(Table { pfn: self.tables.start, level: 4, va: 0 });
                    self.tables.start + 1
                }
                _ => self.p2m.end,
            };
            let pages = mapping.frames.end - mapping.frames.start;
            for level in [3, 2, 1] {
                let span = entry_span(level + 1);
                let first = mapping.va & !(span - 1);
                for table in 0..tables_for(mapping.va, pages, level) {
                    all.push(Table { pfn, level, va: first.wrapping_add(table * span) });
                    pfn += 1;
                }
            }
        }
        self.all_tables = all;
    }

    /// The virtual address of a frame in the mapping from `virt_base`.
    pub fn va(&self, pfn: Pfn) -> u64 {
        self.virt_base.wrapping_add(pfn * PAGE)
    }

    /// The frames of the lowest page tables.
    pub fn lowest_tables(&self) -> impl Iterator<Item = Pfn> + '_ {
        self.all_tables.iter().filter(|table| table.level == 1).map(|table| table.pfn)
    }

    /// All page tables: the frame, and its entries. `mfn` gives the machine frame of a frame.
    pub fn page_tables<'a>(
        &'a self,
        mfn: impl Fn(Pfn) -> u64 + Copy + 'a,
    ) -> impl Iterator<Item = (Pfn, [u64; ENTRIES as usize])> + 'a {
        self.all_tables.iter().map(move |table| (table.pfn, self.entries(table, mfn)))
    }

    fn entries(&self, table: &Table, mfn: impl Fn(Pfn) -> u64 + Copy) -> [u64; ENTRIES as usize] {
        let mut entries = [0; ENTRIES as usize];
        if table.level == 1 {
            for mapping in &self.mappings {
                let offset = table.va.wrapping_sub(mapping.va) / PAGE;
                for (index, entry) in entries.iter_mut().enumerate() {
                    // A table's range may begin below its mapping.
                    let at = if table.va >= mapping.va {
                        offset + index as u64
                    } else {
                        match (index as u64).checked_sub((mapping.va - table.va) / PAGE) {
                            Some(at) => at,
                            None => continue,
                        }
                    };
                    let pfn = mapping.frames.start.saturating_add(at);
                    if mapping.frames.contains(&pfn) {
                        *entry = mfn(pfn) << 12 | self.page_bits(pfn);
                    }
                }
            }
            return entries;
        }
        let span = entry_span(table.level);
        for child in self.all_tables.iter().filter(|child| child.level + 1 == table.level) {
            let below = match table.level {
                4 => Some(child.va >> 39 & (ENTRIES - 1)),
                _ => child
                    .va
                    .checked_sub(table.va)
                    .map(|offset| offset / span)
                    .filter(|&index| index < ENTRIES),
            };
            if let Some(index) = below {
                entries[index as usize] = mfn(child.pfn) << 12 | TABLE_BITS;
            }
        }
        entries
    }

    /// Page tables are mapped read-only.
    fn page_bits(&self, pfn: Pfn) -> u64 {
        if self.tables.contains(&pfn) { TABLE_PAGE_BITS } else { PAGE_BITS }
    }
}

/// Whether both ranges share an entry of the top table.
fn tops_meet(mapping: &Mapping, va: u64, pages: u64) -> bool {
    let slots = |va: u64, pages: u64| (va >> 39, (va + (pages.max(1) * PAGE - 1)) >> 39);
    let (first, last) = slots(mapping.va, mapping.frames.end);
    let (other_first, other_last) = slots(va, pages);
    first <= other_last && other_first <= last
}
