//! `start_info`: what the builder tells a new PV domain about the domain.

use crate::layout::{constants, wire};

/// The start of `magic`; the architecture follows.
pub const MAGIC: &[u8] = b"xen-3.0-x86_64\0";

wire! { "xen.h";
    /// The page that RSI points at when a domain starts.
    ///
    /// A domU's `store_mfn` and console are machine frame numbers. Addresses are guest-virtual unless said otherwise.
    struct StartInfo = "struct start_info", 0x490 {
        /// `"xen-3.0-x86_64"`, zero-padded.
        0x00 magic: [u8; 32],
        /// Pages given to the domain.
        0x20 nr_pages: u64,
        /// Machine address of shared_info.
        0x28 shared_info: u64,
        /// `SIF_*`.
        0x30 flags: u32,
        0x34 _pad0: u32 = "",
        /// Machine frame of the xenstore ring page.
        0x38 store_mfn: u64,
        /// Port of the xenstore ring; 0 if there is none.
        0x40 store_evtchn: u32,
        0x44 _pad1: u32 = "",
        /// Machine frame of the console ring page. In dom0 the low half is the offset and the high half the size
        /// of the VGA description.
        0x48 console_mfn: u64 = "console.domU.mfn",
        /// Port of the console ring; 0 if there is none.
        0x50 console_evtchn: u32 = "console.domU.evtchn",
        0x54 _pad2: u32 = "",
        /// Address of the top page table.
        0x58 pt_base: u64,
        /// Frames of the bootstrap page tables.
        0x60 nr_pt_frames: u64,
        /// Address of the P2M list.
        0x68 mfn_list: u64,
        /// Address of the module, or its first pfn if `SIF_MOD_START_PFN`.
        0x70 mod_start: u64,
        /// Bytes of the module; 0 if none.
        0x78 mod_len: u64,
        /// Command line, NUL-terminated.
        0x80 cmd_line: [u8; MAX_GUEST_CMDLINE],
        /// First pfn of the P2M list when it is mapped at `XEN_ELFNOTE_INIT_P2M`.
        0x480 first_p2m_pfn: u64,
        /// Number of frames of the P2M list and of the tables that map the list.
        0x488 nr_p2m_frames: u64,
    }

    /// One module of a list, used when `SIF_MULTIBOOT_MOD` is set.
    struct XenMultibootModList = "struct xen_multiboot_mod_list", 16 {
        0x0 mod_start: u32,
        0x4 mod_end: u32,
        0x8 cmdline: u32,
        0xc pad: u32,
    }
}

impl StartInfo {
    /// dom0: offset of the VGA description from this page's start, and its size, both in bytes.
    #[must_use]
    pub const fn console_dom0(&self) -> (u32, u32) {
        (self.console_mfn as u32, (self.console_mfn >> 32) as u32)
    }

    /// The command line up to its NUL.
    #[must_use]
    pub fn command_line(&self) -> &[u8] {
        let end = self.cmd_line.iter().position(|&b| b == 0).unwrap_or(self.cmd_line.len());
        &self.cmd_line[..end]
    }
}

constants! { "xen.h";
    MAX_GUEST_CMDLINE: usize = 1024 => "MAX_GUEST_CMDLINE";
    SIF_PRIVILEGED: u32 = 1 => "SIF_PRIVILEGED";
    SIF_INITDOMAIN: u32 = 2 => "SIF_INITDOMAIN";
    SIF_MULTIBOOT_MOD: u32 = 4 => "SIF_MULTIBOOT_MOD";
    SIF_MOD_START_PFN: u32 = 8 => "SIF_MOD_START_PFN";
    SIF_VIRT_P2M_4TOOLS: u32 = 0x10 => "SIF_VIRT_P2M_4TOOLS";
    SIF_PM_MASK: u32 = 0xff00 => "SIF_PM_MASK";
    XEN_VGATYPE_TEXT_MODE_3: u8 = 3 => "XEN_VGATYPE_TEXT_MODE_3";
    XEN_VGATYPE_VESA_LFB: u8 = 0x23 => "XEN_VGATYPE_VESA_LFB";
    XEN_VGATYPE_EFI_LFB: u8 = 0x70 => "XEN_VGATYPE_EFI_LFB";
}
