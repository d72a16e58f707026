//! `sysctl`, interface version 4.17 (0x15): the machine as the toolstack sees it.
//!
//! [`XenSysctl`] carries a command and a union; [`XenSysctl::payload`] reads the union as one of the structures.

use crate::domctl::XenctlBitmap;
use crate::layout::{constants, wire};

constants! { "sysctl.h";
    XEN_SYSCTL_INTERFACE_VERSION: u32 = 0x15 => "XEN_SYSCTL_INTERFACE_VERSION";
    XEN_SYSCTL_TBUFOP_GET_INFO: u32 = 0 => "XEN_SYSCTL_TBUFOP_get_info";
    XEN_SYSCTL_TBUFOP_SET_CPU_MASK: u32 = 1 => "XEN_SYSCTL_TBUFOP_set_cpu_mask";
    XEN_SYSCTL_TBUFOP_SET_EVT_MASK: u32 = 2 => "XEN_SYSCTL_TBUFOP_set_evt_mask";
    XEN_SYSCTL_TBUFOP_SET_SIZE: u32 = 3 => "XEN_SYSCTL_TBUFOP_set_size";
    XEN_SYSCTL_TBUFOP_ENABLE: u32 = 4 => "XEN_SYSCTL_TBUFOP_enable";
    XEN_SYSCTL_TBUFOP_DISABLE: u32 = 5 => "XEN_SYSCTL_TBUFOP_disable";
    XEN_SYSCTL_PHYSCAP_HVM: u32 = 1 => "XEN_SYSCTL_PHYSCAP_hvm";
    XEN_SYSCTL_PHYSCAP_PV: u32 = 2 => "XEN_SYSCTL_PHYSCAP_pv";
    XEN_SYSCTL_PHYSCAP_DIRECTIO: u32 = 4 => "XEN_SYSCTL_PHYSCAP_directio";
    XEN_SYSCTL_PHYSCAP_HAP: u32 = 8 => "XEN_SYSCTL_PHYSCAP_hap";
    XEN_SYSCTL_PHYSCAP_SHADOW: u32 = 0x10 => "XEN_SYSCTL_PHYSCAP_shadow";
    XEN_SYSCTL_PHYSCAP_IOMMU_HAP_PT_SHARE: u32 = 0x20 => "XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share";
    XEN_SYSCTL_PHYSCAP_VMTRACE: u32 = 0x40 => "XEN_SYSCTL_PHYSCAP_vmtrace";
    XEN_SYSCTL_PHYSCAP_VPMU: u32 = 0x80 => "XEN_SYSCTL_PHYSCAP_vpmu";
    XEN_SYSCTL_PHYSCAP_GNTTAB_V1: u32 = 0x100 => "XEN_SYSCTL_PHYSCAP_gnttab_v1";
    XEN_SYSCTL_PHYSCAP_GNTTAB_V2: u32 = 0x200 => "XEN_SYSCTL_PHYSCAP_gnttab_v2";
    XEN_SYSCTL_PHYSCAP_MAX: u32 = 512 => "XEN_SYSCTL_PHYSCAP_MAX";
    XEN_SYSCTL_PERFCOP_RESET: u32 = 1 => "XEN_SYSCTL_PERFCOP_reset";
    XEN_SYSCTL_PERFCOP_QUERY: u32 = 2 => "XEN_SYSCTL_PERFCOP_query";
    PMSTAT_CATEGORY_MASK: u32 = 0xf0 => "PMSTAT_CATEGORY_MASK";
    PMSTAT_PX: u32 = 0x10 => "PMSTAT_PX";
    PMSTAT_CX: u32 = 0x20 => "PMSTAT_CX";
    PMSTAT_GET_MAX_PX: u32 = 0x11 => "PMSTAT_get_max_px";
    PMSTAT_GET_PXSTAT: u32 = 0x12 => "PMSTAT_get_pxstat";
    PMSTAT_RESET_PXSTAT: u32 = 0x13 => "PMSTAT_reset_pxstat";
    PMSTAT_GET_MAX_CX: u32 = 0x21 => "PMSTAT_get_max_cx";
    PMSTAT_GET_CXSTAT: u32 = 0x22 => "PMSTAT_get_cxstat";
    PMSTAT_RESET_CXSTAT: u32 = 0x23 => "PMSTAT_reset_cxstat";
    XEN_SYSCTL_CPU_HOTPLUG_ONLINE: u32 = 0 => "XEN_SYSCTL_CPU_HOTPLUG_ONLINE";
    XEN_SYSCTL_CPU_HOTPLUG_OFFLINE: u32 = 1 => "XEN_SYSCTL_CPU_HOTPLUG_OFFLINE";
    XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE: u32 = 2 => "XEN_SYSCTL_CPU_HOTPLUG_SMT_ENABLE";
    XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE: u32 = 3 => "XEN_SYSCTL_CPU_HOTPLUG_SMT_DISABLE";
    XEN_SYSCTL_PM_OP_SET_SCHED_OPT_SMT: u32 = 0x21 => "XEN_SYSCTL_pm_op_set_sched_opt_smt";
    XEN_SYSCTL_PM_OP_GET_MAX_CSTATE: u32 = 0x22 => "XEN_SYSCTL_pm_op_get_max_cstate";
    XEN_SYSCTL_PM_OP_SET_MAX_CSTATE: u32 = 0x23 => "XEN_SYSCTL_pm_op_set_max_cstate";
    XEN_SYSCTL_PM_OP_SET_VCPU_MIGRATION_DELAY: u32 = 0x24 => "XEN_SYSCTL_pm_op_set_vcpu_migration_delay";
    XEN_SYSCTL_PM_OP_GET_VCPU_MIGRATION_DELAY: u32 = 0x25 => "XEN_SYSCTL_pm_op_get_vcpu_migration_delay";
    XEN_SYSCTL_PM_OP_ENABLE_TURBO: u32 = 0x26 => "XEN_SYSCTL_pm_op_enable_turbo";
    XEN_SYSCTL_PM_OP_DISABLE_TURBO: u32 = 0x27 => "XEN_SYSCTL_pm_op_disable_turbo";
    XEN_SYSCTL_CX_UNLIMITED: u32 = 0xffffffff => "XEN_SYSCTL_CX_UNLIMITED";
    XEN_SYSCTL_LOCKPROF_RESET: u32 = 1 => "XEN_SYSCTL_LOCKPROF_reset";
    XEN_SYSCTL_LOCKPROF_QUERY: u32 = 2 => "XEN_SYSCTL_LOCKPROF_query";
    LOCKPROF_TYPE_GLOBAL: u32 = 0 => "LOCKPROF_TYPE_GLOBAL";
    LOCKPROF_TYPE_PERDOM: u32 = 1 => "LOCKPROF_TYPE_PERDOM";
    LOCKPROF_TYPE_N: u32 = 2 => "LOCKPROF_TYPE_N";
    XEN_INVALID_CORE_ID: u32 = 0xffffffff => "XEN_INVALID_CORE_ID";
    XEN_INVALID_SOCKET_ID: u32 = 0xffffffff => "XEN_INVALID_SOCKET_ID";
    XEN_INVALID_NODE_ID: u32 = 0xffffffff => "XEN_INVALID_NODE_ID";
    XEN_INVALID_MEM_SZ: u32 = 0xffffffff => "XEN_INVALID_MEM_SZ";
    XEN_INVALID_NODE_DIST: u32 = 0xffffffff => "XEN_INVALID_NODE_DIST";
    XEN_SYSCTL_CPUPOOL_OP_CREATE: u32 = 1 => "XEN_SYSCTL_CPUPOOL_OP_CREATE";
    XEN_SYSCTL_CPUPOOL_OP_DESTROY: u32 = 2 => "XEN_SYSCTL_CPUPOOL_OP_DESTROY";
    XEN_SYSCTL_CPUPOOL_OP_INFO: u32 = 3 => "XEN_SYSCTL_CPUPOOL_OP_INFO";
    XEN_SYSCTL_CPUPOOL_OP_ADDCPU: u32 = 4 => "XEN_SYSCTL_CPUPOOL_OP_ADDCPU";
    XEN_SYSCTL_CPUPOOL_OP_RMCPU: u32 = 5 => "XEN_SYSCTL_CPUPOOL_OP_RMCPU";
    XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN: u32 = 6 => "XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN";
    XEN_SYSCTL_CPUPOOL_OP_FREEINFO: u32 = 7 => "XEN_SYSCTL_CPUPOOL_OP_FREEINFO";
    XEN_SYSCTL_CPUPOOL_PAR_ANY: u32 = 0xffffffff => "XEN_SYSCTL_CPUPOOL_PAR_ANY";
    XEN_SYSCTL_SCHED_RATELIMIT_MAX: u32 = 500000 => "XEN_SYSCTL_SCHED_RATELIMIT_MAX";
    XEN_SYSCTL_SCHED_RATELIMIT_MIN: u32 = 100 => "XEN_SYSCTL_SCHED_RATELIMIT_MIN";
    XEN_SYSCTL_CSCHED_TSLICE_MAX: u32 = 1000 => "XEN_SYSCTL_CSCHED_TSLICE_MAX";
    XEN_SYSCTL_CSCHED_TSLICE_MIN: u32 = 1 => "XEN_SYSCTL_CSCHED_TSLICE_MIN";
    XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US: u32 = 100000 => "XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US";
    XEN_SYSCTL_SCHEDOP_PUTINFO: u32 = 0 => "XEN_SYSCTL_SCHEDOP_putinfo";
    XEN_SYSCTL_SCHEDOP_GETINFO: u32 = 1 => "XEN_SYSCTL_SCHEDOP_getinfo";
    XEN_SYSCTL_COVERAGE_GET_SIZE: u32 = 0 => "XEN_SYSCTL_COVERAGE_get_size";
    XEN_SYSCTL_COVERAGE_READ: u32 = 1 => "XEN_SYSCTL_COVERAGE_read";
    XEN_SYSCTL_COVERAGE_RESET: u32 = 2 => "XEN_SYSCTL_COVERAGE_reset";
    XEN_SYSCTL_PSR_CMT_GET_TOTAL_RMID: u32 = 0 => "XEN_SYSCTL_PSR_CMT_get_total_rmid";
    XEN_SYSCTL_PSR_CMT_GET_L3_UPSCALING_FACTOR: u32 = 1 => "XEN_SYSCTL_PSR_CMT_get_l3_upscaling_factor";
    XEN_SYSCTL_PSR_CMT_GET_L3_CACHE_SIZE: u32 = 2 => "XEN_SYSCTL_PSR_CMT_get_l3_cache_size";
    XEN_SYSCTL_PSR_CMT_ENABLED: u32 = 3 => "XEN_SYSCTL_PSR_CMT_enabled";
    XEN_SYSCTL_PSR_CMT_GET_L3_EVENT_MASK: u32 = 4 => "XEN_SYSCTL_PSR_CMT_get_l3_event_mask";
    XEN_INVALID_DEV: u32 = 0xfffffffe => "XEN_INVALID_DEV";
    XEN_SYSCTL_PSR_GET_L3_INFO: u32 = 0 => "XEN_SYSCTL_PSR_get_l3_info";
    XEN_SYSCTL_PSR_GET_L2_INFO: u32 = 1 => "XEN_SYSCTL_PSR_get_l2_info";
    XEN_SYSCTL_PSR_GET_MBA_INFO: u32 = 2 => "XEN_SYSCTL_PSR_get_mba_info";
    XEN_SYSCTL_PSR_CAT_L3_CDP: u32 = 1 => "XEN_SYSCTL_PSR_CAT_L3_CDP";
    XEN_SYSCTL_PSR_MBA_LINEAR: u32 = 1 => "XEN_SYSCTL_PSR_MBA_LINEAR";
    XEN_SYSCTL_CPU_LEVELCAP_FAULTING: u32 = 1 => "XEN_SYSCTL_CPU_LEVELCAP_faulting";
    XEN_SYSCTL_CPU_LEVELCAP_ECX: u32 = 2 => "XEN_SYSCTL_CPU_LEVELCAP_ecx";
    XEN_SYSCTL_CPU_LEVELCAP_EDX: u32 = 4 => "XEN_SYSCTL_CPU_LEVELCAP_edx";
    XEN_SYSCTL_CPU_LEVELCAP_EXTD_ECX: u32 = 8 => "XEN_SYSCTL_CPU_LEVELCAP_extd_ecx";
    XEN_SYSCTL_CPU_LEVELCAP_EXTD_EDX: u32 = 0x10 => "XEN_SYSCTL_CPU_LEVELCAP_extd_edx";
    XEN_SYSCTL_CPU_LEVELCAP_XSAVE_EAX: u32 = 0x20 => "XEN_SYSCTL_CPU_LEVELCAP_xsave_eax";
    XEN_SYSCTL_CPU_LEVELCAP_THERMAL_ECX: u32 = 0x40 => "XEN_SYSCTL_CPU_LEVELCAP_thermal_ecx";
    XEN_SYSCTL_CPU_LEVELCAP_L7S0_EAX: u32 = 0x80 => "XEN_SYSCTL_CPU_LEVELCAP_l7s0_eax";
    XEN_SYSCTL_CPU_LEVELCAP_L7S0_EBX: u32 = 0x100 => "XEN_SYSCTL_CPU_LEVELCAP_l7s0_ebx";
    XEN_SYSCTL_CPU_FEATURESET_RAW: u32 = 0 => "XEN_SYSCTL_cpu_featureset_raw";
    XEN_SYSCTL_CPU_FEATURESET_HOST: u32 = 1 => "XEN_SYSCTL_cpu_featureset_host";
    XEN_SYSCTL_CPU_FEATURESET_PV: u32 = 2 => "XEN_SYSCTL_cpu_featureset_pv";
    XEN_SYSCTL_CPU_FEATURESET_HVM: u32 = 3 => "XEN_SYSCTL_cpu_featureset_hvm";
    XEN_SYSCTL_CPU_FEATURESET_PV_MAX: u32 = 4 => "XEN_SYSCTL_cpu_featureset_pv_max";
    XEN_SYSCTL_CPU_FEATURESET_HVM_MAX: u32 = 5 => "XEN_SYSCTL_cpu_featureset_hvm_max";
    XEN_SYSCTL_LIVEPATCH_UPLOAD: u32 = 0 => "XEN_SYSCTL_LIVEPATCH_UPLOAD";
    XEN_SYSCTL_LIVEPATCH_GET: u32 = 1 => "XEN_SYSCTL_LIVEPATCH_GET";
    XEN_SYSCTL_LIVEPATCH_LIST: u32 = 2 => "XEN_SYSCTL_LIVEPATCH_LIST";
    XEN_SYSCTL_LIVEPATCH_ACTION: u32 = 3 => "XEN_SYSCTL_LIVEPATCH_ACTION";
    XEN_SYSCTL_CPU_POLICY_RAW: u32 = 0 => "XEN_SYSCTL_cpu_policy_raw";
    XEN_SYSCTL_CPU_POLICY_HOST: u32 = 1 => "XEN_SYSCTL_cpu_policy_host";
    XEN_SYSCTL_CPU_POLICY_PV_MAX: u32 = 2 => "XEN_SYSCTL_cpu_policy_pv_max";
    XEN_SYSCTL_CPU_POLICY_HVM_MAX: u32 = 3 => "XEN_SYSCTL_cpu_policy_hvm_max";
    XEN_SYSCTL_CPU_POLICY_PV_DEFAULT: u32 = 4 => "XEN_SYSCTL_cpu_policy_pv_default";
    XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT: u32 = 5 => "XEN_SYSCTL_cpu_policy_hvm_default";
    XEN_SYSCTL_READCONSOLE: u32 = 1 => "XEN_SYSCTL_readconsole";
    XEN_SYSCTL_TBUF_OP: u32 = 2 => "XEN_SYSCTL_tbuf_op";
    XEN_SYSCTL_PHYSINFO: u32 = 3 => "XEN_SYSCTL_physinfo";
    XEN_SYSCTL_SCHED_ID: u32 = 4 => "XEN_SYSCTL_sched_id";
    XEN_SYSCTL_PERFC_OP: u32 = 5 => "XEN_SYSCTL_perfc_op";
    XEN_SYSCTL_GETDOMAININFOLIST: u32 = 6 => "XEN_SYSCTL_getdomaininfolist";
    XEN_SYSCTL_DEBUG_KEYS: u32 = 7 => "XEN_SYSCTL_debug_keys";
    XEN_SYSCTL_GETCPUINFO: u32 = 8 => "XEN_SYSCTL_getcpuinfo";
    XEN_SYSCTL_AVAILHEAP: u32 = 9 => "XEN_SYSCTL_availheap";
    XEN_SYSCTL_GET_PMSTAT: u32 = 10 => "XEN_SYSCTL_get_pmstat";
    XEN_SYSCTL_CPU_HOTPLUG: u32 = 11 => "XEN_SYSCTL_cpu_hotplug";
    XEN_SYSCTL_PM_OP: u32 = 12 => "XEN_SYSCTL_pm_op";
    XEN_SYSCTL_PAGE_OFFLINE_OP: u32 = 14 => "XEN_SYSCTL_page_offline_op";
    XEN_SYSCTL_LOCKPROF_OP: u32 = 15 => "XEN_SYSCTL_lockprof_op";
    XEN_SYSCTL_CPUTOPOINFO: u32 = 16 => "XEN_SYSCTL_cputopoinfo";
    XEN_SYSCTL_NUMAINFO: u32 = 17 => "XEN_SYSCTL_numainfo";
    XEN_SYSCTL_CPUPOOL_OP: u32 = 18 => "XEN_SYSCTL_cpupool_op";
    XEN_SYSCTL_SCHEDULER_OP: u32 = 19 => "XEN_SYSCTL_scheduler_op";
    XEN_SYSCTL_COVERAGE_OP: u32 = 20 => "XEN_SYSCTL_coverage_op";
    XEN_SYSCTL_PSR_CMT_OP: u32 = 21 => "XEN_SYSCTL_psr_cmt_op";
    XEN_SYSCTL_PCITOPOINFO: u32 = 22 => "XEN_SYSCTL_pcitopoinfo";
    XEN_SYSCTL_PSR_ALLOC: u32 = 23 => "XEN_SYSCTL_psr_alloc";
    XEN_SYSCTL_GET_CPU_LEVELLING_CAPS: u32 = 25 => "XEN_SYSCTL_get_cpu_levelling_caps";
    XEN_SYSCTL_GET_CPU_FEATURESET: u32 = 26 => "XEN_SYSCTL_get_cpu_featureset";
    XEN_SYSCTL_LIVEPATCH_OP: u32 = 27 => "XEN_SYSCTL_livepatch_op";
    XEN_SYSCTL_GET_CPU_POLICY: u32 = 29 => "XEN_SYSCTL_get_cpu_policy";
}

/// Bytes of the union in [`XenSysctl`].
pub const PAYLOAD_BYTES: usize = 128;

wire! { "sysctl.h";
    /// `XEN_SYSCTL_readconsole`.
    struct XenSysctlReadconsole = "struct xen_sysctl_readconsole", 24 {
        /// In: empty the ring after reading.
        0x00 clear: u8,
        /// In: start at `index`.
        0x01 incremental: u8,
        0x02 pad0: u8,
        0x03 pad1: u8,
        /// In and out: position in the ring.
        0x04 index: u32,
        /// Address of the bytes.
        0x08 buffer: u64,
        /// In: room. Out: bytes.
        0x10 count: u32,
        0x14 _pad2: u32 = "",
    }

    /// `XEN_SYSCTL_tbuf_op`.
    struct XenSysctlTbufOp = "struct xen_sysctl_tbuf_op", 48 {
        0x00 cmd: u32,
        0x04 _pad0: u32 = "",
        0x08 cpu_mask: XenctlBitmap,
        0x18 evt_mask: u32,
        0x1c _pad1: u32 = "",
        0x20 buffer_mfn: u64,
        0x28 size: u32,
        0x2c _pad2: u32 = "",
    }

    /// `XEN_SYSCTL_physinfo`.
    struct XenSysctlPhysinfo = "struct xen_sysctl_physinfo", 112 {
        0x00 threads_per_core: u32,
        0x04 cores_per_socket: u32,
        0x08 nr_cpus: u32,
        0x0c max_cpu_id: u32,
        0x10 nr_nodes: u32,
        0x14 max_node_id: u32,
        0x18 cpu_khz: u32,
        /// `XEN_SYSCTL_PHYSCAP_*`.
        0x1c capabilities: u32,
        0x20 arch_capabilities: u32,
        0x24 pad: u32,
        0x28 total_pages: u64,
        0x30 free_pages: u64,
        0x38 scrub_pages: u64,
        0x40 outstanding_pages: u64,
        0x48 max_mfn: u64,
        /// CPUID feature words.
        0x50 hw_cap: [u32; 8],
    }

    /// `XEN_SYSCTL_sched_id`.
    struct XenSysctlSchedId = "struct xen_sysctl_sched_id", 4 {
        /// `XEN_SCHEDULER_*`.
        0x0 sched_id: u32,
    }

    /// `XEN_SYSCTL_getdomaininfolist`.
    struct XenSysctlGetdomaininfolist = "struct xen_sysctl_getdomaininfolist", 24 {
        0x00 first_domain: u16,
        0x02 _pad0: u16 = "",
        0x04 max_domains: u32,
        /// Address of [`crate::domctl::XenDomctlGetdomaininfo`] elements.
        0x08 buffer: u64,
        /// Out.
        0x10 num_domains: u32,
        0x14 _pad1: u32 = "",
    }

    /// `XEN_SYSCTL_debug_keys`.
    struct XenSysctlDebugKeys = "struct xen_sysctl_debug_keys", 16 {
        /// Address of the characters.
        0x0 keys: u64,
        0x8 nr_keys: u32,
        0xc _pad0: u32 = "",
    }

    /// One CPU of `XEN_SYSCTL_getcpuinfo`.
    struct XenSysctlCpuinfo = "struct xen_sysctl_cpuinfo", 8 {
        /// Nanoseconds.
        0x0 idletime: u64,
    }

    /// `XEN_SYSCTL_getcpuinfo`.
    struct XenSysctlGetcpuinfo = "struct xen_sysctl_getcpuinfo", 24 {
        0x00 max_cpus: u32,
        0x04 _pad0: u32 = "",
        /// Address of [`XenSysctlCpuinfo`] elements.
        0x08 info: u64,
        /// Out.
        0x10 nr_cpus: u32,
        0x14 _pad1: u32 = "",
    }

    /// `XEN_SYSCTL_availheap`.
    struct XenSysctlAvailheap = "struct xen_sysctl_availheap", 24 {
        0x00 min_bitwidth: u32,
        0x04 max_bitwidth: u32,
        /// Negative for all.
        0x08 node: i32,
        0x0c _pad0: u32 = "",
        /// Out.
        0x10 avail_bytes: u64,
    }

    /// `XEN_SYSCTL_cpu_hotplug`.
    struct XenSysctlCpuHotplug = "struct xen_sysctl_cpu_hotplug", 8 {
        0x0 cpu: u32,
        /// `XEN_SYSCTL_CPU_HOTPLUG_*`.
        0x4 op: u32,
    }

    /// One CPU of `XEN_SYSCTL_cputopoinfo`.
    struct XenSysctlCputopo = "struct xen_sysctl_cputopo", 12 {
        0x0 core: u32,
        0x4 socket: u32,
        0x8 node: u32,
    }

    /// `XEN_SYSCTL_cputopoinfo`.
    struct XenSysctlCputopoinfo = "struct xen_sysctl_cputopoinfo", 16 {
        /// In: room. Out: highest CPU + 1.
        0x0 num_cpus: u32,
        0x4 _pad0: u32 = "",
        /// Address of [`XenSysctlCputopo`] elements; null asks for the number.
        0x8 cputopo: u64,
    }

    /// One node of `XEN_SYSCTL_numainfo`.
    struct XenSysctlMeminfo = "struct xen_sysctl_meminfo", 16 {
        /// Bytes.
        0x0 memsize: u64,
        /// Bytes.
        0x8 memfree: u64,
    }

    /// `XEN_SYSCTL_numainfo`.
    struct XenSysctlNumainfo = "struct xen_sysctl_numainfo", 24 {
        /// In: room. Out: nodes.
        0x00 num_nodes: u32,
        0x04 _pad0: u32 = "",
        /// Address of [`XenSysctlMeminfo`] elements.
        0x08 meminfo: u64,
        /// Address of `num_nodes` squared distances (u32).
        0x10 distance: u64,
    }

    /// `XEN_SYSCTL_cpupool_op`.
    struct XenSysctlCpupoolOp = "struct xen_sysctl_cpupool_op", 40 {
        /// `XEN_SYSCTL_CPUPOOL_OP_*`.
        0x00 op: u32,
        0x04 cpupool_id: u32,
        0x08 sched_id: u32,
        0x0c domid: u32,
        0x10 cpu: u32,
        /// Out.
        0x14 n_dom: u32,
        0x18 cpumap: XenctlBitmap,
    }

    /// Parameters of the credit scheduler.
    struct XenSysctlCreditSchedule = "struct xen_sysctl_credit_schedule", 12 {
        0x0 tslice_ms: u32,
        0x4 ratelimit_us: u32,
        0x8 vcpu_migr_delay_us: u32,
    }

    /// Parameters of the credit2 scheduler.
    struct XenSysctlCredit2Schedule = "struct xen_sysctl_credit2_schedule", 4 {
        0x0 ratelimit_us: u32,
    }

    /// `XEN_SYSCTL_scheduler_op`.
    struct XenSysctlSchedulerOp = "struct xen_sysctl_scheduler_op", 32 {
        0x00 cpupool_id: u32,
        0x04 sched_id: u32,
        /// `XEN_SYSCTL_SCHEDOP_*`.
        0x08 cmd: u32,
        0x0c _pad0: u32 = "",
        /// By scheduler.
        0x10 u: [u64; 2],
    }

    /// `XEN_SYSCTL_pcitopoinfo`.
    struct XenSysctlPcitopoinfo = "struct xen_sysctl_pcitopoinfo", 24 {
        0x00 num_devs: u32,
        0x04 _pad0: u32 = "",
        0x08 devs: u64,
        0x10 nodes: u64,
    }

    /// `XEN_SYSCTL_get_cpu_levelling_caps`.
    struct XenSysctlCpuLevellingCaps = "struct xen_sysctl_cpu_levelling_caps", 4 {
        /// `XEN_SYSCTL_CPU_LEVELCAP_*`.
        0x0 caps: u32,
    }

    /// `XEN_SYSCTL_get_cpu_featureset`.
    struct XenSysctlCpuFeatureset = "struct xen_sysctl_cpu_featureset", 16 {
        /// `XEN_SYSCTL_cpu_featureset_*`.
        0x0 index: u32,
        /// In: room. Out: words.
        0x4 nr_features: u32,
        /// Address of words (u32).
        0x8 features: u64,
    }

    /// `XEN_SYSCTL_get_cpu_policy`.
    struct XenSysctlCpuPolicy = "struct xen_sysctl_cpu_policy", 32 {
        /// `XEN_SYSCTL_cpu_policy_*`.
        0x00 index: u32,
        /// In: room. Out: leaves.
        0x04 nr_leaves: u32,
        /// In: room. Out: MSRs.
        0x08 nr_msrs: u32,
        0x0c _rsvd: u32,
        /// Address of [`crate::guest_context::XenCpuidLeaf`] elements; null asks for the number.
        0x10 leaves: u64,
        /// Address of [`crate::guest_context::XenMsrEntry`] elements; null asks for the number.
        0x18 msrs: u64,
    }

    /// Argument of `sysctl`.
    struct XenSysctl = "struct xen_sysctl", 0x88 {
        /// `XEN_SYSCTL_*`.
        0x0 cmd: u32,
        /// `XEN_SYSCTL_INTERFACE_VERSION`.
        0x4 interface_version: u32,
        /// One of the structures above, by `cmd`.
        0x8 u: [u64; PAYLOAD_BYTES / 8],
    }
}

crate::payload::impl_payload!(XenSysctl);

impl XenSysctl {
    /// An operation without argument.
    #[must_use]
    pub fn new(cmd: u32) -> Self {
        Self { cmd, interface_version: XEN_SYSCTL_INTERFACE_VERSION, ..Self::default() }
    }

    /// An operation with an argument.
    #[must_use]
    pub fn with<T: crate::payload::Payload>(cmd: u32, payload: &T) -> Self {
        let mut op = Self::new(cmd);
        op.set_payload(payload);
        op
    }
}
