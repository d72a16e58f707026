//! Opening, binding and closing ports.
//!
//! Each opening operation tells the guest the port before it commits, through `publish`: after the last step that can
//! fail, binding cannot, so that a fault leaves no port behind.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::NR_VIRQS;
use ring_abi::types::DomId;
use ring_abi::types::{Pirq, Port};

use super::is_per_vcpu;
use super::state::Cells;
use super::state::{Binding, MAX_PORTS, PortState, Ports};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::error::HypercallError;
use crate::platform::Platform;
use crate::sync::{self, MutexGuard};

/// What `EVTCHNOP_status` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortStatus {
    /// Not open.
    Closed,
    /// Waits for `remote`.
    Unbound {
        /// Who may bind.
        remote: DomId,
    },
    /// Joined.
    Interdomain {
        /// The peer.
        remote: DomId,
        /// The peer's port.
        port: u32,
    },
    /// A physical interrupt.
    Pirq(Pirq),
    /// A virtual interrupt.
    Virq(u32),
    /// Between vCPUs.
    Ipi,
}

impl Ports {
    /// The lowest free port, which stays free.
    pub(super) fn find_free(&self, binding: &Binding) -> Result<u32, HypercallError> {
        let port = binding.lowest_free().ok_or(HypercallError::NoSpace)?;
        self.cells.make(port).ok_or(HypercallError::NoMemory)?;
        Ok(port)
    }

    /// Opens the free `port`.
    pub(super) fn open(&self, binding: &mut Binding, port: u32, state: PortState, vcpu: u32) {
        let cell = self.cells.get(port).expect("`find_free` made it");
        cell.notify_vcpu.store(vcpu, Ordering::Relaxed);
        let is_ipi = matches!(state, PortState::Ipi);
        *cell.state.lock() = state;
        cell.is_ipi.store(is_ipi, Ordering::Release);
        binding.open += 1;
        binding.taken[port as usize / 64] |= 1 << (port % 64);
    }

    fn note_closed(&self, binding: &mut Binding, port: u32) {
        binding.open -= 1;
        binding.taken[port as usize / 64] &= !(1 << (port % 64));
    }
}

/// The binding locks of two domains, taken in id order. (I16, I18)
type PairGuards<'a> = (MutexGuard<'a, Binding>, Option<MutexGuard<'a, Binding>>);

/// Locks the bindings of `local` and `remote`; the first guard is `local`'s, the second is absent when both are one.
fn lock_pair<'a>(local: &'a Arc<Domain>, remote: &'a Arc<Domain>) -> PairGuards<'a> {
    let binding = |domain: &'a Arc<Domain>| (domain.id.raw(), &domain.events.binding);
    sync::lock_pair(binding(local), binding(remote))
}

/// Ports that are not open at which [`Hypervisor::evtchn_close_all`] looks between two looks at what waits.
const LOOK_EVERY: u32 = 64;

impl<P: Platform> Hypervisor<P> {
    /// The lowest free port of `owner`. The first of a bucket makes the hypervisor's memory grow.
    fn find_free(&self, owner: &Domain, binding: &Binding) -> Result<u32, HypercallError> {
        let is_new = binding.lowest_free().is_some_and(|port| owner.events.cells.get(port).is_none());
        if is_new && !self.may_spend(Cells::BUCKET_BYTES) {
            return Err(HypercallError::NoMemory);
        }
        owner.events.find_free(binding)
    }

    /// Opens a port of `owner` in `state`.
    fn open_port(
        &self,
        owner: &Arc<Domain>,
        vcpu: u32,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
        state: impl FnOnce(u32) -> Result<PortState, HypercallError>,
    ) -> Result<u32, HypercallError> {
        let mut binding = owner.events.binding.lock();
        if owner.is_dying() {
            return Err(HypercallError::Invalid);
        }
        let port = self.find_free(owner, &binding)?;
        publish(port)?;
        let state = state(port)?;
        owner.events.open(&mut binding, port, state, vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_alloc_unbound`: opens a port of `owner` that `remote` may bind.
    ///
    /// # Errors
    /// `NoSpace`; `Invalid` for a dying domain; what `publish` says.
    pub fn alloc_unbound(
        &self,
        owner: &Arc<Domain>,
        remote: DomId,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
    ) -> Result<u32, HypercallError> {
        self.open_port(owner, 0, publish, |_| Ok(PortState::Unbound { remote }))
    }

    /// `EVTCHNOP_bind_interdomain`: joins a new port of `local` to `remote_port`, which must wait for `local`. The new
    /// port becomes pending at once, in case the peer sent before.
    ///
    /// # Errors
    /// `Invalid`: no such port, or it does not wait for `local`; `NoSpace`; what `publish` says.
    pub fn bind_interdomain(
        &self,
        local: &Arc<Domain>,
        remote: &Arc<Domain>,
        remote_port: u32,
        vcpu: u32,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
    ) -> Result<u32, HypercallError> {
        let (mut binding, _remote_binding) = lock_pair(local, remote);
        if local.is_dying() || remote.is_dying() {
            return Err(HypercallError::Invalid);
        }
        let remote_cell = remote.events.cell(remote_port).ok_or(HypercallError::Invalid)?;
        let waits = matches!(*remote_cell.state.lock(), PortState::Unbound { remote } if remote == local.id);
        if !waits {
            return Err(HypercallError::Invalid);
        }
        let port = self.find_free(local, &binding)?;
        publish(port)?;
        // The bindings are locked: nobody opens, binds or closes either port meanwhile.
        let state = PortState::Interdomain { remote: remote.clone(), port: remote_port };
        local.events.open(&mut binding, port, state, vcpu);
        *remote_cell.state.lock() = PortState::Interdomain { remote: local.clone(), port };
        self.set_pending(local, port);
        Ok(port)
    }

    /// `EVTCHNOP_bind_virq`.
    ///
    /// # Errors
    /// `Invalid`: no such VIRQ, or a global one on another vCPU than 0; `NoEntry`: no such vCPU; `Exists`: bound
    /// already; `NoSpace`; what `publish` says.
    pub fn bind_virq(
        &self,
        domain: &Arc<Domain>,
        virq: u32,
        vcpu: u32,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
    ) -> Result<u32, HypercallError> {
        if virq >= NR_VIRQS || (!is_per_vcpu(virq) && vcpu != 0) {
            return Err(HypercallError::Invalid);
        }
        let slot = &domain.vcpu(vcpu).ok_or(HypercallError::NoEntry)?.events.virqs[virq as usize];
        self.open_port(
            domain,
            vcpu,
            |port| {
                if slot.load(Ordering::Relaxed) != 0 {
                    return Err(HypercallError::Exists);
                }
                publish(port)
            },
            |port| {
                slot.store(port, Ordering::Release);
                Ok(PortState::Virq { virq })
            },
        )
    }

    /// `EVTCHNOP_bind_ipi`.
    ///
    /// # Errors
    /// `NoEntry`: no such vCPU; `NoSpace`; what `publish` says.
    pub fn bind_ipi(
        &self,
        domain: &Arc<Domain>,
        vcpu: u32,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
    ) -> Result<u32, HypercallError> {
        domain.vcpu(vcpu).ok_or(HypercallError::NoEntry)?;
        self.open_port(domain, vcpu, publish, |_| Ok(PortState::Ipi))
    }

    /// `EVTCHNOP_bind_pirq`.
    ///
    /// # Errors
    /// As the PIRQ's owner says; `NoSpace`; what `publish` says.
    pub fn bind_pirq(
        &self,
        domain: &Arc<Domain>,
        pirq: Pirq,
        publish: impl FnOnce(u32) -> Result<(), HypercallError>,
    ) -> Result<u32, HypercallError> {
        self.open_port(domain, 0, publish, |port| {
            self.pirq_bind(domain, pirq, Port::new(port))?;
            Ok(PortState::Pirq { pirq })
        })
    }

    /// `EVTCHNOP_close`: the peer of the port, if it has one, waits for `domain` again.
    ///
    /// # Errors
    /// `Invalid`: the port is not open.
    pub fn evtchn_close(&self, domain: &Arc<Domain>, port: u32) -> Result<(), HypercallError> {
        let cell = domain.events.cell(port).ok_or(HypercallError::Invalid)?;
        loop {
            let peer = match &*cell.state.lock() {
                PortState::Free => return Err(HypercallError::Invalid),
                PortState::Interdomain { remote, port } => Some((remote.clone(), *port)),
                _ => None,
            };
            let (mut binding, _remote_binding) = match &peer {
                Some((remote, _)) => lock_pair(domain, remote),
                None => (domain.events.binding.lock(), None),
            };
            let unchanged = match (&*cell.state.lock(), &peer) {
                (PortState::Interdomain { remote, port }, Some((peer, peer_port))) => {
                    Arc::ptr_eq(remote, peer) && port == peer_port
                }
                (PortState::Interdomain { .. }, None) | (_, Some(_)) => false,
                (PortState::Free, None) => return Err(HypercallError::Invalid),
                _ => true,
            };
            if !unchanged {
                continue; // the peer closed or bound meanwhile: look again
            }
            cell.is_ipi.store(false, Ordering::Release);
            let closed = core::mem::replace(&mut *cell.state.lock(), PortState::Free);
            match &closed {
                PortState::Virq { virq } => {
                    for vcpu in &domain.vcpus {
                        let slot = &vcpu.events.virqs[*virq as usize];
                        let _ = slot.compare_exchange(port, 0, Ordering::AcqRel, Ordering::Relaxed);
                    }
                }
                PortState::Pirq { pirq } => self.pirq_unbind(domain, *pirq),
                PortState::Interdomain { remote, port: remote_port } => {
                    if let Some(remote_cell) = remote.events.cell(*remote_port) {
                        let mut state = remote_cell.state.lock();
                        // A port joined to itself was freed above.
                        if matches!(&*state, PortState::Interdomain { .. }) {
                            *state = PortState::Unbound { remote: domain.id };
                        }
                    }
                }
                PortState::Free | PortState::Unbound { .. } | PortState::Ipi => {}
            }
            domain.events.bits.clear_pending(port);
            cell.notify_vcpu.store(0, Ordering::Relaxed);
            domain.events.note_closed(&mut binding, port);
            return Ok(());
        }
    }

    /// `EVTCHNOP_reset`, and a domain's end: closes open ports until none is left (`true`) or other work waits.
    pub fn evtchn_close_all(&self, domain: &Arc<Domain>) -> bool {
        let at = &domain.events.closing_at;
        for step in 1..MAX_PORTS {
            if domain.events.open_ports() == 0 {
                break;
            }
            let port = at.load(Ordering::Relaxed);
            at.store(port % (MAX_PORTS - 1) + 1, Ordering::Relaxed);
            // A port that is not open is no matter, but looking at many takes its time, too.
            let closed = self.evtchn_close(domain, port).is_ok();
            if (closed || step.is_multiple_of(LOOK_EVERY)) && self.platform.work_pending() {
                break;
            }
        }
        // Not after as many steps as there are ports: another CPU that closes them, too, moves the place as well.
        domain.events.open_ports() == 0
    }

    /// `EVTCHNOP_status`: what `port` is, and the vCPU that it notifies.
    ///
    /// # Errors
    /// `Invalid`: the port number is none.
    pub fn evtchn_status(&self, domain: &Domain, port: u32) -> Result<(PortStatus, u32), HypercallError> {
        if port >= MAX_PORTS {
            return Err(HypercallError::Invalid);
        }
        let Some(cell) = domain.events.cell(port) else { return Ok((PortStatus::Closed, 0)) };
        let status = match &*cell.state.lock() {
            PortState::Free => PortStatus::Closed,
            PortState::Unbound { remote } => PortStatus::Unbound { remote: *remote },
            PortState::Interdomain { remote, port } => {
                PortStatus::Interdomain { remote: remote.id, port: *port }
            }
            PortState::Pirq { pirq } => PortStatus::Pirq(*pirq),
            PortState::Virq { virq } => PortStatus::Virq(*virq),
            PortState::Ipi => PortStatus::Ipi,
        };
        Ok((status, cell.notify_vcpu.load(Ordering::Relaxed)))
    }

    /// `EVTCHNOP_bind_vcpu`: makes `port` notify `vcpu`.
    ///
    /// # Errors
    /// `NoEntry`: no such vCPU; `Invalid`: not a port that may move (an IPI or a per-vCPU VIRQ).
    pub fn evtchn_bind_vcpu(&self, domain: &Arc<Domain>, port: u32, vcpu: u32) -> Result<(), HypercallError> {
        domain.vcpu(vcpu).ok_or(HypercallError::NoEntry)?;
        let cell = domain.events.cell(port).ok_or(HypercallError::Invalid)?;
        let state = cell.state.lock();
        let movable = match &*state {
            PortState::Unbound { .. } | PortState::Interdomain { .. } | PortState::Pirq { .. } => true,
            PortState::Virq { virq } => !is_per_vcpu(*virq),
            PortState::Free | PortState::Ipi => false,
        };
        if !movable {
            return Err(HypercallError::Invalid);
        }
        cell.notify_vcpu.store(vcpu, Ordering::Relaxed);
        Ok(())
    }
}
