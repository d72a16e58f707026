//! What is left of domains that nobody refers to any more, freed in pieces.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use super::{Domain, Vcpu};
use crate::Hypervisor;
use crate::platform::Platform;

/// What is left of a domain that is in no list any more, or that was not made to the end.
#[derive(Debug)]
pub(super) struct Ending {
    vcpus: Vec<Vcpu>,
    /// The frame of its `shared_info`.
    shared_mfn: Mfn,
    /// `None`: the domain was never there, and its frame never lent.
    domain: Option<Arc<Domain>>,
}

impl Ending {
    /// A domain to which nobody else refers.
    pub(super) fn of_domain(mut domain: Arc<Domain>) -> Self {
        let vcpus = Arc::get_mut(&mut domain).map(|domain| core::mem::take(&mut domain.vcpus));
        Self { vcpus: vcpus.unwrap_or_default(), shared_mfn: domain.shared_info_mfn, domain: Some(domain) }
    }

    /// The vCPUs of a domain that will not be.
    pub(super) fn of_vcpus(vcpus: Vec<Vcpu>, shared_mfn: Mfn) -> Self {
        Self { vcpus, shared_mfn, domain: None }
    }

    /// Frees a piece of what the domain itself has. `false`: what is left goes at once.
    fn shrink(&mut self) -> bool {
        self.domain.as_mut().and_then(Arc::get_mut).is_some_and(|domain| domain.grants.shrink())
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Lets [`Hypervisor::reap_dead`] free what is left of a domain.
    pub(super) fn end_later(&self, ending: Ending) {
        self.domains.keep_ending(ending);
        self.reap_dead();
    }

    /// Forgets domains that are dead and of which nobody has a page or a reference any more, as far as no other work waits.
    #[inline]
    pub fn reap_dead(&self) {
        if self.domains.has_dead() {
            self.reap();
        }
    }

    #[cold]
    #[inline(never)]
    fn reap(&self) {
        while let Some(ending) = self.domains.take_ending(|domain| domain.mm.tot_pages() == 0) {
            if let Some(left) = self.end_some(ending) {
                self.domains.keep_ending(left);
                return;
            }
        }
    }

    /// Frees what is left of a domain. `Some`: something else waits, and so much is left.
    fn end_some(&self, mut ending: Ending) -> Option<Ending> {
        while let Some(vcpu) = ending.vcpus.pop() {
            self.remove_timers_of(&vcpu);
            self.platform.vcpu_destroyed(&vcpu);
            drop(vcpu);
            if self.platform.work_pending() {
                return Some(ending);
            }
        }
        while ending.shrink() {
            if self.platform.work_pending() {
                return Some(ending);
            }
        }
        if ending.domain.is_some() {
            self.unshare(ending.shared_mfn); // freed now, or when the last mapping of it goes
        } else {
            self.release_frames(ending.shared_mfn, 0);
        }
        None
    }
}
