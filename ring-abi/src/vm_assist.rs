//! `vm_assist`.

use crate::layout::constants;

constants! { "xen.h";
    VMASST_CMD_ENABLE: u32 = 0 => "VMASST_CMD_enable";
    VMASST_CMD_DISABLE: u32 = 1 => "VMASST_CMD_disable";
    VMASST_TYPE_4GB_SEGMENTS: u32 = 0 => "VMASST_TYPE_4gb_segments";
    VMASST_TYPE_4GB_SEGMENTS_NOTIFY: u32 = 1 => "VMASST_TYPE_4gb_segments_notify";
    VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2 => "VMASST_TYPE_writable_pagetables";
    VMASST_TYPE_PAE_EXTENDED_CR3: u32 = 3 => "VMASST_TYPE_pae_extended_cr3";
    VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4 => "VMASST_TYPE_architectural_iopl";
    VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5 => "VMASST_TYPE_runstate_update_flag";
    VMASST_TYPE_M2P_STRICT: u32 = 32 => "VMASST_TYPE_m2p_strict";
}
