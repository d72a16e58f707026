//! Which exceptions reach the kernel, with which frame, and through which gates.

hypercall_cases! {
    "traps.invalid-opcode" = invalid_opcode {
        title: "an undefined instruction",
        rule: "An undefined instruction arrives as vector 6 with rip at the instruction.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.divide" = divide {
        title: "a division by zero",
        rule: "A division by zero arrives as vector 0 with rip at the instruction.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.breakpoint" = breakpoint {
        title: "int3",
        rule: "int3 arrives as vector 3 with rip behind the instruction.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.general-protection" = general_protection {
        title: "a selector that cannot be loaded",
        rule: "A general protection fault arrives as vector 13 with the processor's error code: the selector.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.privileged" = privileged {
        title: "an instruction that is not the guest's",
        rule: "A privileged instruction that is not emulated arrives as vector 13 with error code 0.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.page-fault-read" = page_fault_read {
        title: "a read of what is not mapped",
        rule: "A page fault arrives as vector 14, with its address in arch.cr2 of the vCPU's record and an error code of 0 for the kernel's read of what is not present.",
        source: "arch-x86/xen.h, struct arch_vcpu_info",
    }
    "traps.page-fault-write" = page_fault_write {
        title: "a write to what is not mapped",
        rule: "The error code of the kernel's write to what is not present is 2.",
        source: "arch-x86/xen.h, struct arch_vcpu_info",
    }
    "traps.page-fault-hypervisor" = page_fault_hypervisor {
        title: "an address of the hypervisor's",
        rule: "An access to the hypervisor's addresses is a page fault of the guest's with that address in cr2.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START",
    }
    "traps.non-canonical" = non_canonical {
        title: "an address that is not canonical",
        rule: "An access to an address that is not canonical arrives as vector 13 with error code 0.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.frame" = frame {
        title: "the frame of an exception",
        rule: "The handler finds rcx, r11, an error code where there is one, rip, cs, rflags, rsp and ss, ending at a multiple of 16.",
        source: "arch-x86/xen-x86_64.h; arch-x86/xen.h",
    }
    "traps.kernel-selectors" = kernel_selectors {
        title: "the selectors of the kernel",
        rule: "The frame has the kernel's cs with privilege level 0, and the handler runs with FLAT_KERNEL_CS and FLAT_KERNEL_SS.",
        source: "arch-x86/xen-x86_64.h, FLAT_KERNEL_CS, FLAT_KERNEL_SS",
    }
    "traps.registers" = registers {
        title: "rcx and r11",
        rule: "The frame has rcx and r11 as they were.",
        source: "arch-x86/xen-x86_64.h",
    }
    "traps.flags" = flags {
        title: "the flags of the handler",
        rule: "The frame has the arithmetic and direction flags as they were; the handler runs with the trap and nested-task flags clear.",
        source: "arch-x86/xen.h, struct trap_info",
    }
    "traps.saved-mask" = saved_mask {
        title: "the event mask in the frame",
        rule: "The frame has evtchn_upcall_mask beside cs and its inverse as the interrupt flag.",
        source: "arch-x86/xen.h, struct cpu_user_regs, saved_upcall_mask",
    }
    "traps.gate-masks" = gate_masks {
        title: "a gate that masks events, and one that does not",
        rule: "Bit 2 of a gate's flags sets evtchn_upcall_mask as the handler is entered; without it the mask stays.",
        source: "arch-x86/xen.h, TI_SET_IF",
    }
    "traps.table-partial" = table_partial {
        title: "a table of one gate",
        rule: "set_trap_table sets the gates that it lists, up to the first without an address, and keeps the others.",
        source: "xen.h, HYPERVISOR_set_trap_table; arch-x86/xen.h, struct trap_info",
    }
    "traps.table-bad-address" = table_bad_address {
        title: "a handler that nobody could enter",
        rule: "set_trap_table refuses an address that is not canonical with EINVAL.",
        source: "xen.h, HYPERVISOR_set_trap_table",
    }
    "traps.table-fault" = table_fault {
        title: "a table that cannot be read",
        rule: "set_trap_table gives EFAULT where it cannot read the table.",
        source: "xen.h, HYPERVISOR_set_trap_table",
    }
    "traps.int80" = int80 {
        title: "int 0x80 with a gate",
        rule: "int 0x80 enters the handler of its gate with rip behind the instruction.",
        source: "arch-x86/xen.h, struct trap_info",
    }

}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // each attempt is an instruction that traps

    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::guest_context::TrapInfo;
    use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};

    /// Executes one instruction that traps; returns the trap and the instruction's address.
    macro_rules! at {
        ($($asm:tt)*) => {{
            let mut rip = 0u64;
            let at = &raw mut rip;
            // SAFETY: the trap is caught; before it the instruction's address is stored.
            let trap = attempt(|| unsafe {
                asm!("lea {0}, [rip + 2f]", "mov [{1}], {0}", "2:", $($asm)*, out(reg) _, in(reg) at)
            });
            // SAFETY: written above, by assembly.
            (trap, unsafe { at.read_volatile() })
        }};
    }

    fn undefined() -> (Option<Trap>, u64) {
        at!("ud2")
    }

    pub(super) fn invalid_opcode(_: &Env) -> Verdict {
        let (trap, rip) = undefined();
        let trap = trapped("ud2", trap, 6)?;
        ensure_eq!(trap.rip, rip, "rip");
        Ok(())
    }

    pub(super) fn divide(_: &Env) -> Verdict {
        let mut rip = 0u64;
        let at = &raw mut rip;
        // SAFETY: the trap is caught.
        let trap = attempt(|| unsafe {
            asm!(
                "lea rax, [rip + 2f]", "mov [{0}], rax", "xor edx, edx", "2:", "div edx",
                in(reg) at, out("rax") _, out("rdx") _,
            )
        });
        let trap = trapped("div", trap, 0)?;
        // SAFETY: written above, by assembly.
        ensure_eq!(trap.rip, unsafe { at.read_volatile() }, "rip");
        Ok(())
    }

    pub(super) fn breakpoint(_: &Env) -> Verdict {
        let (trap, rip) = at!("int3");
        let trap = trapped("int3", trap, 3)?;
        ensure_eq!(trap.rip, rip + 1, "rip");
        Ok(())
    }

    pub(super) fn general_protection(_: &Env) -> Verdict {
        // The first selector is beyond the guest's GDT, which has no entries. The second is the hypervisor's
        // code segment.
        for selector in [0x1233u32, 0xe008] {
            // SAFETY: must trap; ES is not used.
            let trap = attempt(|| unsafe { asm!("mov es, {0:e}", in(reg) selector) });
            let trap = trapped("mov es", trap, 13)?;
            ensure_eq!(trap.error, u64::from(selector & !3), "the error code");
        }
        Ok(())
    }

    pub(super) fn privileged(_: &Env) -> Verdict {
        let (trap, rip) = at!("hlt");
        let trap = trapped("hlt", trap, 13)?;
        ensure_eq!((trap.error, trap.rip), (0, rip), "error code and rip");
        let (trap, _) = at!("swapgs");
        ensure_eq!(trapped("swapgs", trap, 13)?.error, 0, "the error code");
        let (trap, _) = at!("invd");
        ensure_eq!(trapped("invd", trap, 13)?.error, 0, "the error code");
        Ok(())
    }

    pub(super) fn page_fault_read(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for offset in [0, 8, 0xff8] {
            let at = scratch.at(0) + offset;
            let trap = trapped("a read", probe::read(at).err(), 14)?;
            ensure_eq!((trap.error, trap.cr2), (0, at), "error code and cr2");
        }
        Ok(())
    }

    pub(super) fn page_fault_write(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let trap = trapped("a write", probe::write(scratch.at(0) + 16, 0), 14)?;
        ensure_eq!((trap.error, trap.cr2), (2, scratch.at(0) + 16), "error code and cr2");
        Ok(())
    }

    pub(super) fn page_fault_hypervisor(_: &Env) -> Verdict {
        for at in [0xffff_8300_0000_0000, 0xffff_82d0_4020_0000, 0xffff_87ff_ffff_fff8] {
            let trap = trapped("a read", probe::read(at).err(), 14)?;
            ensure_eq!(trap.cr2, at, "cr2 of a read");
            let trap = trapped("a write", probe::write(at, 0), 14)?;
            ensure_eq!(trap.cr2, at, "cr2 of a write");
        }
        Ok(())
    }

    pub(super) fn non_canonical(_: &Env) -> Verdict {
        for at in [1 << 63, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_fff8] {
            let trap = trapped("a read", probe::read(at).err(), 13)?;
            ensure_eq!(trap.error, 0, "the error code");
        }
        Ok(())
    }

    pub(super) fn frame(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let without = trapped("ud2", undefined().0, 6)?;
        let with = trapped("a read", probe::read(scratch.at(0)).err(), 14)?;
        for (trap, words) in [(without, 7), (with, 8)] {
            ensure_eq!((trap.handler.rsp + words * 8) % 16, 0, "the end of the frame");
            let gap = trap.rsp.wrapping_sub(trap.handler.rsp + words * 8);
            ensure!(gap < 16, "{gap} bytes between the frame and the stack of before");
        }
        Ok(())
    }

    pub(super) fn kernel_selectors(_: &Env) -> Verdict {
        let trap = trapped("ud2", undefined().0, 6)?;
        ensure_eq!(trap.cs, FLAT_KERNEL_CS & !3, "cs in the frame");
        ensure_eq!(trap.ss & !3, FLAT_KERNEL_SS & !3, "ss in the frame");
        ensure_eq!(
            (trap.handler.cs, trap.handler.ss),
            (FLAT_KERNEL_CS, FLAT_KERNEL_SS),
            "cs and ss of the handler"
        );
        Ok(())
    }

    pub(super) fn registers(_: &Env) -> Verdict {
        // SAFETY: the trap is caught.
        let trap =
            attempt(|| unsafe { asm!("ud2", in("rcx") 0x1122_3344_5567u64, in("r11") 0x7788_99aa_bbcdu64) });
        let trap = trapped("ud2", trap, 6)?;
        ensure_eq!(trap.rcx_r11, [0x1122_3344_5567, 0x7788_99aa_bbcd], "rcx and r11");
        Ok(())
    }

    const CF: u64 = 1;
    const DF: u64 = 1 << 10;
    const IF: u64 = 1 << 9;
    const NT: u64 = 1 << 14;
    const TF: u64 = 1 << 8;

    pub(super) fn flags(_: &Env) -> Verdict {
        // SAFETY: the trap is caught; its handler clears the direction flag.
        let trap = attempt(|| unsafe { asm!("std", "stc", "ud2") });
        let trap = trapped("ud2", trap, 6)?;
        ensure_eq!(trap.rflags & (CF | DF), CF | DF, "the flags in the frame");
        // SAFETY: as above; the nested-task flag goes with the handler's flags.
        let trap = attempt(|| unsafe { asm!("pushfq", "or qword ptr [rsp], 0x4000", "popfq", "ud2") });
        let trap = trapped("ud2", trap, 6)?;
        ensure_eq!(trap.rflags & NT, NT, "the nested-task flag in the frame");
        ensure_eq!(trap.handler.rflags & (NT | TF), 0, "the flags of the handler");
        Ok(())
    }

    /// Executes `ud2` with the event mask at `mask` and no event pending; returns the trap, and the mask in
    /// its handler.
    fn with_mask(mask: u8) -> Verdict<(Trap, u8)> {
        let _timer = timer_port()?;
        clear_upcall();
        set_upcall_mask(mask);
        let (trap, _) = undefined();
        let inside = upcall_mask();
        set_upcall_mask(1);
        Ok((trapped("ud2", trap, 6)?, inside))
    }

    pub(super) fn saved_mask(_: &Env) -> Verdict {
        for mask in [0, 1] {
            let (trap, _) = with_mask(mask)?;
            ensure_eq!(trap.mask, mask, "the mask in the frame");
            ensure_eq!(trap.rflags & IF != 0, mask == 0, "the interrupt flag in the frame");
        }
        Ok(())
    }

    fn set(list: &[TrapInfo]) -> i64 {
        call(__HYPERVISOR_SET_TRAP_TABLE, [list.as_ptr() as u64, 0, 0, 0, 0])
    }

    pub(super) fn gate_masks(_: &Env) -> Verdict {
        for (flags, mask, wanted) in [(4, 0, 1), (0, 0, 0), (0, 1, 1), (4, 1, 1)] {
            let gate = TrapInfo { flags, ..probe::gate(6) };
            done("set_trap_table", set(&[gate, TrapInfo::default()]))?;
            let (_, inside) = with_mask(mask)?;
            ensure_eq!(inside, wanted, "the mask of the handler, with {flags} in the gate and {mask} before");
        }
        Ok(())
    }

    pub(super) fn table_partial(_: &Env) -> Verdict {
        // Vector 6 gets another handler. The table ends there, so the entries behind must have no effect.
        let moved = TrapInfo { address: probe::entry(40), ..probe::gate(6) };
        let ignored = TrapInfo { address: probe::entry(41), ..probe::gate(3) };
        done("set_trap_table", set(&[moved, TrapInfo::default(), ignored]))?;
        trapped("ud2", undefined().0, 40)?;
        let (trap, _) = at!("int3");
        trapped("int3", trap, 3)?;
        done("set_trap_table", set(&[probe::gate(6), TrapInfo::default()]))?;
        trapped("ud2", undefined().0, 6).map(|_| ())
    }

    pub(super) fn table_bad_address(_: &Env) -> Verdict {
        for address in [1 << 63, 0x0000_8000_0000_0000] {
            let gate = TrapInfo { address, ..probe::gate(6) };
            refused("set_trap_table", set(&[gate, TrapInfo::default()]), &[EINVAL])?;
        }
        probe::install();
        trapped("ud2", undefined().0, 6).map(|_| ())
    }

    pub(super) fn table_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("set_trap_table", call(__HYPERVISOR_SET_TRAP_TABLE, [scratch.at(0), 0, 0, 0, 0]), &[EFAULT])
    }

    pub(super) fn int80(_: &Env) -> Verdict {
        let gate = TrapInfo { flags: 7, ..probe::gate(0x80) };
        done("set_trap_table", set(&[gate, TrapInfo::default()]))?;
        let (trap, rip) = at!("int 0x80");
        let trap = trapped("int 0x80", trap, 0x80)?;
        ensure_eq!(trap.rip, rip + 2, "rip");
        Ok(())
    }
}
