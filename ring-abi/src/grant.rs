//! Grant tables: entries of both versions and every `grant_table_op`.

use crate::layout::{constants, wire};

constants! { "grant_table.h";
    GNTTAB_NR_RESERVED_ENTRIES: u32 = 8 => "GNTTAB_NR_RESERVED_ENTRIES";
    GNTTAB_RESERVED_CONSOLE: u32 = 0 => "GNTTAB_RESERVED_CONSOLE";
    GNTTAB_RESERVED_XENSTORE: u32 = 1 => "GNTTAB_RESERVED_XENSTORE";
    GTF_INVALID: u16 = 0 => "GTF_invalid";
    GTF_PERMIT_ACCESS: u16 = 1 => "GTF_permit_access";
    GTF_ACCEPT_TRANSFER: u16 = 2 => "GTF_accept_transfer";
    GTF_TRANSITIVE: u16 = 3 => "GTF_transitive";
    GTF_TYPE_MASK: u16 = 3 => "GTF_type_mask";
    GTF_READONLY: u16 = 4 => "GTF_readonly";
    GTF_READING: u16 = 8 => "GTF_reading";
    GTF_WRITING: u16 = 0x10 => "GTF_writing";
    GTF_PWT: u16 = 0x20 => "GTF_PWT";
    GTF_PCD: u16 = 0x40 => "GTF_PCD";
    GTF_PAT: u16 = 0x80 => "GTF_PAT";
    GTF_SUB_PAGE: u16 = 0x100 => "GTF_sub_page";
    GTF_TRANSFER_COMMITTED: u16 = 4 => "GTF_transfer_committed";
    GTF_TRANSFER_COMPLETED: u16 = 8 => "GTF_transfer_completed";
    GNTTABOP_MAP_GRANT_REF: u32 = 0 => "GNTTABOP_map_grant_ref";
    GNTTABOP_UNMAP_GRANT_REF: u32 = 1 => "GNTTABOP_unmap_grant_ref";
    GNTTABOP_SETUP_TABLE: u32 = 2 => "GNTTABOP_setup_table";
    GNTTABOP_DUMP_TABLE: u32 = 3 => "GNTTABOP_dump_table";
    GNTTABOP_TRANSFER: u32 = 4 => "GNTTABOP_transfer";
    GNTTABOP_COPY: u32 = 5 => "GNTTABOP_copy";
    GNTTABOP_QUERY_SIZE: u32 = 6 => "GNTTABOP_query_size";
    GNTTABOP_UNMAP_AND_REPLACE: u32 = 7 => "GNTTABOP_unmap_and_replace";
    GNTTABOP_SET_VERSION: u32 = 8 => "GNTTABOP_set_version";
    GNTTABOP_GET_STATUS_FRAMES: u32 = 9 => "GNTTABOP_get_status_frames";
    GNTTABOP_GET_VERSION: u32 = 10 => "GNTTABOP_get_version";
    GNTTABOP_SWAP_GRANT_REF: u32 = 11 => "GNTTABOP_swap_grant_ref";
    GNTTABOP_CACHE_FLUSH: u32 = 12 => "GNTTABOP_cache_flush";
    GNTCOPY_SOURCE_GREF: u16 = 1 => "GNTCOPY_source_gref";
    GNTCOPY_DEST_GREF: u16 = 2 => "GNTCOPY_dest_gref";
    GNTTAB_CACHE_CLEAN: u32 = 1 => "GNTTAB_CACHE_CLEAN";
    GNTTAB_CACHE_INVAL: u32 = 2 => "GNTTAB_CACHE_INVAL";
    GNTTAB_CACHE_SOURCE_GREF: u32 = 0x80000000 => "GNTTAB_CACHE_SOURCE_GREF";
    GNTMAP_DEVICE_MAP: u32 = 1 => "GNTMAP_device_map";
    GNTMAP_HOST_MAP: u32 = 2 => "GNTMAP_host_map";
    GNTMAP_READONLY: u32 = 4 => "GNTMAP_readonly";
    GNTMAP_APPLICATION_MAP: u32 = 8 => "GNTMAP_application_map";
    GNTMAP_CONTAINS_PTE: u32 = 0x10 => "GNTMAP_contains_pte";
    GNTMAP_GUEST_AVAIL_MASK: u32 = 0xffff0000 => "GNTMAP_guest_avail_mask";
    GNTST_OKAY: i16 = 0 => "GNTST_okay";
    GNTST_GENERAL_ERROR: i16 = -1 => "GNTST_general_error";
    GNTST_BAD_DOMAIN: i16 = -2 => "GNTST_bad_domain";
    GNTST_BAD_GNTREF: i16 = -3 => "GNTST_bad_gntref";
    GNTST_BAD_HANDLE: i16 = -4 => "GNTST_bad_handle";
    GNTST_BAD_VIRT_ADDR: i16 = -5 => "GNTST_bad_virt_addr";
    GNTST_BAD_DEV_ADDR: i16 = -6 => "GNTST_bad_dev_addr";
    GNTST_NO_DEVICE_SPACE: i16 = -7 => "GNTST_no_device_space";
    GNTST_PERMISSION_DENIED: i16 = -8 => "GNTST_permission_denied";
    GNTST_BAD_PAGE: i16 = -9 => "GNTST_bad_page";
    GNTST_BAD_COPY_ARG: i16 = -10 => "GNTST_bad_copy_arg";
    GNTST_ADDRESS_TOO_BIG: i16 = -11 => "GNTST_address_too_big";
    GNTST_EAGAIN: i16 = -12 => "GNTST_eagain";
    GNTST_NO_SPACE: i16 = -13 => "GNTST_no_space";
}

wire! { "grant_table.h";
    /// Grant entry, version 1.
    ///
    /// The hypervisor changes `flags` by compare-and-exchange over `flags` and `domid` together.
    struct GrantEntryV1 = "struct grant_entry_v1", 8 {
        /// `GTF_*`.
        0x0 flags: u16,
        /// The domain that is granted access.
        0x2 domid: u16,
        /// Frame granted, or transferred.
        0x4 frame: u32,
    }

    /// The first half of every version-2 entry.
    struct GrantEntryHeader = "struct grant_entry_header", 4 {
        /// `GTF_*`.
        0x0 flags: u16,
        /// The domain that is granted access.
        0x2 domid: u16,
    }

    /// Grant entry, version 2, read as a full-page or sub-page grant.
    struct GrantEntryV2 = "union grant_entry_v2", 16 {
        /// Flags and grantee.
        0x0 hdr: GrantEntryHeader,
        /// Sub-page: first byte.
        0x4 page_off: u16 = "sub_page.page_off",
        /// Sub-page: bytes.
        0x6 length: u16 = "sub_page.length",
        /// Frame granted.
        0x8 frame: u64 = "full_page.frame",
    }

    /// Grant entry, version 2, read as a transitive grant.
    struct GrantEntryV2Transitive = "union grant_entry_v2", 16 {
        /// Flags and grantee.
        0x0 hdr: GrantEntryHeader,
        /// The domain that granted `gref` to the owner of this entry.
        0x4 trans_domid: u16 = "transitive.trans_domid",
        0x6 pad0: u16 = "transitive.pad0",
        0x8 gref: u32 = "transitive.gref",
        0xc _pad1: u32 = "",
    }

    /// `GNTTABOP_map_grant_ref`.
    struct GnttabMapGrantRef = "struct gnttab_map_grant_ref", 32 {
        /// Address to map at, or machine address of the L1 entry (`GNTMAP_contains_pte`).
        0x00 host_addr: u64,
        /// `GNTMAP_*`.
        0x08 flags: u32,
        0x0c r#ref: u32,
        /// The domain that granted the frame.
        0x10 dom: u16,
        /// Out: `GNTST_*`.
        0x12 status: i16,
        /// Out: names the mapping.
        0x14 handle: u32,
        /// Out: machine address for devices.
        0x18 dev_bus_addr: u64,
    }

    /// `GNTTABOP_unmap_grant_ref`.
    struct GnttabUnmapGrantRef = "struct gnttab_unmap_grant_ref", 24 {
        /// As at mapping; 0 keeps the host mapping.
        0x00 host_addr: u64,
        /// As returned by mapping; 0 keeps the device mapping.
        0x08 dev_bus_addr: u64,
        0x10 handle: u32,
        /// Out: `GNTST_*`.
        0x14 status: i16,
        0x16 _pad0: u16 = "",
    }

    /// `GNTTABOP_setup_table`.
    struct GnttabSetupTable = "struct gnttab_setup_table", 24 {
        0x00 dom: u16,
        0x02 _pad0: u16 = "",
        0x04 nr_frames: u32,
        /// Out: `GNTST_*`.
        0x08 status: i16,
        0x0a _pad1: [u16; 3] = "",
        /// Address of `nr_frames` frame numbers (u64), written.
        0x10 frame_list: u64,
    }

    /// `GNTTABOP_dump_table`.
    struct GnttabDumpTable = "struct gnttab_dump_table", 4 {
        0x0 dom: u16,
        /// Out: `GNTST_*`.
        0x2 status: i16,
    }

    /// `GNTTABOP_transfer`.
    struct GnttabTransfer = "struct gnttab_transfer", 24 {
        0x00 mfn: u64,
        0x08 domid: u16,
        0x0a _pad0: u16 = "",
        0x0c r#ref: u32,
        /// Out: `GNTST_*`.
        0x10 status: i16,
        0x12 _pad1: [u16; 3] = "",
    }

    /// One side of a copy.
    struct GnttabCopyPtr = "struct gnttab_copy_ptr", 16 {
        /// Frame, or the grant reference in the low half.
        0x0 u: u64 = "u.gmfn",
        0x8 domid: u16,
        /// First byte within the page.
        0xa offset: u16,
        0xc _pad0: u32 = "",
    }

    /// `GNTTABOP_copy`.
    struct GnttabCopy = "struct gnttab_copy", 40 {
        0x00 source: GnttabCopyPtr,
        0x10 dest: GnttabCopyPtr,
        /// Bytes; neither side may cross a page.
        0x20 len: u16,
        /// `GNTCOPY_*`.
        0x22 flags: u16,
        /// Out: `GNTST_*`.
        0x24 status: i16,
        0x26 _pad0: u16 = "",
    }

    /// `GNTTABOP_query_size`.
    struct GnttabQuerySize = "struct gnttab_query_size", 16 {
        0x0 dom: u16,
        0x2 _pad0: u16 = "",
        /// Out: frames in use.
        0x4 nr_frames: u32,
        /// Out: frames allowed.
        0x8 max_nr_frames: u32,
        /// Out: `GNTST_*`.
        0xc status: i16,
        0xe _pad1: u16 = "",
    }

    /// `GNTTABOP_unmap_and_replace`.
    struct GnttabUnmapAndReplace = "struct gnttab_unmap_and_replace", 24 {
        0x00 host_addr: u64,
        /// Address whose mapping moves to `host_addr`.
        0x08 new_addr: u64,
        0x10 handle: u32,
        /// Out: `GNTST_*`.
        0x14 status: i16,
        0x16 _pad0: u16 = "",
    }

    /// `GNTTABOP_set_version`.
    struct GnttabSetVersion = "struct gnttab_set_version", 4 {
        /// In: version wanted. Out: version in force.
        0x0 version: u32,
    }

    /// `GNTTABOP_get_status_frames`.
    struct GnttabGetStatusFrames = "struct gnttab_get_status_frames", 16 {
        0x0 nr_frames: u32,
        0x4 dom: u16,
        /// Out: `GNTST_*`.
        0x6 status: i16,
        /// Address of `nr_frames` frame numbers (u64), written.
        0x8 frame_list: u64,
    }

    /// `GNTTABOP_get_version`.
    struct GnttabGetVersion = "struct gnttab_get_version", 8 {
        0x0 dom: u16,
        0x2 pad: u16,
        /// Out.
        0x4 version: u32,
    }

    /// `GNTTABOP_swap_grant_ref`.
    struct GnttabSwapGrantRef = "struct gnttab_swap_grant_ref", 12 {
        0x0 ref_a: u32,
        0x4 ref_b: u32,
        /// Out: `GNTST_*`.
        0x8 status: i16,
        0xa _pad0: u16 = "",
    }

    /// `GNTTABOP_cache_flush`.
    struct GnttabCacheFlush = "struct gnttab_cache_flush", 16 {
        /// Machine address, or a grant reference in the low half.
        0x0 a: u64,
        0x8 offset: u16,
        0xa length: u16,
        /// `GNTTAB_CACHE_*`.
        0xc op: u32,
    }
}

impl GrantEntryV2 {
    /// Read as a transitive grant.
    #[must_use]
    pub fn as_transitive(&self) -> GrantEntryV2Transitive {
        crate::payload::front(self)
    }
}
