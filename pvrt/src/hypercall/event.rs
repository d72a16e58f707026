//! `event_channel_op`. ABI: `xen/include/public/event_channel.h`.

use super::{Result, op};
use ring_abi::evtchn::*;
use ring_abi::hypercall::__HYPERVISOR_EVENT_CHANNEL_OP as NR;
use ring_abi::types::{DomId, Port};

/// Opens a port of `dom` that `remote` may bind.
///
/// # Errors
/// `ENOSPC`: no free port. `EPERM`: `dom` is not the caller's to change. `ESRCH`: there is no such domain.
pub fn alloc_unbound(dom: DomId, remote: DomId) -> Result<Port> {
    let mut arg = EvtchnAllocUnbound { dom: dom.raw(), remote_dom: remote.raw(), port: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_ALLOC_UNBOUND, &mut arg) }?;
    Ok(Port::new(arg.port))
}

/// Binds a new local port to `remote_port` of `remote`.
///
/// # Errors
/// `EINVAL`: that port does not wait for this domain. `ENOSPC`, `ESRCH`.
pub fn bind_interdomain(remote: DomId, remote_port: Port) -> Result<Port> {
    let mut arg = EvtchnBindInterdomain {
        remote_dom: remote.raw(),
        remote_port: remote_port.raw(),
        ..Default::default()
    };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_BIND_INTERDOMAIN, &mut arg) }?;
    Ok(Port::new(arg.local_port))
}

/// Binds a virtual interrupt of vCPU `vcpu`.
///
/// # Errors
/// `EEXIST`: bound already. `ENOENT`: no such vCPU. `EINVAL`: a global one on another vCPU than 0.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<Port> {
    let mut arg = EvtchnBindVirq { virq, vcpu, port: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_BIND_VIRQ, &mut arg) }?;
    Ok(Port::new(arg.port))
}

/// Binds a physical interrupt.
///
/// # Errors
/// `EPERM`, `EEXIST`, `EINVAL`.
pub fn bind_pirq(pirq: u32, share: bool) -> Result<Port> {
    let flags = if share { BIND_PIRQ__WILL_SHARE } else { 0 };
    let mut arg = EvtchnBindPirq { pirq, flags, port: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_BIND_PIRQ, &mut arg) }?;
    Ok(Port::new(arg.port))
}

/// Opens a port on which vCPU `vcpu` is sent events by this domain.
///
/// # Errors
/// `ENOENT`: no such vCPU. `ENOSPC`.
pub fn bind_ipi(vcpu: u32) -> Result<Port> {
    let mut arg = EvtchnBindIpi { vcpu, port: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_BIND_IPI, &mut arg) }?;
    Ok(Port::new(arg.port))
}

/// The number of this very domain, which no call gives directly: a port open to "self" names it.
///
/// # Errors
/// `ENOSPC`: no free port.
pub fn own_domid() -> Result<DomId> {
    let port = alloc_unbound(DomId::SELF, DomId::SELF)?;
    let status = status(port);
    close(port)?;
    status.map(|status| DomId::new(status.u[0] as u16))
}

/// Is this port of this domain open?
///
/// # Errors
/// `EINVAL`: there is no such port, and none beyond it.
pub fn is_open(port: Port) -> Result<bool> {
    status(port).map(|status| status.status != EVTCHNSTAT_CLOSED)
}

/// What a port of this domain is.
///
/// # Errors
/// `EINVAL`: there is no such port.
pub fn status(port: Port) -> Result<EvtchnStatus> {
    let mut arg = EvtchnStatus { dom: DomId::SELF.raw(), port: port.raw(), ..Default::default() };
    // SAFETY: plain data in and out.
    unsafe { op(NR, EVTCHNOP_STATUS, &mut arg) }.map(|_| arg)
}

/// Closes all ports of this domain, and goes back to two levels.
///
/// # Errors
/// `EAGAIN`: a port was opened meanwhile.
pub fn reset() -> Result<()> {
    let mut arg = EvtchnReset { dom: DomId::SELF.raw() };
    // SAFETY: plain data in.
    unsafe { op(NR, EVTCHNOP_RESET, &mut arg) }.map(|_| ())
}

/// Closes a port.
///
/// # Errors
/// `EINVAL`: the port is not open.
pub fn close(port: Port) -> Result<()> {
    let mut arg = EvtchnClose { port: port.raw() };
    // SAFETY: plain data in.
    unsafe { op(NR, EVTCHNOP_CLOSE, &mut arg) }.map(|_| ())
}

/// Sends an event to the other end.
///
/// # Errors
/// `EINVAL`: the port cannot send.
pub fn send(port: Port) -> Result<()> {
    let mut arg = EvtchnSend { port: port.raw() };
    // SAFETY: plain data in.
    unsafe { op(NR, EVTCHNOP_SEND, &mut arg) }.map(|_| ())
}

/// Unmasks a port, delivering what is pending.
///
/// # Errors
/// `EINVAL`: no such port.
pub fn unmask(port: Port) -> Result<()> {
    let mut arg = EvtchnUnmask { port: port.raw() };
    // SAFETY: plain data in.
    unsafe { op(NR, EVTCHNOP_UNMASK, &mut arg) }.map(|_| ())
}
