//! Pages of GDTs and LDTs: what a guest may put there, and each vCPU's window on the pages.

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use ring_abi::types::{GuestVa, Maddr, Mfn};

use super::MemError;
use super::pages::TypedRef;
use super::session::{FrameOwner, Mm};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::frames::info::{PageType, TypeWord};
use crate::frames::pte::is_guest_address;
use crate::nospec::Wrapped;
use crate::platform::{DescriptorPage, Platform};
use crate::return_stack;

/// Most entries of a guest's GDT: 14 pages. The entries behind these are the hypervisor's.
pub const MAX_GDT_ENTRIES: u32 = 7168;
/// Pages of a guest's GDT at most.
const MAX_GDT_PAGES: usize = MAX_GDT_ENTRIES as usize / 512;
/// Entries of an LDT at most.
pub const MAX_LDT_ENTRIES: u32 = 8192;

/// Most pages of LDTs that the windows of a domain's vCPUs have: one step takes out all of them, and may free each.
/// (I13)
const MAX_LDT_PAGES: u32 = 128;

const PRESENT: u64 = 1 << 47;
const CODE_OR_DATA: u64 = 1 << 44;
const DPL: u64 = 3 << 45;
const TYPE: u64 = 0xf << 40;
const CALL_GATE: u64 = 0xc << 40;
/// Selectors of the flat segments that the hypervisor offers to guests.
const FLAT: [u16; 3] = [0xe023, 0xe02b, 0xe033];

/// A descriptor in the form in which a table may hold it: with privilege level 3, at which all of a guest runs. `None`:
/// refused.
///
/// Any code or data segment will do, and a gate that calls into a segment of the guest or a flat segment.
pub fn checked(descriptor: u64) -> Option<u64> {
    if descriptor & PRESENT == 0 {
        return Some(descriptor); // faults when loaded
    }
    let fixed = descriptor | DPL;
    if descriptor & CODE_OR_DATA != 0 {
        return Some(fixed);
    }
    match descriptor & TYPE {
        0 => Some(descriptor), // second half of a gate
        CALL_GATE => {
            let selector = (descriptor >> 16) as u16 | 3;
            let in_guest_tables = selector & 4 != 0 || u32::from(selector >> 3) < MAX_GDT_ENTRIES;
            let reserved = descriptor >> 32 & 0xff; // stack table index and zero bits
            (reserved == 0 && (in_guest_tables || FLAT.contains(&selector))).then_some(fixed | 3 << 16)
        }
        _ => None,
    }
}

/// Whether an LDT of `entries` entries may be at guest address `base`: the guest must own the whole range.
pub(crate) fn is_ldt_range(base: u64, entries: u64) -> bool {
    let base = GuestVa::new(base);
    let end = || base.checked_add(entries * 8 - 1);
    entries == 0
        || (entries <= MAX_LDT_ENTRIES.into()
            && is_guest_address(base)
            && end().is_some_and(is_guest_address))
}

impl<'a, P: Platform> Mm<'a, P> {
    /// Takes a general reference, and a reference as descriptor page, on a frame of the domain.
    ///
    /// # Errors
    /// `Invalid`: the frame is not the domain's, is in use as something else, or has a descriptor that the domain may
    /// not have.
    pub(crate) fn get_descriptors(&mut self, mfn: Mfn) -> Result<TypedRef<'a, P>, MemError> {
        let page = self.hv.get_page(mfn, self.dom).ok_or(MemError::Invalid)?;
        let info = self.hv.frames.held(mfn);
        loop {
            let now = info.load_kind();
            let is_checked = now.page_type() == PageType::SegDesc && now.has(TypeWord::VALIDATED);
            if !is_checked && now.count() > 0 {
                return Err(MemError::Invalid);
            }
            // The change and the check are one step: else a writer could come and go in between. The count has room:
            // each type reference has a general one beside it, which was refused before. (I15)
            let next = if is_checked {
                TypeWord(now.0.wrapping_add(1))
            } else {
                TypeWord::new(PageType::SegDesc, 1)
            };
            let Some(flush) = info.replace_kind(now, next) else { continue };
            if is_checked {
                return Ok(page.with_type());
            }
            if flush.0 {
                self.forget_type();
                self.settle(); // descriptors are changed below, which a CPU may still take for entries of a table
            }
            for cell in self.hv.platform.table(mfn) {
                let Some(fixed) = checked(cell.load(Ordering::Relaxed)) else {
                    info.set_kind(TypeWord::new(PageType::SegDesc, 0));
                    return Err(MemError::Invalid);
                };
                cell.store(fixed, Ordering::Relaxed);
            }
            info.set_kind(TypeWord(next.0 | TypeWord::VALIDATED));
            return Ok(page.with_type());
        }
    }

    /// Takes all LDT pages out of the windows of the domain's vCPUs; a fault brings a page in again. `true`: there was
    /// a page.
    #[inline(never)] // seldom, and those who may ask for this are short
    pub(crate) fn drop_ldts(&mut self) -> bool {
        // Many entries of one table may need this, and each would be done for all vCPUs, so it is done once.
        if core::mem::replace(&mut self.has_dropped_ldts, true) {
            return false;
        }
        let dom = self.dom;
        let mut any = false;
        for vcpu in &dom.vcpus {
            any |= self.drop_ldt(vcpu);
        }
        any
    }

    /// Takes all LDT pages out of the vCPU's window. `true`: there was a page.
    pub(crate) fn drop_ldt(&mut self, vcpu: &Vcpu) -> bool {
        let has_ldt = {
            let cpu = vcpu.cpu.lock();
            debug_assert!(cpu.ldt_entries > 0 || cpu.ldt_frames.iter().all(Option::is_none));
            cpu.ldt_entries > 0
        };
        has_ldt && self.drop_ldt_pages(vcpu)
    }

    #[inline(never)]
    fn drop_ldt_pages(&mut self, vcpu: &Vcpu) -> bool {
        let _filled = return_stack::fill_at_end();
        let mut gone = ArrayVec::<Mfn, 16>::new();
        let mut cpu = vcpu.cpu.lock();
        for (page, frame) in cpu.ldt_frames.iter_mut().enumerate() {
            if let Some(mfn) = frame.take() {
                self.hv.platform.set_descriptor_page(&vcpu.window, DescriptorPage::Ldt(page as u8), None);
                gone.push(mfn);
            }
        }
        drop(cpu);
        if gone.is_empty() {
            return false;
        }
        self.owe_flush();
        // Another CPU may run the vCPU, and take descriptors from there until it is flushed: so they stay descriptors until then.
        self.forget_type();
        self.tables.ldt_pages -= gone.len() as u32;
        gone.into_iter().for_each(|mfn| self.hv.put_page_and_type(mfn));
        true
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Gives a vCPU a GDT of `entries` entries in `frames`, which are the domain's; 0 entries: none. This may be any
    /// vCPU: the call changes the vCPU's window, not the descriptor-table register of this CPU, whose limit is the same
    /// for all.
    ///
    /// # Errors
    /// `Invalid`: there are too many entries or too few frames, or a frame cannot hold descriptors. `NoSuchDomain`: the
    /// domain is being destroyed. After an error nothing has changed.
    pub fn set_gdt(&self, dom: &Domain, vcpu: &Vcpu, frames: &[Mfn], entries: u32) -> Result<(), MemError> {
        let pages = entries.div_ceil(512) as usize;
        if entries > MAX_GDT_ENTRIES || frames.len() < pages {
            return Err(MemError::Invalid);
        }
        let mut mm = self.lock_tables(dom);
        if pages > 0 && dom.is_dying() {
            return Err(MemError::NoSuchDomain);
        }
        let taken = frames[..pages].iter().map(|&mfn| mm.get_descriptors(mfn));
        let mut taken =
            taken.collect::<Result<ArrayVec<_, MAX_GDT_PAGES>, _>>()?.into_iter().map(TypedRef::into_raw);
        let mut cpu = vcpu.cpu.lock();
        for (page, frame) in cpu.gdt_frames.iter_mut().enumerate() {
            let new = taken.next();
            let old = core::mem::replace(frame, new);
            if old.is_some() || new.is_some() {
                self.platform.set_descriptor_page(&vcpu.window, DescriptorPage::Gdt(page as u8), new);
            }
            if let Some(old) = old {
                self.put_page_and_type(old);
            }
        }
        cpu.gdt_entries = entries as u16;
        drop(cpu);
        mm.owe_flush();
        Ok(())
    }

    /// Takes GDT and LDT from a vCPU that runs nowhere and never will. The result is whether the vCPU had one of the
    /// two.
    pub(super) fn drop_descriptors(&self, dom: &Domain, vcpu: &Vcpu) -> bool {
        let has_some = {
            let cpu = vcpu.cpu.lock();
            cpu.gdt_entries > 0 || cpu.ldt_entries > 0
        };
        if has_some {
            self.lock_tables(dom).drop_ldt(vcpu);
            vcpu.cpu.lock().ldt_entries = 0;
            let gone = self.set_gdt(dom, vcpu, &[], 0);
            debug_assert!(gone.is_ok(), "an empty GDT needs nothing");
        }
        has_some
    }

    /// Gives `vcpu` of `dom`, which runs here, an LDT at guest address `base`. The LDT's pages are looked up when they
    /// are first used.
    ///
    /// # Errors
    /// `Invalid`: there are too many entries, or the address is not page-aligned or not the guest's.
    pub fn set_ldt(&self, dom: &Domain, vcpu: &Vcpu, base: u64, entries: u32) -> Result<(), MemError> {
        if !is_ldt_range(base, entries.into()) || (entries > 0 && base & 0xfff != 0) {
            return Err(MemError::Invalid);
        }
        self.set_checked_ldt(dom, vcpu, base, entries);
        Ok(())
    }

    /// Like [`Hypervisor::set_ldt`], for any vCPU and for what [`is_ldt_range`] allows.
    pub(crate) fn set_checked_ldt(&self, dom: &Domain, vcpu: &Vcpu, base: u64, entries: u32) {
        let mut mm = self.lock_tables(dom);
        mm.drop_ldt(vcpu);
        let mut cpu = vcpu.cpu.lock();
        cpu.ldt_base = if entries > 0 { base } else { 0 };
        cpu.ldt_entries = entries as u16;
        drop(cpu);
        self.platform.reload_descriptor_tables(&vcpu.window, entries as u16);
    }

    /// Serves a fault of the processor on byte `offset` of the LDT of `vcpu`, which runs here: looks the page up in the
    /// guest's tables and puts the page into the window. `false`: there is no such page, and the guest gets a page
    /// fault at `ldt_base` + `offset`.
    pub fn fault_in_ldt(&self, dom: &Domain, vcpu: &Vcpu, offset: u64) -> bool {
        let mut mm = self.lock_tables(dom);
        let (base, entries) = {
            let cpu = vcpu.cpu.lock();
            (cpu.ldt_base, u64::from(cpu.ldt_entries))
        };
        let page = (offset >> 12) as usize;
        let Some(l4) = vcpu.cr3_kernel.get() else { return false };
        if offset >= entries * 8 || page >= 16 {
            return false;
        }
        let Ok((table, slot)) = mm.find_leaf(l4, GuestVa::new(base).wrapping_add(offset & !0xfff)) else {
            return false;
        };
        let entry = mm.entry(table, slot);
        if !entry.is_present() {
            return false;
        }
        let Ok(held) = mm.get_descriptors(entry.frame()) else { return false };
        if mm.tables.ldt_pages >= MAX_LDT_PAGES {
            mm.drop_ldts(); // all that are needed fault in again
        }
        let mut cpu = vcpu.cpu.lock();
        let mfn = held.into_raw();
        let old = cpu.ldt_frames.wrapped_mut(page).replace(mfn);
        mm.tables.ldt_pages += u32::from(old.is_none());
        self.platform.set_descriptor_page(&vcpu.window, DescriptorPage::Ldt(page as u8), Some(mfn));
        drop(cpu);
        if let Some(old) = old {
            self.put_page_and_type(old);
            mm.owe_flush();
        }
        true
    }

    /// Writes a descriptor at machine address `at` of the domain. The descriptor is checked if the frame holds
    /// descriptors.
    ///
    /// # Errors
    /// `Invalid`: the address is not aligned or not the domain's, the frame is a page table, or the domain may not have
    /// the descriptor.
    pub fn update_descriptor(&self, dom: &Domain, at: Maddr, descriptor: u64) -> Result<(), MemError> {
        let fixed = checked(descriptor).ok_or(MemError::Invalid)?;
        if !at.raw().is_multiple_of(8) {
            return Err(MemError::Invalid);
        }
        let mfn = at.mfn();
        let mut mm = self.lock_tables(dom);
        let page = self.get_page(mfn, dom).ok_or(MemError::Invalid)?;
        let kind = self.frames.held(mfn).load_kind();
        if kind.page_type() == PageType::SegDesc && kind.count() > 0 {
            self.platform.table(mfn).wrapped(at.offset() / 8).store(fixed, Ordering::Release);
        } else {
            let _page = mm.get_writable(page, FrameOwner::Domain(dom)).map_err(|_| MemError::Invalid)?;
            mm.settle(); // as in `update_entry`
            self.platform.table(mfn).wrapped(at.offset() / 8).store(fixed, Ordering::Release);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_get_the_guests_privilege() {
        let code64 = 0x00af_9b00_0000_ffff;
        assert_eq!(checked(code64), Some(code64 | DPL));
        assert_eq!(checked(0), Some(0));
        assert_eq!(checked(!PRESENT), Some(!PRESENT));
    }

    #[test]
    fn system_segments_are_refused() {
        for system in [2u64, 9, 11, 14, 15] {
            assert_eq!(checked(PRESENT | system << 40), None);
        }
        assert_eq!(checked(PRESENT), Some(PRESENT), "second half of a gate");
    }

    #[test]
    fn gates_call_guest_segments_alone() {
        let gate = |selector: u16| PRESENT | CALL_GATE | u64::from(selector) << 16;
        assert_eq!(checked(gate(0x10)), Some(gate(0x13) | DPL));
        assert_eq!(checked(gate(0xe030)), Some(gate(0xe033) | DPL));
        assert_eq!(checked(gate(0x17)), Some(gate(0x17) | DPL));
        assert_eq!(checked(gate(0xe008)), None, "the hypervisor's code");
        for bit in 32..40 {
            assert_eq!(checked(gate(0x10) | 1 << bit), None, "reserved bit {bit}");
        }
    }
}
