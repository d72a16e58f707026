//! Traps, stacks, segments and debug registers: what a guest tells about its own vCPU.

use core::sync::atomic::Ordering;

use ring_abi::guest_context::TrapInfo;
use ring_abi::segment::{
    HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
};
use ring_abi::vm_assist::{
    VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_4GB_SEGMENTS, VMASST_TYPE_4GB_SEGMENTS_NOTIFY,
    VMASST_TYPE_ARCHITECTURAL_IOPL, VMASST_TYPE_M2P_STRICT, VMASST_TYPE_PAE_EXTENDED_CR3,
    VMASST_TYPE_RUNSTATE_UPDATE_FLAG, VMASST_TYPE_WRITABLE_PAGETABLES,
};

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{GuestCpu, TrapGate};
use crate::frames::pte::is_canonical;
use crate::platform::{Platform, SegmentBase};

/// Assists that a guest may switch.
pub const VALID_ASSISTS: u64 = 1 << VMASST_TYPE_4GB_SEGMENTS
    | 1 << VMASST_TYPE_4GB_SEGMENTS_NOTIFY
    | 1 << VMASST_TYPE_WRITABLE_PAGETABLES
    | 1 << VMASST_TYPE_PAE_EXTENDED_CR3
    | 1 << VMASST_TYPE_ARCHITECTURAL_IOPL
    | 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG
    | 1 << VMASST_TYPE_M2P_STRICT;

/// DR7: bits that are always one, that are always zero, and general detect.
const DR7_FIXED_ONES: u64 = 0x400;
const DR7_FIXED_ZEROS: u64 = 0xffff_ffff_0000_d800;
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// DR7: local and global enable bits of the four breakpoints.
const DR7_ENABLE: u64 = 0xff;
/// DR6: bits that are always one and always zero.
const DR6_FIXED_ONES: u64 = 0xffff_0ff0;
const DR6_FIXED_ZEROS: u64 = 0xffff_ffff_0000_1000;
/// CR4.DE.
const CR4_DE: u64 = 8;

/// The gate that a guest wrote.
pub(crate) fn trap_gate(info: &TrapInfo) -> TrapGate {
    TrapGate {
        address: info.address,
        cs: info.cs | 3,
        dpl: info.flags & 3,
        masks_events: info.flags & 4 != 0,
    }
}

/// Gates that are set between two looks at what waits: a multicall may have several tables.
const GATES_PER_LOOK: u64 = 32;

/// `set_trap_table(table)`: sets gates until one with address 0; a null table clears all.
///
/// # Errors
/// `Fault`; `Invalid` for an address that is not canonical.
pub fn set_trap_table<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let table = args[0];
    if table == 0 {
        cur.vcpu.cpu.lock().traps.fill(TrapGate::default());
        return Ok(Outcome::OK);
    }
    for index in 0.. {
        let info: TrapInfo = cur.copy_in_at(table, index)?;
        if info.address == 0 {
            break;
        }
        if !is_canonical(info.address) {
            return Err(HypercallError::Invalid);
        }
        cur.vcpu.cpu.lock().traps[info.vector as usize] = trap_gate(&info);
        if index % GATES_PER_LOOK == GATES_PER_LOOK - 1 && cur.hv.platform.work_pending() {
            // A table that ends with the address space has no next gate.
            let next =
                (index + 1).checked_mul(size_of::<TrapInfo>() as u64).and_then(|o| table.checked_add(o));
            let mut rest = *args;
            rest[0] = next.ok_or(HypercallError::Fault)?;
            return Ok(cur.again(rest));
        }
    }
    Ok(Outcome::OK)
}

/// `stack_switch(ss, sp)`: the stack that the kernel is entered on from user mode.
///
/// # Errors
/// None.
#[inline]
pub fn stack_switch<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let mut cpu = cur.vcpu.cpu.lock();
    cpu.kernel_ss = args[0] as u16 | 3;
    cpu.kernel_sp = args[1];
    Ok(Outcome::OK)
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
    if !is_canonical(base) {
        return Err(HypercallError::Invalid);
    }
    cur.hv.platform.set_segment_base(which, base);
    Ok(Outcome::OK)
}

/// Whether a breakpoint may be at `address`.
const fn may_break_at(address: u64) -> bool {
    is_canonical(address) && !(HYPERVISOR_VIRT_START <= address && address < HYPERVISOR_VIRT_END)
}

/// The value that debug register `index` takes when a guest writes `value`.
///
/// # Errors
/// `NotPermitted`: a breakpoint in the hypervisor, an I/O breakpoint without CR4.DE, a length that needs another, or
/// general detect; `NoDevice`: no such register.
pub(crate) fn checked_debug_value(index: u64, value: u64, cr4: u64) -> Result<u64, HypercallError> {
    match index {
        0..=3 if may_break_at(value) => Ok(value),
        0..=3 => Err(HypercallError::NotPermitted),
        6 => Ok(value & !DR6_FIXED_ZEROS | DR6_FIXED_ONES),
        7 => {
            if value & DR7_GENERAL_DETECT != 0 {
                return Err(HypercallError::NotPermitted);
            }
            let value = value & !DR7_FIXED_ZEROS | DR7_FIXED_ONES;
            for breakpoint in 0..4 {
                let enabled = value >> (2 * breakpoint) & 3 != 0;
                let kind = value >> (16 + 4 * breakpoint) & 15;
                // Kind 2 is an I/O breakpoint with DE, undefined without; an execution breakpoint has length 1.
                if enabled && ((kind & 3 == 2 && cr4 & CR4_DE == 0) || (kind & 3 == 0 && kind >> 2 != 0)) {
                    return Err(HypercallError::NotPermitted);
                }
            }
            Ok(value)
        }
        _ => Err(HypercallError::NoDevice),
    }
}

/// `set_debugreg(index, value)`.
///
/// # Errors
/// `NotPermitted`, `NoDevice`: see the checks of each register.
pub fn set_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let mut cpu = cur.vcpu.cpu.lock();
    let value = checked_debug_value(args[0], args[1], cpu.cr4)?;
    if args[0] == 7 && value & DR7_ENABLE != 0 && cpu.debug[7] & DR7_ENABLE == 0 {
        // A switch leaves the addresses of a vCPU out of the processor that has no breakpoint on.
        for index in 0..4 {
            cur.hv.platform.set_debug_register(index, cpu.debug[usize::from(index)]);
        }
    }
    cpu.debug[args[0] as usize] = value;
    cur.hv.platform.set_debug_register(args[0] as u8, value);
    Ok(Outcome::OK)
}

/// `get_debugreg(index)`.
///
/// # Errors
/// `NoDevice`: no such register.
pub fn get_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    match args[0] {
        index @ (0..=3 | 6 | 7) => Ok(Outcome::Done(cur.vcpu.cpu.lock().debug[index as usize])),
        _ => Err(HypercallError::NoDevice),
    }
}

/// `fpu_taskswitch(set)`: the guest's CR0.TS.
///
/// # Errors
/// None.
pub fn fpu_taskswitch<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let on = args[0] as u32 != 0;
    let mut cpu = cur.vcpu.cpu.lock();
    if on {
        cpu.cr0 |= GuestCpu::CR0_TS;
    } else {
        cpu.cr0 &= !GuestCpu::CR0_TS;
    }
    cur.hv.platform.set_task_switched(on);
    Ok(Outcome::OK)
}

/// `vm_assist(cmd, type)`.
///
/// # Errors
/// `Invalid`: no such assist; `NoSys`: no such command.
pub fn vm_assist<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let (command, kind) = (args[0] as u32, args[1] as u32);
    if kind >= u64::BITS || VALID_ASSISTS & 1 << kind == 0 {
        return Err(HypercallError::Invalid);
    }
    match command {
        VMASST_CMD_ENABLE => cur.domain.assist.fetch_or(1 << kind, Ordering::Relaxed),
        VMASST_CMD_DISABLE => cur.domain.assist.fetch_and(!(1 << kind), Ordering::Relaxed),
        _ => return Err(HypercallError::NoSys),
    };
    Ok(Outcome::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers_keep_out_of_the_hypervisor() {
        assert_eq!(checked_debug_value(0, 0x1000, 0), Ok(0x1000));
        for bad in [HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END - 1, 0x8000_0000_0000, 1 << 63] {
            assert_eq!(checked_debug_value(3, bad, 0), Err(HypercallError::NotPermitted), "{bad:#x}");
        }
        assert!(checked_debug_value(1, HYPERVISOR_VIRT_END, 0).is_ok());
        for none in [4, 5, 8, u64::MAX] {
            assert_eq!(checked_debug_value(none, 0, 0), Err(HypercallError::NoDevice));
        }
    }

    #[test]
    fn debug_control_is_checked() {
        assert_eq!(checked_debug_value(7, 0, 0), Ok(0x400));
        assert_eq!(checked_debug_value(7, DR7_GENERAL_DETECT, 0), Err(HypercallError::NotPermitted));
        let io = 1 | (2 << 16);
        assert_eq!(checked_debug_value(7, io, 0), Err(HypercallError::NotPermitted));
        assert_eq!(checked_debug_value(7, io, CR4_DE), Ok(io | 0x400));
        assert_eq!(checked_debug_value(7, 1 | (4 << 16), 0), Err(HypercallError::NotPermitted));
        assert_eq!(checked_debug_value(7, !DR7_GENERAL_DETECT, CR4_DE), Ok(0xffff_07ff));
        assert_eq!(checked_debug_value(6, 0, 0), Ok(DR6_FIXED_ONES));
    }
}
