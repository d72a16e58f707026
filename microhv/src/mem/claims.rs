//! Claims (`XENMEM_claim_pages`): memory set aside for a domain while it is built.

use core::sync::atomic::Ordering;

use ring_abi::types::PAGE_SIZE;

use super::MemError;
use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

/// Free pages that `may_spend` leaves.
const KEPT_PAGES: u64 = 16;

impl<P: Platform> Hypervisor<P> {
    /// Sets aside as many pages as the domain lacks to `pages`; 0 gives the claim up.
    ///
    /// # Errors
    /// `Invalid`: the domain has a claim, owns so many pages already, or may not own so many. `NoMemory`: there are not
    /// so many free pages.
    pub(crate) fn claim_pages(&self, dom: &Domain, pages: u64) -> Result<(), MemError> {
        if pages == 0 {
            self.drop_claim(dom);
            return Ok(());
        }
        let mut claim = dom.mm.claim.lock();
        let owned = dom.mm.tot_pages();
        if *claim > 0 || pages <= owned || pages > dom.mm.max_pages() || dom.is_dying() {
            return Err(MemError::Invalid);
        }
        let wanted = pages - owned;
        let claimed = self.frames.claimed.fetch_add(wanted, Ordering::AcqRel);
        if claimed + wanted > self.frames.free_pages() {
            self.frames.claimed.fetch_sub(wanted, Ordering::AcqRel);
            return Err(MemError::NoMemory);
        }
        *claim = wanted;
        Ok(())
    }

    /// Gives up what is left of the domain's claim.
    pub(crate) fn drop_claim(&self, dom: &Domain) {
        let left = core::mem::take(&mut *dom.mm.claim.lock());
        self.frames.claimed.fetch_sub(left, Ordering::AcqRel);
    }

    /// Whether a domain's request may make the hypervisor take `bytes` more for itself, in one piece. Some memory stays
    /// for what cannot fail, claimed memory stays for the domain that claimed it, and the heap must be able to give the
    /// piece. (I31)
    pub(crate) fn may_spend(&self, bytes: usize) -> bool {
        let needed = bytes.div_ceil(PAGE_SIZE).next_power_of_two() as u64;
        let claimed = self.frames.claimed.load(Ordering::Acquire);
        self.frames.free_pages() >= claimed + needed + KEPT_PAGES && self.platform.heap_has_room(bytes)
    }

    /// Whether the domain may take `count` more pages without touching what other domains claimed.
    pub(super) fn may_use(&self, dom: &Domain, count: u64) -> bool {
        let claimed = self.frames.claimed.load(Ordering::Acquire);
        if claimed == 0 {
            return true;
        }
        let others = claimed.saturating_sub(*dom.mm.claim.lock());
        others + count <= self.frames.free_pages()
    }

    /// Notes that the domain got `count` pages: the domain's claim shrinks.
    pub(super) fn use_claim(&self, dom: &Domain, count: u64) {
        if self.frames.claimed.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut claim = dom.mm.claim.lock();
        let used = count.min(*claim);
        *claim -= used;
        self.frames.claimed.fetch_sub(used, Ordering::AcqRel);
    }
}
