//! `vcpu_op` and the calls that set up a vCPU. ABI: `xen/include/public/vcpu.h`, `xen.h`, `callback.h`.

use super::{Result, check, raw};
use ring_abi::errno::Errno;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::{
    __HYPERVISOR_SET_CALLBACKS, __HYPERVISOR_SET_TRAP_TABLE, __HYPERVISOR_VCPU_OP as NR,
};
use ring_abi::vcpu::*;

fn vcpu_op<T>(cmd: u32, vcpu: u32, arg: Option<&mut T>) -> Result<u64> {
    let arg = arg.map_or(0, |arg| (arg as *mut T) as u64);
    // SAFETY: the argument is absent or valid for reads and writes, and plain data.
    check(unsafe { raw(NR, [u64::from(cmd), u64::from(vcpu), arg, 0, 0]) })
}

/// Whether vCPU `vcpu` is up.
///
/// # Errors
/// `ENOENT`: there is no such vCPU.
pub fn is_up(vcpu: u32) -> Result<bool> {
    vcpu_op::<()>(VCPUOP_IS_UP, vcpu, None).map(|up| up != 0)
}

/// Stops the periodic timer that a new vCPU has.
///
/// # Errors
/// `ENOENT`: there is no such vCPU.
pub fn stop_periodic_timer(vcpu: u32) -> Result<()> {
    vcpu_op::<()>(VCPUOP_STOP_PERIODIC_TIMER, vcpu, None).map(|_| ())
}

/// Sets the vCPU's one timer to `deadline_ns`, system time. `false`: that time is past, and no event will come.
///
/// # Errors
/// - `ENOENT`: there is no such vCPU.
/// - `EINVAL`: the vCPU is not the caller.
pub fn set_singleshot_timer(vcpu: u32, deadline_ns: u64) -> Result<bool> {
    let mut arg = VcpuSetSingleshotTimer {
        timeout_abs_ns: deadline_ns,
        flags: VCPU_SSHOTTMR_FUTURE,
        ..Default::default()
    };
    match vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, vcpu, Some(&mut arg)) {
        Ok(_) => Ok(true),
        Err(Errno::ETIME) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Cancels the vCPU's timer.
///
/// # Errors
/// `ENOENT`: there is no such vCPU.
pub fn stop_singleshot_timer(vcpu: u32) -> Result<()> {
    vcpu_op::<()>(VCPUOP_STOP_SINGLESHOT_TIMER, vcpu, None).map(|_| ())
}

/// How long vCPU `vcpu` was in each state, up to now.
///
/// # Errors
/// `ENOENT`: there is no such vCPU.
pub fn runstate(vcpu: u32) -> Result<VcpuRunstateInfo> {
    let mut info = VcpuRunstateInfo::default();
    vcpu_op(VCPUOP_GET_RUNSTATE_INFO, vcpu, Some(&mut info)).map(|_| info)
}

/// Has the hypervisor write how long vCPU `vcpu` was in each state to a [`VcpuRunstateInfo`] at address `area`, each
/// time that the hypervisor lets the vCPU run.
///
/// # Errors
/// `ENOENT`: there is no such vCPU.
pub fn register_runstate_area(vcpu: u32, area: u64) -> Result<()> {
    let mut arg = VcpuRegisterRunstateMemoryArea { addr: area };
    vcpu_op(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, vcpu, Some(&mut arg)).map(|_| ())
}

/// `set_trap_table`: the handlers of exceptions; the last entry's address is 0.
///
/// # Safety
/// Each address must be a handler that keeps to the exception frame.
///
/// # Errors
/// - `EFAULT`: the hypervisor cannot read the table.
/// - `EPERM`: an address lies in the hypervisor's range.
pub unsafe fn set_trap_table(table: &[TrapInfo]) -> Result<()> {
    // SAFETY: the table is only read; the caller vouches for the handlers.
    check(unsafe { raw(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]) }).map(|_| ())
}

/// `set_callbacks`: entry points for events, failed segment loads, and user system calls (0 for none).
///
/// # Safety
/// Each address must be a handler that keeps to the frame of its kind.
///
/// # Errors
/// `EINVAL`: an address is not canonical.
pub unsafe fn set_callbacks(event: u64, failsafe: u64, syscall: u64) -> Result<()> {
    // SAFETY: the caller vouches for the handlers.
    check(unsafe { raw(__HYPERVISOR_SET_CALLBACKS, [event, failsafe, syscall, 0, 0]) }).map(|_| ())
}
