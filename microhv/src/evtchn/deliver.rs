//! Sending: from a port to the pending bit of its peer and the upcall of a vCPU.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::shared_info::{PENDING_SEL_OFFSET, UPCALL_PENDING_OFFSET};

use super::{PortCell, PortState, VcpuEvents};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::error::HypercallError;
use crate::evtchn::MAX_PORTS;
use crate::platform::Platform;

/// Whether `port` of `domain` is pending, masked or not.
pub fn is_pending(domain: &Domain, port: u32) -> bool {
    port < MAX_PORTS && domain.events.bits.is_pending(port)
}

/// Whether `port` of `domain` is masked.
pub fn is_masked(domain: &Domain, port: u32) -> bool {
    port < MAX_PORTS && domain.events.bits.is_masked(port)
}

impl<P: Platform> Hypervisor<P> {
    /// `EVTCHNOP_send` from `port` of `domain`.
    ///
    /// # Errors
    /// `Invalid`: the port is not one that can be sent from. A peer that has gone is no error.
    #[inline]
    pub fn evtchn_send(&self, domain: &Arc<Domain>, port: u32) -> Result<(), HypercallError> {
        let cell = domain.events.cell(port)?;
        let state = cell.state.lock();
        let (target, cell, port) = match &*state {
            PortState::Interdomain { remote, port } => (remote, remote.events.cell(*port)?, *port),
            PortState::Ipi => (domain, cell, port),
            PortState::Unbound { .. } => return Ok(()),
            PortState::Free | PortState::Pirq { .. } | PortState::Virq { .. } => {
                return Err(HypercallError::Invalid);
            }
        };
        self.deliver(target, cell, port);
        Ok(())
    }

    /// Makes `port`, which is open, pending in `domain`.
    pub fn set_pending(&self, domain: &Arc<Domain>, port: u32) {
        if let Ok(cell) = domain.events.cell(port) {
            self.deliver(domain, cell, port);
        }
    }

    #[inline]
    fn deliver(&self, domain: &Arc<Domain>, cell: &PortCell, port: u32) {
        let bits = &domain.events.bits;
        if bits.set_pending(port) && !bits.is_masked(port) {
            self.mark(domain, cell, port);
        }
        if domain.events.pollers.load(Ordering::Acquire) != 0 {
            self.wake_pollers(domain, port);
        }
    }

    /// Sets the selector bit of a pending, unmasked port, and the upcall.
    #[inline]
    fn mark(&self, domain: &Arc<Domain>, cell: &PortCell, port: u32) {
        let Some(vcpu) = domain.vcpu(cell.notify_vcpu.load(Ordering::Relaxed)) else { return };
        let Some(info) = vcpu.info.get() else { return };
        let selector = 1u64 << (port / 64 % 64);
        if info.or_u64(PENDING_SEL_OFFSET, selector) & selector == 0 {
            info.swap_u8(UPCALL_PENDING_OFFSET, 1); // a full barrier: the vCPU blocks, then looks
            self.kick_vcpu(domain, vcpu);
        }
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
        let bits = &domain.events.bits;
        if bits.unmask(port) && bits.is_pending(port) {
            self.mark(domain, cell, port);
        }
        Ok(())
    }
}
