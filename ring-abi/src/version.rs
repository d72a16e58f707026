//! `xen_version` and the feature bits.

use crate::layout::{constants, wire};

pub use features::*;

constants! { "version.h";
    XENVER_VERSION: u32 = 0 => "XENVER_version";
    XENVER_EXTRAVERSION: u32 = 1 => "XENVER_extraversion";
    XEN_EXTRAVERSION_LEN: u32 = 16 => "XEN_EXTRAVERSION_LEN";
    XENVER_COMPILE_INFO: u32 = 2 => "XENVER_compile_info";
    XENVER_CAPABILITIES: u32 = 3 => "XENVER_capabilities";
    XEN_CAPABILITIES_INFO_LEN: u32 = 1024 => "XEN_CAPABILITIES_INFO_LEN";
    XENVER_CHANGESET: u32 = 4 => "XENVER_changeset";
    XEN_CHANGESET_INFO_LEN: u32 = 64 => "XEN_CHANGESET_INFO_LEN";
    XENVER_PLATFORM_PARAMETERS: u32 = 5 => "XENVER_platform_parameters";
    XENVER_GET_FEATURES: u32 = 6 => "XENVER_get_features";
    XENVER_PAGESIZE: u32 = 7 => "XENVER_pagesize";
    XENVER_GUEST_HANDLE: u32 = 8 => "XENVER_guest_handle";
    XENVER_COMMANDLINE: u32 = 9 => "XENVER_commandline";
    XENVER_BUILD_ID: u32 = 10 => "XENVER_build_id";
}

wire! { "version.h";
    /// `XENVER_compile_info`; each member is NUL-terminated.
    struct XenCompileInfo = "struct xen_compile_info", 144 {
        0x00 compiler: [u8; 64],
        0x40 compile_by: [u8; 16],
        0x50 compile_domain: [u8; 32],
        0x70 compile_date: [u8; 32],
    }

    /// `XENVER_platform_parameters`.
    struct XenPlatformParameters = "struct xen_platform_parameters", 8 {
        /// First address of the hypervisor's range.
        0x0 virt_start: u64,
    }

    /// `XENVER_get_features`.
    struct XenFeatureInfo = "struct xen_feature_info", 8 {
        /// In: which 32 features.
        0x0 submap_idx: u32,
        /// Out: bit n is feature `32 * submap_idx + n`.
        0x4 submap: u32,
    }

    /// Head of `XENVER_build_id`'s argument; `len` bytes follow.
    struct XenBuildId = "struct xen_build_id", 4 {
        0x0 len: u32,
    }
}

/// Feature numbers.
pub mod features {
    use crate::layout::constants;

    constants! { "features.h";
        XENFEAT_WRITABLE_PAGE_TABLES: u32 = 0 => "XENFEAT_writable_page_tables";
        XENFEAT_WRITABLE_DESCRIPTOR_TABLES: u32 = 1 => "XENFEAT_writable_descriptor_tables";
        XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2 => "XENFEAT_auto_translated_physmap";
        XENFEAT_SUPERVISOR_MODE_KERNEL: u32 = 3 => "XENFEAT_supervisor_mode_kernel";
        XENFEAT_PAE_PGDIR_ABOVE_4GB: u32 = 4 => "XENFEAT_pae_pgdir_above_4gb";
        XENFEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5 => "XENFEAT_mmu_pt_update_preserve_ad";
        XENFEAT_HIGHMEM_ASSIST: u32 = 6 => "XENFEAT_highmem_assist";
        XENFEAT_GNTTAB_MAP_AVAIL_BITS: u32 = 7 => "XENFEAT_gnttab_map_avail_bits";
        XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8 => "XENFEAT_hvm_callback_vector";
        XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9 => "XENFEAT_hvm_safe_pvclock";
        XENFEAT_HVM_PIRQS: u32 = 10 => "XENFEAT_hvm_pirqs";
        XENFEAT_DOM0: u32 = 11 => "XENFEAT_dom0";
        XENFEAT_MEMORY_OP_VNODE_SUPPORTED: u32 = 13 => "XENFEAT_memory_op_vnode_supported";
        XENFEAT_ARM_SMCCC_SUPPORTED: u32 = 14 => "XENFEAT_ARM_SMCCC_supported";
        XENFEAT_LINUX_RSDP_UNRESTRICTED: u32 = 15 => "XENFEAT_linux_rsdp_unrestricted";
        XENFEAT_NOT_DIRECT_MAPPED: u32 = 16 => "XENFEAT_not_direct_mapped";
        XENFEAT_DIRECT_MAPPED: u32 = 17 => "XENFEAT_direct_mapped";
        XENFEAT_NR_SUBMAPS: u32 = 1 => "XENFEAT_NR_SUBMAPS";
    }
}
