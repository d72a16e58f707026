//! Scheduling: yield, block, poll, shutdown, and the older timer call.

use core::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;
use ring_abi::sched::*;
use ring_abi::shared_info::UPCALL_MASK_OFFSET;
use ring_abi::types::{DomId, GuestVa, Port};

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::PauseFlags;
use crate::nospec::At;
use crate::platform::Platform;
use crate::time::state::TimerKind;

/// Ports that one `SCHEDOP_poll` may name.
const MAX_POLL_PORTS: u32 = 128;
/// What a timeout that is nonsense becomes, ahead of now: Linux passes such at times.
const NONSENSE_TIMEOUT_NS: u64 = 100_000_000;

/// `sched_op(cmd, arg)`.
///
/// # Errors
/// As each operation says; `NoSys`: no such operation.
pub fn sched_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let arg = GuestVa::new(args[1]);
    match args[0] as u32 {
        SCHEDOP_YIELD => cur.hv.yield_now(cur.vcpu),
        SCHEDOP_BLOCK => block(cur),
        SCHEDOP_POLL => poll(cur, arg)?,
        SCHEDOP_SHUTDOWN => {
            let op: SchedShutdown = cur.copy_in(arg)?;
            cur.hv.shutdown_domain(cur.domain, op.reason.min(SHUTDOWN_MAX));
        }
        SCHEDOP_SHUTDOWN_CODE => {
            let op: SchedShutdown = cur.copy_in(arg)?;
            cur.domain.shutdown.lock().code.get_or_insert(op.reason.min(SHUTDOWN_MAX));
        }
        SCHEDOP_REMOTE_SHUTDOWN => {
            let op: SchedRemoteShutdown = cur.copy_in(arg)?;
            let domain = cur.hv.domains.get(DomId::new(op.domain_id));
            let domain = domain.filter(|domain| !domain.is_dying()).ok_or(HypercallError::NoSuchDomain)?;
            HypercallError::NotPermitted.when(!cur.domain.privileged)?;
            cur.hv.shutdown_domain(&domain, op.reason.min(SHUTDOWN_MAX));
        }
        SCHEDOP_WATCHDOG => return watchdog(cur, &cur.copy_in(arg)?),
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Outcome::OK)
}

/// `SCHEDOP_watchdog`: with id 0 makes a watchdog and gives its id in rax; else sets the timeout of watchdog `id` anew,
/// and 0 seconds end the watchdog. A watchdog whose time comes shuts the domain down.
///
/// # Errors
/// `NoSpace`: the domain has all the watchdogs that a domain may have. `Invalid`: there is no such watchdog.
fn watchdog<P: Platform>(cur: &Current<'_, P>, op: &SchedWatchdog) -> HypercallResult {
    let vcpu = &cur.domain.vcpus[0];
    let deadline = cur.hv.platform.now_ns() + u64::from(op.timeout) * 1_000_000_000;
    let mut known = cur.domain.watchdogs.lock();
    let index = match op.id.checked_sub(1) {
        None => known.iter().position(|known| !known).ok_or(HypercallError::NoSpace)?,
        Some(index) => index as usize,
    };
    let entry = known.at_mut(index).ok_or(HypercallError::Invalid)?;
    HypercallError::Invalid.when(op.id != 0 && !*entry)?;
    *entry = op.id == 0 || op.timeout != 0;
    let kind = if index == 0 { TimerKind::FirstWatchdog } else { TimerKind::SecondWatchdog };
    cur.hv.arm_timer(vcpu, kind, entry.then_some(deadline));
    Ok(Outcome::Done(if op.id == 0 { index as u64 + 1 } else { 0 }))
}

/// `SCHEDOP_block`: unmasks upcalls and waits for one.
fn block<P: Platform>(cur: &Current<'_, P>) {
    if let Some(info) = cur.vcpu.info.get() {
        info.store_u8(UPCALL_MASK_OFFSET, 0);
    }
    cur.hv.hold(cur.vcpu, PauseFlags::BLOCKED);
    // `hold` is a full barrier: a sender sees the flag, or this sees its event.
    if cur.vcpu.upcall_due() {
        cur.hv.wake(cur.domain, cur.vcpu, PauseFlags::BLOCKED);
    }
}

/// `SCHEDOP_poll`: waits for one of some ports, masked or not, an upcall, or a time.
fn poll<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let op: SchedPoll = cur.copy_in(arg)?;
    HypercallError::Invalid.when(op.nr_ports > MAX_POLL_PORTS)?;
    // The array is not filled beforehand, since mostly there is only one port.
    let mut ports = ArrayVec::<Port, { MAX_POLL_PORTS as usize }>::new();
    for index in 0..op.nr_ports {
        let port: Port = cur.copy_in_at(GuestVa::new(op.ports), index.into())?;
        HypercallError::Invalid.when(port.raw() >= cur.domain.events.end())?;
        ports.push(port);
    }
    wait(cur, &ports, op.timeout);
    Ok(())
}

/// Blocks the caller until one of `ports` is pending, an event is due, or `timeout` comes (0: never).
pub(super) fn wait<P: Platform>(cur: &Current<'_, P>, ports: &[Port], timeout: u64) {
    let (hv, domain, vcpu) = (cur.hv, cur.domain, cur.vcpu);
    hv.begin_poll(domain, vcpu, if let [port] = ports { Some(*port) } else { None });
    fence(Ordering::SeqCst);
    if vcpu.upcall_due() || ports.iter().any(|port| domain.events.is_pending(*port)) {
        hv.wake(domain, vcpu, PauseFlags::WAITING);
    } else if timeout != 0 {
        hv.end_poll_at(vcpu, timeout);
    }
}

/// `set_timer_op(timeout)`: sets the caller's singleshot timer to an absolute system time; 0 stops the timer. This call
/// never fails.
pub fn set_timer_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let timeout = args[0];
    let deadline = if timeout == 0 {
        None
    } else {
        let now = cur.hv.platform.now_ns();
        let nonsense = (timeout as i64) < 0 || timeout.saturating_sub(now) >> 50 != 0;
        Some(if nonsense { now + NONSENSE_TIMEOUT_NS } else { timeout })
    };
    cur.hv.arm_own_timer(cur.vcpu, TimerKind::Singleshot, deadline);
    Ok(Outcome::OK)
}
