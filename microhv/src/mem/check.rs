//! Debug keys of memory: what the frame table counts, and whether a walk of all page tables finds the same.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use crate::Hypervisor;
use crate::frames::info::{PageType, TypeWord, UseWord};
use crate::frames::pte::{self, Pte};
use crate::platform::Platform;

/// Key `m`: what is free, and of each owner how many frames are used as what.
pub(crate) fn memory<P: Platform>(hv: &Hypervisor<P>) {
    let frames = &hv.frames;
    log::info!(
        "memory: {} of {} frames free, {} claimed",
        frames.free_pages(),
        frames.total_pages(),
        frames.claimed()
    );
    let mut owners: BTreeMap<u16, [u32; 10]> = BTreeMap::new();
    for info in (0..frames.end().raw()).filter_map(|mfn| frames.info(Mfn::new(mfn))) {
        let Some(owner) = info.owner() else { continue };
        let counts = owners.entry(owner.raw()).or_default();
        let (page_type, uses) = info.page_type();
        counts[if uses > 0 { page_type as usize } else { PageType::None as usize }] += 1;
        counts[8] += u32::from(info.is_pinned());
        counts[9] += u32::from(info.is_lent());
    }
    for (owner, [none, l1, l2, l3, l4, descriptors, shared, writable, pinned, lent]) in owners {
        log::info!(
            "  d{owner}: L1 {l1} L2 {l2} L3 {l3} L4 {l4} (pinned {pinned}) descriptors {descriptors} writable \
             {writable} other {none}; lent to it {lent}, of them read-only {shared}"
        );
    }
}

/// Key `M`: checks the frame table against all page tables.
pub(crate) fn check<P: Platform>(hv: &Hypervisor<P>) {
    let wrong = hv.check_frames();
    for line in &wrong {
        log::error!("frame table: {line}");
    }
    log::info!("frame table: {} differences", wrong.len());
}

/// References on a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    general: u32,
    typed: u32,
    /// Page types that the references imply, a bit each.
    types: u8,
}

/// What a walk has found.
#[derive(Default)]
struct Walk {
    /// By frame.
    found: BTreeMap<u64, Found>,
    wrong: Vec<String>,
}

impl Walk {
    /// A reference on a frame, with one of the type unless that is `None`.
    fn refer(&mut self, mfn: Mfn, page_type: PageType) {
        let found = self.found.entry(mfn.raw()).or_default();
        found.general += 1;
        if page_type != PageType::None {
            found.typed += 1;
            found.types |= 1 << page_type as u8;
        }
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Compares the frame table with what all page tables, vCPUs, pins, FIFOs of events and grants mapped for devices refer
    /// to, and domains' counts with what they own; a line for each difference. Nothing else may run meanwhile.
    pub fn check_frames(&self) -> Vec<String> {
        let mut walk = Walk::default();
        let mut owned: BTreeMap<u16, u64> = BTreeMap::new();
        for mfn in (0..self.frames.end().raw()).map(Mfn::new) {
            let info = self.frames.held(mfn);
            let (using, kind) = (info.load_use(), info.load_kind());
            let Some(owner) = using.owner() else { continue };
            let found = walk.found.entry(mfn.raw()).or_default();
            found.general += u32::from(using.has(UseWord::ALLOCATED));
            found.typed += u32::from(using.has(UseWord::LENT));
            if !using.has(UseWord::LENT) {
                *owned.entry(owner.raw()).or_default() += 1;
            }
            let level = kind.page_type().level();
            if level > 0 && kind.count() > 0 {
                for flag in [TypeWord::PINNED, TypeWord::PARTIAL] {
                    if kind.has(flag) {
                        walk.refer(mfn, kind.page_type());
                    }
                }
                let held = if kind.has(TypeWord::PARTIAL) { kind.progress() } else { 512 };
                self.find_entries(&mut walk, mfn, level, held);
            }
        }
        for dom in self.domains.snapshot() {
            for vcpu in &dom.vcpus {
                let cpu = vcpu.cpu.lock();
                let bases = [vcpu.cr3_kernel.get(), vcpu.cr3_user.get()].map(|base| (base, PageType::L4));
                let descriptors = cpu.gdt_frames.iter().chain(cpu.ldt_frames.iter());
                let held = descriptors.map(|&mfn| (mfn, PageType::SegDesc)).chain(bases);
                for (mfn, page_type) in held.chain([(vcpu.info_frame.get(), PageType::Writable)]) {
                    mfn.into_iter().for_each(|mfn| walk.refer(mfn, page_type));
                }
            }
            dom.events.visit_fifo_frames(|mfn| walk.refer(mfn, PageType::Writable));
            dom.grants.visit_device_frames(|mfn, writable| {
                walk.refer(mfn, if writable { PageType::Writable } else { PageType::None });
            });
            let owns = owned.remove(&dom.id.raw()).unwrap_or(0);
            if owns != dom.mm.tot_pages() {
                walk.wrong.push(format!("{dom:?} owns {owns} pages, counted {}", dom.mm.tot_pages()));
            }
        }
        let mut wrong = walk.wrong;
        wrong.extend(owned.iter().map(|(id, pages)| format!("{pages} pages of d{id}, which is no more")));
        for (mfn, found) in walk.found {
            let info = self.frames.held(Mfn::new(mfn));
            let (uses, kind) = (info.load_use().count(), info.load_kind());
            let other_types = found.types & !(1 << kind.page_type() as u8);
            if (uses, kind.count()) != (found.general, found.typed) || other_types != 0 || uses == 0 {
                wrong.push(format!("frame {mfn:#x}: {uses} references, type word {:#x}, {found:?}", kind.0));
            }
        }
        wrong
    }

    fn find_entries(&self, walk: &mut Walk, table: Mfn, level: u8, held: usize) {
        for (slot, cell) in self.platform.table(table).iter().enumerate().take(held) {
            let entry = Pte::load(cell);
            if !entry.is_present() || (level == 4 && pte::is_hypervisor_slot(slot)) {
                continue;
            }
            let child = entry.frame();
            if self.frames.info(child).is_none_or(|info| info.owner().is_none()) {
                if level > 1 || self.frames.is_ram(child) {
                    walk.wrong.push(format!("L{level} {table}[{slot}] names {child}, which is nobody's"));
                }
                continue;
            }
            let entry = if level == 1 { self.check_mark(walk, table, slot, entry) } else { entry };
            let page_type = match level {
                1 if entry.has(pte::RW) => PageType::Writable,
                1 => PageType::None,
                _ => PageType::table(level - 1),
            };
            walk.refer(child, page_type);
            if !entry.has(pte::US) {
                walk.wrong.push(format!("L{level} {table}[{slot}] is supervisor"));
            }
        }
    }

    /// What a level 1 entry stands for. In a domain of which frames are tracked, and no round is in work, each table is tracked; a
    /// user's entry has RW only if its frame is dirty in the present generation; and no kernel's or foreign entry is marked.
    fn check_mark(&self, walk: &mut Walk, table: Mfn, slot: usize, entry: Pte) -> Pte {
        let kind = self.frames.held(table).load_kind();
        let owner = self.frames.held(table).owner().and_then(|id| self.domains.get(id));
        let clean = owner.as_ref().and_then(|dom| dom.mm.tracking.clean_at_rest());
        let info = self.frames.held(entry.frame());
        let (using, is_user) = (info.load_use(), !entry.has(pte::GUEST_KERNEL));
        let is_own = owner.is_some_and(|dom| using.is_owned_by(dom.id)) && !using.has(UseWord::LENT);
        let is_tracked = kind.has(TypeWord::TRACKED);
        if let Some(clean) = clean.filter(|_| kind.has(TypeWord::VALIDATED)) {
            if !is_tracked {
                walk.wrong.push(format!("L1 {table} is not tracked"));
            }
            if is_own && is_user && entry.has(pte::RW) && info.load_kind().has(clean) {
                walk.wrong.push(format!("L1 {table}[{slot}] has RW, and its frame is clean"));
            }
        }
        if !is_tracked {
            return entry;
        }
        if entry.has(pte::MARK) && !(is_own && is_user && !entry.has(pte::RW)) {
            walk.wrong.push(format!("L1 {table}[{slot}] is marked: {:#x}", entry.raw()));
        }
        entry.unmarked()
    }
}
