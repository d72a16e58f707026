//! `memory_op`.

use crate::layout::{constants, wire};

constants! { "memory.h";
    XENMEM_INCREASE_RESERVATION: u32 = 0 => "XENMEM_increase_reservation";
    XENMEM_DECREASE_RESERVATION: u32 = 1 => "XENMEM_decrease_reservation";
    XENMEM_POPULATE_PHYSMAP: u32 = 6 => "XENMEM_populate_physmap";
    XENMEMF_POPULATE_ON_DEMAND: u32 = 0x10000 => "XENMEMF_populate_on_demand";
    XENMEMF_EXACT_NODE_REQUEST: u32 = 0x20000 => "XENMEMF_exact_node_request";
    XENMEMF_VNODE: u32 = 0x40000 => "XENMEMF_vnode";
    XENMEM_EXCHANGE: u32 = 11 => "XENMEM_exchange";
    XENMEM_MAXIMUM_RAM_PAGE: u32 = 2 => "XENMEM_maximum_ram_page";
    XENMEM_CURRENT_RESERVATION: u32 = 3 => "XENMEM_current_reservation";
    XENMEM_MAXIMUM_RESERVATION: u32 = 4 => "XENMEM_maximum_reservation";
    XENMEM_MAXIMUM_GPFN: u32 = 14 => "XENMEM_maximum_gpfn";
    XENMEM_MACHPHYS_MFN_LIST: u32 = 5 => "XENMEM_machphys_mfn_list";
    XENMEM_MACHPHYS_COMPAT_MFN_LIST: u32 = 25 => "XENMEM_machphys_compat_mfn_list";
    XENMEM_MACHPHYS_MAPPING: u32 = 12 => "XENMEM_machphys_mapping";
    XENMAPSPACE_SHARED_INFO: u32 = 0 => "XENMAPSPACE_shared_info";
    XENMAPSPACE_GRANT_TABLE: u32 = 1 => "XENMAPSPACE_grant_table";
    XENMAPSPACE_GMFN: u32 = 2 => "XENMAPSPACE_gmfn";
    XENMAPSPACE_GMFN_RANGE: u32 = 3 => "XENMAPSPACE_gmfn_range";
    XENMAPSPACE_GMFN_FOREIGN: u32 = 4 => "XENMAPSPACE_gmfn_foreign";
    XENMAPSPACE_DEV_MMIO: u32 = 5 => "XENMAPSPACE_dev_mmio";
    XENMEM_ADD_TO_PHYSMAP: u32 = 7 => "XENMEM_add_to_physmap";
    XENMAPIDX_GRANT_TABLE_STATUS: u32 = 0x80000000 => "XENMAPIDX_grant_table_status";
    XENMEM_ADD_TO_PHYSMAP_BATCH: u32 = 23 => "XENMEM_add_to_physmap_batch";
    XENMEM_REMOVE_FROM_PHYSMAP: u32 = 15 => "XENMEM_remove_from_physmap";
    XENMEM_MEMORY_MAP: u32 = 9 => "XENMEM_memory_map";
    XENMEM_MACHINE_MEMORY_MAP: u32 = 10 => "XENMEM_machine_memory_map";
    XENMEM_SET_MEMORY_MAP: u32 = 13 => "XENMEM_set_memory_map";
    XENMEM_SET_POD_TARGET: u32 = 16 => "XENMEM_set_pod_target";
    XENMEM_GET_POD_TARGET: u32 = 17 => "XENMEM_get_pod_target";
    XENMEM_GET_SHARING_FREED_PAGES: u32 = 18 => "XENMEM_get_sharing_freed_pages";
    XENMEM_GET_SHARING_SHARED_PAGES: u32 = 19 => "XENMEM_get_sharing_shared_pages";
    XENMEM_PAGING_OP: u32 = 20 => "XENMEM_paging_op";
    XENMEM_PAGING_OP_NOMINATE: u32 = 0 => "XENMEM_paging_op_nominate";
    XENMEM_PAGING_OP_EVICT: u32 = 1 => "XENMEM_paging_op_evict";
    XENMEM_PAGING_OP_PREP: u32 = 2 => "XENMEM_paging_op_prep";
    XENMEM_ACCESS_OP: u32 = 21 => "XENMEM_access_op";
    XENMEM_ACCESS_OP_SET_ACCESS: u32 = 0 => "XENMEM_access_op_set_access";
    XENMEM_ACCESS_OP_GET_ACCESS: u32 = 1 => "XENMEM_access_op_get_access";
    XENMEM_ACCESS_OP_SET_ACCESS_MULTI: u32 = 4 => "XENMEM_access_op_set_access_multi";
    XENMEM_SHARING_OP: u32 = 22 => "XENMEM_sharing_op";
    XENMEM_SHARING_OP_NOMINATE_GFN: u32 = 0 => "XENMEM_sharing_op_nominate_gfn";
    XENMEM_SHARING_OP_NOMINATE_GREF: u32 = 1 => "XENMEM_sharing_op_nominate_gref";
    XENMEM_SHARING_OP_SHARE: u32 = 2 => "XENMEM_sharing_op_share";
    XENMEM_SHARING_OP_DEBUG_GFN: u32 = 3 => "XENMEM_sharing_op_debug_gfn";
    XENMEM_SHARING_OP_DEBUG_MFN: u32 = 4 => "XENMEM_sharing_op_debug_mfn";
    XENMEM_SHARING_OP_DEBUG_GREF: u32 = 5 => "XENMEM_sharing_op_debug_gref";
    XENMEM_SHARING_OP_ADD_PHYSMAP: u32 = 6 => "XENMEM_sharing_op_add_physmap";
    XENMEM_SHARING_OP_AUDIT: u32 = 7 => "XENMEM_sharing_op_audit";
    XENMEM_SHARING_OP_RANGE_SHARE: u32 = 8 => "XENMEM_sharing_op_range_share";
    XENMEM_SHARING_OP_FORK: u32 = 9 => "XENMEM_sharing_op_fork";
    XENMEM_SHARING_OP_FORK_RESET: u32 = 10 => "XENMEM_sharing_op_fork_reset";
    XENMEM_FORK_WITH_IOMMU_ALLOWED: u32 = 1 => "XENMEM_FORK_WITH_IOMMU_ALLOWED";
    XENMEM_FORK_BLOCK_INTERRUPTS: u32 = 2 => "XENMEM_FORK_BLOCK_INTERRUPTS";
    XENMEM_FORK_RESET_STATE: u32 = 4 => "XENMEM_FORK_RESET_STATE";
    XENMEM_FORK_RESET_MEMORY: u32 = 8 => "XENMEM_FORK_RESET_MEMORY";
    XENMEM_CLAIM_PAGES: u32 = 24 => "XENMEM_claim_pages";
    XENMEM_RESERVED_DEVICE_MEMORY_MAP: u32 = 27 => "XENMEM_reserved_device_memory_map";
    XENMEM_RDM_ALL: u32 = 1 => "XENMEM_RDM_ALL";
    XENMEM_ACQUIRE_RESOURCE: u32 = 28 => "XENMEM_acquire_resource";
    XENMEM_RESOURCE_IOREQ_SERVER: u32 = 0 => "XENMEM_resource_ioreq_server";
    XENMEM_RESOURCE_GRANT_TABLE: u32 = 1 => "XENMEM_resource_grant_table";
    XENMEM_RESOURCE_VMTRACE_BUF: u32 = 2 => "XENMEM_resource_vmtrace_buf";
    XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0 => "XENMEM_resource_grant_table_id_shared";
    XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS: u32 = 1 => "XENMEM_resource_grant_table_id_status";
    XENMEM_RESOURCE_IOREQ_SERVER_FRAME_BUFIOREQ: u32 = 0 => "XENMEM_resource_ioreq_server_frame_bufioreq";
    XENMEM_GET_VNUMAINFO: u32 = 26 => "XENMEM_get_vnumainfo";
}

wire! { "memory.h";
    /// `XENMEM_increase_reservation`, `XENMEM_decrease_reservation`, `XENMEM_populate_physmap` and
    /// `XENMEM_claim_pages`.
    struct XenMemoryReservation = "struct xen_memory_reservation", 32 {
        /// Address of frame numbers (u64), in or out by operation.
        0x00 extent_start: u64,
        0x08 nr_extents: u64,
        /// Each extent is 2^order frames.
        0x10 extent_order: u32,
        /// `XENMEMF_*`; bits 0-7 limit the address bits.
        0x14 mem_flags: u32,
        0x18 domid: u16,
        0x1a _pad0: [u16; 3] = "",
    }

    /// `XENMEM_exchange`.
    struct XenMemoryExchange = "struct xen_memory_exchange", 72 {
        0x00 r#in: XenMemoryReservation,
        0x20 out: XenMemoryReservation,
        /// In: 0. Out: input extents exchanged.
        0x40 nr_exchanged: u64,
    }

    /// Domain asked about by `XENMEM_current_reservation`, `_maximum_reservation` and `_maximum_gpfn`.
    struct XenMemoryDomain = "struct xen_memory_domain", 2 {
        0x0 domid: u16,
    }

    /// `XENMEM_machphys_mfn_list`: frames of the M2P, 2 MiB each.
    struct XenMachphysMfnList = "struct xen_machphys_mfn_list", 24 {
        0x00 max_extents: u32,
        0x04 _pad0: u32 = "",
        /// Address of frame numbers (u64), written.
        0x08 extent_start: u64,
        /// Out.
        0x10 nr_extents: u32,
        0x14 _pad1: u32 = "",
    }

    /// `XENMEM_machphys_mapping`: where the M2P is.
    struct XenMachphysMapping = "struct xen_machphys_mapping", 24 {
        0x00 v_start: u64,
        0x08 v_end: u64,
        0x10 max_mfn: u64,
    }

    /// `XENMEM_add_to_physmap`.
    struct XenAddToPhysmap = "struct xen_add_to_physmap", 24 {
        0x00 domid: u16,
        /// Pages, for `XENMAPSPACE_gmfn_range`.
        0x02 size: u16,
        /// `XENMAPSPACE_*`.
        0x04 space: u32,
        0x08 idx: u64,
        0x10 gpfn: u64,
    }

    /// `XENMEM_add_to_physmap_batch`.
    struct XenAddToPhysmapBatch = "struct xen_add_to_physmap_batch", 32 {
        0x00 domid: u16,
        /// `XENMAPSPACE_*`.
        0x02 space: u16,
        0x04 size: u16,
        /// Owner of the frames, for `XENMAPSPACE_gmfn_foreign`.
        0x06 foreign_domid: u16 = "u.foreign_domid",
        0x08 idxs: u64,
        0x10 gpfns: u64,
        0x18 errs: u64,
    }

    /// `XENMEM_remove_from_physmap`.
    struct XenRemoveFromPhysmap = "struct xen_remove_from_physmap", 16 {
        0x0 domid: u16,
        0x2 _pad0: [u16; 3] = "",
        0x8 gpfn: u64,
    }

    /// `XENMEM_memory_map` and `XENMEM_machine_memory_map`: the E820 map.
    struct XenMemoryMap = "struct xen_memory_map", 16 {
        /// In: number of entries that fit. Out: number of entries written.
        0x0 nr_entries: u32,
        0x4 _pad0: u32 = "",
        /// Address of [`E820Entry`] elements.
        0x8 buffer: u64,
    }

    /// `XENMEM_set_memory_map`.
    struct XenForeignMemoryMap = "struct xen_foreign_memory_map", 24 {
        0x0 domid: u16,
        0x2 _pad0: [u16; 3] = "",
        0x8 map: XenMemoryMap,
    }

    /// `XENMEM_set_pod_target` and `XENMEM_get_pod_target`.
    struct XenPodTarget = "xen_pod_target_t", 40 {
        0x00 target_pages: u64,
        0x08 tot_pages: u64,
        0x10 pod_cache_pages: u64,
        0x18 pod_entries: u64,
        0x20 domid: u16,
        0x22 _pad0: [u16; 3] = "",
    }

    /// One range of `XENMEM_reserved_device_memory_map`.
    struct XenReservedDeviceMemory = "struct xen_reserved_device_memory", 16 {
        0x0 start_pfn: u64,
        0x8 nr_pages: u64,
    }

    /// `XENMEM_reserved_device_memory_map`.
    struct XenReservedDeviceMemoryMap = "struct xen_reserved_device_memory_map", 24 {
        0x00 flags: u32,
        0x04 nr_entries: u32,
        0x08 buffer: u64,
        /// A `physdev_pci_device`: segment, bus, devfn.
        0x10 dev: [u16; 2],
        0x14 _pad0: u32 = "",
    }

    /// `XENMEM_acquire_resource`.
    struct XenMemAcquireResource = "struct xen_mem_acquire_resource", 32 {
        0x00 domid: u16,
        /// `XENMEM_resource_*`.
        0x02 r#type: u16,
        0x04 id: u32,
        /// 0 with a null list asks for the size of the resource.
        0x08 nr_frames: u32,
        0x0c pad: u32,
        /// First frame wanted.
        0x10 frame: u64,
        /// Address of frame numbers (u64); written for a PV caller.
        0x18 frame_list: u64,
    }

    /// One memory range of a virtual NUMA node.
    struct XenVmemrange = "struct xen_vmemrange", 24 {
        0x00 start: u64,
        0x08 end: u64,
        0x10 flags: u32,
        0x14 nid: u32,
    }

    /// `XENMEM_get_vnumainfo`.
    struct XenVnumaTopologyInfo = "struct xen_vnuma_topology_info", 40 {
        0x00 domid: u16,
        0x02 pad: u16,
        0x04 nr_vnodes: u32,
        0x08 nr_vcpus: u32,
        0x0c nr_vmemranges: u32,
        0x10 vdistance: u64,
        0x18 vcpu_to_vnode: u64,
        0x20 vmemrange: u64,
    }
}

/// One entry of an E820 map: 20 bytes, unaligned in C.
///
/// ABI: `struct e820entry` of the PC BIOS as Xen passes it; described in `xen/include/public/memory.h` as "the
/// format returned by the BIOS".
#[repr(C, packed(4))]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct E820Entry {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// `E820_*`.
    pub r#type: u32,
}
const _: () = assert!(size_of::<E820Entry>() == 20);

/// Usable memory.
pub const E820_RAM: u32 = 1;
/// Not usable.
pub const E820_RESERVED: u32 = 2;
/// ACPI tables; a kernel may use this memory once the kernel has read the tables.
pub const E820_ACPI: u32 = 3;
/// ACPI firmware memory, never usable.
pub const E820_NVS: u32 = 4;
/// Memory with errors.
pub const E820_UNUSABLE: u32 = 5;
