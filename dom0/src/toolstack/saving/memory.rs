//! Where a guest's memory is: its list of machine frames, as the guest keeps it. Nothing that a guest says is believed: a frame counts
//! as the guest's only if the hypervisor says so.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::hypercall::memory;
use pvrt::mem::{ForeignMap, m2p, map_foreign};
use pvrt::yield_now;
use ring_abi::pte::{FRAME, P, PSE};
use ring_abi::shared_info::ArchSharedInfo;
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};

use super::bits::Bits;

/// Words of a page.
const WORDS: usize = PAGE_SIZE / 8;
/// Entries above are no frame: frames that the guest lacks, maps of others, or has by another name.
const FRAMES_END: u64 = 1 << 40;
/// List pages between two turns of other tasks.
const PAGES_AT_A_TIME: usize = 16;

/// A guest's list of machine frames.
#[derive(Debug)]
pub(super) struct P2m {
    /// Machine frame of each pseudo-physical one; `u64::MAX`: none.
    mfns: Vec<u64>,
    /// The pseudo-physical frames of the list's own pages.
    pub(super) list: Vec<u64>,
    /// The machine frames of these pages.
    list_mfns: Vec<Mfn>,
    /// Where the guest says that the list is, and which one it is.
    place: Place,
    /// The machine's last frame.
    last_frame: u64,
}

/// What a guest says of its list. The list's pages are the same as long as this is.
type Place = (u64, u64, u64, u64, u64);

fn place(arch: &ArchSharedInfo) -> Place {
    (arch.max_pfn, arch.p2m_cr3, arch.p2m_vaddr, arch.p2m_generation, arch.pfn_to_mfn_frame_list_list)
}

impl P2m {
    /// Reads the list of a guest, which `arch` of its `shared_info` names, if the list has no more than `most` entries.
    pub(super) async fn read(dom: DomId, most: u64, arch: &ArchSharedInfo) -> Result<Self, String> {
        let count = arch.max_pfn;
        if count == 0 || count > most {
            return Err(format!("its P2M list has {count:#x} entries, not 1 to {most:#x}"));
        }
        let mut mfns = Vec::new();
        let pages = count.div_ceil(WORDS as u64);
        let no_room = |_| format!("no memory for its P2M list of {count} entries");
        mfns.try_reserve_exact((pages as usize) * WORDS).map_err(no_room)?;
        let last_frame = memory::maximum_ram_page().map_err(|errno| format!("maximum_ram_page: {errno}"))?;
        let mut list = Vec::with_capacity(pages as usize);
        let mut finder = Finder::new(dom, arch)?;
        for index in 0..pages {
            let frame = finder.page(index)?;
            let map = map_one(dom, frame, "a page of its P2M list")?;
            let page = map.page(0);
            mfns.extend((0..WORDS).map(|slot| page.load_u64(slot * 8)));
            list.push(frame);
            if list.len().is_multiple_of(PAGES_AT_A_TIME) {
                yield_now().await;
            }
        }
        mfns.truncate(count as usize);
        mfns.iter_mut().for_each(|mfn| *mfn = known(*mfn, last_frame));
        let mut read = Self { mfns, list: Vec::new(), list_mfns: list, place: place(arch), last_frame };
        let pfn_of = |mfn: &Mfn| {
            read.pfn(mfn.raw())
                .ok_or_else(|| format!("its P2M list lies in frame {mfn}, which is not its own"))
        };
        let list: Result<Vec<u64>, String> = read.list_mfns.iter().map(pfn_of).collect();
        read.list = list?;
        Ok(read)
    }

    /// Reads anew what may have changed since the list was read, if the guest has written no frames but `written` since. The frames
    /// that lie elsewhere now, or nowhere, go into `moved`. True: the list's own pages are others.
    pub(super) async fn update(
        &mut self,
        dom: DomId,
        most: u64,
        arch: &ArchSharedInfo,
        written: &Bits,
        moved: &mut Bits,
    ) -> Result<bool, String> {
        if place(arch) != self.place {
            let new = Self::read(dom, most, arch).await?;
            let count = self.count().max(new.count());
            (0..count).filter(|pfn| self.mfn(*pfn) != new.mfn(*pfn)).for_each(|pfn| moved.insert(pfn));
            let is_other = new.list != self.list || new.count() != self.count();
            *self = new;
            return Ok(is_other);
        }
        for (index, _) in self.list.iter().enumerate().filter(|(_, pfn)| written.has(**pfn)) {
            let map = map_one(dom, self.list_mfns[index], "a page of its P2M list")?;
            let entries = self.mfns[index * WORDS..].iter_mut().take(WORDS).enumerate();
            for (slot, mfn) in entries {
                let new = known(map.page(0).load_u64(slot * 8), self.last_frame);
                if core::mem::replace(mfn, new) != new {
                    moved.insert((index * WORDS + slot) as u64);
                }
            }
            if index.is_multiple_of(PAGES_AT_A_TIME) {
                yield_now().await;
            }
        }
        Ok(false)
    }

    /// Entries of the list.
    pub(super) fn count(&self) -> u64 {
        self.mfns.len() as u64
    }

    /// The machine frame of a pseudo-physical one.
    pub(super) fn mfn(&self, pfn: u64) -> Option<u64> {
        let pfn = usize::try_from(pfn).ok()?;
        self.mfns.get(pfn).copied().filter(|mfn| *mfn != u64::MAX)
    }

    /// The pseudo-physical frame of a machine frame, if both tables say the same.
    pub(super) fn pfn(&self, mfn: u64) -> Option<u64> {
        if mfn > self.last_frame {
            return None;
        }
        let pfn = m2p(Mfn::new(mfn));
        (self.mfn(pfn) == Some(mfn)).then_some(pfn)
    }
}

/// An entry as [`P2m`] keeps it.
fn known(entry: u64, last_frame: u64) -> u64 {
    if entry < FRAMES_END && entry <= last_frame { entry } else { u64::MAX }
}

fn map_one(dom: DomId, frame: Mfn, what: &str) -> Result<ForeignMap, String> {
    map_foreign(dom, &[frame], false).map_err(|error| format!("{what}, frame {frame}: {}", error.errno))
}

/// Finds the pages of a list.
enum Finder {
    /// By the guest's own page tables: the top table, the list's address, and the tables that were looked at last, of level 4 to 1.
    Tables { dom: DomId, top: Mfn, va: u64, seen: [Option<(Mfn, ForeignMap)>; 4] },
    /// By a list of lists of the pages.
    Lists { dom: DomId, lists: ForeignMap, seen: Option<(u64, ForeignMap)> },
}

impl Finder {
    fn new(dom: DomId, arch: &ArchSharedInfo) -> Result<Self, String> {
        if arch.p2m_cr3 != 0 {
            if !arch.p2m_generation.is_multiple_of(2) {
                return Err("it was changing its P2M list".into());
            }
            let (top, va) = (Mfn::new(arch.p2m_cr3 >> 12), arch.p2m_vaddr);
            return Ok(Self::Tables { dom, top, va, seen: [const { None }; 4] });
        }
        let frame = arch.pfn_to_mfn_frame_list_list;
        if frame == 0 || frame >= FRAMES_END {
            return Err("it names no P2M list: does its kernel know how to be saved?".into());
        }
        let lists = map_one(dom, Mfn::new(frame), "the list of its P2M lists")?;
        Ok(Self::Lists { dom, lists, seen: None })
    }

    /// The machine frame of the list's page `index`.
    fn page(&mut self, index: u64) -> Result<Mfn, String> {
        match self {
            Self::Tables { dom, top, va, seen } => {
                let at = va.wrapping_add(index * PAGE_SIZE as u64);
                let mut table = *top;
                for (step, seen) in seen.iter_mut().enumerate() {
                    let slot = (at >> (39 - 9 * step) & 511) as usize;
                    let known = seen.take().filter(|(mfn, _)| *mfn == table);
                    let (_, map) = match known {
                        Some(known) => seen.insert(known),
                        None => seen.insert((table, map_one(*dom, table, "a page table of its P2M list")?)),
                    };
                    let entry = map.page(0).load_u64(slot * 8);
                    if entry & P == 0 || (step < 3 && entry & PSE != 0) {
                        return Err(format!("its P2M list is not mapped at {at:#x}"));
                    }
                    table = Mfn::new((entry & FRAME) >> 12);
                }
                Ok(table)
            }
            Self::Lists { dom, lists, seen } => {
                let (list, slot) = (index / WORDS as u64, (index % WORDS as u64) as usize);
                if list >= WORDS as u64 {
                    return Err("its P2M list is longer than its lists".into());
                }
                let known = seen.take().filter(|(number, _)| *number == list);
                let (_, map) = match known {
                    Some(known) => seen.insert(known),
                    None => {
                        let frame = Mfn::new(lists.page(0).load_u64(list as usize * 8));
                        seen.insert((list, map_one(*dom, frame, "a list of its P2M list's pages")?))
                    }
                };
                Ok(Mfn::new(map.page(0).load_u64(slot * 8)))
            }
        }
    }
}
