//! The owners of frames: allocation, sharing, references, and the count of each domain's pages.

use core::sync::atomic::Ordering;

use ring_abi::types::{DomId, GuestVa, Mfn, Pfn};

use super::MemError;
use super::clean::SMALL_ORDER;
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::frames::info::{FlushOwed, FrameInfo, PageType, TypeWord, UseWord};
use crate::frames::pte;
use crate::nospec;
use crate::platform::{CpuSet, Platform};
use crate::sync::words::{AtomicU64, fence};

/// References on a frame, given back when this value is dropped. The general reference keeps the frame from being freed
/// or given to another domain; with `TYPED` there is also a reference on the frame's type.
#[derive(Debug)]
#[must_use = "dropped, the references are given back"]
pub struct FrameRef<'a, P: Platform, const TYPED: bool> {
    hv: &'a Hypervisor<P>,
    mfn: Mfn,
    info: &'a FrameInfo,
}

/// A general reference on a frame.
pub type PageRef<'a, P> = FrameRef<'a, P, false>;
/// A general and a type reference on a frame.
pub type TypedRef<'a, P> = FrameRef<'a, P, true>;

impl<P: Platform, const TYPED: bool> FrameRef<'_, P, TYPED> {
    /// The frame.
    pub fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Keeps the references without this guard. `Hypervisor::put_page` or `put_page_and_type` gives them back.
    pub fn into_raw(self) -> Mfn {
        let mfn = self.mfn;
        core::mem::forget(self);
        mfn
    }
}

impl<'a, P: Platform> PageRef<'a, P> {
    /// The frame has another place in its domain, where its contents are new.
    pub(crate) fn moved(&self) {
        if self.info.load_kind().has(TypeWord::ANY_CLEAN) {
            self.hv.mark_dirty(self.info);
        }
    }

    /// Takes a reference of type writable, too.
    ///
    /// # Errors
    /// `Busy`: the frame is a page table, holds descriptors, or is the hypervisor's own.
    #[inline(always)]
    pub(super) fn writable(self) -> Result<(TypedRef<'a, P>, FlushOwed), MemError> {
        match self.info.get_type(PageType::Writable) {
            Some(flush) => Ok((self.with_type(), flush)),
            None => Err(self.refused(MemError::Busy)),
        }
    }

    /// Gives the reference back and returns `why`. This is a function of its own, out of the way of code that succeeds.
    #[cold]
    #[inline(never)]
    pub(super) fn refused(self, why: MemError) -> MemError {
        why
    }

    /// Adds a type reference that the caller took.
    #[inline(always)]
    pub(super) fn with_type(self) -> TypedRef<'a, P> {
        let Self { hv, mfn, info } = self;
        core::mem::forget(self);
        FrameRef { hv, mfn, info }
    }
}

impl<P: Platform, const TYPED: bool> Drop for FrameRef<'_, P, TYPED> {
    #[inline(always)]
    fn drop(&mut self) {
        if TYPED && self.info.put_type().has(TypeWord::ANY_CLEAN) {
            self.hv.mark_dirty(self.info);
        }
        if self.info.put() {
            self.hv.page_gone(self.mfn);
        }
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Takes 2^`order` free frames, aligned to their size, for the hypervisor itself; below 2^`address_bits` bytes
    /// unless `address_bits` is 0. The frames have the contents of a former owner. `frames.release` gives the frames
    /// back.
    pub fn alloc_frames(&self, order: u8, address_bits: u8) -> Option<Mfn> {
        let mfn = self.frames.take(order, address_bits)?;
        if let Some(freed) = self.frames.stale() {
            self.platform.flush_tlb(CpuSet::ALL);
            self.frames.flushed(freed);
        }
        Some(mfn)
    }

    /// A zeroed frame for the hypervisor itself.
    pub fn alloc_zeroed(&self) -> Option<Mfn> {
        let mfn = self.alloc_frames(0, 0)?;
        self.platform.zero_frame(mfn);
        Some(mfn)
    }

    /// Gives the domain 2^`order` zeroed frames, aligned to their size.
    ///
    /// # Errors
    /// `Restart`: something else waits. `NoMemory`: there are no such frames, they are claimed for others, or the
    /// domain may not own so many.
    pub fn populate(&self, dom: &Domain, order: u8, address_bits: u8) -> Result<Mfn, MemError> {
        let count = 1u64.checked_shl(order.into()).filter(|_| order <= crate::frames::buddy::MAX_ORDER);
        let count = count.filter(|_| !dom.is_dying()).ok_or(MemError::NoMemory)?;
        let within_limit = dom.mm.tot_pages() + count <= dom.mm.max_pages(); // `add` has the last word
        // For a large extent the claim is checked when frames are taken: a call that was interrupted has its
        // frames already.
        let is_small = order <= SMALL_ORDER;
        if !within_limit || is_small && !self.may_use(dom, count) {
            return Err(MemError::NoMemory);
        }
        let mfn = if is_small {
            let mfn = self.alloc_frames(order, address_bits).ok_or(MemError::NoMemory)?;
            (0..count).for_each(|n| self.platform.zero_frame(Mfn::new(mfn.raw() + n)));
            mfn
        } else {
            self.take_clean(dom, order, address_bits, 1)?[0]
        };
        if !self.assign(dom, &[mfn], count, true) {
            self.frames.release(mfn, order);
            return Err(MemError::NoMemory);
        }
        self.use_claim(dom, count);
        Ok(mfn)
    }

    /// Gives the domain `count` frames from each of `extents` on, which were the hypervisor's own until now, with
    /// their contents. `false`: the domain's teardown has begun, or, if `limited`, the domain may not own so many.
    pub(crate) fn assign(&self, dom: &Domain, extents: &[Mfn], count: u64, limited: bool) -> bool {
        let owned = UseWord::owned(dom.id, 0);
        dom.mm.add(extents, count, limited, |mfn| self.frames.publish(mfn, owned, TypeWord::CLEAN))
    }

    /// Ends a domain's ownership of a frame: the frame is freed now, or with its last mapping.
    ///
    /// # Errors
    /// `Invalid`: the frame is not the domain's, was given up already, or is lent to the domain.
    pub(crate) fn release_page(&self, dom: &Domain, mfn: Mfn) -> Result<(), MemError> {
        let page = self.get_page(mfn, dom).ok_or(MemError::Invalid)?;
        let info = self.frames.held(mfn);
        if info.is_lent() || !info.end_ownership() {
            return Err(MemError::Invalid);
        }
        self.put_page(mfn);
        drop(page);
        Ok(())
    }

    /// Whether [`Hypervisor::steal_page`] would succeed now.
    pub(crate) fn is_stealable(&self, dom: &Domain, mfn: Mfn) -> bool {
        self.frames.info(mfn).is_some_and(|info| info.is_stealable(dom.id))
    }

    /// Takes a frame away from its domain if there is no reference to the frame but ownership's. The frame then has
    /// no owner. The caller may release the frame or give it back ([`Hypervisor::give_page_back`]), and nothing else:
    /// CPUs may still know the frame.
    ///
    /// # Errors
    /// `Invalid`: the frame is not the domain's, or there is another reference to the frame.
    pub(crate) fn steal_page(&self, dom: &Domain, mfn: Mfn) -> Result<(), MemError> {
        let info = self.frames.info(mfn).ok_or(MemError::Invalid)?;
        if !info.is_stealable(dom.id) || !info.steal(dom.id) {
            return Err(MemError::Invalid);
        }
        dom.mm.remove(mfn);
        Ok(())
    }

    /// Undoes [`Hypervisor::steal_page`]: the frame is its domain's again, with all that is known of the frame. A
    /// domain whose teardown has begun gets nothing any more.
    pub(crate) fn give_page_back(&self, dom: &Domain, mfn: Mfn) {
        if !dom.mm.add(&[mfn], 1, false, |mfn| self.frames.held(mfn).give_back(dom.id)) {
            self.frames.release(mfn, 0);
        }
    }

    /// Lends a frame of the hypervisor's own to a domain. The domain may map the frame, `read_only` or for writing, and
    /// never as a page table. [`Hypervisor::unshare`] takes the frame back.
    pub fn share_with_guest(&self, mfn: Mfn, owner: DomId, read_only: bool) {
        let page_type = if read_only { PageType::ReadOnly } else { PageType::Writable };
        self.frames.publish(mfn, UseWord::owned(owner, UseWord::LENT), TypeWord::new(page_type, 1));
    }

    /// Ends what [`Hypervisor::share_with_guest`] began. The frame is freed when its last mapping is gone. The
    /// hypervisor uses the frame no more, and no domain can map the frame anew, not even a later domain with the
    /// owner's number.
    pub fn unshare(&self, mfn: Mfn) {
        if self.disown(mfn) {
            self.put_page(mfn);
        }
    }

    /// Like [`Hypervisor::unshare`], but the hypervisor goes on using the frame, with the reference that ownership
    /// held. `false`: ownership had ended.
    #[must_use]
    pub(crate) fn disown(&self, mfn: Mfn) -> bool {
        self.frames.held(mfn).orphan()
    }

    /// A general reference on a frame if the frame is the domain's. No CPU guesses that: what the frame holds may be used.
    #[inline]
    pub fn get_page(&self, mfn: Mfn, owner: &Domain) -> Option<PageRef<'_, P>> {
        let page = self.get_page_of(mfn, owner.id)?;
        nospec::barrier();
        Some(page)
    }

    /// Like [`Hypervisor::get_page`], for an owner that may be no domain, and where a CPU may guess: ahead of the first look at
    /// what the frame holds comes a barrier of the caller's.
    #[inline(always)]
    pub(crate) fn get_page_of(&self, mfn: Mfn, owner: DomId) -> Option<PageRef<'_, P>> {
        let (mfn, info) = self.frames.find(mfn).filter(|(_, info)| info.get(owner))?;
        Some(PageRef { hv: self, mfn, info })
    }

    /// A general reference, and one of type writable, on a frame if the frame is the domain's and is not in use as
    /// something else.
    ///
    /// # Errors
    /// `Invalid`: the frame is not the domain's. `Busy`: the frame is a page table, holds descriptors, or is the
    /// hypervisor's own.
    #[inline(always)]
    pub fn get_page_writable(&self, mfn: Mfn, owner: &Domain) -> Result<TypedRef<'_, P>, MemError> {
        let (page, flush) = self.get_page(mfn, owner).ok_or(MemError::Invalid)?.writable()?;
        if flush.0 {
            self.flush_domain(owner);
        }
        Ok(page)
    }

    /// As [`Hypervisor::get_page_writable`], where the frame's type is writable already, so that no flush is owed. `None`: the type is
    /// another, or the frame is not the owner's.
    #[inline(always)]
    pub(crate) fn get_page_still_writable(&self, mfn: Mfn, owner: DomId) -> Option<TypedRef<'_, P>> {
        let page = self.get_page_of(mfn, owner)?;
        page.info.get_same_type(PageType::Writable).then(|| page.with_type())
    }

    /// The domain's own page that the tables of the vCPU's kernel map for writing at `va`.
    pub(crate) fn writable_page_at(
        &self,
        domain: &Domain,
        vcpu: &Vcpu,
        va: GuestVa,
    ) -> Option<TypedRef<'_, P>> {
        let mm = self.lock_tables(domain);
        // The base is read under the lock, since a vCPU that loads another base releases this one.
        let (table, slot) = mm.find_leaf(vcpu.cr3_kernel.get()?, va).ok()?;
        let entry = mm.entry(table, slot);
        if !entry.is_present() || !entry.has(pte::RW) {
            return None;
        }
        self.get_page_writable(entry.frame(), domain).ok()
    }

    /// Gives a general reference back.
    #[inline]
    pub fn put_page(&self, mfn: Mfn) {
        if self.frames.held(mfn).put() {
            self.page_gone(mfn);
        }
    }

    /// Gives a general reference and one of type writable back.
    #[inline(always)]
    pub fn put_page_and_type(&self, mfn: Mfn) {
        let info = self.frames.held(mfn);
        if info.put_type().has(TypeWord::ANY_CLEAN) {
            self.mark_dirty(info);
        }
        if info.put() {
            self.page_gone(mfn);
        }
    }

    /// Frees a frame whose last reference is gone.
    #[cold]
    fn page_gone(&self, mfn: Mfn) {
        let info = self.frames.held(mfn);
        let using = info.load_use();
        let lent = using.has(UseWord::LENT);
        if lent {
            info.set_kind(TypeWord::CLEAN); // the reference that the loan held
        }
        self.platform.set_m2p(mfn, Pfn::INVALID);
        self.frames.free_used(mfn);
        if !lent && let Some(owner) = using.owner().and_then(|id| self.domains.get(id)) {
            owner.mm.remove(mfn);
        }
    }

    /// Flushes every CPU whose TLB may hold entries of the domain, the calling CPU included.
    pub(crate) fn flush_domain(&self, dom: &Domain) {
        let me = self.platform.cpu();
        let cpus = cpus_of(dom).with(me);
        if cpus == CpuSet::only(me) {
            self.platform.flush_tlb_local();
        } else {
            self.platform.flush_tlb(cpus);
        }
    }

    /// Does the same as [`Hypervisor::flush_domain`], the calling CPU excluded.
    pub(crate) fn flush_others(&self, dom: &Domain) {
        let others = cpus_of(dom).without(self.platform.cpu());
        if others != CpuSet::default() {
            self.platform.flush_tlb(others);
        }
    }
}

/// The CPUs on which tables of the domain are loaded. What the caller has written into tables before is there for each other CPU
/// when it loads them. (I51)
#[inline]
pub(crate) fn cpus_of(dom: &Domain) -> CpuSet {
    after_writes(&dom.dirty_cpus)
}

/// The CPUs that run one of `vcpus`, or keep its state while idle, tables and all. A vCPU that none has is loaded by a CPU that
/// flushes; otherwise as [`cpus_of`].
pub(crate) fn cpus_of_vcpus<'a>(vcpus: impl Iterator<Item = &'a Vcpu>) -> CpuSet {
    // A CPU says that it runs the vCPU, then loads the tables, with a full barrier between; it is the holder before it says that
    // it runs the vCPU no more. So a look at where the vCPU runs, then at its holder, finds the CPU, or the CPU's walks come after.
    fence(Ordering::SeqCst);
    let having = |vcpu: &Vcpu| [vcpu.running_on(), vcpu.holder()];
    vcpus.flat_map(having).flatten().fold(CpuSet::default(), CpuSet::with)
}

#[inline]
fn after_writes(cpus: &AtomicU64) -> CpuSet {
    // Such a CPU sets its bit, then loads the tables, with a full barrier between: either this load sees the bit, or the CPU's
    // walks see what was written.
    fence(Ordering::SeqCst);
    CpuSet::from_bits(cpus.load(Ordering::Acquire))
}

#[cfg(test)]
#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::platform::CpuId;

    const ENTRY: u64 = 7;

    /// One CPU takes an entry out, and asks which CPUs may know the entry. Another CPU loads the tables, and walks.
    #[test]
    fn a_cpu_that_loads_the_tables_is_seen_or_sees() {
        loom::model(|| {
            let words = Arc::new((AtomicU64::new(ENTRY), AtomicU64::new(0)));
            let walker = {
                let words = Arc::clone(&words);
                thread::spawn(move || {
                    let (entry, cpus) = &*words;
                    cpus.fetch_or(1 << 1, Ordering::SeqCst); // as the switch of vCPUs does
                    entry.load(Ordering::Relaxed)
                })
            };
            let (entry, cpus) = &*words;
            entry.store(0, Ordering::Release); // as `exchange` does
            let is_seen = after_writes(cpus) != CpuSet::default();
            assert!(is_seen || walker.join().unwrap() == 0, "the entry is used, and nobody flushes");
        });
    }

    /// One CPU takes an entry out, and asks which CPUs have a vCPU. Another CPU loads the vCPU, walks, and keeps it while idle.
    #[test]
    fn a_cpu_that_loads_a_vcpu_is_seen_or_sees() {
        loom::model(|| {
            let shared = Arc::new((AtomicU64::new(ENTRY), Vcpu::default()));
            let (entry, vcpu) = &*shared;
            vcpu.set_running_on(None);
            vcpu.set_holder(None);
            let walker = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (entry, vcpu) = &*shared;
                    vcpu.set_running_on(CpuId::new(1));
                    let seen = entry.load(Ordering::Relaxed);
                    vcpu.set_holder(CpuId::new(1));
                    vcpu.set_running_on(None);
                    seen
                })
            };
            entry.store(0, Ordering::Release);
            let is_seen = cpus_of_vcpus(core::iter::once(vcpu)) != CpuSet::default();
            assert!(is_seen || walker.join().unwrap() == 0, "the entry is used, and nobody flushes");
        });
    }
}
