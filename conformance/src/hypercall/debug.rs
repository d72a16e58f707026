//! Debug registers and the traps that they cause.

hypercall_cases! {
    "debug.addresses" = addresses {
        title: "the four addresses",
        rule: "get_debugreg gives what set_debugreg set, for registers 0 to 3.",
        source: "xen.h, HYPERVISOR_set_debugreg, HYPERVISOR_get_debugreg",
    }
    "debug.bad-address" = bad_address {
        title: "addresses of the hypervisor's",
        rule: "set_debugreg refuses an address of the hypervisor's or one that is not canonical.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
    "debug.unknown" = unknown {
        title: "registers that there are not",
        rule: "Debug registers beyond 7 are refused.",
        source: "xen.h, HYPERVISOR_set_debugreg, HYPERVISOR_get_debugreg",
    }
    "debug.general-detect" = general_detect {
        title: "what a guest may not watch",
        rule: "set_debugreg refuses the general-detect bit of register 7.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
    "debug.write-watch" = write_watch {
        title: "a write that is watched",
        rule: "A write to an address that register 7 enables arrives as vector 1 behind the instruction, and register 6 says which it was.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
    "debug.watch-off" = watch_off {
        title: "an address that is watched no more",
        rule: "After register 7 is cleared its addresses trap no more.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
    "debug.execute" = execute {
        title: "an instruction that is watched",
        rule: "An instruction whose address register 7 enables for execution traps before it is done.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
    "debug.single-step" = single_step {
        title: "a single step",
        rule: "With the trap flag set an instruction is done and vector 1 arrives, with bit 14 of register 6 set.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "debug.mov" = mov {
        title: "the registers by instruction",
        rule: "mov from and to debug registers does what get_debugreg and set_debugreg do.",
        source: "xen.h, HYPERVISOR_set_debugreg",
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // debug registers, flags, watched instructions

    use super::super::asm as code;
    use super::super::kit::*;
    use core::arch::asm;

    fn set(register: u64, value: u64) -> i64 {
        call(__HYPERVISOR_SET_DEBUGREG, [register, value, 0, 0, 0])
    }

    fn get(register: u64) -> i64 {
        call(__HYPERVISOR_GET_DEBUGREG, [register, 0, 0, 0, 0])
    }

    /// Clears all debug registers on drop.
    struct Clear;

    impl Drop for Clear {
        fn drop(&mut self) {
            for register in [7, 6, 0, 1, 2, 3] {
                set(register, 0);
            }
        }
    }

    pub(super) fn addresses(_: &Env) -> Verdict {
        let _clear = Clear;
        for register in 0..4 {
            done("set_debugreg", set(register, 0x1000 + register * 0x10))?;
        }
        for register in 0..4 {
            ensure_eq!(get(register) as u64, 0x1000 + register * 0x10, "register {register}");
        }
        Ok(())
    }

    pub(super) fn bad_address(_: &Env) -> Verdict {
        let _clear = Clear;
        for register in 0..4 {
            for at in [M2P, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_ffff, 1 << 63] {
                refused("set_debugreg", set(register, at), &[EPERM, EINVAL])?;
                ensure_eq!(get(register), 0, "register {register}");
            }
        }
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for register in [8, 64, u64::from(u32::MAX)] {
            refused("set_debugreg", set(register, 0), &[EINVAL, ENODEV])?;
            refused("get_debugreg", get(register), &[EINVAL, ENODEV])?;
        }
        Ok(())
    }

    pub(super) fn general_detect(_: &Env) -> Verdict {
        let _clear = Clear;
        refused("set_debugreg", set(7, 1 << 13), &[EPERM])
    }

    /// Enables address 0 globally for writes of 8 bytes.
    const WATCH_WRITES: u64 = 0x400 | 2 | 1 << 16 | 2 << 18;

    pub(super) fn write_watch(_: &Env) -> Verdict {
        let _clear = Clear;
        let scratch = Scratch::new(1);
        let at = scratch.page(0) + 64;
        done("the address", set(0, at))?;
        done("register 7", set(7, WATCH_WRITES))?;
        untrapped("another address", probe::write(at + 8, 1))?;
        let trap = probe::write(at, 0x77);
        let six = get(6);
        set(7, 0);
        trapped("the address", trap, 1)?;
        ensure!(six & 0xf == 1, "register 6 is {six:#x}");
        ensure_eq!(load("the address", at)?, 0x77, "what was written");
        Ok(())
    }

    pub(super) fn watch_off(_: &Env) -> Verdict {
        let _clear = Clear;
        let scratch = Scratch::new(1);
        done("the address", set(0, scratch.page(0)))?;
        done("register 7", set(7, WATCH_WRITES))?;
        done("register 7 cleared", set(7, 0))?;
        untrapped("a write", probe::write(scratch.page(0), 1))
    }

    pub(super) fn execute(_: &Env) -> Verdict {
        let _clear = Clear;
        let landing = code::landing();
        done("the address", set(1, landing.start))?;
        done("register 7", set(7, 0x400 | 8))?;
        let trap = iret(&kernel_frame(&landing));
        let six = get(6);
        set(7, 0);
        let trap = trapped("the landing", trap, 1)?;
        ensure_eq!(trap.rip, landing.start, "rip");
        ensure!(six & 0xf == 2, "register 6 is {six:#x}");
        Ok(())
    }

    pub(super) fn single_step(_: &Env) -> Verdict {
        let _clear = Clear;
        let landing = code::landing();
        let mut frame = kernel_frame(&landing);
        frame.rflags = 2 | 1 << 8;
        frame.rax = 0x1234_5678;
        let trap = iret(&frame);
        let six = get(6);
        let trap = trapped("the landing", trap, 1)?;
        ensure_eq!(trap.rip, landing.end, "rip");
        ensure_eq!(code::landed_rax(), 0x1234_5678, "what the instruction stored");
        ensure!(trap.rflags & 1 << 8 != 0 && trap.handler.rflags & 1 << 8 == 0, "the trap flag: {trap:x?}");
        ensure!(six & 1 << 14 != 0, "register 6 is {six:#x}");
        Ok(())
    }

    pub(super) fn mov(_: &Env) -> Verdict {
        let _clear = Clear;
        let mut value = 0u64;
        done("set_debugreg", set(2, 0x5_5550))?;
        // SAFETY: reads a register; a trap is caught.
        untrapped("mov from", attempt(|| unsafe { asm!("mov {}, dr2", out(reg) value) }))?;
        ensure_eq!(value, 0x5_5550, "what mov reads");
        // SAFETY: an address that nothing enables.
        untrapped("mov to", attempt(|| unsafe { asm!("mov dr2, {}", in(reg) 0x6_6660u64) }))?;
        ensure_eq!(get(2), 0x6_6660, "what get_debugreg gives");
        Ok(())
    }
}
