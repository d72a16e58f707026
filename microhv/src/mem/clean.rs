//! Zeroing of the extents that a domain is to get, in pieces.
//!
//! A frame is zeroed before a domain gets the frame (I14). An extent of 2 MiB takes longer than interrupts may wait. So
//! the work may be interrupted, and the domain keeps what was done until the call is executed again. A domain that does
//! not execute its call again keeps this work until it asks for something else or ends: one extent of the largest
//! order, or as many frames for an exchange, so 2 MiB for an ordinary domain and 4 MiB for a privileged one.

use alloc::vec::Vec;

use ring_abi::types::Mfn;

use super::MemError;
use super::state::Cleaning;
use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

/// Frames that are zeroed between two looks at what waits.
const LOOK_EVERY: u64 = 8;
/// Number of frames that are released between two looks.
const RELEASE_EVERY: u32 = 32;
/// Orders up to this are zeroed without a look.
pub(super) const SMALL_ORDER: u8 = 3;

impl Cleaning {
    fn has_to_release(&self) -> bool {
        !self.given.is_empty() || self.unwanted && !self.extents.is_empty()
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Takes `count` extents of 2^`order` zeroed frames each, without an owner, below 2^`address_bits` bytes unless
    /// `address_bits` is 0.
    ///
    /// # Errors
    /// `Restart`: something else waits, and the domain keeps what was done. `NoMemory`: there are not so many free
    /// frames, or they are claimed for others.
    pub(crate) fn take_clean(
        &self,
        dom: &Domain,
        order: u8,
        address_bits: u8,
        count: usize,
    ) -> Result<Vec<Mfn>, MemError> {
        // The work is taken out of the domain meanwhile, so another vCPU of the domain may do the same with
        // extents of its own.
        let mut work = core::mem::take(&mut *dom.mm.cleaning.lock());
        // Frames that another vCPU gave in exchange do not belong to this call, and would be lost if they stayed with
        // its extents.
        let is_same = (work.order, work.address_bits) == (order, address_bits);
        if !is_same || work.unwanted || !work.given.is_empty() || work.extents.len() > count {
            work.unwanted = true;
            if !self.release_some(&mut work) {
                self.keep_extents(dom, work);
                return Err(MemError::Restart);
            }
            work = Cleaning { order, address_bits, ..Cleaning::default() };
        }
        let total = (count as u64) << order;
        while work.zeroed < total {
            let (extent, page) = ((work.zeroed >> order) as usize, work.zeroed & ((1 << order) - 1));
            let mut has_waited = false;
            if extent == work.extents.len() {
                // Another CPU that frees pages all the time makes each allocation wait for a flush: such waits must not add up.
                has_waited = self.frames.stale().is_some();
                let free = self.may_use(dom, 1 << order).then(|| self.alloc_frames(order, address_bits));
                let Some(mfn) = free.flatten() else {
                    work.unwanted = true;
                    self.keep_extents(dom, work);
                    return Err(MemError::NoMemory);
                };
                work.extents.push(mfn);
            }
            self.platform.zero_frame(Mfn::new(work.extents[extent].raw() + page));
            work.zeroed += 1;
            let is_time =
                work.zeroed.is_multiple_of(LOOK_EVERY) || work.zeroed == total && total > LOOK_EVERY;
            if (is_time || has_waited) && self.platform.work_pending() {
                self.keep_extents(dom, work);
                return Err(MemError::Restart);
            }
        }
        Ok(work.extents)
    }

    fn keep_extents(&self, dom: &Domain, work: Cleaning) {
        let mut kept = dom.mm.cleaning.lock();
        // `is_dying` is read under the lock, so that the domain's end finds all that was kept before it
        // began.
        let left_over = if dom.is_dying() { work } else { core::mem::replace(&mut *kept, work) };
        drop(kept);
        self.drop_extents(left_over);
    }

    /// Gives back what is kept for a domain. `false`: something else waits, and something is left.
    pub(super) fn drop_cleaning(&self, dom: &Domain) -> bool {
        let mut kept = dom.mm.cleaning.lock();
        kept.unwanted = true;
        self.release_some(&mut kept)
    }

    /// Keeps frames that were stolen from the domain until [`Hypervisor::release_given`].
    pub(crate) fn keep_given(&self, dom: &Domain, given: Vec<Mfn>) {
        self.keep_extents(dom, Cleaning { given, ..Cleaning::default() });
    }

    /// Releases the frames that were stolen from the domain, and the frames of a call of the domain's that did not get
    /// to its end. `false`: something else waits, and some frames are left.
    pub(crate) fn release_given(&self, dom: &Domain) -> bool {
        let mut work = core::mem::take(&mut *dom.mm.cleaning.lock());
        let is_done = self.release_some(&mut work);
        self.keep_extents(dom, work);
        is_done
    }

    /// Releases the frames that no domain will get. `false`: something else waits, and some frames are left.
    fn release_some(&self, work: &mut Cleaning) -> bool {
        let mut released = 0;
        while work.has_to_release() {
            match work.given.pop() {
                Some(mfn) => self.frames.release(mfn, 0),
                None => work.extents.pop().into_iter().for_each(|mfn| self.frames.release(mfn, work.order)),
            }
            released += 1;
            if released % RELEASE_EVERY == 0 && work.has_to_release() && self.platform.work_pending() {
                return false;
            }
        }
        if work.unwanted {
            *work = Cleaning::default();
        }
        true
    }

    /// Releases all frames at once: for two calls of one domain that meet, or the domain's end that meets a call.
    fn drop_extents(&self, work: Cleaning) {
        work.given.iter().for_each(|&mfn| self.frames.release(mfn, 0));
        work.extents.iter().for_each(|&mfn| self.frames.release(mfn, work.order));
    }
}
