//! `domctl`, interface version 4.17 (0x15): domains as the toolstack makes and controls them.
//!
//! [`XenDomctl`] carries a command and a union; [`XenDomctl::payload`] reads the union as one of the structures.

mod numbers;

pub use numbers::*;

use crate::guest_context::XenArchDomainconfig;
use crate::layout::wire;

/// Bytes of the union in [`XenDomctl`].
pub const PAYLOAD_BYTES: usize = 128;

wire! { "domctl.h";
    /// A bitmap in guest memory.
    struct XenctlBitmap = "struct xenctl_bitmap", 16 {
        /// Address of bytes, lowest bit first.
        0x0 bitmap: u64,
        0x8 nr_bits: u32,
        0xc _pad0: u32 = "",
    }

    /// `XEN_DOMCTL_createdomain`.
    struct XenDomctlCreatedomain = "struct xen_domctl_createdomain", 0x40 {
        0x00 ssidref: u32,
        /// UUID.
        0x04 handle: [u8; 16],
        /// `XEN_DOMCTL_CDF_*`.
        0x14 flags: u32,
        0x18 iommu_opts: u32,
        0x1c max_vcpus: u32,
        /// Highest port that the domain may use.
        0x20 max_evtchn_port: u32,
        /// Negative for the default.
        0x24 max_grant_frames: i32,
        /// Negative for the default.
        0x28 max_maptrack_frames: i32,
        /// Bits 0-3: highest grant-table version.
        0x2c grant_opts: u32,
        0x30 vmtrace_size: u32,
        0x34 cpupool_id: u32,
        0x38 arch: XenArchDomainconfig,
    }

    /// `XEN_DOMCTL_getdomaininfo` and one entry of `XEN_SYSCTL_getdomaininfolist`.
    struct XenDomctlGetdomaininfo = "struct xen_domctl_getdomaininfo", 0x70 {
        0x00 domain: u16,
        0x02 pad1: u16,
        /// `XEN_DOMINF_*`.
        0x04 flags: u32,
        0x08 tot_pages: u64,
        0x10 max_pages: u64,
        0x18 outstanding_pages: u64,
        0x20 shr_pages: u64,
        0x28 paged_pages: u64,
        /// gmfn of shared_info.
        0x30 shared_info_frame: u64,
        /// Nanoseconds.
        0x38 cpu_time: u64,
        0x40 nr_online_vcpus: u32,
        /// Highest vCPU number, or `XEN_INVALID_MAX_VCPU_ID`.
        0x44 max_vcpu_id: u32,
        0x48 ssidref: u32,
        /// UUID.
        0x4c handle: [u8; 16],
        0x5c cpupool: u32,
        0x60 gpaddr_bits: u8,
        0x61 pad2: [u8; 7],
        0x68 arch_config: XenArchDomainconfig,
    }

    /// `XEN_DOMCTL_getpageframeinfo3`.
    struct XenDomctlGetpageframeinfo3 = "struct xen_domctl_getpageframeinfo3", 16 {
        0x0 num: u64,
        /// Address of frame numbers (u64), replaced by `XEN_DOMCTL_PFINFO_*`.
        0x8 array: u64,
    }

    /// Statistics of log-dirty mode.
    struct XenDomctlShadowOpStats = "struct xen_domctl_shadow_op_stats", 8 {
        0x0 fault_count: u32,
        0x4 dirty_count: u32,
    }

    /// `XEN_DOMCTL_shadow_op`.
    struct XenDomctlShadowOp = "struct xen_domctl_shadow_op", 40 {
        /// `XEN_DOMCTL_SHADOW_OP_*`.
        0x00 op: u32,
        /// `XEN_DOMCTL_SHADOW_ENABLE_*` or `_LOGDIRTY_*`.
        0x04 mode: u32,
        0x08 mb: u32,
        0x0c _pad0: u32 = "",
        0x10 dirty_bitmap: u64,
        0x18 pages: u64,
        0x20 stats: XenDomctlShadowOpStats,
    }

    /// `XEN_DOMCTL_max_mem`.
    struct XenDomctlMaxMem = "struct xen_domctl_max_mem", 8 {
        /// KiB.
        0x0 max_memkb: u64,
    }

    /// `XEN_DOMCTL_setvcpucontext` and `XEN_DOMCTL_getvcpucontext`.
    struct XenDomctlVcpucontext = "struct xen_domctl_vcpucontext", 16 {
        0x0 vcpu: u32,
        0x4 _pad0: u32 = "",
        /// Address of a [`crate::guest_context::VcpuGuestContext`].
        0x8 ctxt: u64,
    }

    /// `XEN_DOMCTL_getvcpuinfo`.
    struct XenDomctlGetvcpuinfo = "struct xen_domctl_getvcpuinfo", 24 {
        0x00 vcpu: u32,
        0x04 online: u8,
        0x05 blocked: u8,
        0x06 running: u8,
        0x07 _pad0: u8 = "",
        /// Nanoseconds.
        0x08 cpu_time: u64,
        /// Physical CPU.
        0x10 cpu: u32,
        0x14 _pad1: u32 = "",
    }

    /// `XEN_DOMCTL_setnodeaffinity` and `XEN_DOMCTL_getnodeaffinity`.
    struct XenDomctlNodeaffinity = "struct xen_domctl_nodeaffinity", 16 {
        0x0 nodemap: XenctlBitmap,
    }

    /// `XEN_DOMCTL_setvcpuaffinity` and `XEN_DOMCTL_getvcpuaffinity`.
    struct XenDomctlVcpuaffinity = "struct xen_domctl_vcpuaffinity", 40 {
        0x00 vcpu: u32,
        /// `XEN_VCPUAFFINITY_*`.
        0x04 flags: u32,
        0x08 cpumap_hard: XenctlBitmap,
        0x18 cpumap_soft: XenctlBitmap,
    }

    /// `XEN_DOMCTL_max_vcpus`.
    struct XenDomctlMaxVcpus = "struct xen_domctl_max_vcpus", 4 {
        0x0 max: u32,
    }

    /// Parameters of the credit scheduler.
    struct XenDomctlSchedCredit = "struct xen_domctl_sched_credit", 4 {
        0x0 weight: u16,
        0x2 cap: u16,
    }

    /// Parameters of the credit2 scheduler.
    struct XenDomctlSchedCredit2 = "struct xen_domctl_sched_credit2", 4 {
        0x0 weight: u16,
        0x2 cap: u16,
    }

    /// Parameters of the RTDS scheduler.
    struct XenDomctlSchedRtds = "struct xen_domctl_sched_rtds", 12 {
        /// Microseconds.
        0x0 period: u32,
        /// Microseconds.
        0x4 budget: u32,
        /// `XEN_DOMCTL_SCHEDRT_*`.
        0x8 flags: u32,
    }

    /// Scheduling parameters of one vCPU.
    struct XenDomctlSchedparamVcpu = "struct xen_domctl_schedparam_vcpu", 16 {
        /// By scheduler.
        0x0 u: [u32; 3],
        0xc vcpuid: u32,
    }

    /// `XEN_DOMCTL_scheduler_op`.
    struct XenDomctlSchedulerOp = "struct xen_domctl_scheduler_op", 24 {
        /// `XEN_SCHEDULER_*`.
        0x0 sched_id: u32,
        /// `XEN_DOMCTL_SCHEDOP_*`.
        0x4 cmd: u32,
        /// Domain's parameters by scheduler, or the address of a vCPU list and its length.
        0x8 u: [u64; 2],
    }

    /// `XEN_DOMCTL_setdomainhandle`.
    struct XenDomctlSetdomainhandle = "struct xen_domctl_setdomainhandle", 16 {
        0x0 handle: [u8; 16],
    }

    /// `XEN_DOMCTL_setdebugging`.
    struct XenDomctlSetdebugging = "struct xen_domctl_setdebugging", 1 {
        0x0 enable: u8,
    }

    /// `XEN_DOMCTL_irq_permission`.
    struct XenDomctlIrqPermission = "struct xen_domctl_irq_permission", 8 {
        0x0 pirq: u32,
        0x4 allow_access: u8,
        0x5 pad: [u8; 3],
    }

    /// `XEN_DOMCTL_iomem_permission`.
    struct XenDomctlIomemPermission = "struct xen_domctl_iomem_permission", 24 {
        0x00 first_mfn: u64,
        0x08 nr_mfns: u64,
        0x10 allow_access: u8,
        0x11 _pad0: [u8; 7] = "",
    }

    /// `XEN_DOMCTL_ioport_permission`.
    struct XenDomctlIoportPermission = "struct xen_domctl_ioport_permission", 12 {
        0x0 first_port: u32,
        0x4 nr_ports: u32,
        0x8 allow_access: u8,
        0x9 _pad0: [u8; 3] = "",
    }

    /// `XEN_DOMCTL_hypercall_init`.
    struct XenDomctlHypercallInit = "struct xen_domctl_hypercall_init", 8 {
        /// Frame to fill with the hypercall page.
        0x0 gmfn: u64,
    }

    /// `XEN_DOMCTL_settimeoffset`.
    struct XenDomctlSettimeoffset = "struct xen_domctl_settimeoffset", 8 {
        0x0 time_offset_seconds: i64,
    }

    /// `XEN_DOMCTL_settscinfo` and `XEN_DOMCTL_gettscinfo`.
    struct XenDomctlTscInfo = "struct xen_domctl_tsc_info", 24 {
        /// 0 default, 1 always emulate, 2 never emulate.
        0x00 tsc_mode: u32,
        0x04 gtsc_khz: u32,
        /// Restores so far.
        0x08 incarnation: u32,
        0x0c pad: u32,
        0x10 elapsed_nsec: u64,
    }

    /// `XEN_DOMCTL_set_address_size` and `XEN_DOMCTL_get_address_size`.
    struct XenDomctlAddressSize = "struct xen_domctl_address_size", 4 {
        /// 32 or 64.
        0x0 size: u32,
    }

    /// `XEN_DOMCTL_sendtrigger`.
    struct XenDomctlSendtrigger = "struct xen_domctl_sendtrigger", 8 {
        /// `XEN_DOMCTL_SENDTRIGGER_*`.
        0x0 trigger: u32,
        0x4 vcpu: u32,
    }

    /// `XEN_DOMCTL_memory_mapping`.
    struct XenDomctlMemoryMapping = "struct xen_domctl_memory_mapping", 32 {
        0x00 first_gfn: u64,
        0x08 first_mfn: u64,
        0x10 nr_mfns: u64,
        /// `DPCI_ADD_MAPPING` or `DPCI_REMOVE_MAPPING`.
        0x18 add_mapping: u32,
        0x1c padding: u32,
    }

    /// `XEN_DOMCTL_ioport_mapping`.
    struct XenDomctlIoportMapping = "struct xen_domctl_ioport_mapping", 16 {
        0x0 first_gport: u32,
        0x4 first_mport: u32,
        0x8 nr_ports: u32,
        /// `DPCI_ADD_MAPPING` or `DPCI_REMOVE_MAPPING`.
        0xc add_mapping: u32,
    }

    /// `XEN_DOMCTL_set_ext_vcpucontext` and `XEN_DOMCTL_get_ext_vcpucontext`.
    struct XenDomctlExtVcpucontext = "struct xen_domctl_ext_vcpucontext", 64 {
        0x00 vcpu: u32,
        /// Bytes of the rest that are valid.
        0x04 size: u32,
        0x08 syscall32_callback_eip: u64,
        0x10 sysenter_callback_eip: u64,
        0x18 syscall32_callback_cs: u16,
        0x1a sysenter_callback_cs: u16,
        0x1c syscall32_disables_events: u8,
        0x1d sysenter_disables_events: u8,
        0x1e _pad0: u16 = "",
        /// Virtual machine-check state: capabilities, two CTL2 registers, extended control.
        0x20 vmce: [u64; 4],
    }

    /// `XEN_DOMCTL_set_target`.
    struct XenDomctlSetTarget = "struct xen_domctl_set_target", 2 {
        0x0 target: u16,
    }

    /// `XEN_DOMCTL_set_cpu_policy` and `XEN_DOMCTL_get_cpu_policy`.
    struct XenDomctlCpuPolicy = "struct xen_domctl_cpu_policy", 40 {
        0x00 nr_leaves: u32,
        0x04 nr_msrs: u32,
        /// Address of [`crate::guest_context::XenCpuidLeaf`] elements.
        0x08 leaves: u64,
        /// Address of [`crate::guest_context::XenMsrEntry`] elements.
        0x10 msrs: u64,
        /// Out, when set fails: the leaf at fault, else `XEN_CPUID_INPUT_UNUSED`.
        0x18 err_leaf: u32,
        0x1c err_subleaf: u32,
        0x20 err_msr: u32,
        0x24 _pad0: u32 = "",
    }

    /// `XEN_DOMCTL_subscribe`.
    struct XenDomctlSubscribe = "struct xen_domctl_subscribe", 4 {
        0x0 port: u32,
    }

    /// `XEN_DOMCTL_debug_op`.
    struct XenDomctlDebugOp = "struct xen_domctl_debug_op", 8 {
        /// `XEN_DOMCTL_DEBUG_OP_*`.
        0x0 op: u32,
        0x4 vcpu: u32,
    }

    /// `XEN_DOMCTL_set_virq_handler`.
    struct XenDomctlSetVirqHandler = "struct xen_domctl_set_virq_handler", 4 {
        0x0 virq: u32,
    }

    /// `XEN_DOMCTL_setvcpuextstate` and `XEN_DOMCTL_getvcpuextstate`.
    struct XenDomctlVcpuextstate = "struct xen_domctl_vcpuextstate", 32 {
        0x00 vcpu: u32,
        0x04 _pad0: u32 = "",
        0x08 xfeature_mask: u64,
        /// Bytes at `buffer`.
        0x10 size: u64,
        0x18 buffer: u64,
    }

    /// One MSR of `XEN_DOMCTL_get_vcpu_msrs` and `XEN_DOMCTL_set_vcpu_msrs`.
    struct XenDomctlVcpuMsr = "struct xen_domctl_vcpu_msr", 16 {
        0x0 index: u32,
        0x4 reserved: u32,
        0x8 value: u64,
    }

    /// `XEN_DOMCTL_get_vcpu_msrs` and `XEN_DOMCTL_set_vcpu_msrs`.
    struct XenDomctlVcpuMsrs = "struct xen_domctl_vcpu_msrs", 16 {
        0x0 vcpu: u32,
        0x4 msr_count: u32,
        /// Address of [`XenDomctlVcpuMsr`] elements.
        0x8 msrs: u64,
    }

    /// `XEN_DOMCTL_setvnumainfo`.
    struct XenDomctlVnuma = "struct xen_domctl_vnuma", 48 {
        0x00 nr_vnodes: u32,
        0x04 nr_vmemranges: u32,
        0x08 nr_vcpus: u32,
        0x0c pad: u32,
        0x10 vdistance: u64,
        0x18 vcpu_to_vnode: u64,
        0x20 vnode_to_pnode: u64,
        0x28 vmemrange: u64,
    }

    /// `XEN_DOMCTL_get_paging_mempool_size` and `XEN_DOMCTL_set_paging_mempool_size`.
    struct XenDomctlPagingMempool = "struct xen_domctl_paging_mempool", 8 {
        /// Bytes.
        0x0 size: u64,
    }

    /// Argument of `domctl`.
    struct XenDomctl = "struct xen_domctl", 0x90 {
        /// `XEN_DOMCTL_*`.
        0x00 cmd: u32,
        /// `XEN_DOMCTL_INTERFACE_VERSION`.
        0x04 interface_version: u32,
        0x08 domain: u16,
        0x0a _pad: [u16; 3],
        /// One of the structures above, by `cmd`.
        0x10 u: [u64; PAYLOAD_BYTES / 8],
    }
}

crate::payload::impl_payload!(XenDomctl);

impl XenDomctl {
    /// An operation on `domain` without argument.
    #[must_use]
    pub fn new(cmd: u32, domain: crate::types::DomId) -> Self {
        Self { cmd, interface_version: XEN_DOMCTL_INTERFACE_VERSION, domain: domain.raw(), ..Self::default() }
    }

    /// An operation on `domain` with an argument.
    #[must_use]
    pub fn with<T: crate::payload::Payload>(cmd: u32, domain: crate::types::DomId, payload: &T) -> Self {
        let mut op = Self::new(cmd, domain);
        op.set_payload(payload);
        op
    }
}

/// In the union of `XEN_DOMCTL_destroydomain`, which Xen does not read: "mhvRETRN".
const RETURN_WORD: u64 = u64::from_le_bytes(*b"mhvRETRN");

impl XenDomctl {
    /// Asks for `EAGAIN` where an interrupt comes during a long `XEN_DOMCTL_destroydomain`, so that a kernel of one
    /// vCPU can do other things before it calls again. This word is microhv's: Xen goes on by itself, and Xen's call
    /// ends when all is done.
    pub fn want_return(&mut self) {
        self.set_payload(&RETURN_WORD);
    }

    /// Has the caller asked so?
    #[must_use]
    pub fn wants_return(&self) -> bool {
        self.payload::<u64>() == RETURN_WORD
    }
}

impl XenDomctlGetdomaininfo {
    /// `SHUTDOWN_*` code; meaningful when `XEN_DOMINF_SHUTDOWN` is set.
    #[must_use]
    pub const fn shutdown_code(&self) -> u32 {
        (self.flags >> XEN_DOMINF_SHUTDOWNSHIFT) & XEN_DOMINF_SHUTDOWNMASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DomId;

    #[test]
    fn payload_round_trip() {
        let max = XenDomctlMaxMem { max_memkb: 0x1122_3344_5566_7788 };
        let op = XenDomctl::with(XEN_DOMCTL_MAX_MEM, DomId::new(7), &max);
        assert_eq!((op.cmd, op.interface_version, op.domain), (11, 0x15, 7));
        assert_eq!(op.payload::<XenDomctlMaxMem>(), max);
        assert_eq!(op.u[1..], [0; 15]);
    }

    #[test]
    fn largest_payload_fits() {
        let mut op = XenDomctl::new(XEN_DOMCTL_GETDOMAININFO, DomId::SELF);
        op.set_payload(&[0xa5u8; PAYLOAD_BYTES]);
        assert_eq!(op.payload::<[u8; PAYLOAD_BYTES]>(), [0xa5; PAYLOAD_BYTES]);
    }
}
