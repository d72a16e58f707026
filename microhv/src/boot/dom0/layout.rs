//! Where everything of dom0 is, in pages from the kernel's base.

use core::ops::Range;

use ring_abi::types::{GuestVa, Pfn};

use super::{Dom0Error, PAGE};
use crate::boot::kernel_image::KernelImage;

/// The mapped run ends on such a boundary.
const MAP_ALIGN: u64 = 4 << 20;
/// Room behind the boot stack, at least.
const MAP_SLACK: u64 = 512 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) nr_pages: u64,
    pub(super) ramdisk: Pfn,
    pub(super) ramdisk_pages: u64,
    pub(super) p2m: Pfn,
    pub(super) p2m_pages: u64,
    pub(super) start_info: Pfn,
    pub(super) tables: Range<Pfn>,
    pub(super) stack: Pfn,
    /// End of the mapped run.
    pub(super) mapped: u64,
    /// Tables of a P2M list that is wanted elsewhere, behind the list.
    pub(super) p2m_tables: Range<Pfn>,
}

impl Layout {
    /// Whether the page `pfn` is a page table.
    pub(super) fn is_table(&self, pfn: Pfn) -> bool {
        self.tables.contains(&pfn) || self.p2m_tables.contains(&pfn)
    }

    /// Plans a dom0 of `memory_pages` and the ramdisk's.
    ///
    /// # Errors
    /// `TooSmall`: all of that does not fit.
    pub(super) fn new(
        image: &KernelImage<'_>,
        memory_pages: u64,
        ramdisk_pages: u64,
    ) -> Result<Self, Dom0Error> {
        let nr_pages = memory_pages + ramdisk_pages;
        // The list takes whole pages, since Linux writes up to the end of the last one.
        let p2m_pages = (nr_pages * 8).div_ceil(PAGE);
        let mut next = image.end.bytes_from(image.virt_base).div_ceil(PAGE);
        let mut place = |pages: u64| {
            next += pages;
            next - pages
        };
        let ramdisk = if image.mod_start_pfn { nr_pages - ramdisk_pages } else { place(ramdisk_pages) };
        let mapped_p2m = if image.init_p2m.is_none() { place(p2m_pages) } else { 0 };
        let start_info = place(1);
        // The tables map themselves too: their number is found by trying.
        let mut nr_tables = 1;
        let (stack, mapped) = loop {
            let stack = next + nr_tables;
            let used = (stack + 1) * PAGE;
            let end = image.virt_base.wrapping_add(used + MAP_SLACK - 1).raw() & !(MAP_ALIGN - 1);
            let bytes = end.wrapping_add(MAP_ALIGN).wrapping_sub(image.virt_base.raw());
            let needed = 1 + tables_below_l4(image.virt_base, bytes);
            if needed <= nr_tables {
                break (stack, bytes / PAGE);
            }
            nr_tables = needed;
        };
        let (p2m, p2m_tables) = match image.init_p2m {
            None => (mapped_p2m, mapped..mapped),
            Some(va) => {
                let tables = mapped + p2m_pages;
                (mapped, tables..tables + tables_below_l4(va, p2m_pages * PAGE))
            }
        };
        let needed = p2m_tables.end + if image.mod_start_pfn { ramdisk_pages } else { 0 };
        if needed > nr_pages {
            return Err(Dom0Error::TooSmall((needed - ramdisk_pages) * PAGE / 1024));
        }
        Ok(Self {
            nr_pages,
            ramdisk: Pfn::new(ramdisk),
            ramdisk_pages,
            p2m: Pfn::new(p2m),
            p2m_pages,
            start_info: Pfn::new(start_info),
            tables: Pfn::new(next)..Pfn::new(stack),
            stack: Pfn::new(stack),
            mapped,
            p2m_tables: Pfn::new(p2m_tables.start)..Pfn::new(p2m_tables.end),
        })
    }
}

/// Tables of levels 1 to 3 that cover `bytes` at `va`.
fn tables_below_l4(va: GuestVa, bytes: u64) -> u64 {
    let (first, last) = (va.raw(), va.wrapping_add(bytes.max(1) - 1).raw());
    let tables_of = |shift: u32| (last >> shift).wrapping_sub(first >> shift).wrapping_add(1);
    [21, 30, 39].map(tables_of).iter().sum()
}
