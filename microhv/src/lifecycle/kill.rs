//! The end of domains.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::LifecycleError;
use crate::Hypervisor;
use crate::domain::{Domain, DyingState, Vcpu};
use crate::mem::Progress;
use crate::platform::Platform;
use ring_abi::evtchn::VIRQ_DOM_EXC;

impl<P: Platform> Hypervisor<P> {
    /// `XEN_DOMCTL_destroydomain`: gives back all that a domain has, as far as no other work waits.
    ///
    /// # Errors
    /// `Again`: more is to be done, and the caller repeats the call.
    pub(crate) fn kill_domain(&self, domain: &Arc<Domain>) -> Result<(), LifecycleError> {
        match domain.dying() {
            DyingState::Dead => return Ok(()),
            DyingState::Alive => {
                if !self.pause_domain(domain) {
                    return Err(LifecycleError::Again);
                }
                {
                    // No port is opened in the domain after this: an open checks the mark under the same
                    // lock.
                    let _binding = domain.events.binding.lock();
                    domain.set_dying(DyingState::Dying);
                }
                self.release_pirqs(domain); // once: a domain that is paused maps no more
                self.forget_domain(domain);
            }
            DyingState::Dying => {}
        }
        let may_go_on = |vcpu: &Vcpu| !self.time.remove_timers(vcpu) || !self.platform.work_pending();
        if !domain.vcpus.iter().all(may_go_on) || !self.evtchn_close_all(domain) {
            return Err(LifecycleError::Again);
        }
        while let Some(handle) =
            self.release_grant_mappings(domain, domain.teardown_at.load(Ordering::Relaxed))
        {
            domain.teardown_at.store(handle, Ordering::Relaxed);
            if self.platform.work_pending() {
                return Err(LifecycleError::Again);
            }
        }
        domain.teardown_at.store(u32::MAX, Ordering::Relaxed);
        if !self.release_info_pages(domain)
            || self.relinquish_memory(domain) == Progress::More
            || !self.release_grant_table(domain)
        {
            return Err(LifecycleError::Again);
        }
        // Of several CPUs that come here with one domain, one notes the domain: its number may soon be another's.
        if domain.set_dead() {
            self.unfinished.note_dead(domain.id);
            self.send_global_virq(VIRQ_DOM_EXC);
        }
        Ok(())
    }

    /// Gives back the pages that hold a `vcpu_info`. `false`: something else waits, and some are left.
    fn release_info_pages(&self, domain: &Domain) -> bool {
        for vcpu in &domain.vcpus {
            if vcpu.info_frame.get().is_some() {
                vcpu.info.clear();
            }
            if let Some(mfn) = vcpu.info_frame.replace(None) {
                self.put_page_and_type(mfn);
                if self.platform.work_pending() {
                    return false;
                }
            }
        }
        true
    }
}
