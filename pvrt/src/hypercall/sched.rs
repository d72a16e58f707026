//! `sched_op`. ABI: `xen/include/public/sched.h`.

use super::{Result, check, op, raw};
use ring_abi::hypercall::__HYPERVISOR_SCHED_OP as NR;
use ring_abi::sched::*;
use ring_abi::types::{DomId, Port};

/// Lets other vCPUs run.
pub fn yield_cpu() {
    // SAFETY: no argument.
    let _ = unsafe { raw(NR, [u64::from(SCHEDOP_YIELD), 0, 0, 0, 0]) };
}

/// Unmasks events and blocks the vCPU until an event is pending. The upcall sets the mask again.
pub fn block() {
    // SAFETY: no argument; the upcall handler changes nothing but the mask.
    let _ = unsafe { raw(NR, [u64::from(SCHEDOP_BLOCK), 0, 0, 0, 0]) };
}

/// Blocks the vCPU until one of `ports` is pending or `timeout_ns` (system time, 0 for none) has come. Events stay
/// masked.
///
/// # Errors
/// `EINVAL`: there are too many ports, or a port is not the domain's.
pub fn poll(ports: &[Port], timeout_ns: u64) -> Result<()> {
    let mut arg = SchedPoll {
        ports: ports.as_ptr() as u64,
        nr_ports: ports.len() as u32,
        timeout: timeout_ns,
        ..Default::default()
    };
    // SAFETY: `Port` is a transparent u32; the hypervisor reads the list only.
    unsafe { op(NR, SCHEDOP_POLL, &mut arg) }.map(|_| ())
}

/// Ends this domain; `reason` is `SHUTDOWN_*`.
pub fn shutdown(reason: u32) -> ! {
    let mut arg = SchedShutdown { reason };
    // SAFETY: does not come back, except for a suspend, which no caller asks for, and on the host.
    let result = unsafe { op(NR, SCHEDOP_SHUTDOWN, &mut arg) };
    panic!("shut down for reason {reason}, yet running: {result:?}");
}

/// Ends another domain in that domain's name.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EPERM`: the caller has no right over the domain.
pub fn remote_shutdown(dom: DomId, reason: u32) -> Result<()> {
    let mut arg = SchedRemoteShutdown { domain_id: dom.raw(), reason, ..Default::default() };
    let args = [u64::from(SCHEDOP_REMOTE_SHUTDOWN), (&raw mut arg) as u64, 0, 0, 0];
    // SAFETY: plain data in.
    check(unsafe { raw(NR, args) }).map(|_| ())
}
