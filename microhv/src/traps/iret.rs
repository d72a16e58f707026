//! The `iret` hypercall.

use core::sync::atomic::Ordering;

use ring_abi::types::GuestVa;
use ring_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::bounce::{crash, set_upcall_mask};
use super::mode::enter_user_mode;
use super::{ENTRY_SYSCALL, KERNEL_CS, KERNEL_SS, flags};
use crate::domain::{Current, Vcpu};
use crate::platform::Platform;

/// `VGCF_in_syscall`: the frame returns from a `syscall`, so rcx and r11 need not be kept.
const IN_SYSCALL: u64 = 1 << 8;

/// The flags that a guest may set by `iret`: CF PF AF ZF SF TF DF OF NT RF AC ID.
pub(crate) const USER_FLAGS: u64 = 0x25_4dd5;

/// `iret`: leaves a trap handler by the frame on the guest's stack: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss.
///
/// RPL 3 of `cs` means user mode. The frame's I/O privilege level is the vCPU's from then on if the domain has the assist for
/// that; else the level is dropped. A frame that cannot be read, or user mode without user tables, crashes the domain.
///
/// ABI: `struct iret_context`, `xen/include/public/arch-x86/xen-x86_64.h`.
#[inline(always)]
pub fn iret<P: Platform>(cur: &mut Current<'_, P>) {
    let Ok([rax, r11, rcx, flags, rip, cs, rflags, rsp, ss]) = cur.read_frame(GuestVa::new(cur.regs.rsp))
    else {
        return crash(cur, "cannot read the frame of iret");
    };
    if cs & 3 == 3 && !enter_user_mode(cur) {
        return crash(cur, "iret to user mode without page tables for it");
    }
    if cur.domain.assists(VMASST_TYPE_ARCHITECTURAL_IOPL) {
        cur.vcpu.iopl.store(rflags & Vcpu::IOPL, Ordering::Relaxed);
    }
    let regs = &mut *cur.regs;
    regs.rip = rip;
    regs.cs = cs as u16 | 3;
    regs.rflags = rflags & USER_FLAGS | flags::IF | 2;
    regs.rsp = rsp;
    regs.ss = ss as u16 | 3;
    regs.rax = rax;
    // SYSRET loads fixed selectors.
    if flags & IN_SYSCALL != 0 && regs.cs == KERNEL_CS && regs.ss == KERNEL_SS {
        regs.entry_vector = ENTRY_SYSCALL;
    } else {
        regs.rcx = rcx;
        regs.r11 = r11;
        regs.entry_vector = 0;
    }
    set_upcall_mask(cur, u8::from(rflags & flags::IF == 0));
}
