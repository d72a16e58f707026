//! Sending: from a port to the pending bit of its peer and the upcall of a vCPU.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::{MASK, PENDING, PENDING_SEL, PortState, UPCALL_PENDING, VcpuEvents};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::error::HypercallError;
use crate::evtchn::MAX_PORTS;
use crate::platform::Platform;

#[inline]
const fn word(port: u32) -> usize {
    (port / 64) as usize * 8
}

#[inline]
const fn bit(port: u32) -> u64 {
    1 << (port % 64)
}

/// Whether `port` of `domain` is pending, masked or not.
pub fn is_pending(domain: &Domain, port: u32) -> bool {
    port < MAX_PORTS && domain.shared_info.load_u64(PENDING + word(port)) & bit(port) != 0
}

/// Whether `port` of `domain` is masked.
pub fn is_masked(domain: &Domain, port: u32) -> bool {
    port < MAX_PORTS && domain.shared_info.load_u64(MASK + word(port)) & bit(port) != 0
}

/// Clears the pending bit of a port that is closed.
pub(super) fn clear_pending(domain: &Domain, port: u32) {
    domain.shared_info.and_u64(PENDING + word(port), !bit(port));
}

impl<P: Platform> Hypervisor<P> {
    /// `EVTCHNOP_send` from `port` of `domain`.
    ///
    /// # Errors
    /// `Invalid`: the port is not one that can be sent from. A peer that has gone is no error.
    #[inline]
    pub fn evtchn_send(&self, domain: &Arc<Domain>, port: u32) -> Result<(), HypercallError> {
        let state = domain.events.cell(port)?.state.lock();
        match &*state {
            PortState::Interdomain { remote, port } => self.set_pending(remote, *port),
            PortState::Ipi => self.set_pending(domain, port),
            PortState::Unbound { .. } => {}
            PortState::Free | PortState::Pirq { .. } | PortState::Virq { .. } => {
                return Err(HypercallError::Invalid);
            }
        }
        Ok(())
    }

    /// Makes `port`, which is open, pending in `domain`.
    #[inline]
    pub fn set_pending(&self, domain: &Arc<Domain>, port: u32) {
        let Ok(cell) = domain.events.cell(port) else { return };
        let page = &domain.shared_info;
        if page.or_u64(PENDING + word(port), bit(port)) & bit(port) == 0
            && page.load_u64(MASK + word(port)) & bit(port) == 0
        {
            self.mark(domain, cell.notify_vcpu.load(Ordering::Relaxed), port);
        }
        if domain.events.pollers.load(Ordering::Acquire) != 0 {
            self.wake_pollers(domain, port);
        }
    }

    /// Sets the selector bit of a pending, unmasked port, and the upcall.
    #[inline]
    fn mark(&self, domain: &Arc<Domain>, vcpu: u32, port: u32) {
        let Some(vcpu) = domain.vcpu(vcpu) else { return };
        let Some(info) = vcpu.info.get() else { return };
        let selector = 1u64 << (port / 64);
        if info.or_u64(PENDING_SEL, selector) & selector == 0 {
            self.mark_upcall(domain, vcpu);
        }
    }

    /// Sets the upcall of a vCPU and wakes it.
    #[inline]
    pub(crate) fn mark_upcall(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        let Some(info) = vcpu.info.get() else { return };
        info.swap_u8(UPCALL_PENDING, 1); // a full barrier: the vCPU blocks, then looks
        self.kick_vcpu(domain, vcpu);
    }

    #[cold]
    fn wake_pollers(&self, domain: &Arc<Domain>, port: u32) {
        for vcpu in &domain.vcpus {
            let polled = vcpu.events.poll.load(Ordering::Acquire);
            if polled == port || polled == VcpuEvents::POLL_ANY {
                self.end_poll(domain, vcpu);
            }
        }
    }

    /// Sends a VIRQ that each vCPU has of its own.
    pub fn send_vcpu_virq(&self, domain: &Arc<Domain>, vcpu: &Vcpu, virq: u32) {
        let Some(port) = vcpu.events.virq_port(virq) else { return };
        let Ok(cell) = domain.events.cell(port) else { return };
        let state = cell.state.lock();
        if matches!(*state, PortState::Virq { virq: bound } if bound == virq) {
            self.set_pending(domain, port);
        }
    }

    /// Sends a VIRQ of a whole domain.
    pub fn send_domain_virq(&self, domain: &Arc<Domain>, virq: u32) {
        if let Some(vcpu) = domain.vcpu(0) {
            self.send_vcpu_virq(domain, vcpu, virq);
        }
    }

    /// Sends a VIRQ that concerns the whole machine: to dom0.
    pub fn send_global_virq(&self, virq: u32) {
        if let Some(dom0) = self.domains.get(ring_abi::types::DomId::new(0)) {
            self.send_domain_virq(&dom0, virq);
        }
    }

    /// A physical interrupt that is bound to `port` of `domain` came.
    pub fn send_pirq(&self, domain: &Arc<Domain>, port: u32) {
        let Ok(cell) = domain.events.cell(port) else { return };
        let state = cell.state.lock();
        if matches!(*state, PortState::Pirq { .. }) {
            self.set_pending(domain, port);
        }
    }

    /// `EVTCHNOP_unmask`.
    ///
    /// # Errors
    /// `Invalid`: not a port that was ever open.
    pub fn evtchn_unmask(&self, domain: &Arc<Domain>, port: u32) -> Result<(), HypercallError> {
        let cell = domain.events.cell(port)?;
        let state = cell.state.lock();
        if matches!(*state, PortState::Free) {
            return Err(HypercallError::Invalid);
        }
        let page = &domain.shared_info;
        if page.and_u64(MASK + word(port), !bit(port)) & bit(port) != 0
            && page.load_u64(PENDING + word(port)) & bit(port) != 0
        {
            self.mark(domain, cell.notify_vcpu.load(Ordering::Relaxed), port);
        }
        Ok(())
    }
}
