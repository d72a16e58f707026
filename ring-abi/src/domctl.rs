//! `domctl`, interface version 4.17 (0x15): domains as the toolstack makes and controls them.
//!
//! [`XenDomctl`] carries a command and a union; [`XenDomctl::payload`] reads the union as one of the structures.

use crate::guest_context::XenArchDomainconfig;
use crate::layout::{constants, wire};

constants! { "domctl.h";
    XEN_DOMCTL_INTERFACE_VERSION: u32 = 0x15 => "XEN_DOMCTL_INTERFACE_VERSION";
    XEN_DOMCTL_CDF_HVM: u32 = 1 => "XEN_DOMCTL_CDF_hvm";
    XEN_DOMCTL_CDF_HAP: u32 = 2 => "XEN_DOMCTL_CDF_hap";
    XEN_DOMCTL_CDF_S3_INTEGRITY: u32 = 4 => "XEN_DOMCTL_CDF_s3_integrity";
    XEN_DOMCTL_CDF_OOS_OFF: u32 = 8 => "XEN_DOMCTL_CDF_oos_off";
    XEN_DOMCTL_CDF_XS_DOMAIN: u32 = 0x10 => "XEN_DOMCTL_CDF_xs_domain";
    XEN_DOMCTL_CDF_IOMMU: u32 = 0x20 => "XEN_DOMCTL_CDF_iommu";
    XEN_DOMCTL_CDF_NESTED_VIRT: u32 = 0x40 => "XEN_DOMCTL_CDF_nested_virt";
    XEN_DOMCTL_CDF_VPMU: u32 = 0x80 => "XEN_DOMCTL_CDF_vpmu";
    XEN_DOMCTL_CDF_MAX: u32 = 128 => "XEN_DOMCTL_CDF_MAX";
    XEN_DOMCTL_IOMMU_NO_SHAREPT: u32 = 1 => "XEN_DOMCTL_IOMMU_no_sharept";
    XEN_DOMCTL_IOMMU_MAX: u32 = 1 => "XEN_DOMCTL_IOMMU_MAX";
    XEN_DOMCTL_GRANT_VERSION_MASK: u32 = 0xf => "XEN_DOMCTL_GRANT_version_mask";
    XEN_DOMINF_DYING: u32 = 1 => "XEN_DOMINF_dying";
    XEN_DOMINF_HVM_GUEST: u32 = 2 => "XEN_DOMINF_hvm_guest";
    XEN_DOMINF_SHUTDOWN: u32 = 4 => "XEN_DOMINF_shutdown";
    XEN_DOMINF_PAUSED: u32 = 8 => "XEN_DOMINF_paused";
    XEN_DOMINF_BLOCKED: u32 = 0x10 => "XEN_DOMINF_blocked";
    XEN_DOMINF_RUNNING: u32 = 0x20 => "XEN_DOMINF_running";
    XEN_DOMINF_DEBUGGED: u32 = 0x40 => "XEN_DOMINF_debugged";
    XEN_DOMINF_XS_DOMAIN: u32 = 0x80 => "XEN_DOMINF_xs_domain";
    XEN_DOMINF_HAP: u32 = 0x100 => "XEN_DOMINF_hap";
    XEN_DOMINF_SHUTDOWNMASK: u32 = 255 => "XEN_DOMINF_shutdownmask";
    XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16 => "XEN_DOMINF_shutdownshift";
    XEN_INVALID_MAX_VCPU_ID: u32 = 0xffffffff => "XEN_INVALID_MAX_VCPU_ID";
    XEN_DOMCTL_PFINFO_LTAB_SHIFT: u32 = 28 => "XEN_DOMCTL_PFINFO_LTAB_SHIFT";
    XEN_DOMCTL_PFINFO_NOTAB: u32 = 0 => "XEN_DOMCTL_PFINFO_NOTAB";
    XEN_DOMCTL_PFINFO_L1TAB: u32 = 0x10000000 => "XEN_DOMCTL_PFINFO_L1TAB";
    XEN_DOMCTL_PFINFO_L2TAB: u32 = 0x20000000 => "XEN_DOMCTL_PFINFO_L2TAB";
    XEN_DOMCTL_PFINFO_L3TAB: u32 = 0x30000000 => "XEN_DOMCTL_PFINFO_L3TAB";
    XEN_DOMCTL_PFINFO_L4TAB: u32 = 0x40000000 => "XEN_DOMCTL_PFINFO_L4TAB";
    XEN_DOMCTL_PFINFO_LTABTYPE_MASK: u32 = 0x70000000 => "XEN_DOMCTL_PFINFO_LTABTYPE_MASK";
    XEN_DOMCTL_PFINFO_LPINTAB: u32 = 0x80000000 => "XEN_DOMCTL_PFINFO_LPINTAB";
    XEN_DOMCTL_PFINFO_XTAB: u32 = 0xf0000000 => "XEN_DOMCTL_PFINFO_XTAB";
    XEN_DOMCTL_PFINFO_XALLOC: u32 = 0xe0000000 => "XEN_DOMCTL_PFINFO_XALLOC";
    XEN_DOMCTL_PFINFO_BROKEN: u32 = 0xd0000000 => "XEN_DOMCTL_PFINFO_BROKEN";
    XEN_DOMCTL_PFINFO_LTAB_MASK: u32 = 0xf0000000 => "XEN_DOMCTL_PFINFO_LTAB_MASK";
    XEN_DOMCTL_SHADOW_OP_OFF: u32 = 0 => "XEN_DOMCTL_SHADOW_OP_OFF";
    XEN_DOMCTL_SHADOW_OP_ENABLE: u32 = 32 => "XEN_DOMCTL_SHADOW_OP_ENABLE";
    XEN_DOMCTL_SHADOW_OP_CLEAN: u32 = 11 => "XEN_DOMCTL_SHADOW_OP_CLEAN";
    XEN_DOMCTL_SHADOW_OP_PEEK: u32 = 12 => "XEN_DOMCTL_SHADOW_OP_PEEK";
    XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION: u32 = 30 => "XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION";
    XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION: u32 = 31 => "XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION";
    XEN_DOMCTL_SHADOW_OP_ENABLE_TEST: u32 = 1 => "XEN_DOMCTL_SHADOW_OP_ENABLE_TEST";
    XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: u32 = 2 => "XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY";
    XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT: u32 = 2 => "XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT";
    XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY: u32 = 4 => "XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY";
    XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE: u32 = 8 => "XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE";
    XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL: u32 = 0x10 => "XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL";
    XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL: u32 = 1 => "XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL";
    XEN_VCPUAFFINITY_HARD: u32 = 1 => "XEN_VCPUAFFINITY_HARD";
    XEN_VCPUAFFINITY_SOFT: u32 = 2 => "XEN_VCPUAFFINITY_SOFT";
    XEN_VCPUAFFINITY_FORCE: u32 = 4 => "XEN_VCPUAFFINITY_FORCE";
    XEN_SCHEDULER_CREDIT: u32 = 5 => "XEN_SCHEDULER_CREDIT";
    XEN_SCHEDULER_CREDIT2: u32 = 6 => "XEN_SCHEDULER_CREDIT2";
    XEN_SCHEDULER_ARINC653: u32 = 7 => "XEN_SCHEDULER_ARINC653";
    XEN_SCHEDULER_RTDS: u32 = 8 => "XEN_SCHEDULER_RTDS";
    XEN_SCHEDULER_NULL: u32 = 9 => "XEN_SCHEDULER_NULL";
    XEN_DOMCTL_SCHEDRT_EXTRA: u32 = 1 => "XEN_DOMCTL_SCHEDRT_extra";
    XEN_DOMCTL_SCHEDOP_PUTINFO: u32 = 0 => "XEN_DOMCTL_SCHEDOP_putinfo";
    XEN_DOMCTL_SCHEDOP_GETINFO: u32 = 1 => "XEN_DOMCTL_SCHEDOP_getinfo";
    XEN_DOMCTL_SCHEDOP_PUTVCPUINFO: u32 = 2 => "XEN_DOMCTL_SCHEDOP_putvcpuinfo";
    XEN_DOMCTL_SCHEDOP_GETVCPUINFO: u32 = 3 => "XEN_DOMCTL_SCHEDOP_getvcpuinfo";
    XEN_DOMCTL_SENDTRIGGER_NMI: u32 = 0 => "XEN_DOMCTL_SENDTRIGGER_NMI";
    XEN_DOMCTL_SENDTRIGGER_RESET: u32 = 1 => "XEN_DOMCTL_SENDTRIGGER_RESET";
    XEN_DOMCTL_SENDTRIGGER_INIT: u32 = 2 => "XEN_DOMCTL_SENDTRIGGER_INIT";
    XEN_DOMCTL_SENDTRIGGER_POWER: u32 = 3 => "XEN_DOMCTL_SENDTRIGGER_POWER";
    XEN_DOMCTL_SENDTRIGGER_SLEEP: u32 = 4 => "XEN_DOMCTL_SENDTRIGGER_SLEEP";
    XEN_DOMCTL_DEV_PCI: u32 = 0 => "XEN_DOMCTL_DEV_PCI";
    XEN_DOMCTL_DEV_DT: u32 = 1 => "XEN_DOMCTL_DEV_DT";
    XEN_DOMCTL_DEV_RDM_RELAXED: u32 = 1 => "XEN_DOMCTL_DEV_RDM_RELAXED";
    XEN_DOMCTL_VMSI_X86_DEST_ID_MASK: u32 = 0xff => "XEN_DOMCTL_VMSI_X86_DEST_ID_MASK";
    XEN_DOMCTL_VMSI_X86_RH_MASK: u32 = 0x100 => "XEN_DOMCTL_VMSI_X86_RH_MASK";
    XEN_DOMCTL_VMSI_X86_DM_MASK: u32 = 0x200 => "XEN_DOMCTL_VMSI_X86_DM_MASK";
    XEN_DOMCTL_VMSI_X86_DELIV_MASK: u32 = 0x7000 => "XEN_DOMCTL_VMSI_X86_DELIV_MASK";
    XEN_DOMCTL_VMSI_X86_TRIG_MASK: u32 = 0x8000 => "XEN_DOMCTL_VMSI_X86_TRIG_MASK";
    XEN_DOMCTL_VMSI_X86_UNMASKED: u32 = 0x10000 => "XEN_DOMCTL_VMSI_X86_UNMASKED";
    DPCI_ADD_MAPPING: u32 = 1 => "DPCI_ADD_MAPPING";
    DPCI_REMOVE_MAPPING: u32 = 0 => "DPCI_REMOVE_MAPPING";
    XEN_DOMCTL_MEM_CACHEATTR_UC: u32 = 0 => "XEN_DOMCTL_MEM_CACHEATTR_UC";
    XEN_DOMCTL_MEM_CACHEATTR_WC: u32 = 1 => "XEN_DOMCTL_MEM_CACHEATTR_WC";
    XEN_DOMCTL_MEM_CACHEATTR_WT: u32 = 4 => "XEN_DOMCTL_MEM_CACHEATTR_WT";
    XEN_DOMCTL_MEM_CACHEATTR_WP: u32 = 5 => "XEN_DOMCTL_MEM_CACHEATTR_WP";
    XEN_DOMCTL_MEM_CACHEATTR_WB: u32 = 6 => "XEN_DOMCTL_MEM_CACHEATTR_WB";
    XEN_DOMCTL_MEM_CACHEATTR_UCM: u32 = 7 => "XEN_DOMCTL_MEM_CACHEATTR_UCM";
    XEN_DOMCTL_DELETE_MEM_CACHEATTR: u32 = 0xffffffff => "XEN_DOMCTL_DELETE_MEM_CACHEATTR";
    XEN_CPUID_INPUT_UNUSED: u32 = 0xffffffff => "XEN_CPUID_INPUT_UNUSED";
    XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF: u32 = 0 => "XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF";
    XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON: u32 = 1 => "XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON";
    XEN_VM_EVENT_ENABLE: u32 = 0 => "XEN_VM_EVENT_ENABLE";
    XEN_VM_EVENT_DISABLE: u32 = 1 => "XEN_VM_EVENT_DISABLE";
    XEN_VM_EVENT_RESUME: u32 = 2 => "XEN_VM_EVENT_RESUME";
    XEN_VM_EVENT_GET_VERSION: u32 = 3 => "XEN_VM_EVENT_GET_VERSION";
    XEN_DOMCTL_VM_EVENT_OP_PAGING: u32 = 1 => "XEN_DOMCTL_VM_EVENT_OP_PAGING";
    XEN_DOMCTL_VM_EVENT_OP_MONITOR: u32 = 2 => "XEN_DOMCTL_VM_EVENT_OP_MONITOR";
    XEN_DOMCTL_VM_EVENT_OP_SHARING: u32 = 3 => "XEN_DOMCTL_VM_EVENT_OP_SHARING";
    XEN_DOMCTL_MEM_SHARING_CONTROL: u32 = 0 => "XEN_DOMCTL_MEM_SHARING_CONTROL";
    XEN_DOMCTL_PSR_CMT_OP_DETACH: u32 = 0 => "XEN_DOMCTL_PSR_CMT_OP_DETACH";
    XEN_DOMCTL_PSR_CMT_OP_ATTACH: u32 = 1 => "XEN_DOMCTL_PSR_CMT_OP_ATTACH";
    XEN_DOMCTL_PSR_CMT_OP_QUERY_RMID: u32 = 2 => "XEN_DOMCTL_PSR_CMT_OP_QUERY_RMID";
    XEN_DOMCTL_MONITOR_OP_ENABLE: u32 = 0 => "XEN_DOMCTL_MONITOR_OP_ENABLE";
    XEN_DOMCTL_MONITOR_OP_DISABLE: u32 = 1 => "XEN_DOMCTL_MONITOR_OP_DISABLE";
    XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES: u32 = 2 => "XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES";
    XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP: u32 = 3 => "XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP";
    XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS: u32 = 4 => "XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS";
    XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG: u32 = 0 => "XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG";
    XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR: u32 = 1 => "XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR";
    XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP: u32 = 2 => "XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP";
    XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT: u32 = 3 => "XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT";
    XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST: u32 = 4 => "XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST";
    XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION: u32 = 5 => "XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION";
    XEN_DOMCTL_MONITOR_EVENT_CPUID: u32 = 6 => "XEN_DOMCTL_MONITOR_EVENT_CPUID";
    XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL: u32 = 7 => "XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL";
    XEN_DOMCTL_MONITOR_EVENT_INTERRUPT: u32 = 8 => "XEN_DOMCTL_MONITOR_EVENT_INTERRUPT";
    XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS: u32 = 9 => "XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS";
    XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED: u32 = 10 => "XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED";
    XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT: u32 = 11 => "XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT";
    XEN_DOMCTL_MONITOR_EVENT_VMEXIT: u32 = 12 => "XEN_DOMCTL_MONITOR_EVENT_VMEXIT";
    XEN_DOMCTL_PSR_SET_L3_CBM: u32 = 0 => "XEN_DOMCTL_PSR_SET_L3_CBM";
    XEN_DOMCTL_PSR_GET_L3_CBM: u32 = 1 => "XEN_DOMCTL_PSR_GET_L3_CBM";
    XEN_DOMCTL_PSR_SET_L3_CODE: u32 = 2 => "XEN_DOMCTL_PSR_SET_L3_CODE";
    XEN_DOMCTL_PSR_SET_L3_DATA: u32 = 3 => "XEN_DOMCTL_PSR_SET_L3_DATA";
    XEN_DOMCTL_PSR_GET_L3_CODE: u32 = 4 => "XEN_DOMCTL_PSR_GET_L3_CODE";
    XEN_DOMCTL_PSR_GET_L3_DATA: u32 = 5 => "XEN_DOMCTL_PSR_GET_L3_DATA";
    XEN_DOMCTL_PSR_SET_L2_CBM: u32 = 6 => "XEN_DOMCTL_PSR_SET_L2_CBM";
    XEN_DOMCTL_PSR_GET_L2_CBM: u32 = 7 => "XEN_DOMCTL_PSR_GET_L2_CBM";
    XEN_DOMCTL_PSR_SET_MBA_THRTL: u32 = 8 => "XEN_DOMCTL_PSR_SET_MBA_THRTL";
    XEN_DOMCTL_PSR_GET_MBA_THRTL: u32 = 9 => "XEN_DOMCTL_PSR_GET_MBA_THRTL";
    XEN_DOMCTL_VUART_OP_INIT: u32 = 0 => "XEN_DOMCTL_VUART_OP_INIT";
    XEN_DOMCTL_VUART_TYPE_VPL011: u32 = 0 => "XEN_DOMCTL_VUART_TYPE_VPL011";
    XEN_DOMCTL_VMTRACE_ENABLE: u32 = 1 => "XEN_DOMCTL_vmtrace_enable";
    XEN_DOMCTL_VMTRACE_DISABLE: u32 = 2 => "XEN_DOMCTL_vmtrace_disable";
    XEN_DOMCTL_VMTRACE_RESET_AND_ENABLE: u32 = 3 => "XEN_DOMCTL_vmtrace_reset_and_enable";
    XEN_DOMCTL_VMTRACE_OUTPUT_POSITION: u32 = 4 => "XEN_DOMCTL_vmtrace_output_position";
    XEN_DOMCTL_VMTRACE_GET_OPTION: u32 = 5 => "XEN_DOMCTL_vmtrace_get_option";
    XEN_DOMCTL_VMTRACE_SET_OPTION: u32 = 6 => "XEN_DOMCTL_vmtrace_set_option";
    XEN_DOMCTL_CREATEDOMAIN: u32 = 1 => "XEN_DOMCTL_createdomain";
    XEN_DOMCTL_DESTROYDOMAIN: u32 = 2 => "XEN_DOMCTL_destroydomain";
    XEN_DOMCTL_PAUSEDOMAIN: u32 = 3 => "XEN_DOMCTL_pausedomain";
    XEN_DOMCTL_UNPAUSEDOMAIN: u32 = 4 => "XEN_DOMCTL_unpausedomain";
    XEN_DOMCTL_GETDOMAININFO: u32 = 5 => "XEN_DOMCTL_getdomaininfo";
    XEN_DOMCTL_SETVCPUAFFINITY: u32 = 9 => "XEN_DOMCTL_setvcpuaffinity";
    XEN_DOMCTL_SHADOW_OP: u32 = 10 => "XEN_DOMCTL_shadow_op";
    XEN_DOMCTL_MAX_MEM: u32 = 11 => "XEN_DOMCTL_max_mem";
    XEN_DOMCTL_SETVCPUCONTEXT: u32 = 12 => "XEN_DOMCTL_setvcpucontext";
    XEN_DOMCTL_GETVCPUCONTEXT: u32 = 13 => "XEN_DOMCTL_getvcpucontext";
    XEN_DOMCTL_GETVCPUINFO: u32 = 14 => "XEN_DOMCTL_getvcpuinfo";
    XEN_DOMCTL_MAX_VCPUS: u32 = 15 => "XEN_DOMCTL_max_vcpus";
    XEN_DOMCTL_SCHEDULER_OP: u32 = 16 => "XEN_DOMCTL_scheduler_op";
    XEN_DOMCTL_SETDOMAINHANDLE: u32 = 17 => "XEN_DOMCTL_setdomainhandle";
    XEN_DOMCTL_SETDEBUGGING: u32 = 18 => "XEN_DOMCTL_setdebugging";
    XEN_DOMCTL_IRQ_PERMISSION: u32 = 19 => "XEN_DOMCTL_irq_permission";
    XEN_DOMCTL_IOMEM_PERMISSION: u32 = 20 => "XEN_DOMCTL_iomem_permission";
    XEN_DOMCTL_IOPORT_PERMISSION: u32 = 21 => "XEN_DOMCTL_ioport_permission";
    XEN_DOMCTL_HYPERCALL_INIT: u32 = 22 => "XEN_DOMCTL_hypercall_init";
    XEN_DOMCTL_SETTIMEOFFSET: u32 = 24 => "XEN_DOMCTL_settimeoffset";
    XEN_DOMCTL_GETVCPUAFFINITY: u32 = 25 => "XEN_DOMCTL_getvcpuaffinity";
    XEN_DOMCTL_REAL_MODE_AREA: u32 = 26 => "XEN_DOMCTL_real_mode_area";
    XEN_DOMCTL_RESUMEDOMAIN: u32 = 27 => "XEN_DOMCTL_resumedomain";
    XEN_DOMCTL_SENDTRIGGER: u32 = 28 => "XEN_DOMCTL_sendtrigger";
    XEN_DOMCTL_SUBSCRIBE: u32 = 29 => "XEN_DOMCTL_subscribe";
    XEN_DOMCTL_GETHVMCONTEXT: u32 = 33 => "XEN_DOMCTL_gethvmcontext";
    XEN_DOMCTL_SETHVMCONTEXT: u32 = 34 => "XEN_DOMCTL_sethvmcontext";
    XEN_DOMCTL_SET_ADDRESS_SIZE: u32 = 35 => "XEN_DOMCTL_set_address_size";
    XEN_DOMCTL_GET_ADDRESS_SIZE: u32 = 36 => "XEN_DOMCTL_get_address_size";
    XEN_DOMCTL_ASSIGN_DEVICE: u32 = 37 => "XEN_DOMCTL_assign_device";
    XEN_DOMCTL_BIND_PT_IRQ: u32 = 38 => "XEN_DOMCTL_bind_pt_irq";
    XEN_DOMCTL_MEMORY_MAPPING: u32 = 39 => "XEN_DOMCTL_memory_mapping";
    XEN_DOMCTL_IOPORT_MAPPING: u32 = 40 => "XEN_DOMCTL_ioport_mapping";
    XEN_DOMCTL_SET_EXT_VCPUCONTEXT: u32 = 42 => "XEN_DOMCTL_set_ext_vcpucontext";
    XEN_DOMCTL_GET_EXT_VCPUCONTEXT: u32 = 43 => "XEN_DOMCTL_get_ext_vcpucontext";
    XEN_DOMCTL_SET_OPT_FEATURE: u32 = 44 => "XEN_DOMCTL_set_opt_feature";
    XEN_DOMCTL_TEST_ASSIGN_DEVICE: u32 = 45 => "XEN_DOMCTL_test_assign_device";
    XEN_DOMCTL_SET_TARGET: u32 = 46 => "XEN_DOMCTL_set_target";
    XEN_DOMCTL_DEASSIGN_DEVICE: u32 = 47 => "XEN_DOMCTL_deassign_device";
    XEN_DOMCTL_UNBIND_PT_IRQ: u32 = 48 => "XEN_DOMCTL_unbind_pt_irq";
    XEN_DOMCTL_GET_DEVICE_GROUP: u32 = 50 => "XEN_DOMCTL_get_device_group";
    XEN_DOMCTL_DEBUG_OP: u32 = 54 => "XEN_DOMCTL_debug_op";
    XEN_DOMCTL_GETHVMCONTEXT_PARTIAL: u32 = 55 => "XEN_DOMCTL_gethvmcontext_partial";
    XEN_DOMCTL_VM_EVENT_OP: u32 = 56 => "XEN_DOMCTL_vm_event_op";
    XEN_DOMCTL_MEM_SHARING_OP: u32 = 57 => "XEN_DOMCTL_mem_sharing_op";
    XEN_DOMCTL_GETTSCINFO: u32 = 59 => "XEN_DOMCTL_gettscinfo";
    XEN_DOMCTL_SETTSCINFO: u32 = 60 => "XEN_DOMCTL_settscinfo";
    XEN_DOMCTL_GETPAGEFRAMEINFO3: u32 = 61 => "XEN_DOMCTL_getpageframeinfo3";
    XEN_DOMCTL_SETVCPUEXTSTATE: u32 = 62 => "XEN_DOMCTL_setvcpuextstate";
    XEN_DOMCTL_GETVCPUEXTSTATE: u32 = 63 => "XEN_DOMCTL_getvcpuextstate";
    XEN_DOMCTL_SET_ACCESS_REQUIRED: u32 = 64 => "XEN_DOMCTL_set_access_required";
    XEN_DOMCTL_AUDIT_P2M: u32 = 65 => "XEN_DOMCTL_audit_p2m";
    XEN_DOMCTL_SET_VIRQ_HANDLER: u32 = 66 => "XEN_DOMCTL_set_virq_handler";
    XEN_DOMCTL_SET_BROKEN_PAGE_P2M: u32 = 67 => "XEN_DOMCTL_set_broken_page_p2m";
    XEN_DOMCTL_SETNODEAFFINITY: u32 = 68 => "XEN_DOMCTL_setnodeaffinity";
    XEN_DOMCTL_GETNODEAFFINITY: u32 = 69 => "XEN_DOMCTL_getnodeaffinity";
    XEN_DOMCTL_CACHEFLUSH: u32 = 71 => "XEN_DOMCTL_cacheflush";
    XEN_DOMCTL_GET_VCPU_MSRS: u32 = 72 => "XEN_DOMCTL_get_vcpu_msrs";
    XEN_DOMCTL_SET_VCPU_MSRS: u32 = 73 => "XEN_DOMCTL_set_vcpu_msrs";
    XEN_DOMCTL_SETVNUMAINFO: u32 = 74 => "XEN_DOMCTL_setvnumainfo";
    XEN_DOMCTL_PSR_CMT_OP: u32 = 75 => "XEN_DOMCTL_psr_cmt_op";
    XEN_DOMCTL_MONITOR_OP: u32 = 77 => "XEN_DOMCTL_monitor_op";
    XEN_DOMCTL_PSR_ALLOC: u32 = 78 => "XEN_DOMCTL_psr_alloc";
    XEN_DOMCTL_SOFT_RESET: u32 = 79 => "XEN_DOMCTL_soft_reset";
    XEN_DOMCTL_VUART_OP: u32 = 81 => "XEN_DOMCTL_vuart_op";
    XEN_DOMCTL_GET_CPU_POLICY: u32 = 82 => "XEN_DOMCTL_get_cpu_policy";
    XEN_DOMCTL_SET_CPU_POLICY: u32 = 83 => "XEN_DOMCTL_set_cpu_policy";
    XEN_DOMCTL_VMTRACE_OP: u32 = 84 => "XEN_DOMCTL_vmtrace_op";
    XEN_DOMCTL_GET_PAGING_MEMPOOL_SIZE: u32 = 85 => "XEN_DOMCTL_get_paging_mempool_size";
    XEN_DOMCTL_SET_PAGING_MEMPOOL_SIZE: u32 = 86 => "XEN_DOMCTL_set_paging_mempool_size";
    XEN_DOMCTL_GDBSX_GUESTMEMIO: u32 = 1000 => "XEN_DOMCTL_gdbsx_guestmemio";
    XEN_DOMCTL_GDBSX_PAUSEVCPU: u32 = 1001 => "XEN_DOMCTL_gdbsx_pausevcpu";
    XEN_DOMCTL_GDBSX_UNPAUSEVCPU: u32 = 1002 => "XEN_DOMCTL_gdbsx_unpausevcpu";
    XEN_DOMCTL_GDBSX_DOMSTATUS: u32 = 1003 => "XEN_DOMCTL_gdbsx_domstatus";
}

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
        /// Highest port that may be used.
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
