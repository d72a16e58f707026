//! Emulated instructions that would change what the kernel runs on: control registers, ports, the interrupt flag.

hypercall_cases! {
    "emulation.cr0" = cr0 {
        title: "control register 0",
        rule: "CR0 reads with protection and paging on.",
        source: "arch-x86/xen.h, struct vcpu_guest_context, ctrlreg",
    }
    "emulation.cr0-task-switched" = cr0_task_switched {
        title: "the task-switched flag by mov and clts",
        rule: "A write to CR0 changes the task-switched flag and nothing else; clts clears it.",
        source: "xen.h, HYPERVISOR_fpu_taskswitch; arch-x86/xen.h",
    }
    "emulation.cr2" = cr2 {
        title: "control register 2",
        rule: "CR2 reads as arch.cr2 of the vCPU's record.",
        source: "arch-x86/xen.h, struct arch_vcpu_info, cr2",
    }
    "emulation.cr3" = cr3 {
        title: "control register 3",
        rule: "CR3 reads as the machine address of the kernel's top table, and a write of it is MMUEXT_NEW_BASEPTR.",
        source: "arch-x86/xen.h, xen_pfn_to_cr3",
    }
    "emulation.cr4" = cr4 {
        title: "control register 4",
        rule: "CR4 reads with physical address extension on.",
        source: "arch-x86/xen.h, struct vcpu_guest_context, ctrlreg",
    }
    "emulation.base-instructions" = base_instructions {
        title: "the bases of FS and GS by instructions",
        rule: "With CR4.FSGSBASE, which a kernel may set where CPUID shows FSGSBASE, wrfsbase and rdfsbase work in ring 3, and the base stays over a switch of vCPUs. Elsewhere the bit stays clear, and they are undefined.",
        source: "arch-x86/cpufeatureset.h, FSGSBASE",
    }
    "emulation.fpu-taskswitch" = fpu_taskswitch {
        title: "the first floating-point instruction after a task switch",
        rule: "After fpu_taskswitch with 1 the next floating-point instruction arrives as vector 7, once; with 0 it does not.",
        source: "xen.h, HYPERVISOR_fpu_taskswitch",
    }
    "emulation.wbinvd" = wbinvd {
        title: "wbinvd",
        rule: "wbinvd in the kernel does not trap.",
        source: "xen.h, MMUEXT_FLUSH_CACHE",
    }
    "emulation.iopl" = iopl {
        title: "ports and the I/O privilege level",
        rule: "Without an I/O privilege level of 1 or more, in is a general protection fault; with it, a port without rights reads as all ones.",
        source: "physdev.h, PHYSDEVOP_set_iopl",
        also: [DomU],
    }
    "emulation.iopl-bad" = iopl_bad {
        title: "levels that there are not",
        rule: "PHYSDEVOP_set_iopl gives EINVAL for a level above 3.",
        source: "physdev.h, PHYSDEVOP_set_iopl",
    }
    "emulation.iopl-architectural" = iopl_architectural {
        title: "the kernel at level 0 with architectural_iopl",
        rule: "With the assist architectural_iopl the kernel may use ports and cli at an I/O privilege level of 0; without it, only from 1 on.",
        source: "xen.h, VMASST_TYPE_architectural_iopl",
        also: [DomU],
    }
    "emulation.iopl-frame" = iopl_frame {
        title: "the I/O privilege level in a trap's frame",
        rule: "With the assist architectural_iopl the flags in a frame have the level of PHYSDEVOP_set_iopl; without it they have 0.",
        source: "xen.h, VMASST_TYPE_architectural_iopl; physdev.h, PHYSDEVOP_set_iopl",
    }
    "emulation.iopl-iret" = iopl_iret {
        title: "the I/O privilege level in iret's frame",
        rule: "With the assist architectural_iopl iret sets the level to that of its frame, without it the level stays.",
        source: "xen.h, VMASST_TYPE_architectural_iopl; arch-x86/xen-x86_64.h, struct iret_context",
    }
    "emulation.iopl-user" = iopl_user {
        title: "user mode at each I/O privilege level",
        rule: "User mode that iret enters with architectural_iopl may use cli at an I/O privilege level of 3, and not below.",
        source: "xen.h, VMASST_TYPE_architectural_iopl",
    }
    "emulation.iobitmap" = iobitmap {
        title: "a bitmap of ports",
        rule: "PHYSDEVOP_set_iobitmap takes a bitmap of up to 65536 ports, and gives EINVAL for more.",
        source: "physdev.h, PHYSDEVOP_set_iobitmap",
    }
    "emulation.cli" = cli {
        title: "cli and sti",
        rule: "With an I/O privilege level of 1, cli and sti are allowed and do nothing to the event mask.",
        source: "physdev.h, PHYSDEVOP_set_iopl; xen.h, struct vcpu_info, evtchn_upcall_mask",
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // each is an instruction of its own

    use super::super::asm as code;
    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::guest_context::IretContext;
    use ring_abi::shared_info::CR2_OFFSET;
    use ring_abi::vm_assist::*;

    fn read_cr0() -> Verdict<u64> {
        let mut value = 0;
        // SAFETY: reads a register.
        untrapped("mov from CR0", attempt(|| unsafe { asm!("mov {}, cr0", out(reg) value) }))?;
        Ok(value)
    }

    const TS: u64 = 1 << 3;

    pub(super) fn cr0(_: &Env) -> Verdict {
        let value = read_cr0()?;
        ensure!(value & 1 != 0 && value & 1 << 31 != 0, "CR0 {value:#x}");
        Ok(())
    }

    pub(super) fn cr0_task_switched(_: &Env) -> Verdict {
        let before = read_cr0()? & !TS;
        // SAFETY: nothing uses floating point before CR0.TS is cleared again.
        untrapped("mov to CR0", attempt(|| unsafe { asm!("mov cr0, {}", in(reg) before | TS) }))?;
        let set = read_cr0()?;
        // SAFETY: clears the flag.
        untrapped("clts", attempt(|| unsafe { asm!("clts") }))?;
        ensure_eq!(set, before | TS, "CR0 with the flag");
        ensure_eq!(read_cr0()?, before, "CR0 after clts");
        // SAFETY: refused.
        let trap = attempt(|| unsafe { asm!("mov cr0, {}", in(reg) before & !(1 << 31)) });
        trapped("CR0 without paging", trap, 13)?;
        ensure_eq!(read_cr0()?, before, "CR0 at last");
        Ok(())
    }

    pub(super) fn cr2(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        trapped("a fault", probe::read(scratch.at(0) + 40).err(), 14)?;
        let mut value = 0u64;
        // SAFETY: reads a register.
        untrapped("mov from CR2", attempt(|| unsafe { asm!("mov {}, cr2", out(reg) value) }))?;
        ensure_eq!(value, scratch.at(0) + 40, "CR2");
        ensure_eq!(pvrt::shared_info().load_u64(CR2_OFFSET), value, "the record");
        Ok(())
    }

    pub(super) fn cr3(_: &Env) -> Verdict {
        let before = base();
        // SAFETY: the same tables.
        untrapped("mov to CR3", attempt(|| unsafe { asm!("mov cr3, {}", in(reg) before << 12) }))?;
        ensure_eq!(base(), before, "CR3");
        // SAFETY: no table: refused.
        let trap = attempt(|| unsafe { asm!("mov cr3, {}", in(reg) (end_of_memory() + 1) << 12) });
        trapped("CR3 to nowhere", trap, 13)?;
        ensure_eq!(base(), before, "CR3 at last");
        Ok(())
    }

    pub(super) fn cr4(_: &Env) -> Verdict {
        let mut value = 0u64;
        // SAFETY: reads a register.
        untrapped("mov from CR4", attempt(|| unsafe { asm!("mov {}, cr4", out(reg) value) }))?;
        ensure!(value & 1 << 5 != 0, "CR4 {value:#x}");
        Ok(())
    }

    pub(super) fn base_instructions(_: &Env) -> Verdict {
        const FSGSBASE: u64 = 1 << 16;
        // Non-canonical in none of its bits, and nothing that anybody uses.
        const BASE: u64 = 0x1234_5678_9000;
        let cr4 = || {
            let value: u64;
            // SAFETY: reads a register.
            unsafe { asm!("mov {}, cr4", out(reg) value) };
            value
        };
        let set = |value: u64| {
            // SAFETY: the bit changes nothing but which instructions there are.
            attempt(|| unsafe { asm!("mov cr4, {}", in(reg) value) })
        };
        let before = cr4();
        untrapped("mov to CR4", set(before | FSGSBASE))?;
        let (mut old, mut new) = (0u64, 0u64);
        if cpuid(7, 0)[1] & 1 == 0 {
            ensure!(cr4() & FSGSBASE == 0, "CR4 has a bit that the CPU does not have");
            // SAFETY: undefined: caught.
            let trap = attempt(|| unsafe { asm!("rdfsbase {}", out(reg) new) });
            return trapped("rdfsbase", trap, 6).map(|_| ());
        }
        ensure!(cr4() & FSGSBASE != 0, "CR4 reads without the bit");
        // SAFETY: this kernel has no use of FS.
        let trap = attempt(|| unsafe { asm!("rdfsbase {}", "wrfsbase {}", out(reg) old, in(reg) BASE) });
        untrapped("rdfsbase and wrfsbase", trap)?;
        for _ in 0..3 {
            // The vCPU blocks, so that other vCPUs run meanwhile.
            let mut arg = ring_abi::sched::SchedPoll { timeout: now() + 1_000_000, ..Default::default() };
            given("poll", op(__HYPERVISOR_SCHED_OP, ring_abi::sched::SCHEDOP_POLL, &mut arg))?;
        }
        // SAFETY: as above.
        let trap = attempt(|| unsafe { asm!("rdfsbase {}", "wrfsbase {}", out(reg) new, in(reg) old) });
        untrapped("rdfsbase behind switches", trap)?;
        ensure_eq!(new, BASE, "the base of FS behind switches");
        untrapped("mov to CR4", set(before & !FSGSBASE))?;
        // SAFETY: undefined now: caught.
        let trap = attempt(|| unsafe { asm!("rdfsbase {}", out(reg) new) });
        trapped("rdfsbase without the bit", trap, 6)?;
        untrapped("mov to CR4", set(before))
    }

    pub(super) fn fpu_taskswitch(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        // fnop; ret
        store("code", scratch.page(0), 0x00c3_d0d9)?;
        // SAFETY: code of two instructions, which returns; a trap is caught.
        let run = || attempt(|| unsafe { asm!("call {}", in(reg) scratch.page(0), clobber_abi("C")) });
        let switch = |set: u64| call(__HYPERVISOR_FPU_TASKSWITCH, [set, 0, 0, 0, 0]);
        done("fpu_taskswitch", switch(0))?;
        untrapped("fnop", run())?;
        done("fpu_taskswitch", switch(1))?;
        let trap = trapped("fnop after the switch", run(), 7)?;
        ensure_eq!(trap.rip, scratch.page(0), "rip");
        untrapped("fnop again", run())?;
        done("fpu_taskswitch", switch(1))?;
        done("fpu_taskswitch", switch(0))?;
        untrapped("fnop after it was taken back", run())
    }

    pub(super) fn wbinvd(_: &Env) -> Verdict {
        // SAFETY: caches only.
        untrapped("wbinvd", attempt(|| unsafe { asm!("wbinvd") }))
    }

    const PHYSDEVOP_SET_IOPL: u32 = 6;
    const PHYSDEVOP_SET_IOBITMAP: u32 = 7;

    fn set_iopl(level: u32) -> i64 {
        op(__HYPERVISOR_PHYSDEV_OP, PHYSDEVOP_SET_IOPL, &mut [level, 0])
    }

    /// The I/O privilege level that the kernel had, which drop restores: pvrt has 1 in the control domain,
    /// and 0 elsewhere.
    struct Iopl(u32);

    impl Drop for Iopl {
        fn drop(&mut self) {
            set_iopl(self.0);
        }
    }

    pub(super) fn iopl(env: &Env) -> Verdict {
        let _back = Iopl(env.privileged.into());
        done("set_iopl", set_iopl(0))?;
        let (mut byte, mut word, mut long) = (0u8, 0u16, 0u32);
        // SAFETY: must trap.
        let trap = attempt(|| unsafe { asm!("in al, dx", in("dx") 0x64u16, out("al") byte) });
        ensure_eq!(trapped("in without the level", trap, 13)?.error, 0, "the error code");
        done("set_iopl", set_iopl(1))?;
        // SAFETY: a port without rights.
        let trap = attempt(|| unsafe { asm!("in al, dx", in("dx") 0x3f0u16, out("al") byte) });
        untrapped("in of a byte", trap)?;
        // SAFETY: as above.
        let trap = attempt(|| unsafe { asm!("in ax, dx", in("dx") 0x3f0u16, out("ax") word) });
        untrapped("in of a word", trap)?;
        // SAFETY: as above.
        let trap = attempt(|| unsafe { asm!("in eax, dx", in("dx") 0x3f0u16, out("eax") long) });
        untrapped("in of four bytes", trap)?;
        ensure_eq!((byte, word, long), (u8::MAX, u16::MAX, u32::MAX), "what is read");
        // SAFETY: as above; the hypervisor drops the write.
        untrapped("out", attempt(|| unsafe { asm!("out dx, al", in("dx") 0x3f0u16, in("al") 0u8) }))
    }

    pub(super) fn iopl_bad(env: &Env) -> Verdict {
        let _back = Iopl(env.privileged.into());
        for level in [4, 100, u32::MAX] {
            refused("set_iopl", set_iopl(level), &[EINVAL])?;
        }
        Ok(())
    }

    /// The assist architectural_iopl, switched; off again on drop.
    struct Assist;

    impl Assist {
        fn set(&self, on: bool) -> Verdict {
            let command = if on { VMASST_CMD_ENABLE } else { VMASST_CMD_DISABLE };
            let kind = VMASST_TYPE_ARCHITECTURAL_IOPL;
            given("vm_assist", call(__HYPERVISOR_VM_ASSIST, [command.into(), kind.into(), 0, 0, 0]))?;
            Ok(())
        }
    }

    impl Drop for Assist {
        fn drop(&mut self) {
            let _ = self.set(false);
        }
    }

    /// The level that a trap's frame shows.
    fn shown() -> Verdict<u64> {
        // SAFETY: traps.
        Ok(trapped("ud2", attempt(|| unsafe { asm!("ud2") }), 6)?.rflags >> 12 & 3)
    }

    /// Enters the kernel by iret with the level in its frame: the level in the frame of the trap that comes then.
    fn iret_with(level: u64) -> Verdict<u64> {
        let frame = IretContext { rflags: 2 | level << 12, ..kernel_frame(&code::landing()) };
        Ok(trapped("the landing", iret(&frame), 6)?.rflags >> 12 & 3)
    }

    pub(super) fn iopl_architectural(env: &Env) -> Verdict {
        let (_back, assist) = (Iopl(env.privileged.into()), Assist);
        // SAFETY: a port without rights; it traps or reads all ones.
        let port = || attempt(|| unsafe { asm!("in al, dx", in("dx") 0x3f0u16, out("al") _) });
        // SAFETY: traps, or does nothing.
        let cli = || attempt(|| unsafe { asm!("cli") });
        assist.set(true)?;
        for level in 0..=3 {
            done("set_iopl", set_iopl(level))?;
            untrapped("in with the assist", port())?;
            untrapped("cli with the assist", cli())?;
        }
        assist.set(false)?;
        for level in 0..=3 {
            done("set_iopl", set_iopl(level))?;
            if level == 0 {
                trapped("in at level 0 without the assist", port(), 13)?;
                trapped("cli at level 0 without the assist", cli(), 13)?;
            } else {
                untrapped("in without the assist", port())?;
                untrapped("cli without the assist", cli())?;
            }
        }
        Ok(())
    }

    pub(super) fn iopl_frame(env: &Env) -> Verdict {
        let (_back, assist) = (Iopl(env.privileged.into()), Assist);
        for level in 0..=3 {
            assist.set(false)?;
            done("set_iopl", set_iopl(level))?;
            ensure_eq!(shown()?, 0, "the level without the assist");
            assist.set(true)?;
            ensure_eq!(shown()?, level.into(), "the level with the assist");
        }
        Ok(())
    }

    pub(super) fn iopl_iret(env: &Env) -> Verdict {
        let (_back, assist) = (Iopl(env.privileged.into()), Assist);
        done("set_iopl", set_iopl(1))?;
        assist.set(false)?;
        ensure_eq!(iret_with(2)?, 0, "the level without the assist");
        assist.set(true)?;
        for level in [2, 3, 1, 0] {
            ensure_eq!(iret_with(level)?, level, "the level with the assist");
            assist.set(false)?;
            // SAFETY: traps, or does nothing.
            let trap = attempt(|| unsafe { asm!("cli") });
            match level {
                0 => trapped("cli after level 0", trap, 13).map(|_| ())?,
                _ => untrapped("cli after a higher level", trap)?,
            }
            assist.set(true)?;
        }
        Ok(())
    }

    pub(super) fn iopl_user(env: &Env) -> Verdict {
        let (_back, assist, user) = (Iopl(env.privileged.into()), Assist, User::new()?);
        let enter = |level: u64| {
            let frame = IretContext { rflags: 2 | level << 12, ..user.frame(&code::user_cli(), 0) };
            iret(&frame)
        };
        assist.set(true)?;
        for level in 0..3 {
            let trap = trapped("cli below level 3", enter(level), 13)?;
            ensure_eq!(trap.rflags >> 12 & 3, level, "the level in the frame");
        }
        let trap = trapped("what comes behind cli", enter(3), 6)?;
        ensure_eq!((trap.rip, trap.rflags >> 12 & 3), (code::user_cli().end, 3), "rip and level");
        assist.set(false)?;
        done("set_iopl", set_iopl(0))?;
        trapped("cli without the assist", enter(3), 13).map(|_| ())
    }

    pub(super) fn iobitmap(_: &Env) -> Verdict {
        let map = alloc::vec![0xffu8; 8192];
        let set = |at: u64, ports: u64| op(__HYPERVISOR_PHYSDEV_OP, PHYSDEVOP_SET_IOBITMAP, &mut [at, ports]);
        done("65536 ports", set(map.as_ptr() as u64, 65536))?;
        refused("65537 ports", set(map.as_ptr() as u64, 65537), &[EINVAL])?;
        done("none", set(0, 0))
    }

    pub(super) fn cli(env: &Env) -> Verdict {
        let _back = Iopl(env.privileged.into());
        done("set_iopl", set_iopl(1))?;
        // SAFETY: do nothing.
        untrapped("cli", attempt(|| unsafe { asm!("cli") }))?;
        ensure_eq!(upcall_mask(), 1, "the mask after cli");
        // SAFETY: do nothing.
        untrapped("sti", attempt(|| unsafe { asm!("sti") }))?;
        ensure_eq!(upcall_mask(), 1, "the mask after sti");
        done("set_iopl", set_iopl(0))?;
        // SAFETY: must trap.
        let trap = attempt(|| unsafe { asm!("cli") });
        trapped("cli without the level", trap, 13).map(|_| ())
    }
}
