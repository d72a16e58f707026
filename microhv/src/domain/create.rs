//! The beginning and the end of domains.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::types::DomId;

use super::list::FIRST_RESERVED;
use super::{Domain, DomainConfig, DyingState, FpuArea, MAX_VCPUS, TrapGate, Vcpu};
use crate::Hypervisor;
use crate::error::HypercallError;
use crate::mem::Progress;
use crate::platform::Platform;
use ring_abi::evtchn::VIRQ_DOM_EXC;

/// Bytes of the heap that a vCPU takes, about: itself, its trap table, its floating-point state, its ports and timers.
const VCPU_BYTES: usize = size_of::<Vcpu>() + size_of::<[TrapGate; 256]>() + FpuArea::BYTES + 1024;

impl<P: Platform> Hypervisor<P> {
    /// Makes a domain: without memory, its vCPUs down, paused by the toolstack. `id` `None`: the next free number.
    ///
    /// # Errors
    /// `Exists`: `id` is taken; `NoMemory`; `Invalid`: a reserved id or an impossible number of vCPUs.
    #[inline(never)]
    pub fn create_domain(
        &self,
        id: Option<DomId>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, HypercallError> {
        if config.max_vcpus == 0 || config.max_vcpus > MAX_VCPUS {
            return Err(HypercallError::Invalid);
        }
        let id = match id {
            Some(id) if id.raw() >= FIRST_RESERVED => return Err(HypercallError::Invalid),
            Some(id) if self.domains.contains(id) => return Err(HypercallError::Exists),
            Some(id) => id,
            None => self.domains.next_id().ok_or(HypercallError::NoMemory)?,
        };
        if !self.may_spend_pieces(VCPU_BYTES, config.max_vcpus as usize) {
            return Err(HypercallError::NoMemory);
        }
        let shared_mfn = self.alloc_zeroed().ok_or(HypercallError::NoMemory)?;
        let domain =
            Domain::new(id, config, shared_mfn, self.platform.shared(shared_mfn), self.platform.now_ns());
        for (done, vcpu) in domain.vcpus.iter().enumerate() {
            if !self.platform.vcpu_created(vcpu) {
                domain.vcpus[..done].iter().for_each(|vcpu| self.platform.vcpu_destroyed(vcpu));
                self.release_frames(shared_mfn, 0);
                return Err(HypercallError::NoMemory);
            }
        }
        self.share_with_guest(shared_mfn, id, false);
        if let Err(error) = self.domains.insert(domain.clone()) {
            self.free_last(&domain);
            return Err(error);
        }
        self.create_timers(&domain);
        self.publish_wall_clock(&domain);
        for vcpu in &domain.vcpus {
            self.publish_time(vcpu);
        }
        Ok(domain)
    }

    /// `XEN_DOMCTL_destroydomain`: gives back all that a domain has, as far as no other work waits.
    ///
    /// # Errors
    /// `Again`: there is more to do; call again.
    pub(crate) fn kill_domain(&self, domain: &Arc<Domain>) -> Result<(), HypercallError> {
        match domain.dying() {
            DyingState::Dead => return Ok(()),
            DyingState::Alive => {
                self.pause_domain(domain);
                {
                    // Nobody gives it a port after this: opening looks at it under the same lock.
                    let _binding = domain.events.lock_binding();
                    domain.set_dying(DyingState::Dying);
                }
                self.forget_domain(domain);
                self.remove_timers(domain);
            }
            DyingState::Dying => {}
        }
        if !self.evtchn_close_all(domain) {
            return Err(HypercallError::Again);
        }
        self.release_pirqs(domain);
        while let Some(handle) =
            self.release_grant_mappings(domain, domain.teardown_at.load(Ordering::Relaxed))
        {
            domain.teardown_at.store(handle, Ordering::Relaxed);
            if self.platform.work_pending() {
                return Err(HypercallError::Again);
            }
        }
        domain.teardown_at.store(u32::MAX, Ordering::Relaxed);
        self.release_info_pages(domain);
        if self.relinquish_memory(domain) == Progress::More {
            return Err(HypercallError::Again);
        }
        self.release_grant_table(domain);
        domain.set_dying(DyingState::Dead);
        self.domains.note_dead(domain.id);
        self.send_global_virq(VIRQ_DOM_EXC);
        Ok(())
    }

    /// Gives back the pages that hold a `vcpu_info`.
    fn release_info_pages(&self, domain: &Domain) {
        for vcpu in &domain.vcpus {
            if vcpu.info_frame().is_some() {
                vcpu.info.clear();
            }
            if let Some(mfn) = vcpu.take_info_frame() {
                self.put_page_and_type(mfn);
            }
        }
    }

    /// Forgets domains that are dead and of which nobody has a page or a reference any more.
    #[inline]
    pub fn reap_dead(&self) {
        if self.domains.has_dead() {
            self.reap();
        }
    }

    #[cold]
    #[inline(never)]
    fn reap(&self) {
        self.domains.take_reapable(|domain| domain.mm.tot_pages() == 0).into_iter().for_each(|domain| {
            self.free_last(&domain);
        });
    }

    /// Frees the frames and machine state that a domain has until its very end.
    fn free_last(&self, domain: &Domain) {
        for vcpu in &domain.vcpus {
            self.platform.vcpu_destroyed(vcpu);
        }
        self.unshare(domain.shared_info_mfn); // freed now, or when the last mapping of it goes
    }
}
