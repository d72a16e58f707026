//! Instructions that the hypervisor does in the guest's stead: CPUID, MSRs, control registers, ports.

hypercall_cases! {
    "emulation.cpuid-signature" = cpuid_signature {
        title: "the hypervisor's leaves are there",
        rule: "CPUID leaf 0x40000000, by the forced-emulation prefix, has the signature XenVMMXenVMM and the last leaf.",
        source: "arch-x86/cpuid.h, XEN_CPUID_SIGNATURE_EBX",
    }
    "emulation.cpuid-hypercalls" = cpuid_hypercalls {
        title: "features of the hypercall interface",
        rule: "Leaf 0x40000002 of a PV guest has XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD in ecx.",
        source: "arch-x86/cpuid.h, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD",
    }
    "emulation.cpuid-time" = cpuid_time {
        title: "the TSC in CPUID",
        rule: "Leaf 0x40000003, sub-leaf 0, has the TSC's frequency in kHz in ecx, which is that of vcpu_time_info, where it is said at all.",
        source: "arch-x86/cpuid.h, 'Leaf 4 (0x40000x03)'; xen.h, struct vcpu_time_info",
    }
    "emulation.cpuid-address-width" = cpuid_address_width {
        title: "how wide machine addresses are",
        rule: "Leaf 0x40000005, sub-leaf 0, has the width of machine addresses in ebx bits 0 to 7, which covers all memory.",
        source: "arch-x86/cpuid.h, XEN_CPUID_MACHINE_ADDRESS_WIDTH_MASK",
    }
    "emulation.cpuid-hypervisor" = cpuid_hypervisor {
        title: "there is a hypervisor",
        rule: "CPUID leaf 1 has bit 31 of ecx set.",
        source: "arch-x86/cpuid.h, 'For compatibility with other hypervisor interfaces'",
    }
    "emulation.cpuid-long-mode" = cpuid_long_mode {
        title: "features that a 64-bit PV guest stands on",
        rule: "CPUID has long mode, SYSCALL, PAE, CMPXCHG8B and the TSC.",
        source: "arch-x86/cpufeatureset.h, LM, SYSCALL, PAE, CX8, TSC",
    }
    "emulation.cpuid-registers" = cpuid_registers {
        title: "the prefixed CPUID changes four registers alone",
        rule: "The forced-emulation prefix with CPUID behaves as one instruction and changes eax, ebx, ecx and edx.",
        source: "arch-x86/xen.h, XEN_CPUID",
    }
    "emulation.prefix-alone" = prefix_alone {
        title: "the prefix before another instruction",
        rule: "The forced-emulation prefix without CPUID behind it is an undefined instruction.",
        source: "arch-x86/xen.h, XEN_EMULATE_PREFIX",
    }
    "emulation.msr-fs-base" = msr_fs_base {
        title: "the base of FS by its MSR",
        rule: "wrmsr to MSR_FS_BASE sets the base, and rdmsr gives it.",
        source: "arch-x86/xen-x86_64.h, SEGBASE_FS; the processor's manual",
    }
    "emulation.msr-gs-base" = msr_gs_base {
        title: "the bases of GS by their MSRs",
        rule: "MSR_GS_BASE is the kernel's base while the kernel runs, MSR_KERNEL_GS_BASE the user's.",
        source: "arch-x86/xen-x86_64.h, SEGBASE_GS_KERNEL, SEGBASE_GS_USER",
    }
    "emulation.msr-not-canonical" = msr_not_canonical {
        title: "a base that is not canonical",
        rule: "wrmsr of an address that is not canonical to a base is a general protection fault.",
        source: "the processor's manual, WRMSR; arch-x86/xen-x86_64.h",
    }
    "emulation.msr-efer" = msr_efer {
        title: "the extended feature register",
        rule: "rdmsr of EFER shows long mode enabled and active.",
        source: "the processor's manual, EFER",
    }
    "emulation.msr-pat" = msr_pat {
        title: "the page attribute table",
        rule: "rdmsr of the PAT gives the table that is in force: write-back first, and uncached at 3.",
        source: "the processor's manual, IA32_PAT; arch-x86/xen.h",
    }
    "emulation.msr-unknown" = msr_unknown {
        title: "an MSR that there is not",
        rule: "rdmsr and wrmsr of an MSR that the guest does not have are general protection faults with error code 0.",
        source: "arch-x86/xen.h, XEN_X86_MSR_RELAXED",
    }
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

    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::shared_info::{CR2_OFFSET, TIME_OFFSET, VcpuTimeInfo};

    pub(super) fn cpuid_signature(_: &Env) -> Verdict {
        let [last, ebx, ecx, edx] = cpuid(0x4000_0000, 0);
        let text: Vec<u8> = [ebx, ecx, edx].into_iter().flat_map(u32::to_le_bytes).collect();
        ensure!(text == b"XenVMMXenVMM", "{:?}", core::str::from_utf8(&text));
        ensure!((0x4000_0002..0x4000_0100).contains(&last), "the last leaf {last:#x}");
        Ok(())
    }

    pub(super) fn cpuid_hypercalls(_: &Env) -> Verdict {
        let [_, _, ecx, _] = cpuid(0x4000_0002, 0);
        ensure!(ecx & 1 != 0, "ecx {ecx:#x}");
        Ok(())
    }

    pub(super) fn cpuid_time(_: &Env) -> Verdict {
        let [last, ..] = cpuid(0x4000_0000, 0);
        require!(last >= 0x4000_0003, "the last leaf is {last:#x}");
        let [_, _, khz, _] = cpuid(0x4000_0003, 0);
        let time: VcpuTimeInfo = pvrt::shared_info().read_value(TIME_OFFSET);
        require!(khz != 0, "the frequency is not said to this domain");
        // Nanoseconds of a million ticks.
        let shifted =
            if time.tsc_shift >= 0 { 1_000_000u64 << time.tsc_shift } else { 1_000_000 >> -time.tsc_shift };
        let ns = shifted * u64::from(time.tsc_to_system_mul) >> 32;
        ensure!(ns > 0, "{khz} kHz, {ns} ns for a million ticks");
        // kHz times nanoseconds of a million ticks: 10^12, within a hundredth.
        let product = u64::from(khz) * ns;
        ensure!(
            product.abs_diff(1_000_000_000_000) < 10_000_000_000,
            "{khz} kHz, {ns} ns for a million ticks"
        );
        Ok(())
    }

    pub(super) fn cpuid_address_width(_: &Env) -> Verdict {
        let [last, ..] = cpuid(0x4000_0000, 0);
        require!(last >= 0x4000_0005, "the last leaf is {last:#x}");
        let width = cpuid(0x4000_0005, 0)[1] & 0xff;
        ensure!(
            width <= 52 && end_of_memory() < 1 << (width.max(13) - 12),
            "{width} bits, {:#x} pages",
            end_of_memory()
        );
        Ok(())
    }

    pub(super) fn cpuid_hypervisor(_: &Env) -> Verdict {
        let [_, _, ecx, _] = cpuid(1, 0);
        ensure!(ecx & 1 << 31 != 0, "ecx {ecx:#x}");
        Ok(())
    }

    pub(super) fn cpuid_long_mode(_: &Env) -> Verdict {
        let [_, _, _, edx] = cpuid(1, 0);
        ensure!(edx & 1 << 4 != 0 && edx & 1 << 6 != 0 && edx & 1 << 8 != 0, "TSC, PAE, CX8: {edx:#x}");
        let [_, _, _, edx] = cpuid(0x8000_0001, 0);
        ensure!(edx & 1 << 29 != 0 && edx & 1 << 11 != 0, "LM, SYSCALL: {edx:#x}");
        Ok(())
    }

    pub(super) fn cpuid_registers(_: &Env) -> Verdict {
        let (rsi, rdi, r8, r11): (u64, u64, u64, u64);
        let high: u64;
        // SAFETY: prefix and instruction are emulated as one; rbx, which the compiler keeps, is put back.
        unsafe {
            asm!(
                "push rbx",
                ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
                "cpuid",
                "mov {high}, rax",
                "pop rbx",
                high = out(reg) high,
                inout("rax") 0xffff_ffff_4000_0000u64 => _,
                inout("rcx") 0u64 => _,
                out("rdx") _,
                inout("rsi") 0x1111u64 => rsi,
                inout("rdi") 0x2222u64 => rdi,
                inout("r8") 0x3333u64 => r8,
                inout("r11") 0x4444u64 => r11,
            );
        }
        ensure_eq!([rsi, rdi, r8, r11], [0x1111, 0x2222, 0x3333, 0x4444], "rsi, rdi, r8, r11");
        ensure_eq!(high >> 32, 0, "the high half of rax");
        Ok(())
    }

    pub(super) fn prefix_alone(_: &Env) -> Verdict {
        // SAFETY: must trap.
        let trap = attempt(|| unsafe { asm!(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x90") });
        trapped("the prefix and nop", trap, 6).map(|_| ())
    }

    fn rdmsr(msr: u32) -> Result<u64, Trap> {
        let (mut low, mut high) = (0u32, 0u32);
        // SAFETY: reads a register; a trap is caught.
        match attempt(|| unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high) }) {
            Some(trap) => Err(trap),
            None => Ok(u64::from(high) << 32 | u64::from(low)),
        }
    }

    fn wrmsr(msr: u32, value: u64) -> Option<Trap> {
        // SAFETY: callers write bases of segments that are not used, or what is refused.
        attempt(|| unsafe {
            asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
        })
    }

    const FS_BASE: u32 = 0xc000_0100;
    const GS_BASE: u32 = 0xc000_0101;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;

    pub(super) fn msr_fs_base(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a mark", scratch.page(0), 0x7777)?;
        untrapped("wrmsr", wrmsr(FS_BASE, scratch.page(0)))?;
        let base = rdmsr(FS_BASE);
        let mut seen = 0u64;
        // SAFETY: reads the mark.
        let trap = attempt(|| unsafe { asm!("mov {}, fs:[0]", out(reg) seen) });
        untrapped("wrmsr", wrmsr(FS_BASE, 0))?;
        ensure_eq!(base, Ok(scratch.page(0)), "rdmsr");
        untrapped("by FS", trap)?;
        ensure_eq!(seen, 0x7777, "what FS shows");
        Ok(())
    }

    pub(super) fn msr_gs_base(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a mark", scratch.page(0), 0x7777)?;
        untrapped("wrmsr", wrmsr(GS_BASE, scratch.page(0)))?;
        untrapped("wrmsr", wrmsr(KERNEL_GS_BASE, 0x1234_5000))?;
        let bases = (rdmsr(GS_BASE), rdmsr(KERNEL_GS_BASE));
        let mut seen = 0u64;
        // SAFETY: reads the mark.
        let trap = attempt(|| unsafe { asm!("mov {}, gs:[0]", out(reg) seen) });
        untrapped("wrmsr", wrmsr(GS_BASE, 0))?;
        untrapped("wrmsr", wrmsr(KERNEL_GS_BASE, 0))?;
        ensure_eq!(bases, (Ok(scratch.page(0)), Ok(0x1234_5000)), "rdmsr");
        untrapped("by GS", trap)?;
        ensure_eq!(seen, 0x7777, "what GS shows");
        Ok(())
    }

    pub(super) fn msr_not_canonical(_: &Env) -> Verdict {
        for msr in [FS_BASE, GS_BASE, KERNEL_GS_BASE] {
            for value in [1 << 63, 0x0000_8000_0000_0000] {
                let trap = trapped("wrmsr", wrmsr(msr, value), 13)?;
                ensure_eq!(trap.error, 0, "the error code");
            }
        }
        Ok(())
    }

    fn read_msr(name: &str, msr: u32) -> Verdict<u64> {
        rdmsr(msr).map_err(|trap| Problem::Fail(alloc::format!("rdmsr {name}: {trap:x?}")))
    }

    pub(super) fn msr_efer(_: &Env) -> Verdict {
        let efer = read_msr("EFER", 0xc000_0080)?;
        ensure_eq!(efer >> 8 & 0b101, 0b101, "long mode enabled and active in {efer:#x}");
        Ok(())
    }

    pub(super) fn msr_pat(_: &Env) -> Verdict {
        let pat = read_msr("PAT", 0x277)?;
        ensure_eq!((pat & 0xff, pat >> 24 & 0xff), (6, 0), "attributes 0 and 3 of {pat:#x}");
        Ok(())
    }

    pub(super) fn msr_unknown(_: &Env) -> Verdict {
        let trap = trapped("rdmsr", rdmsr(0x4d4b_0000).err(), 13)?;
        ensure_eq!(trap.error, 0, "the error code");
        let trap = trapped("wrmsr", wrmsr(0x4d4b_0000, 0), 13)?;
        ensure_eq!(trap.error, 0, "the error code");
        Ok(())
    }

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
        // SAFETY: no floating point is used before it is cleared.
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

    /// The level, put back on drop: pvrt has 1 in the control domain, and 0 elsewhere.
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
        // SAFETY: as above: lost.
        untrapped("out", attempt(|| unsafe { asm!("out dx, al", in("dx") 0x3f0u16, in("al") 0u8) }))
    }

    pub(super) fn iopl_bad(env: &Env) -> Verdict {
        let _back = Iopl(env.privileged.into());
        for level in [4, 100, u32::MAX] {
            refused("set_iopl", set_iopl(level), &[EINVAL])?;
        }
        Ok(())
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
