//! `nmi_op`.

use crate::layout::{constants, wire};

constants! { "nmi.h";
    XEN_NMIREASON_IO_ERROR: u64 = 1 => "XEN_NMIREASON_io_error";
    XEN_NMIREASON_PCI_SERR: u64 = 2 => "XEN_NMIREASON_pci_serr";
    XEN_NMIREASON_UNKNOWN: u64 = 4 => "XEN_NMIREASON_unknown";
    XENNMI_REGISTER_CALLBACK: u32 = 0 => "XENNMI_register_callback";
    XENNMI_UNREGISTER_CALLBACK: u32 = 1 => "XENNMI_unregister_callback";
}

wire! { "nmi.h";
    /// `XENNMI_register_callback`.
    struct XennmiCallback = "struct xennmi_callback", 16 {
        0x0 handler_address: u64,
        0x8 pad: u64,
    }
}
