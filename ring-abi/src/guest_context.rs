//! Register state of a vCPU as guests and toolstacks exchange it, and the frames of traps.

use crate::layout::{constants, wire};

wire! { "arch-x86/xen.h";
    /// One trap gate of `set_trap_table`; `address` 0 ends the table.
    struct TrapInfo = "struct trap_info", 16 {
        /// Exception or interrupt number.
        0x0 vector: u8,
        /// Bits 0-1: DPL; bit 2: mask events on entry.
        0x1 flags: u8,
        /// Code selector.
        0x2 cs: u16,
        0x4 _pad: u32 = "",
        /// Entry point.
        0x8 address: u64,
    }

    /// General registers.
    struct CpuUserRegs = "struct cpu_user_regs", 0xc8 {
        0x00 r15: u64,
        0x08 r14: u64,
        0x10 r13: u64,
        0x18 r12: u64,
        0x20 rbp: u64,
        0x28 rbx: u64,
        0x30 r11: u64,
        0x38 r10: u64,
        0x40 r9: u64,
        0x48 r8: u64,
        0x50 rax: u64,
        0x58 rcx: u64,
        0x60 rdx: u64,
        0x68 rsi: u64,
        0x70 rdi: u64,
        /// Private to the hypervisor.
        0x78 error_code: u32,
        /// Private to the hypervisor.
        0x7c entry_vector: u32,
        0x80 rip: u64,
        0x88 cs: u16,
        0x8a _pad0: [u16; 1],
        /// `evtchn_upcall_mask` of the vCPU.
        0x8c saved_upcall_mask: u8,
        0x8d _pad1: [u8; 3],
        0x90 rflags: u64,
        0x98 rsp: u64,
        0xa0 ss: u16,
        0xa2 _pad2: [u16; 3],
        0xa8 es: u16,
        0xaa _pad3: [u16; 3],
        0xb0 ds: u16,
        0xb2 _pad4: [u16; 3],
        0xb8 fs: u16,
        0xba _pad5: [u16; 3],
        0xc0 gs: u16,
        0xc2 _pad6: [u16; 3],
    }

    /// Whole state of a vCPU, for `VCPUOP_initialise` and the toolstack.
    struct VcpuGuestContext = "struct vcpu_guest_context", 0x1430 {
        /// FXSAVE image.
        0x0000 fpu_ctxt: [u8; 512],
        /// `VGCF_*`.
        0x0200 flags: u64,
        /// General registers.
        0x0208 user_regs: CpuUserRegs,
        /// Trap gates by vector.
        0x02d0 trap_ctxt: [TrapInfo; 256],
        /// Address of the LDT.
        0x12d0 ldt_base: u64,
        /// Entries of the LDT, at most 8192.
        0x12d8 ldt_ents: u64,
        /// Machine frames of the GDT.
        0x12e0 gdt_frames: [u64; 16],
        /// Entries of the GDT.
        0x1360 gdt_ents: u64,
        /// Stack selector on entry from user mode.
        0x1368 kernel_ss: u64,
        /// Stack pointer on entry from user mode.
        0x1370 kernel_sp: u64,
        /// CR0 to CR7: \[3\] is the kernel's cr3 and \[1\] the user's.
        0x1378 ctrlreg: [u64; 8],
        /// DR0 to DR7.
        0x13b8 debugreg: [u64; 8],
        /// Event entry point.
        0x13f8 event_callback_eip: u64,
        /// Entry point after a failed segment load.
        0x1400 failsafe_callback_eip: u64,
        /// Entry point of `syscall` from user mode.
        0x1408 syscall_callback_eip: u64,
        /// `VMASST_TYPE_*` bits.
        0x1410 vm_assist: u64,
        0x1418 fs_base: u64,
        0x1420 gs_base_kernel: u64,
        0x1428 gs_base_user: u64,
    }

    /// One CPUID leaf of a policy.
    struct XenCpuidLeaf = "xen_cpuid_leaf_t", 24 {
        0x00 leaf: u32,
        /// `XEN_CPUID_NO_SUBLEAF` if the leaf has none.
        0x04 subleaf: u32,
        0x08 a: u32,
        0x0c b: u32,
        0x10 c: u32,
        0x14 d: u32,
    }

    /// One MSR of a policy.
    struct XenMsrEntry = "xen_msr_entry_t", 16 {
        0x0 idx: u32,
        /// Must be zero.
        0x4 flags: u32,
        0x8 val: u64,
    }

    /// Architecture part of a new domain's configuration.
    struct XenArchDomainconfig = "struct xen_arch_domainconfig", 8 {
        /// `XEN_X86_EMU_*`; none for PV but the PIT.
        0x0 emulation_flags: u32,
        /// `XEN_X86_MSR_RELAXED`.
        0x4 misc_flags: u32,
    }

    /// The frame that the `iret` hypercall pops.
    struct IretContext = "struct iret_context", 72 {
        0x00 rax: u64,
        0x08 r11: u64,
        0x10 rcx: u64,
        /// `VGCF_in_syscall` allows return by SYSRET.
        0x18 flags: u64,
        0x20 rip: u64,
        0x28 cs: u64,
        0x30 rflags: u64,
        0x38 rsp: u64,
        0x40 ss: u64,
    }
}

constants! { "arch-x86/xen.h";
    FIRST_RESERVED_GDT_PAGE: usize = 14 => "FIRST_RESERVED_GDT_PAGE";
    FIRST_RESERVED_GDT_BYTE: usize = 57344 => "FIRST_RESERVED_GDT_BYTE";
    FIRST_RESERVED_GDT_ENTRY: usize = 7168 => "FIRST_RESERVED_GDT_ENTRY";
    XEN_LEGACY_MAX_VCPUS: usize = 32 => "XEN_LEGACY_MAX_VCPUS";
    VGCF_I387_VALID: u64 = 1 => "VGCF_I387_VALID";
    VGCF_IN_KERNEL: u64 = 4 => "VGCF_IN_KERNEL";
    VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 8 => "VGCF_failsafe_disables_events";
    VGCF_SYSCALL_DISABLES_EVENTS: u64 = 0x10 => "VGCF_syscall_disables_events";
    VGCF_ONLINE: u64 = 0x20 => "VGCF_online";
    XEN_X86_EMU_LAPIC: u32 = 1 => "XEN_X86_EMU_LAPIC";
    XEN_X86_EMU_HPET: u32 = 2 => "XEN_X86_EMU_HPET";
    XEN_X86_EMU_PM: u32 = 4 => "XEN_X86_EMU_PM";
    XEN_X86_EMU_RTC: u32 = 8 => "XEN_X86_EMU_RTC";
    XEN_X86_EMU_IOAPIC: u32 = 0x10 => "XEN_X86_EMU_IOAPIC";
    XEN_X86_EMU_PIC: u32 = 0x20 => "XEN_X86_EMU_PIC";
    XEN_X86_EMU_VGA: u32 = 0x40 => "XEN_X86_EMU_VGA";
    XEN_X86_EMU_IOMMU: u32 = 0x80 => "XEN_X86_EMU_IOMMU";
    XEN_X86_EMU_PIT: u32 = 0x100 => "XEN_X86_EMU_PIT";
    XEN_X86_EMU_USE_PIRQ: u32 = 0x200 => "XEN_X86_EMU_USE_PIRQ";
    XEN_X86_EMU_VPCI: u32 = 0x400 => "XEN_X86_EMU_VPCI";
    XEN_X86_EMU_ALL: u32 = 2047 => "XEN_X86_EMU_ALL";
    XEN_X86_MSR_RELAXED: u32 = 1 => "XEN_X86_MSR_RELAXED";
    XEN_X86_MISC_FLAGS_MAX: u32 = 1 => "XEN_X86_MISC_FLAGS_MAX";
    XEN_CPUID_NO_SUBLEAF: u32 = 0xffffffff => "XEN_CPUID_NO_SUBLEAF";
    XEN_HVM_DEBUGCONS_IOPORT: u16 = 0xe9 => "XEN_HVM_DEBUGCONS_IOPORT";
    VGCF_IN_SYSCALL: u64 = 0x100 => "VGCF_in_syscall";
}

impl CpuUserRegs {
    /// The general register that has this number in ModRM and REX: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi,
    /// then r8 to r15. Higher bits are ignored.
    pub fn general(&mut self, number: u8) -> &mut u64 {
        match number & 15 {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            4 => &mut self.rsp,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            _ => &mut self.r15,
        }
    }
}
