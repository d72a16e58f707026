//! The invariants of the frame table: what a walk of all page tables finds must be what the frame table counts.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use crate::Hypervisor;
use crate::frames::info::{PageType, TypeWord, UseWord};
use crate::frames::pte::{self, Pte};
use crate::platform::Platform;

/// References that somebody other than the page tables, vCPUs and pins holds: grant mappings for device access,
/// registered `vcpu_info`s. By frame: general, type.
pub type Extra = BTreeMap<u64, (u32, u32)>;

#[derive(Default, Clone, Copy)]
struct Found {
    general: u32,
    typed: u32,
    /// Page types that the references imply, a bit each.
    types: u8,
}

impl Found {
    fn typed(&mut self, page_type: PageType) {
        self.general += 1;
        self.typed += 1;
        self.types |= 1 << page_type as u8;
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Compares the frame table with what all page tables, vCPUs and pins refer to; a line for each difference.
    /// Nothing else may run meanwhile. `extra` is what the caller knows of other holders.
    pub fn check_frames(&self, extra: &Extra) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut found: BTreeMap<u64, Found> = BTreeMap::new();
        let end = self.frames.end().raw();
        for mfn in 0..end {
            let info = self.frames.held(Mfn::new(mfn));
            let (using, kind) = (info.load_use(), info.load_kind());
            if using.owner().is_none() {
                continue;
            }
            let entry = found.entry(mfn).or_default();
            if using.has(UseWord::ALLOCATED) {
                entry.general += 1;
            }
            if using.has(UseWord::LENT) {
                entry.typed += 1;
            }
            let level = kind.page_type().level();
            if level > 0 && kind.count() > 0 {
                for flag in [TypeWord::PINNED, TypeWord::PARTIAL] {
                    if kind.has(flag) {
                        found.entry(mfn).or_default().typed(kind.page_type());
                    }
                }
                let held = if kind.has(TypeWord::PARTIAL) { kind.progress() } else { 512 };
                self.find_entries(Mfn::new(mfn), level, held, &mut found, &mut wrong);
            }
        }
        for dom in self.domains.snapshot() {
            for vcpu in &dom.vcpus {
                for base in [vcpu.cr3_kernel.get(), vcpu.cr3_user.get()].into_iter().flatten() {
                    found.entry(base.raw()).or_default().typed(PageType::L4);
                }
                if let Some(info) = vcpu.info_frame.get() {
                    found.entry(info.raw()).or_default().typed(PageType::Writable);
                }
                let cpu = vcpu.cpu.lock();
                for mfn in cpu.gdt_frames.iter().chain(cpu.ldt_frames.iter()).flatten() {
                    found.entry(mfn.raw()).or_default().typed(PageType::SegDesc);
                }
            }
        }
        for (&mfn, &(general, typed)) in extra {
            let entry = found.entry(mfn).or_default();
            entry.general += general;
            entry.typed += typed;
        }
        for (mfn, found) in found {
            self.compare(Mfn::new(mfn), found, &mut wrong);
        }
        self.check_totals(&mut wrong);
        wrong
    }

    fn find_entries(
        &self,
        table: Mfn,
        level: u8,
        held: usize,
        found: &mut BTreeMap<u64, Found>,
        wrong: &mut Vec<String>,
    ) {
        for (slot, cell) in self.platform.table(table).iter().enumerate().take(held) {
            let entry = Pte::load(cell);
            if !entry.is_present() || (level == 4 && pte::is_hypervisor_slot(slot)) {
                continue;
            }
            let child = entry.frame();
            if self.frames.info(child).is_none_or(|info| info.owner().is_none()) {
                if level > 1 || self.frames.is_ram(child) {
                    wrong.push(format!("L{level} {table}[{slot}] names {child}, which is nobody's"));
                }
                continue;
            }
            let target = found.entry(child.raw()).or_default();
            if level > 1 {
                target.typed(PageType::table(level - 1));
            } else if entry.has(pte::RW) {
                target.typed(PageType::Writable);
            } else {
                target.general += 1;
            }
            if !entry.has(pte::US) {
                wrong.push(format!("L{level} {table}[{slot}] is supervisor"));
            }
        }
    }

    fn compare(&self, mfn: Mfn, found: Found, wrong: &mut Vec<String>) {
        let info = self.frames.held(mfn);
        let (using, kind) = (info.load_use(), info.load_kind());
        if using.count() != found.general {
            wrong.push(format!(
                "{mfn} {kind:x?}: {} references, found {}",
                using.count(),
                found.general,
                kind = kind.0
            ));
        }
        if kind.count() != found.typed {
            wrong.push(format!(
                "{mfn} {:?}: {} type references, found {}",
                kind.page_type(),
                kind.count(),
                found.typed
            ));
        }
        if found.types.count_ones() > 1 {
            wrong.push(format!("{mfn} is used as several types: {:#b}", found.types));
        } else if found.types != 0 && found.types != 1 << kind.page_type() as u8 {
            wrong.push(format!("{mfn} is {:?} but used as {:#b}", kind.page_type(), found.types));
        }
        if using.count() == 0 {
            wrong.push(format!("{mfn} is owned without a reference"));
        }
    }

    fn check_totals(&self, wrong: &mut Vec<String>) {
        let mut owned: BTreeMap<u16, u64> = BTreeMap::new();
        for mfn in 0..self.frames.end().raw() {
            let info = self.frames.held(Mfn::new(mfn));
            if let Some(owner) = info.owner().filter(|_| !info.is_lent()) {
                *owned.entry(owner.raw()).or_default() += 1;
            }
        }
        for dom in self.domains.snapshot() {
            let owns = owned.remove(&dom.id.raw()).unwrap_or(0);
            if owns != dom.mm.tot_pages() {
                wrong.push(format!("{dom:?} owns {owns} pages, counted {}", dom.mm.tot_pages()));
            }
        }
        for (id, pages) in owned {
            wrong.push(format!("{pages} pages of d{id}, which is no more"));
        }
    }
}
