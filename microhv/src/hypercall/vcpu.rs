//! vCPUs: bringing them up and down, their timers, and the areas that they register.

use core::sync::atomic::Ordering;

use ring_abi::shared_info::{PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET};
use ring_abi::types::{GuestVa, Mfn, PAGE_SIZE};
use ring_abi::vcpu::*;
use zerocopy::IntoBytes;

use super::domctl::read_context;
use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{Domain, INFO_BYTES, PauseFlags, Vcpu};
use crate::emul::cr4_of_guest;
use crate::platform::Platform;
use crate::time::state::TimerKind;

/// Shortest and longest period of the periodic timer.
const MIN_PERIOD_NS: u64 = 1_000_000;
const MAX_PERIOD_NS: u64 = 1 << 62;

/// The vCPU of a number that the guest gave.
#[inline(always)]
pub(super) fn find(domain: &Domain, id: u64) -> Option<&Vcpu> {
    domain.vcpu(u32::try_from(id).ok()?)
}

/// `vcpu_op(cmd, vcpu, arg)`.
///
/// # Errors
/// `NoEntry`: there is no such vCPU; as each operation says; `NoSys`: no such operation.
pub fn vcpu_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let vcpu = find(cur.domain, args[1]).ok_or(HypercallError::NoEntry)?;
    if args[0] as u32 == VCPUOP_IS_UP {
        return Ok(Outcome::Done(u64::from(vcpu.is_up())));
    }
    rare(cur, args, vcpu)
}

#[inline(never)]
fn rare<P: Platform>(cur: &Current<'_, P>, args: &Args, vcpu: &Vcpu) -> HypercallResult {
    let (command, arg) = (args[0] as u32, GuestVa::new(args[2]));
    let itself = core::ptr::eq(vcpu, cur.vcpu);
    match command {
        VCPUOP_INITIALISE => initialise(cur, vcpu, arg)?,
        VCPUOP_UP => {
            HypercallError::Invalid.when(!vcpu.initialised.load(Ordering::Acquire))?;
            cur.hv.wake(cur.domain, vcpu, PauseFlags::DOWN);
        }
        VCPUOP_DOWN => cur.hv.vcpu_down(cur.domain, vcpu),
        VCPUOP_GET_RUNSTATE_INFO => cur.copy_to_guest(arg, current_runstate(cur, vcpu).as_bytes())?,
        VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => {
            let op: VcpuRegisterRunstateMemoryArea = cur.copy_in(arg)?;
            vcpu.time.lock().runstate_area = (op.addr != 0).then_some(GuestVa::new(op.addr));
            if op.addr != 0 {
                // For a running vCPU the guest itself adds the time since the state began.
                let info = if itself {
                    let time = vcpu.time.lock();
                    time.runstate_info(time.entry_ns)
                } else {
                    current_runstate(cur, vcpu)
                };
                crate::time::write_runstate(&cur.hv.platform, cur.domain, GuestVa::new(op.addr), info);
            }
        }
        VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA => {
            let op: VcpuRegisterTimeMemoryArea = cur.copy_in(arg)?;
            if op.addr == 0 {
                vcpu.time.lock().time_area = None;
            } else {
                crate::time::write_time_area(&cur.hv.platform, vcpu, GuestVa::new(op.addr));
            }
        }
        VCPUOP_SET_PERIODIC_TIMER => {
            let op: VcpuSetPeriodicTimer = cur.copy_in(arg)?;
            HypercallError::Invalid.when(!(MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&op.period_ns))?;
            cur.hv.set_period(vcpu, op.period_ns);
        }
        VCPUOP_STOP_PERIODIC_TIMER => cur.hv.set_period(vcpu, 0),
        VCPUOP_SET_SINGLESHOT_TIMER => {
            HypercallError::Invalid.when(!itself)?;
            let op: VcpuSetSingleshotTimer = cur.copy_in(arg)?;
            HypercallError::TimePast
                .when(op.flags & VCPU_SSHOTTMR_FUTURE != 0 && op.timeout_abs_ns < cur.hv.platform.now_ns())?;
            cur.hv.arm_own_timer(vcpu, TimerKind::Singleshot, Some(op.timeout_abs_ns));
        }
        VCPUOP_STOP_SINGLESHOT_TIMER => {
            HypercallError::Invalid.when(!itself)?;
            cur.hv.arm_own_timer(vcpu, TimerKind::Singleshot, None);
        }
        VCPUOP_REGISTER_VCPU_INFO => {
            let op: VcpuRegisterVcpuInfo = cur.copy_in(arg)?;
            register_vcpu_info(cur, vcpu, &op)?;
        }
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Outcome::OK)
}

/// `VCPUOP_initialise`: gives a vCPU that is down its context, once.
///
/// # Errors
/// `Invalid`; `Fault`; `Exists`: the vCPU already has a context; `NoMemory`.
fn initialise<P: Platform>(cur: &Current<'_, P>, vcpu: &Vcpu, arg: GuestVa) -> Answer {
    // From vCPU 32 on, register_vcpu_info comes first.
    HypercallError::Invalid.when(vcpu.info.get().is_none())?;
    let context = read_context(cur, arg)?;
    let cr4 = cr4_of_guest(cur.hv, cur.domain, context.ctrlreg[4]);
    Ok(cur.hv.set_vcpu_context(cur.domain, vcpu, &context, cr4, true)?)
}

/// The runstate of a vCPU as of now, with the time in its present state.
fn current_runstate<P: Platform>(cur: &Current<'_, P>, vcpu: &Vcpu) -> [u64; 6] {
    vcpu.time.lock().runstate_info(cur.hv.platform.now_ns())
}

/// `VCPUOP_register_vcpu_info`: moves a vCPU's `vcpu_info` into a page of its domain, once.
fn register_vcpu_info<P: Platform>(cur: &Current<'_, P>, vcpu: &Vcpu, op: &VcpuRegisterVcpuInfo) -> Answer {
    HypercallError::NoSuchAddress
        .when(op.offset as usize > PAGE_SIZE - INFO_BYTES || !op.offset.is_multiple_of(8))?;
    HypercallError::Invalid.when(!core::ptr::eq(vcpu, cur.vcpu) && vcpu.is_up())?;
    let mfn = Mfn::new(op.mfn);
    let page = cur.hv.get_page_writable(mfn, cur.domain).map_err(|_| HypercallError::Invalid)?;
    let place = cur.hv.platform.shared(mfn).slice(op.offset as usize, INFO_BYTES);
    let place = place.ok_or(HypercallError::NoSuchAddress)?;
    // The vCPU already has a registered `vcpu_info`.
    HypercallError::Invalid.when(!vcpu.info_frame.claim(mfn))?;
    page.into_raw(); // the vCPU's from here on
    let mut old = [0u8; INFO_BYTES];
    match vcpu.info.get() {
        Some(info) => info.read(0, &mut old),
        None => old[UPCALL_MASK_OFFSET] = 1,
    }
    place.write(0, &old);
    vcpu.info.set(&place);
    // An event may have gone to the old place while the new one was filled: so all words are selected for the
    // guest.
    place.store_u64(PENDING_SEL_OFFSET, u64::MAX);
    place.swap_u8(UPCALL_PENDING_OFFSET, 1);
    vcpu.time.lock().published = 0;
    crate::time::publish_time(&cur.hv.platform, vcpu);
    Ok(())
}
