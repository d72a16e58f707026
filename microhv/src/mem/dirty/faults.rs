//! The first write through an entry that lost RW.

use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Mfn, PAGE_SIZE};

use super::super::session::Mm;
use crate::Hypervisor;
use crate::domain::{Current, Domain, Vcpu};
use crate::frames::info::TypeWord;
use crate::frames::pte::{self, A, D, MARK, RW};
use crate::platform::{GuestFault, Platform, Settled};

/// In a page fault's error code: the page is present, the access was a write, a reserved bit is set, and a fetch.
const EC_PRESENT: u32 = 1;
const EC_WRITE: u32 = 2;
const EC_RESERVED: u32 = 8;
const EC_FETCH: u32 = 16;
/// What one instruction of a copy writes.
const WORD: usize = 8;

/// Whether a page fault may be the first write through an entry that lost RW. `error` is the processor's.
#[inline(always)]
pub fn may_be<P: Platform>(cur: &Current<'_, P>, error: u32) -> bool {
    // The same question as of a write to a page table, so that a fault is asked but once.
    let wanted = EC_PRESENT | EC_WRITE;
    error & (wanted | EC_RESERVED | EC_FETCH) == wanted && cur.domain.mm.tracking.is_on()
}

/// Gives the entry RW back, if it lost that, in the tables under `base`, which the vCPU runs on: `true`, and the guest goes on.
pub fn resolve<P: Platform>(cur: &mut Current<'_, P>, base: Option<Mfn>, cr2: u64) -> bool {
    let domain = cur.domain;
    base.is_some_and(|base| cur.tables(domain).first_write(base, GuestVa::new(cr2)))
}

impl<P: Platform> Mm<'_, P> {
    /// A write at `va` of the tables under `base` has faulted. Whether the entry is for writing by now, and all above are.
    fn first_write(&mut self, base: Mfn, va: GuestVa) -> bool {
        let Ok((table, slot)) = self.find_leaf(base, va) else { return false };
        let mut upper = base;
        for level in [4, 3, 2] {
            let entry = self.entry(upper, pte::index(va.raw(), level));
            if !entry.has(RW) {
                return false;
            }
            upper = entry.frame();
        }
        let entry = self.entry(table, slot);
        if !self.is_tracked(table) || !entry.is_present() {
            return false;
        }
        if entry.has(RW) {
            return true; // the CPU knew the entry as it was; the fault made it forget that
        }
        let cell = &self.hv.platform.table(table)[slot];
        let Some(info) = self.own_frame(entry.frame()).filter(|_| entry.has(MARK)) else { return false };
        if info.load_kind().has(TypeWord::COPIED) {
            cell.fetch_and(!MARK, Ordering::AcqRel);
            info.put_type();
            return false;
        }
        self.dom.mm.tracking.faults.fetch_add(1, Ordering::Relaxed);
        info.clear_flags(self.dom.mm.tracking.clean());
        self.mark(table);
        cell.store(entry.unmarked().raw() | A | D, Ordering::Release);
        true
    }
}

impl<P: Platform> Current<'_, P> {
    /// [`Hypervisor::write_again`] of a word of so many bytes, which stays in registers where the word was written at once.
    #[cold]
    #[inline(never)]
    pub(crate) fn write_word_again(&self, va: GuestVa, word: u64, len: usize) -> Result<(), GuestFault> {
        let bytes = word.to_ne_bytes();
        let bytes = bytes.get(..len).unwrap_or(&[]);
        self.hv.write_again(self.domain, self.vcpu, va, bytes, GuestFault { copied: 0 })
    }
}

impl<P: Platform> Hypervisor<P> {
    /// A write of `from` at `va` of the loaded tables of `vcpu`'s kernel has ended with `fault`. Gives marked entries RW back, and
    /// writes the rest.
    ///
    /// # Errors
    /// How far the write came.
    #[cold]
    #[inline(never)]
    pub(crate) fn write_again(
        &self,
        dom: &Domain,
        vcpu: &Vcpu,
        va: GuestVa,
        from: &[u8],
        mut fault: GuestFault,
    ) -> Result<(), GuestFault> {
        while dom.mm.tracking.is_on() {
            let done = fault.copied.min(from.len());
            let (at, rest) = (va.wrapping_add(done as u64), from.get(done..).unwrap_or(&[]));
            // A row of stores is begun anew as a whole. What a copy did not copy begins within a word of the fault.
            let near = if done == 0 && rest.len() <= PAGE_SIZE { rest.len() } else { WORD.min(rest.len()) };
            if !self.unmark(dom, vcpu, at, near) {
                break;
            }
            match self.platform.copy_to_guest(Settled::new(), at, rest) {
                Ok(()) => return Ok(()),
                Err(again) => fault = GuestFault { copied: done + again.copied },
            }
        }
        Err(fault)
    }

    /// Whether the entry of the first address of `va..va + len` that cannot be written got RW back.
    fn unmark(&self, dom: &Domain, vcpu: &Vcpu, va: GuestVa, len: usize) -> bool {
        let Some(base) = vcpu.cr3_kernel.get() else { return false };
        let mut mm = self.lock_tables(dom);
        let last = va.wrapping_add(len.max(1) as u64 - 1);
        for va in [va, last] {
            let found = mm.find_leaf(base, va).map(|(table, slot)| mm.entry(table, slot));
            match found {
                // The write came so far.
                Ok(entry) if entry.is_present() && entry.has(RW) => {}
                Ok(entry) if entry.is_present() && entry.has(MARK) => return mm.first_write(base, va),
                _ => return false,
            }
        }
        false
    }
}
