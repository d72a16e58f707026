//! Event channels: decoding of `event_channel_op`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::*;
use ring_abi::types::{DomId, GuestVa, Mfn, Pirq, Port};

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::evtchn::state::PortState;
use crate::evtchn::{bind_vcpu, set_priority};
use crate::platform::Platform;

/// `EVTCHNOP_send`.
///
/// # Errors
/// `Fault`; `Invalid`: not a port that can be sent from.
#[inline(always)]
pub(super) fn send<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let op: EvtchnSend = cur.copy_in(arg)?;
    Ok(cur.hv.evtchn_send(cur.domain, Port::new(op.port))?)
}

/// `EVTCHNOP_status`: what a port is, and the vCPU that it notifies.
fn status<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let mut op: EvtchnStatus = cur.copy_in(arg)?;
    let domain = cur.hv.domains.target(cur.domain, op.dom)?;
    HypercallError::Invalid.when(op.port >= domain.events.end())?;
    (op.status, op.vcpu, op.u) = (EVTCHNSTAT_CLOSED, 0, [0, 0]);
    if let Some(cell) = domain.events.cell(Port::new(op.port)) {
        op.vcpu = cell.vcpu();
        (op.status, op.u) = match &*cell.state.lock() {
            PortState::Free => (EVTCHNSTAT_CLOSED, [0, 0]),
            PortState::Unbound { remote } => (EVTCHNSTAT_UNBOUND, [u32::from(remote.raw()), 0]),
            PortState::Interdomain { remote, port } => {
                (EVTCHNSTAT_INTERDOMAIN, [u32::from(remote.id.raw()), port.raw()])
            }
            PortState::Pirq { pirq } => (EVTCHNSTAT_PIRQ, [pirq.raw(), 0]),
            PortState::Virq { virq } => (EVTCHNSTAT_VIRQ, [*virq, 0]),
            PortState::Ipi => (EVTCHNSTAT_IPI, [0, 0]),
        };
    }
    Ok(cur.copy_out(arg, &op)?)
}

/// `event_channel_op(cmd, arg)`.
///
/// # Errors
/// As each operation says; `NoSys`: no such operation.
pub fn event_channel_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let (command, arg) = (args[0] as u32, GuestVa::new(args[1]));
    let (hv, caller) = (cur.hv, cur.domain);
    match command {
        EVTCHNOP_ALLOC_UNBOUND => {
            let op: EvtchnAllocUnbound = cur.copy_in(arg)?;
            let owner = hv.domains.target(caller, op.dom)?;
            let remote = DomId::new(op.remote_dom).or_self(caller.id);
            hv.alloc_unbound(&owner, remote, |port| {
                cur.copy_out(arg, &EvtchnAllocUnbound { port: port.raw(), ..op })
            })?;
        }
        EVTCHNOP_BIND_INTERDOMAIN => {
            let op: EvtchnBindInterdomain = cur.copy_in(arg)?;
            let remote = hv.domains.resolve(caller, op.remote_dom)?;
            hv.bind_interdomain(caller, &remote, Port::new(op.remote_port), cur.vcpu.id.raw(), |port| {
                cur.copy_out(arg, &EvtchnBindInterdomain { local_port: port.raw(), ..op })
            })?;
        }
        EVTCHNOP_BIND_VIRQ => {
            let op: EvtchnBindVirq = cur.copy_in(arg)?;
            hv.bind_virq(caller, op.virq, op.vcpu, |port| {
                cur.copy_out(arg, &EvtchnBindVirq { port: port.raw(), ..op })
            })?;
        }
        EVTCHNOP_BIND_IPI => {
            let op: EvtchnBindIpi = cur.copy_in(arg)?;
            hv.bind_ipi(caller, op.vcpu, |port| {
                cur.copy_out(arg, &EvtchnBindIpi { port: port.raw(), ..op })
            })?;
        }
        EVTCHNOP_BIND_PIRQ => {
            let op: EvtchnBindPirq = cur.copy_in(arg)?;
            hv.bind_pirq(caller, Pirq::new(op.pirq), |port| {
                cur.copy_out(arg, &EvtchnBindPirq { port: port.raw(), ..op })
            })?;
        }
        EVTCHNOP_SEND => send(cur, arg)?,
        EVTCHNOP_CLOSE => {
            let op: EvtchnClose = cur.copy_in(arg)?;
            hv.evtchn_close(caller, Port::new(op.port))?;
        }
        EVTCHNOP_STATUS => status(cur, arg)?,
        EVTCHNOP_BIND_VCPU => {
            let op: EvtchnBindVcpu = cur.copy_in(arg)?;
            bind_vcpu(caller, Port::new(op.port), op.vcpu)?;
        }
        EVTCHNOP_UNMASK => {
            let op: EvtchnUnmask = cur.copy_in(arg)?;
            hv.evtchn_unmask(caller, Port::new(op.port))?;
        }
        EVTCHNOP_INIT_CONTROL => {
            let mut op: EvtchnInitControl = cur.copy_in(arg)?;
            hv.init_control(caller, op.vcpu, Mfn::new(op.control_gfn), op.offset)?;
            op.link_bits = EVTCHN_FIFO_LINK_BITS as u8;
            cur.copy_out(arg, &op)?;
        }
        EVTCHNOP_EXPAND_ARRAY => {
            let op: EvtchnExpandArray = cur.copy_in(arg)?;
            if !hv.expand_array(caller, cur.vcpu.id.raw(), Mfn::new(op.array_gfn))? {
                return Ok(cur.again(*args));
            }
        }
        EVTCHNOP_SET_PRIORITY => {
            let op: EvtchnSetPriority = cur.copy_in(arg)?;
            set_priority(caller, Port::new(op.port), op.priority)?;
        }
        EVTCHNOP_RESET => {
            let op: EvtchnReset = cur.copy_in(arg)?;
            let domain = hv.domains.target(caller, op.dom)?;
            // As in Xen. A guest that runs opens ports as fast as they are closed, and the caller would never get to the end.
            let is_held = domain.controller_pause_count.load(Ordering::Acquire) != 0;
            HypercallError::Invalid.when(!Arc::ptr_eq(caller, &domain) && !is_held)?;
            if !hv.evtchn_close_all(&domain) {
                return Ok(cur.again(*args));
            }
        }
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Outcome::OK)
}
