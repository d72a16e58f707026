//! Sending: from a port to the pending bit of its peer and the upcall of a vCPU.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::shared_info::UPCALL_PENDING_OFFSET;
use ring_abi::types::{DomId, Port};

use super::EvtchnError;
use super::state::{Fifo, PIECE, PortCell, PortState, Raised, VcpuEvents};
use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::Platform;
use crate::sync::may_come_between;

impl<P: Platform> Hypervisor<P> {
    /// `EVTCHNOP_send` from `port` of `domain`.
    ///
    /// # Errors
    /// `Invalid`: the port is not one that can be sent from. A peer that has gone is no error.
    #[inline(always)]
    pub fn evtchn_send(&self, domain: &Arc<Domain>, port: Port) -> Result<(), EvtchnError> {
        // The usual path makes no function call before the bits are set, since the registers in use would
        // have to be saved for it.
        let Some(cell) = domain.events.cells.get_near(port) else { return self.send_far(domain, port) };
        if cell.is_ipi.load(Ordering::Acquire) {
            if self.set_bits(domain, cell, port) {
                self.rouse(domain, cell, port);
            }
            return Ok(());
        }
        self.send_locked(domain, cell, port)
    }

    /// Sends from a port that two levels do not have.
    #[cold]
    #[inline(never)]
    fn send_far(&self, domain: &Arc<Domain>, port: Port) -> Result<(), EvtchnError> {
        let cell = domain.events.cell(port).ok_or(EvtchnError::Invalid)?;
        self.send_locked(domain, cell, port)
    }

    /// Sends from a port that has a peer, or that is an IPI of the FIFO.
    ///
    /// # Errors
    /// `Invalid`: the port is not one that can be sent from.
    #[inline(never)]
    fn send_locked(&self, domain: &Arc<Domain>, cell: &PortCell, port: Port) -> Result<(), EvtchnError> {
        let state = cell.state.lock();
        // Ahead of the other states: this is what nearly all are.
        if let PortState::Interdomain { remote, port } = &*state {
            let port = *port;
            let is_to_be_roused = match remote.events.cells.get_near(port) {
                Some(cell) => self.raise(remote, cell, port),
                None => self.raise_far(remote, port),
            };
            if is_to_be_roused {
                let remote = remote.clone();
                drop(state);
                self.rouse_peer(&remote, port);
            }
            return Ok(());
        }
        match &*state {
            PortState::Unbound { .. } => Ok(()),
            PortState::Ipi => {
                drop(state);
                self.send_ipi(domain, port);
                Ok(())
            }
            _ => Err(EvtchnError::Invalid),
        }
    }

    /// Sends from a port of the FIFO that is an IPI, unless the port was closed meanwhile.
    #[cold]
    #[inline(never)]
    fn send_ipi(&self, domain: &Arc<Domain>, port: Port) {
        self.send_bound(domain, port, |state| matches!(state, PortState::Ipi));
    }

    /// Makes `port` of `domain`, whose cell is `cell`, pending.
    #[inline(always)]
    pub(super) fn set_pending(&self, domain: &Arc<Domain>, cell: &PortCell, port: Port) {
        if self.raise(domain, cell, port) {
            self.rouse(domain, cell, port);
        }
    }

    /// Makes a port pending. Returns whether a vCPU must be woken.
    #[must_use = "somebody may be to be roused"]
    #[inline(always)]
    fn raise(&self, domain: &Domain, cell: &PortCell, port: Port) -> bool {
        if domain.events.is_fifo() {
            return self.raise_fifo(domain, cell, port, Fifo::set_pending);
        }
        self.set_bits(domain, cell, port)
    }

    /// Does the same as [`Self::raise`] for a port that two levels do not have.
    #[cold]
    #[inline(never)]
    fn raise_far(&self, domain: &Domain, port: Port) -> bool {
        domain.events.cell(port).is_some_and(|cell| self.raise(domain, cell, port))
    }

    /// Sets the bits of a port that became pending. Returns whether a vCPU must be woken.
    #[must_use = "somebody may be to be roused"]
    #[inline(always)]
    fn set_bits(&self, domain: &Domain, cell: &PortCell, port: Port) -> bool {
        let bits = domain.events.bits;
        may_come_between();
        if !bits.set_pending(port) {
            // The send that set the bit has woken the vCPUs that poll, too.
            return false;
        }
        let marked = !bits.is_masked(port) && self.mark(domain, cell, port);
        marked || domain.events.heeds_more()
    }

    /// Sets the selector bit of a pending, unmasked port, and the upcall byte. Returns whether the port's
    /// vCPU must be woken.
    #[must_use = "the vCPU may be to be roused"]
    #[inline(always)]
    fn mark(&self, domain: &Domain, cell: &PortCell, port: Port) -> bool {
        let Some(vcpu) = domain.known_vcpu(cell.vcpu()) else { return false };
        vcpu.info.mark(port.raw() / 64) && !vcpu.runs_on(self.platform.cpu())
    }

    /// Does `change` to a port of the FIFO. Returns whether a vCPU must be woken. In a domain that is back at two
    /// levels nothing happens, since the port was closed meanwhile.
    #[must_use = "somebody may be to be roused"]
    #[inline(never)]
    fn raise_fifo(
        &self,
        domain: &Domain,
        cell: &PortCell,
        port: Port,
        change: impl FnOnce(&mut Fifo, Port, &PortCell, u32) -> Raised,
    ) -> bool {
        let Some(vcpu) = domain.vcpu(cell.vcpu()) else { return false };
        let mut fifo = domain.events.fifo.lock();
        let raised = fifo.as_mut().map(|fifo| change(fifo, port, cell, vcpu.id.raw())).unwrap_or_default();
        drop(fifo);
        let marked = raised.upcall && vcpu.info.raise() && !vcpu.runs_on(self.platform.cpu());
        marked || raised.is_new && domain.events.pollers() != 0
    }

    /// As [`Self::rouse`], of a port that may have been closed meanwhile.
    #[cold]
    #[inline(never)]
    fn rouse_peer(&self, domain: &Arc<Domain>, port: Port) {
        if let Some(cell) = domain.events.cell(port) {
            self.rouse(domain, cell, port);
        }
    }

    /// Wakes or kicks the vCPU that `port`, whose cell is `cell`, notifies, and wakes those that poll the port.
    #[cold]
    #[inline(never)]
    fn rouse(&self, domain: &Arc<Domain>, cell: &PortCell, port: Port) {
        self.kick_notified(domain, cell);
        if domain.events.heeds_more() {
            if domain.events.is_fifo() {
                return self.rouse_by_fifo(domain, cell, port);
            }
            self.wake_pollers(domain, |polled| polled == VcpuEvents::polled(port));
        }
    }

    /// Kicks the vCPU that a port notifies, if events wait for it.
    #[inline(always)]
    fn kick_notified(&self, domain: &Arc<Domain>, cell: &PortCell) {
        if let Some(vcpu) = domain.vcpu(cell.vcpu())
            && vcpu.info.get().is_some_and(|info| info.load_u8(UPCALL_PENDING_OFFSET) != 0)
        {
            self.kick_vcpu(domain, vcpu);
        }
    }

    /// The rest of [`Self::rouse`] in a domain that has turned to the FIFO: it may have done so since the sender looked, and may
    /// have looked at the bit of two levels before that was set.
    #[cold]
    #[inline(never)]
    fn rouse_by_fifo(&self, domain: &Arc<Domain>, cell: &PortCell, port: Port) {
        if domain.events.bits.take_pending(port) && self.raise_fifo(domain, cell, port, Fifo::set_pending) {
            self.kick_notified(domain, cell);
        }
        self.wake_pollers(domain, |polled| polled == VcpuEvents::polled(port));
    }

    /// Wakes the vCPUs that poll several ports, or one that `is_meant`.
    fn wake_pollers(&self, domain: &Arc<Domain>, is_meant: impl Fn(u32) -> bool) {
        if domain.events.pollers() == 0 {
            return;
        }
        for vcpu in &domain.vcpus {
            let polled = vcpu.events.poll.load(Ordering::Acquire);
            if polled == VcpuEvents::POLL_ANY || polled != 0 && is_meant(polled) {
                self.wake(domain, vcpu, crate::domain::PauseFlags::WAITING);
            }
        }
    }

    /// Sends a VIRQ that each vCPU has of its own.
    pub fn send_vcpu_virq(&self, domain: &Arc<Domain>, vcpu: &Vcpu, virq: u32) {
        if let Some(port) = vcpu.events.virq_port(virq) {
            self.send_bound(
                domain,
                port,
                |state| matches!(state, PortState::Virq { virq: bound } if *bound == virq),
            );
        }
    }

    /// Makes `port` pending if its state is what the caller expects: the port may have been closed meanwhile.
    fn send_bound(&self, domain: &Arc<Domain>, port: Port, is_expected: impl FnOnce(&PortState) -> bool) {
        let Some(cell) = domain.events.cell(port) else { return };
        let state = cell.state.lock();
        if is_expected(&state) {
            self.set_pending(domain, cell, port);
        }
    }

    /// Sends a VIRQ that concerns the whole machine: to dom0.
    pub fn send_global_virq(&self, virq: u32) {
        if let Some(dom0) = self.domains.get(DomId::new(0))
            && let Some(vcpu) = dom0.vcpu(0)
        {
            self.send_vcpu_virq(&dom0, vcpu, virq);
        }
    }

    /// A physical interrupt that is bound to `port` of `domain` came.
    pub fn send_pirq(&self, domain: &Arc<Domain>, port: Port) {
        self.send_bound(domain, port, |state| matches!(state, PortState::Pirq { .. }));
    }

    /// `EVTCHNOP_unmask`.
    ///
    /// # Errors
    /// `Invalid`: not a port that was ever open.
    pub fn evtchn_unmask(&self, domain: &Arc<Domain>, port: Port) -> Result<(), EvtchnError> {
        let cell = domain.events.cell(port).ok_or(EvtchnError::Invalid)?;
        let state = cell.state.lock();
        if matches!(*state, PortState::Free) {
            return Err(EvtchnError::Invalid);
        }
        let bits = &domain.events.bits;
        let rouses = if domain.events.is_fifo() {
            self.raise_fifo(domain, cell, port, Fifo::unmask)
        } else {
            bits.unmask(port) && bits.is_pending(port) && self.mark(domain, cell, port)
        };
        if rouses {
            self.rouse(domain, cell, port);
        }
        Ok(())
    }

    /// Makes a piece of the ports from `first` on, whose words have come, pending for which events came before: with two levels,
    /// or while the page was missing. IPIs that were opened with two levels are the FIFO's from here on.
    pub(super) fn adopt_ports(&self, domain: &Arc<Domain>, fifo: &mut Fifo, first: u32) {
        for port in (first..first + PIECE).map(Port::new) {
            let Some(cell) = domain.events.cell(port) else { continue };
            cell.is_ipi.store(false, Ordering::SeqCst);
            let came = domain.events.bits.take_pending(port);
            if (cell.waits.swap(false, Ordering::Relaxed) || came)
                && let Some(vcpu) = domain.vcpu(cell.vcpu())
                && fifo.set_pending(port, cell, vcpu.id.raw()).upcall
                && vcpu.info.raise()
            {
                self.kick_vcpu(domain, vcpu);
            }
        }
        self.wake_pollers(domain, |_| true); // they look again
    }
}
