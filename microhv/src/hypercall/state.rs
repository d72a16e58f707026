//! Traps, stacks, segments and debug registers: what a guest tells about its own vCPU.

use core::sync::atomic::Ordering;

use ring_abi::guest_context::TrapInfo;
use ring_abi::segment::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL};
use ring_abi::types::GuestVa;
use ring_abi::vm_assist::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE};

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{TrapGate, VALID_ASSISTS, Vcpu};
use crate::frames::pte::is_canonical;
use crate::platform::{Platform, SegmentBase};

/// Gates that are set between two looks at what waits: a multicall may have several tables.
const GATES_PER_LOOK: u64 = 32;

/// `set_trap_table(table)`: sets gates until one with address 0; a null table clears all.
///
/// # Errors
/// `Fault`; `Invalid` for an address that is not canonical.
#[inline(never)]
pub fn set_trap_table<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let table = GuestVa::new(args[0]);
    if table.raw() == 0 {
        cur.vcpu.entries.traps.iter().for_each(|gate| gate.set(TrapGate::default()));
        return Ok(Outcome::OK);
    }
    for index in 0.. {
        let info: TrapInfo = cur.copy_in_at(table, index)?;
        if info.address == 0 {
            break;
        }
        HypercallError::Invalid.when(!is_canonical(info.address))?;
        cur.vcpu.entries.traps[info.vector as usize].set(TrapGate::from_abi(&info));
        if index % GATES_PER_LOOK == GATES_PER_LOOK - 1 && cur.hv.platform.work_pending() {
            // A table that ends with the address space has no next gate.
            let mut rest = *args;
            rest[0] = table.element::<TrapInfo>(index + 1).ok_or(HypercallError::Fault)?.raw();
            return Ok(cur.again(rest));
        }
    }
    Ok(Outcome::OK)
}

/// `stack_switch(ss, sp)`: the stack that the kernel is entered on from user mode.
#[inline(always)]
pub fn stack_switch(vcpu: &Vcpu, ss: u64, sp: u64) -> u64 {
    vcpu.kernel_stack.set(ss, sp);
    0
}

/// `set_segment_base(which, base)`. A bad selector for `SEGBASE_GS_USER_SEL` loads null, and is no error.
///
/// # Errors
/// `Invalid`: a base that is not canonical, or no such base.
pub fn set_segment_base<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let (which, base) = (args[0] as u32, args[1]);
    let which = match which {
        SEGBASE_FS => SegmentBase::Fs,
        SEGBASE_GS_USER => SegmentBase::GsUser,
        SEGBASE_GS_KERNEL => SegmentBase::GsKernel,
        SEGBASE_GS_USER_SEL => {
            cur.hv.platform.load_user_gs(base as u16);
            return Ok(Outcome::OK);
        }
        _ => return Err(HypercallError::Invalid),
    };
    HypercallError::Invalid.when(!is_canonical(base))?;
    cur.hv.platform.set_segment_base(which, base);
    Ok(Outcome::OK)
}

/// `set_debugreg(index, value)`.
///
/// # Errors
/// The errors of [`crate::domain::GuestCpu::set_debug_register`].
pub fn set_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    cur.vcpu.cpu.lock().set_debug_register(&cur.hv.platform, args[0], args[1])?;
    Ok(Outcome::OK)
}

/// `get_debugreg(index)`.
///
/// # Errors
/// The errors of [`crate::domain::GuestCpu::debug_register`].
pub fn get_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    Ok(Outcome::Done(cur.vcpu.cpu.lock().debug_register(args[0])?))
}

/// `fpu_taskswitch(set)`: the guest's CR0.TS.
///
/// # Errors
/// None.
pub fn fpu_taskswitch<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    cur.set_task_switched(args[0] as u32 != 0);
    Ok(Outcome::OK)
}

/// `vm_assist(cmd, type)`.
///
/// # Errors
/// `Invalid`: no such assist; `NoSys`: no such command.
pub fn vm_assist<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let (command, kind) = (args[0] as u32, args[1] as u32);
    HypercallError::Invalid.when(kind >= u64::BITS || VALID_ASSISTS & 1 << kind == 0)?;
    match command {
        VMASST_CMD_ENABLE => cur.domain.assist.fetch_or(1 << kind, Ordering::Relaxed),
        VMASST_CMD_DISABLE => cur.domain.assist.fetch_and(!(1 << kind), Ordering::Relaxed),
        _ => return Err(HypercallError::NoSys),
    };
    Ok(Outcome::OK)
}
