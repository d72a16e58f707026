//! A vCPU's state as domain builders and toolstacks pass it.
//!
//! ABI: `xen/include/public/arch-x86/xen.h` and `xen-x86_64.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// General registers: 200 bytes.
///
/// ABI: `struct cpu_user_regs`, `xen/include/public/arch-x86/xen-x86_64.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs, reason = "the registers' own names")]
pub struct CpuUserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Private to the hypervisor.
    pub error_code: u32,
    /// Private to the hypervisor.
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u16,
    #[doc(hidden)]
    pub _pad0: [u16; 1],
    /// Event upcall mask at the time of the trap.
    pub saved_upcall_mask: u8,
    #[doc(hidden)]
    pub _pad1: [u8; 3],
    /// Bit 9 (IF) is the inverse of `saved_upcall_mask`.
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    #[doc(hidden)]
    pub _pad2: [u16; 3],
    pub es: u16,
    #[doc(hidden)]
    pub _pad3: [u16; 3],
    pub ds: u16,
    #[doc(hidden)]
    pub _pad4: [u16; 3],
    /// Non-zero takes precedence over `fs_base`.
    pub fs: u16,
    #[doc(hidden)]
    pub _pad5: [u16; 3],
    /// Non-zero takes precedence over the gs bases.
    pub gs: u16,
    #[doc(hidden)]
    pub _pad6: [u16; 3],
}
const _: () = assert!(size_of::<CpuUserRegs>() == 200);

/// One gate of the trap table: 16 bytes.
///
/// ABI: `struct trap_info`, `xen/include/public/arch-x86/xen.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrapInfo {
    /// Exception vector.
    pub vector: u8,
    /// Bits 0-1: privilege level; bit 2: delivery masks event upcalls.
    pub flags: u8,
    /// Code selector.
    pub cs: u16,
    #[doc(hidden)]
    pub _pad: u32,
    /// Handler; 0 ends a table.
    pub address: u64,
}
const _: () = assert!(size_of::<TrapInfo>() == 16);

/// The FPU is in use.
pub const VGCF_I387_VALID: u32 = 1 << 0;
/// The guest is in kernel mode.
pub const VGCF_IN_KERNEL: u32 = 1 << 2;
/// The failsafe callback masks event upcalls.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u32 = 1 << 3;
/// The syscall callback masks event upcalls.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u32 = 1 << 4;
/// The vCPU is up.
pub const VGCF_ONLINE: u32 = 1 << 5;
/// `iret` flag: return by `sysret`, rcx and r11 are lost.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

/// A vCPU's whole context: 0x1430 bytes.
///
/// ABI: `struct vcpu_guest_context`, `xen/include/public/arch-x86/xen.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VcpuGuestContext {
    /// x87, MMX and SSE state as FXSAVE writes it.
    pub fpu_ctxt: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// General registers.
    pub user_regs: CpuUserRegs,
    /// Trap table by vector.
    pub trap_ctxt: [TrapInfo; 256],
    /// LDT base, guest virtual.
    pub ldt_base: u64,
    /// LDT entries.
    pub ldt_ents: u64,
    /// Machine frames of the GDT.
    pub gdt_frames: [u64; 16],
    /// GDT entries.
    pub gdt_ents: u64,
    /// Stack selector for entry from user mode.
    pub kernel_ss: u64,
    /// Stack pointer for entry from user mode.
    pub kernel_sp: u64,
    /// Control registers: [0] cr0, [1] user page-table base, [3] kernel page-table base, [4] cr4.
    pub ctrlreg: [u64; 8],
    /// Debug registers.
    pub debugreg: [u64; 8],
    /// Event upcall entry.
    pub event_callback_eip: u64,
    /// Failsafe entry.
    pub failsafe_callback_eip: u64,
    /// Syscall entry.
    pub syscall_callback_eip: u64,
    /// `VMASST_TYPE_*` bits.
    pub vm_assist: u64,
    /// Base of fs.
    pub fs_base: u64,
    /// Base of gs in kernel mode.
    pub gs_base_kernel: u64,
    /// Base of gs in user mode.
    pub gs_base_user: u64,
}
const _: () = assert!(size_of::<VcpuGuestContext>() == 0x1430);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, user_regs) == 0x208);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, trap_ctxt) == 0x2d0);
const _: () = assert!(core::mem::offset_of!(VcpuGuestContext, ctrlreg) == 0x1378);

/// What the `iret` hypercall finds on the guest's stack: 72 bytes.
///
/// ABI: `struct iret_context`, `xen/include/public/arch-x86/xen-x86_64.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[allow(missing_docs, reason = "the registers' own names")]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    /// [`VGCF_IN_SYSCALL`] or 0.
    pub flags: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
const _: () = assert!(size_of::<IretContext>() == 72);
