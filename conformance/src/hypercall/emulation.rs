//! Instructions that the hypervisor emulates: CPUID, RDMSR and WRMSR.

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

}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // each is an instruction of its own

    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::shared_info::{TIME_OFFSET, VcpuTimeInfo};

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
        // How many nanoseconds a million ticks take.
        let shifted =
            if time.tsc_shift >= 0 { 1_000_000u64 << time.tsc_shift } else { 1_000_000 >> -time.tsc_shift };
        let ns = shifted * u64::from(time.tsc_to_system_mul) >> 32;
        ensure!(ns > 0, "{khz} kHz, {ns} ns for a million ticks");
        // Frequency in kHz times the nanoseconds of a million ticks is 10^12; one per cent of error is
        // allowed.
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
        // SAFETY: callers write bases of segments that nothing uses, or MSRs that the hypervisor refuses.
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
}
