//! Page-table hypercalls: `mmu_update`, `mmuext_op`, `update_va_mapping`.

use crate::layout::{constants, wire};

constants! { "xen.h";
    MMU_NORMAL_PT_UPDATE: u64 = 0 => "MMU_NORMAL_PT_UPDATE";
    MMU_MACHPHYS_UPDATE: u64 = 1 => "MMU_MACHPHYS_UPDATE";
    MMU_PT_UPDATE_PRESERVE_AD: u64 = 2 => "MMU_PT_UPDATE_PRESERVE_AD";
    MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3 => "MMU_PT_UPDATE_NO_TRANSLATE";
    MMUEXT_PIN_L1_TABLE: u32 = 0 => "MMUEXT_PIN_L1_TABLE";
    MMUEXT_PIN_L2_TABLE: u32 = 1 => "MMUEXT_PIN_L2_TABLE";
    MMUEXT_PIN_L3_TABLE: u32 = 2 => "MMUEXT_PIN_L3_TABLE";
    MMUEXT_PIN_L4_TABLE: u32 = 3 => "MMUEXT_PIN_L4_TABLE";
    MMUEXT_UNPIN_TABLE: u32 = 4 => "MMUEXT_UNPIN_TABLE";
    MMUEXT_NEW_BASEPTR: u32 = 5 => "MMUEXT_NEW_BASEPTR";
    MMUEXT_TLB_FLUSH_LOCAL: u32 = 6 => "MMUEXT_TLB_FLUSH_LOCAL";
    MMUEXT_INVLPG_LOCAL: u32 = 7 => "MMUEXT_INVLPG_LOCAL";
    MMUEXT_TLB_FLUSH_MULTI: u32 = 8 => "MMUEXT_TLB_FLUSH_MULTI";
    MMUEXT_INVLPG_MULTI: u32 = 9 => "MMUEXT_INVLPG_MULTI";
    MMUEXT_TLB_FLUSH_ALL: u32 = 10 => "MMUEXT_TLB_FLUSH_ALL";
    MMUEXT_INVLPG_ALL: u32 = 11 => "MMUEXT_INVLPG_ALL";
    MMUEXT_FLUSH_CACHE: u32 = 12 => "MMUEXT_FLUSH_CACHE";
    MMUEXT_SET_LDT: u32 = 13 => "MMUEXT_SET_LDT";
    MMUEXT_NEW_USER_BASEPTR: u32 = 15 => "MMUEXT_NEW_USER_BASEPTR";
    MMUEXT_CLEAR_PAGE: u32 = 16 => "MMUEXT_CLEAR_PAGE";
    MMUEXT_COPY_PAGE: u32 = 17 => "MMUEXT_COPY_PAGE";
    MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18 => "MMUEXT_FLUSH_CACHE_GLOBAL";
    MMUEXT_MARK_SUPER: u32 = 19 => "MMUEXT_MARK_SUPER";
    MMUEXT_UNMARK_SUPER: u32 = 20 => "MMUEXT_UNMARK_SUPER";
    UVMF_NONE: u64 = 0 => "UVMF_NONE";
    UVMF_TLB_FLUSH: u64 = 1 => "UVMF_TLB_FLUSH";
    UVMF_INVLPG: u64 = 2 => "UVMF_INVLPG";
    UVMF_FLUSHTYPE_MASK: u64 = 3 => "UVMF_FLUSHTYPE_MASK";
    UVMF_MULTI: u64 = 0 => "UVMF_MULTI";
    UVMF_LOCAL: u64 = 0 => "UVMF_LOCAL";
    UVMF_ALL: u64 = 4 => "UVMF_ALL";
}

wire! { "xen.h";
    /// One request of `mmu_update`.
    struct MmuUpdate = "struct mmu_update", 16 {
        /// Bits 0-1: `MMU_*`; the rest is the machine address of a page-table entry, or of the frame for
        /// `MMU_MACHPHYS_UPDATE`.
        0x0 ptr: u64,
        /// New entry, or pfn.
        0x8 val: u64,
    }

    /// One request of `mmuext_op`.
    struct MmuextOp = "struct mmuext_op", 24 {
        /// `MMUEXT_*`.
        0x00 cmd: u32,
        0x04 _pad0: u32 = "",
        /// `mfn` or `linear_addr`.
        0x08 arg1: u64,
        /// `nr_ents` (low half), address of the vCPU mask, or `src_mfn`.
        0x10 arg2: u64,
    }
}
