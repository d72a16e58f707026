//! Hypercall numbers and the multicall entry. ABI: `xen/include/public/xen.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Hypercall `set_trap_table`.
pub const __HYPERVISOR_SET_TRAP_TABLE: u32 = 0;
/// Hypercall `mmu_update`.
pub const __HYPERVISOR_MMU_UPDATE: u32 = 1;
/// Hypercall `set_gdt`.
pub const __HYPERVISOR_SET_GDT: u32 = 2;
/// Hypercall `stack_switch`.
pub const __HYPERVISOR_STACK_SWITCH: u32 = 3;
/// Hypercall `set_callbacks`.
pub const __HYPERVISOR_SET_CALLBACKS: u32 = 4;
/// Hypercall `fpu_taskswitch`.
pub const __HYPERVISOR_FPU_TASKSWITCH: u32 = 5;
/// Hypercall `platform_op`.
pub const __HYPERVISOR_PLATFORM_OP: u32 = 7;
/// Hypercall `set_debugreg`.
pub const __HYPERVISOR_SET_DEBUGREG: u32 = 8;
/// Hypercall `get_debugreg`.
pub const __HYPERVISOR_GET_DEBUGREG: u32 = 9;
/// Hypercall `update_descriptor`.
pub const __HYPERVISOR_UPDATE_DESCRIPTOR: u32 = 10;
/// Hypercall `memory_op`.
pub const __HYPERVISOR_MEMORY_OP: u32 = 12;
/// Hypercall `multicall`.
pub const __HYPERVISOR_MULTICALL: u32 = 13;
/// Hypercall `update_va_mapping`.
pub const __HYPERVISOR_UPDATE_VA_MAPPING: u32 = 14;
/// Hypercall `set_timer_op`.
pub const __HYPERVISOR_SET_TIMER_OP: u32 = 15;
/// Hypercall `xen_version`.
pub const __HYPERVISOR_XEN_VERSION: u32 = 17;
/// Hypercall `console_io`.
pub const __HYPERVISOR_CONSOLE_IO: u32 = 18;
/// Hypercall `grant_table_op`.
pub const __HYPERVISOR_GRANT_TABLE_OP: u32 = 20;
/// Hypercall `vm_assist`.
pub const __HYPERVISOR_VM_ASSIST: u32 = 21;
/// Hypercall `update_va_mapping_otherdomain`.
pub const __HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN: u32 = 22;
/// Hypercall `iret`.
pub const __HYPERVISOR_IRET: u32 = 23;
/// Hypercall `vcpu_op`.
pub const __HYPERVISOR_VCPU_OP: u32 = 24;
/// Hypercall `set_segment_base`.
pub const __HYPERVISOR_SET_SEGMENT_BASE: u32 = 25;
/// Hypercall `mmuext_op`.
pub const __HYPERVISOR_MMUEXT_OP: u32 = 26;
/// Hypercall `xsm_op`.
pub const __HYPERVISOR_XSM_OP: u32 = 27;
/// Hypercall `nmi_op`.
pub const __HYPERVISOR_NMI_OP: u32 = 28;
/// Hypercall `sched_op`.
pub const __HYPERVISOR_SCHED_OP: u32 = 29;
/// Hypercall `callback_op`.
pub const __HYPERVISOR_CALLBACK_OP: u32 = 30;
/// Hypercall `xenoprof_op`.
pub const __HYPERVISOR_XENOPROF_OP: u32 = 31;
/// Hypercall `event_channel_op`.
pub const __HYPERVISOR_EVENT_CHANNEL_OP: u32 = 32;
/// Hypercall `physdev_op`.
pub const __HYPERVISOR_PHYSDEV_OP: u32 = 33;
/// Hypercall `hvm_op`.
pub const __HYPERVISOR_HVM_OP: u32 = 34;
/// Hypercall `sysctl`.
pub const __HYPERVISOR_SYSCTL: u32 = 35;
/// Hypercall `domctl`.
pub const __HYPERVISOR_DOMCTL: u32 = 36;
/// Hypercall `kexec_op`.
pub const __HYPERVISOR_KEXEC_OP: u32 = 37;
/// Hypercall `tmem_op`.
pub const __HYPERVISOR_TMEM_OP: u32 = 38;
/// Hypercall `argo_op`.
pub const __HYPERVISOR_ARGO_OP: u32 = 39;
/// Hypercall `xenpmu_op`.
pub const __HYPERVISOR_XENPMU_OP: u32 = 40;
/// Hypercall `dm_op`.
pub const __HYPERVISOR_DM_OP: u32 = 41;
/// Hypercall `hypfs_op`.
pub const __HYPERVISOR_HYPFS_OP: u32 = 42;
/// Hypercall `arch_0`.
pub const __HYPERVISOR_ARCH_0: u32 = 48;
/// Hypercall `arch_1`.
pub const __HYPERVISOR_ARCH_1: u32 = 49;
/// Hypercall `arch_2`.
pub const __HYPERVISOR_ARCH_2: u32 = 50;
/// Hypercall `arch_3`.
pub const __HYPERVISOR_ARCH_3: u32 = 51;
/// Hypercall `arch_4`.
pub const __HYPERVISOR_ARCH_4: u32 = 52;
/// Hypercall `arch_5`.
pub const __HYPERVISOR_ARCH_5: u32 = 53;
/// Hypercall `arch_6`.
pub const __HYPERVISOR_ARCH_6: u32 = 54;
/// Hypercall `arch_7`.
pub const __HYPERVISOR_ARCH_7: u32 = 55;

/// One call of a multicall list: 64 bytes.
///
/// ABI: `struct multicall_entry`, `xen/include/public/xen.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MulticallEntry {
    /// Hypercall number.
    pub op: u64,
    /// What the call gave.
    pub result: u64,
    /// Its arguments.
    pub args: [u64; 6],
}
const _: () = assert!(size_of::<MulticallEntry>() == 64);
