//! Opening, binding and closing ports.
//!
//! Each opening operation writes the port to the guest before it commits, through [`Publish`]: after the last step
//! that can fail, binding cannot, so that a fault leaves no port behind.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};
use ring_abi::types::{DomId, Pirq, Port};

use super::EvtchnError;
use super::state::{BUCKET, Binding, PortCell, PortState};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::growth::make_room;
use crate::nospec::At;
use crate::platform::{GuestFault, Platform};
use crate::sync::{self, MutexGuard};

/// Writes the port to the guest.
pub trait Publish: FnOnce(Port) -> Result<(), GuestFault> {}

impl<F: FnOnce(Port) -> Result<(), GuestFault>> Publish for F {}

/// The port that was opened.
pub type Opened<E = EvtchnError> = Result<Port, E>;

/// Whether each vCPU has its own port for the VIRQ; others belong to the domain and start on vCPU 0.
const fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

/// The binding locks of two domains, taken in id order. (I16, I18)
type PairGuards<'a> = (MutexGuard<'a, Binding>, Option<MutexGuard<'a, Binding>>);

/// Locks the bindings of `local` and `remote`; the first guard is `local`'s, the second is absent when both are one.
fn lock_pair<'a>(local: &'a Arc<Domain>, remote: &'a Arc<Domain>) -> PairGuards<'a> {
    let binding = |domain: &'a Arc<Domain>| (domain.id.raw(), &domain.events.binding);
    sync::lock_pair(binding(local), binding(remote))
}

/// Ports that are not open at which [`Hypervisor::close_ports`] looks between two looks at what waits.
const LOOK_EVERY: u32 = 64;
/// Ports at which it looks in one go, though nothing waits.
const STEPS_MAX: u32 = 4 * LOOK_EVERY;

impl<P: Platform> Hypervisor<P> {
    /// The lowest free port of `owner`, which stays free. The first of a bucket makes the hypervisor's memory grow.
    fn find_free<'a>(
        &self,
        owner: &'a Domain,
        binding: &mut Binding,
    ) -> Result<(Port, &'a PortCell), EvtchnError> {
        let port = owner.events.lowest_free(binding).ok_or(EvtchnError::NoSpace)?;
        let missing = owner.events.cells.missing(port);
        if missing != 0 {
            // A bucket may be made after a higher one: ports that the guest left on a queue were passed over.
            let words = (port.raw() as usize / BUCKET + 1).max(binding.taken.len());
            let may_spend = |bytes| self.may_spend(bytes);
            if !may_spend(missing) || !make_room(&mut binding.taken, words, may_spend) {
                return Err(EvtchnError::NoMemory);
            }
            binding.taken.resize(words, 0);
        }
        let cell = owner.events.cells.make(port).ok_or(EvtchnError::NoMemory)?;
        Ok((port, cell))
    }

    /// Opens a port of `owner`, which notifies `vcpu`, in the state that `publish` gives.
    ///
    /// # Errors
    /// `NoSpace`, `NoMemory`; `Invalid` for a dying domain; what `publish` says.
    pub(crate) fn open_port<E: From<EvtchnError>>(
        &self,
        owner: &Arc<Domain>,
        vcpu: u32,
        publish: impl FnOnce(Port) -> Result<PortState, E>,
    ) -> Opened<E> {
        let mut binding = owner.events.binding.lock();
        if owner.is_dying() {
            return Err(EvtchnError::Invalid.into());
        }
        let (port, cell) = self.find_free(owner, &mut binding)?;
        binding.open(port, cell, publish(port)?, vcpu);
        Ok(port)
    }

    /// `EVTCHNOP_alloc_unbound`: opens a port of `owner` that `remote` may bind.
    ///
    /// # Errors
    /// The errors of [`Self::open_port`]; `Fault`.
    pub fn alloc_unbound(&self, owner: &Arc<Domain>, remote: DomId, publish: impl Publish) -> Opened {
        self.open_port(owner, 0, |port| {
            publish(port)?;
            Ok(PortState::Unbound { remote })
        })
    }

    /// `EVTCHNOP_bind_interdomain`: joins a new port of `local` to `remote_port`, which must wait for `local`. The new
    /// port becomes pending at once, in case the peer sent before.
    ///
    /// # Errors
    /// `Invalid`: no such port, or the port does not wait for `local`; `NoSpace`, `NoMemory`, `Fault`.
    pub fn bind_interdomain(
        &self,
        local: &Arc<Domain>,
        remote: &Arc<Domain>,
        remote_port: Port,
        vcpu: u32,
        publish: impl Publish,
    ) -> Opened {
        let (mut binding, _remote_binding) = lock_pair(local, remote);
        let remote_cell = remote.events.cell(remote_port).ok_or(EvtchnError::Invalid)?;
        let waits = matches!(*remote_cell.state.lock(), PortState::Unbound { remote } if remote == local.id);
        if !waits || local.is_dying() || remote.is_dying() {
            return Err(EvtchnError::Invalid);
        }
        let (port, cell) = self.find_free(local, &mut binding)?;
        publish(port)?;
        // The bindings are locked: no vCPU opens, binds or closes either port meanwhile.
        let state = PortState::Interdomain { remote: remote.clone(), port: remote_port };
        binding.open(port, cell, state, vcpu);
        *remote_cell.state.lock() = PortState::Interdomain { remote: local.clone(), port };
        self.set_pending(local, cell, port);
        Ok(port)
    }

    /// `EVTCHNOP_bind_virq`.
    ///
    /// # Errors
    /// `Invalid`: no such VIRQ, or a global one on another vCPU than 0; `NoEntry`: no such vCPU; `Exists`: bound
    /// already; as [`Self::open_port`]; `Fault`.
    pub fn bind_virq(&self, domain: &Arc<Domain>, virq: u32, vcpu: u32, publish: impl Publish) -> Opened {
        if virq >= NR_VIRQS || (!is_per_vcpu(virq) && vcpu != 0) {
            return Err(EvtchnError::Invalid);
        }
        let vcpu_events = &domain.vcpu(vcpu).ok_or(EvtchnError::NoEntry)?.events;
        let slot = vcpu_events.virqs.at(virq as usize).ok_or(EvtchnError::Invalid)?;
        self.open_port(domain, vcpu, |port| {
            if slot.load(Ordering::Relaxed) != 0 {
                return Err(EvtchnError::Exists);
            }
            publish(port)?;
            slot.store(port.raw(), Ordering::Release);
            Ok(PortState::Virq { virq })
        })
    }

    /// `EVTCHNOP_bind_ipi`.
    ///
    /// # Errors
    /// `NoEntry`: no such vCPU; as [`Self::open_port`]; `Fault`.
    pub fn bind_ipi(&self, domain: &Arc<Domain>, vcpu: u32, publish: impl Publish) -> Opened {
        domain.vcpu(vcpu).ok_or(EvtchnError::NoEntry)?;
        self.open_port(domain, vcpu, |port| {
            publish(port)?;
            Ok(PortState::Ipi)
        })
    }

    /// Closes a port: its peer, if it has one, waits for `domain` again. `unbind` takes the PIRQ that the port had, before
    /// the port is free for another.
    ///
    /// # Errors
    /// `Invalid`: the port is not open.
    pub(crate) fn close_port(
        &self,
        domain: &Arc<Domain>,
        port: Port,
        unbind: impl FnOnce(Pirq),
    ) -> Result<(), EvtchnError> {
        let cell = domain.events.cell(port).ok_or(EvtchnError::Invalid)?;
        loop {
            let peer = match &*cell.state.lock() {
                PortState::Free => return Err(EvtchnError::Invalid),
                state => state.peer().cloned(),
            };
            let (mut binding, _peer_binding) = lock_pair(domain, peer.as_ref().unwrap_or(domain));
            if cell.state.lock().peer().map(Arc::as_ptr) != peer.as_ref().map(Arc::as_ptr) {
                continue; // the peer closed or bound meanwhile: look again
            }
            cell.is_ipi.store(false, Ordering::Release);
            let closed = core::mem::take(&mut *cell.state.lock());
            match &closed {
                PortState::Free => return Err(EvtchnError::Invalid), // closed meanwhile
                PortState::Virq { virq } => {
                    for vcpu in &domain.vcpus {
                        let slot = &vcpu.events.virqs[*virq as usize];
                        let _ = slot.compare_exchange(port.raw(), 0, Ordering::AcqRel, Ordering::Relaxed);
                    }
                }
                PortState::Pirq { pirq } => unbind(*pirq),
                PortState::Interdomain { remote, port: remote_port } => {
                    if let Some(remote_cell) = remote.events.cell(*remote_port) {
                        *remote_cell.state.lock() = PortState::Unbound { remote: domain.id };
                    }
                }
                PortState::Unbound { .. } | PortState::Ipi => {}
            }
            domain.events.clear_pending(port, cell);
            cell.set_vcpu(0);
            binding.note_closed(port);
            return Ok(());
        }
    }

    /// Closes open ports until none is left (`true`), other work waits, or a piece is done. `unbind` takes the PIRQs that they had.
    #[must_use = "ports may be left"]
    pub(crate) fn close_ports(&self, domain: &Arc<Domain>, unbind: impl Fn(Pirq)) -> bool {
        let (at, ports) = (&domain.events.closing_at, domain.events.binding.lock().known());
        for step in 1..ports.min(STEPS_MAX) {
            if domain.events.open_ports() == 0 {
                break;
            }
            let port = at.load(Ordering::Relaxed);
            at.store(port % (ports - 1) + 1, Ordering::Relaxed);
            // A port that is not open costs little, but many of them cost time too.
            let closed = self.close_port(domain, Port::new(port), &unbind).is_ok();
            if (closed || step.is_multiple_of(LOOK_EVERY)) && self.platform.work_pending() {
                break;
            }
        }
        // The number of steps does not tell whether all ports are closed: another CPU that closes ports also
        // moves the position.
        domain.events.open_ports() == 0
    }
}

/// `EVTCHNOP_bind_vcpu`: makes `port` notify `vcpu`.
///
/// # Errors
/// `NoEntry`: no such vCPU; `Invalid`: not a port that may move (an IPI or a per-vCPU VIRQ).
pub fn bind_vcpu(domain: &Domain, port: Port, vcpu: u32) -> Result<(), EvtchnError> {
    domain.vcpu(vcpu).ok_or(EvtchnError::NoEntry)?;
    let cell = domain.events.cell(port).ok_or(EvtchnError::Invalid)?;
    match &*cell.state.lock() {
        PortState::Free | PortState::Ipi => return Err(EvtchnError::Invalid),
        PortState::Virq { virq } if is_per_vcpu(*virq) => return Err(EvtchnError::Invalid),
        _ => cell.set_vcpu(vcpu),
    }
    Ok(())
}
