//! `iret` as hypercall and as instruction: where a kernel returns to, and the failsafe callback for a return that
//! faults.

hypercall_cases! {
    "traps.iret-registers" = iret_registers {
        title: "what iret restores",
        rule: "The hypercall iret sets rax, rcx, r11, rip, rsp and the flags from its frame.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "traps.iret-kernel" = iret_kernel {
        title: "iret to the kernel",
        rule: "iret with a cs of privilege level 0 stays in kernel mode.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "traps.iret-mask" = iret_mask {
        title: "the interrupt flag of iret's frame",
        rule: "iret sets evtchn_upcall_mask to the inverse of the interrupt flag in its frame.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "traps.iret-flags" = iret_flags {
        title: "flags that are not the guest's",
        rule: "iret drops the I/O privilege level and the virtual-8086 flag of its frame.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "traps.iret-event" = iret_event {
        title: "an event that waits for iret",
        rule: "iret that clears the event mask delivers what is pending, with the place that it leads to in the frame.",
        source: "arch-x86/xen-x86_64.h, struct iret_context; xen.h, struct vcpu_info",
    }
    "traps.native-iretq" = native_iretq {
        title: "iretq of the processor",
        rule: "The processor's own iretq with selectors of level 3 works in the kernel.",
        source: "arch-x86/xen-x86_64.h, FLAT_RING3_CS64",
    }
    "traps.failsafe" = failsafe {
        title: "a segment that is gone when the vCPU runs again",
        rule: "A data segment that cannot be loaded when the vCPU is switched to enters the failsafe callback with the four selectors in its frame.",
        source: "callback.h, CALLBACKTYPE_failsafe; arch-x86/xen.h",
        also: [DomU],
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // each attempt is an instruction that traps

    use super::super::asm as code;
    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::callback::*;

    const CF: u64 = 1;
    const DF: u64 = 1 << 10;
    const IF: u64 = 1 << 9;

    pub(super) fn iret_registers(_: &Env) -> Verdict {
        let landing = code::landing();
        let stack = code::stack_top() - 256;
        let mut frame = kernel_frame(&landing);
        frame.rax = 0x1111_2222_3333_4445;
        frame.rcx = 0x9555_6666_7777_8889;
        frame.r11 = 0x9999_aaaa_bbbb_cccd;
        frame.rsp = stack;
        frame.rflags = 2 | CF;
        let trap = trapped("the landing", iret(&frame), 6)?;
        ensure_eq!(code::landed_rax(), frame.rax, "rax");
        ensure_eq!(trap.rcx_r11, [frame.rcx, frame.r11], "rcx and r11");
        ensure_eq!((trap.rip, trap.rsp), (landing.end, stack), "rip and rsp");
        ensure_eq!(trap.rflags & (CF | DF), CF, "the flags");
        Ok(())
    }

    pub(super) fn iret_kernel(_: &Env) -> Verdict {
        let trap = trapped("the landing", iret(&kernel_frame(&code::landing())), 6)?;
        ensure_eq!(trap.cs & 3, 0, "the privilege level in the frame");
        Ok(())
    }

    pub(super) fn iret_mask(_: &Env) -> Verdict {
        for (flag, wanted) in [(0, 1), (IF, 0)] {
            let _timer = timer_port()?;
            clear_upcall();
            set_upcall_mask(1 - wanted);
            let frame =
                ring_abi::guest_context::IretContext { rflags: 2 | flag, ..kernel_frame(&code::landing()) };
            let trap = iret(&frame);
            set_upcall_mask(1);
            ensure_eq!(trapped("the landing", trap, 6)?.mask, wanted, "the mask");
        }
        Ok(())
    }

    pub(super) fn iret_flags(_: &Env) -> Verdict {
        let mut frame = kernel_frame(&code::landing());
        frame.rflags = 2 | 3 << 12 | 1 << 17;
        let trap = trapped("the landing", iret(&frame), 6)?;
        ensure_eq!(trap.rflags & (3 << 12 | 1 << 17), 0, "IOPL and VM");
        Ok(())
    }

    fn register(kind: u16, address: u64) -> Verdict {
        let mut arg = CallbackRegister { r#type: kind, address, ..Default::default() };
        given("callback", op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut arg)).map(|_| ())
    }

    pub(super) fn iret_event(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        register(CALLBACKTYPE_EVENT, probe::entry(probe::EVENT))?;
        clear_upcall();
        done("send", port.send())?;
        let landing = code::landing();
        let mut frame = kernel_frame(&landing);
        frame.rflags = 2 | IF;
        let trap = trapped("the event", iret(&frame), probe::EVENT)?;
        ensure_eq!((trap.rip, trap.rsp), (landing.start, frame.rsp), "rip and rsp in the frame");
        ensure_eq!(trap.mask, 0, "the mask in the frame");
        Ok(())
    }

    pub(super) fn native_iretq(_: &Env) -> Verdict {
        let mut there = 0u64;
        // SAFETY: leads to the next instruction, with the stack as it was.
        let trap = attempt(|| unsafe {
            asm!(
                "mov {0}, rsp", "push 0xe02b", "push {0}", "pushfq", "push 0xe033", "lea {0}, [rip + 2f]", "push {0}",
                "iretq", "2:", "mov {1}, 0x77", out(reg) _, out(reg) there,
            )
        });
        untrapped("iretq", trap)?;
        ensure_eq!(there, 0x77, "what comes behind");
        Ok(())
    }

    pub(super) fn failsafe(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a descriptor", scratch.page(0) + 8, 0x00cf_f300_0000_ffff)?;
        given("read-only", scratch.protect(0))?;
        let set_gdt =
            |list: &[u64], entries: u64| call(__HYPERVISOR_SET_GDT, [list.as_ptr() as u64, entries, 0, 0, 0]);
        given("set_gdt", set_gdt(&[scratch.mfn(0)], 512))?;
        register(CALLBACKTYPE_FAILSAFE, probe::entry(probe::FAILSAFE))?;
        let trap = attempt(|| {
            // SAFETY: ES is not used.
            unsafe { asm!("mov es, {0:e}", in(reg) 8 | 3u32) };
            set_gdt(&[], 0);
            for _ in 0..50 {
                // The vCPU blocks, so that other vCPUs run and the hypervisor switches to this one again.
                let mut arg = ring_abi::sched::SchedPoll { timeout: now() + 1_000_000, ..Default::default() };
                op(__HYPERVISOR_SCHED_OP, ring_abi::sched::SCHEDOP_POLL, &mut arg);
            }
        });
        // SAFETY: the null selector can always be loaded.
        unsafe { asm!("mov es, {0:e}", in(reg) 0u32) };
        set_gdt(&[], 0);
        require!(trap.is_some(), "this vCPU has its CPU alone: nothing was loaded again");
        let trap = trapped("the segment", trap, probe::FAILSAFE)?;
        ensure_eq!(trap.selectors[1], 8 | 3, "es in the frame");
        Ok(())
    }
}
