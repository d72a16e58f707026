//! User mode: how the kernel enters it, and how system calls and traps leave it.

hypercall_cases! {
    "user.syscall" = syscall {
        title: "a system call",
        rule: "SYSCALL of user mode enters the registered callback, with rcx and r11 as the instruction sets them.",
        source: "callback.h, CALLBACKTYPE_syscall",
    }
    "user.syscall-frame" = syscall_frame {
        title: "the frame of a system call",
        rule: "The frame lies at the top of the stack of stack_switch and has the user's rip, cs of level 3, flags, rsp and ss.",
        source: "callback.h, CALLBACKTYPE_syscall; arch-x86/xen-x86_64.h",
    }
    "user.syscall-masks" = syscall_masks {
        title: "a system call that masks events, and one that does not",
        rule: "CALLBACKF_mask_events sets the event mask as the callback is entered; without it the mask stays.",
        source: "callback.h, CALLBACKF_mask_events",
    }
    "user.kernel-mode" = kernel_mode {
        title: "the handler is the kernel's",
        rule: "Traps of user mode are handled in kernel mode, whose hypercalls work.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "user.stack-switch" = stack_switch {
        title: "another stack for what comes from user mode",
        rule: "stack_switch sets the stack on which traps of user mode are handled.",
        source: "xen.h, HYPERVISOR_stack_switch",
    }
    "user.page-fault-read" = page_fault_read {
        title: "a read of what is not mapped",
        rule: "The error code of a page fault in user mode has bit 2 set.",
        source: "arch-x86/xen.h, struct arch_vcpu_info",
    }
    "user.page-fault-write" = page_fault_write {
        title: "a write to what is read-only",
        rule: "The error code of user mode's write to a read-only page is 7.",
        source: "arch-x86/xen.h, struct arch_vcpu_info",
    }
    "user.hypervisor-address" = hypervisor_address {
        title: "an address of the hypervisor's",
        rule: "User mode cannot read the hypervisor's addresses: it is a page fault with that address in cr2.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START",
    }
    "user.privileged" = privileged {
        title: "an instruction that is the kernel's",
        rule: "A privileged instruction in user mode arrives as vector 13 with error code 0 and is not emulated.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "user.breakpoint" = breakpoint {
        title: "int3 with a gate of level 3",
        rule: "int3 in user mode arrives as vector 3 with rip behind the instruction.",
        source: "arch-x86/xen.h, struct trap_info, TI_GET_DPL",
    }
    "user.int80" = int80 {
        title: "int 0x80 with a gate of level 3",
        rule: "int 0x80 in user mode enters the handler of its gate.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "user.gs-base" = gs_base {
        title: "user mode has a GS of its own",
        rule: "User mode runs with the base of SEGBASE_GS_USER, the kernel with that of SEGBASE_GS_KERNEL.",
        source: "arch-x86/xen-x86_64.h, SEGBASE_GS_USER, SEGBASE_GS_KERNEL",
    }
    "user.iret-selectors" = iret_selectors {
        title: "selectors of a lower level",
        rule: "iret to user mode forces level 3 on cs and ss.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "user.event" = event {
        title: "an event while user mode runs",
        rule: "An event with the mask clear interrupts user mode: the callback is entered on the kernel's stack.",
        source: "callback.h, CALLBACKTYPE_event",
    }
    "user.sysret" = sysret {
        title: "iret with the SYSRET flag",
        rule: "iret with VGCF_in_syscall returns to user mode at the frame's rip with its flags.",
        source: "arch-x86/xen-x86_64.h, VGCF_in_syscall",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::asm;
    use super::super::kit::*;
    use ring_abi::callback::*;
    use ring_abi::guest_context::{IretContext, TrapInfo, VGCF_IN_SYSCALL};
    use ring_abi::segment::*;

    const IF: u64 = 1 << 9;

    fn register(kind: u16, flags: u16, address: u64) -> Verdict {
        let mut arg = CallbackRegister { r#type: kind, flags, address, ..Default::default() };
        given("callback", op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut arg)).map(|_| ())
    }

    /// User mode whose system calls end an attempt.
    fn user(flags: u16) -> Verdict<User> {
        register(CALLBACKTYPE_SYSCALL, flags, probe::entry(probe::SYSCALL))?;
        User::new()
    }

    pub(super) fn syscall(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let code = asm::user_syscall();
        let trap = trapped("syscall", user.run(&code, 0), probe::SYSCALL)?;
        ensure_eq!(trap.rip, code.end, "rip");
        ensure_eq!(trap.rcx_r11[0], code.end, "rcx");
        // The resume flag may differ.
        ensure_eq!((trap.rcx_r11[1] ^ trap.rflags) & !(1 << 16 | IF), 0, "r11 and the flags");
        Ok(())
    }

    pub(super) fn syscall_frame(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let frame = user.frame(&asm::user_syscall(), 0);
        let trap = trapped("syscall", iret(&frame), probe::SYSCALL)?;
        ensure_eq!((trap.cs, trap.ss), (FLAT_USER_CS64, FLAT_USER_SS64), "cs and ss");
        ensure_eq!(trap.rsp, frame.rsp, "rsp");
        ensure_eq!(trap.handler.rsp, asm::stack_top() - 7 * 8, "where the frame lies");
        ensure_eq!(
            (trap.handler.cs, trap.handler.ss),
            (FLAT_KERNEL_CS, FLAT_KERNEL_SS),
            "cs and ss of the handler"
        );
        Ok(())
    }

    pub(super) fn syscall_masks(_: &Env) -> Verdict {
        let _timer = timer_port()?;
        for (flags, wanted) in [(CALLBACKF_MASK_EVENTS, 1), (0, 0)] {
            let user = user(flags)?;
            clear_upcall();
            let frame = IretContext { rflags: 2 | IF, ..user.frame(&asm::user_syscall(), 0) };
            let trap = iret(&frame);
            let mask = upcall_mask();
            set_upcall_mask(1);
            let trap = trapped("syscall", trap, probe::SYSCALL)?;
            ensure_eq!(trap.mask, 0, "the mask in the frame");
            ensure!(trap.rflags & IF != 0, "the interrupt flag of {:#x}", trap.rflags);
            ensure_eq!(mask, wanted, "the mask in the callback, flags {flags}");
        }
        Ok(())
    }

    pub(super) fn kernel_mode(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        for _ in 0..5 {
            trapped("syscall", user.run(&asm::user_syscall(), 0), probe::SYSCALL)?;
            ensure!(nothing() > 0, "a hypercall after it");
            let trap = trapped("a trap of the kernel's", attempt(undefined), 6)?;
            ensure_eq!(trap.cs & 3, 0, "its privilege level");
        }
        Ok(())
    }

    #[allow(unsafe_code)]
    fn undefined() {
        // SAFETY: within an attempt.
        unsafe { core::arch::asm!("ud2") };
    }

    pub(super) fn stack_switch(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        for offset in [0, 1024, 512] {
            let top = asm::stack_top() - offset;
            done("stack_switch", call(__HYPERVISOR_STACK_SWITCH, [0xe02b, top, 0, 0, 0]))?;
            let trap = trapped("syscall", user.run(&asm::user_syscall(), 0), probe::SYSCALL)?;
            ensure_eq!(trap.handler.rsp, top - 7 * 8, "where the frame lies");
        }
        Ok(())
    }

    pub(super) fn page_fault_read(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let scratch = Scratch::new(1);
        let code = asm::user_read();
        let trap = trapped("a read", user.run(&code, scratch.at(0) + 8), 14)?;
        ensure_eq!((trap.error, trap.cr2), (4, scratch.at(0) + 8), "error code and cr2");
        ensure_eq!((trap.rip, trap.cs & 3), (code.end, 3), "rip and privilege level");
        Ok(())
    }

    pub(super) fn page_fault_write(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let scratch = Scratch::new(1);
        done("mapping", map(scratch.at(0), scratch.mfn(0) << 12 | RO | 4))?;
        let trap = trapped("a write", user.run(&asm::user_write(), scratch.at(0) + 8), 14)?;
        ensure_eq!((trap.error, trap.cr2), (7, scratch.at(0) + 8), "error code and cr2");
        Ok(())
    }

    pub(super) fn hypervisor_address(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        for at in [0xffff_8300_0000_0000, 0xffff_82d0_4020_0000] {
            let trap = trapped("a read", user.run(&asm::user_read(), at), 14)?;
            ensure_eq!(trap.cr2, at, "cr2");
            ensure!(trap.error & 4 != 0, "error code {:#x}", trap.error);
        }
        Ok(())
    }

    pub(super) fn privileged(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let code = asm::user_hlt();
        let trap = trapped("hlt", user.run(&code, 0), 13)?;
        ensure_eq!(
            (trap.error, trap.rip, trap.cs & 3),
            (0, code.end, 3),
            "error code, rip and privilege level"
        );
        Ok(())
    }

    pub(super) fn breakpoint(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let code = asm::user_int3();
        let trap = trapped("int3", user.run(&code, 0), 3)?;
        ensure_eq!((trap.rip, trap.cs & 3), (code.end, 3), "rip and privilege level");
        Ok(())
    }

    pub(super) fn int80(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let table = [TrapInfo { flags: 7, ..probe::gate(0x80) }, TrapInfo::default()];
        done("set_trap_table", call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]))?;
        let code = asm::user_int80();
        let trap = trapped("int 0x80", user.run(&code, 0), 0x80)?;
        ensure_eq!((trap.rip, trap.cs & 3), (code.end, 3), "rip and privilege level");
        Ok(())
    }

    pub(super) fn gs_base(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let scratch = Scratch::new(2);
        store("the user's", scratch.page(0), 0x1111)?;
        store("the kernel's", scratch.page(1), 0x2222)?;
        let set = |which: u32, base: u64| call(__HYPERVISOR_SET_SEGMENT_BASE, [which.into(), base, 0, 0, 0]);
        done("GS_USER", set(SEGBASE_GS_USER, scratch.page(0)))?;
        done("GS_KERNEL", set(SEGBASE_GS_KERNEL, scratch.page(1)))?;
        let trap = user.run(&asm::user_gs(), 0);
        let by_user = asm::landed_rax();
        let kernel = kernel_frame(&asm::user_gs());
        let back = iret(&kernel);
        let by_kernel = asm::landed_rax();
        done("GS_USER", set(SEGBASE_GS_USER, 0))?;
        done("GS_KERNEL", set(SEGBASE_GS_KERNEL, 0))?;
        trapped("user mode", trap, 6)?;
        trapped("the kernel", back, 6)?;
        ensure_eq!((by_user, by_kernel), (0x1111, 0x2222), "what GS shows");
        Ok(())
    }

    pub(super) fn iret_selectors(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let mut frame = user.frame(&asm::user_syscall(), 0);
        frame.ss = (FLAT_USER_SS64 & !3).into();
        let trap = trapped("syscall", iret(&frame), probe::SYSCALL)?;
        ensure_eq!((trap.cs & 3, trap.ss & 3), (3, 3), "the levels of cs and ss");
        Ok(())
    }

    pub(super) fn event(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let port = Opened::ipi()?;
        register(CALLBACKTYPE_EVENT, 0, probe::entry(probe::EVENT))?;
        clear_upcall();
        done("send", port.send())?;
        let code = asm::user_syscall();
        let frame = IretContext { rflags: 2 | IF, ..user.frame(&code, 0) };
        let trap = trapped("the event", iret(&frame), probe::EVENT)?;
        ensure_eq!((trap.rip, trap.cs & 3), (code.start, 3), "rip and privilege level");
        ensure_eq!(trap.handler.rsp, asm::stack_top() - 7 * 8, "where the frame lies");
        Ok(())
    }

    pub(super) fn sysret(_: &Env) -> Verdict {
        let user = user(CALLBACKF_MASK_EVENTS)?;
        let code = asm::user_syscall();
        let mut frame = user.frame(&code, 0);
        frame.flags = VGCF_IN_SYSCALL;
        // SYSRET takes rip from rcx and the flags from r11, so the frame has the same values there.
        frame.rcx = code.start;
        frame.r11 = 2 | 1;
        frame.rflags = 2 | 1;
        let trap = trapped("syscall", iret(&frame), probe::SYSCALL)?;
        ensure_eq!((trap.rip, trap.rsp), (code.end, frame.rsp), "rip and rsp");
        ensure_eq!(trap.rflags & 1, 1, "the carry flag");
        Ok(())
    }
}
