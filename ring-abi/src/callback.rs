//! `callback_op`: where events, syscalls and failed segment loads enter the guest.

use crate::layout::{constants, wire};

constants! { "callback.h";
    CALLBACKTYPE_EVENT: u16 = 0 => "CALLBACKTYPE_event";
    CALLBACKTYPE_FAILSAFE: u16 = 1 => "CALLBACKTYPE_failsafe";
    CALLBACKTYPE_SYSCALL: u16 = 2 => "CALLBACKTYPE_syscall";
    CALLBACKTYPE_SYSENTER_DEPRECATED: u16 = 3 => "CALLBACKTYPE_sysenter_deprecated";
    CALLBACKTYPE_NMI: u16 = 4 => "CALLBACKTYPE_nmi";
    CALLBACKTYPE_SYSENTER: u16 = 5 => "CALLBACKTYPE_sysenter";
    CALLBACKTYPE_SYSCALL32: u16 = 7 => "CALLBACKTYPE_syscall32";
    CALLBACKF_MASK_EVENTS: u16 = 1 => "CALLBACKF_mask_events";
    CALLBACKOP_REGISTER: u32 = 0 => "CALLBACKOP_register";
    CALLBACKOP_UNREGISTER: u32 = 1 => "CALLBACKOP_unregister";
}

wire! { "callback.h";
    /// `CALLBACKOP_register`.
    struct CallbackRegister = "struct callback_register", 16 {
        /// `CALLBACKTYPE_*`.
        0x0 r#type: u16,
        /// `CALLBACKF_*`.
        0x2 flags: u16,
        0x4 _pad0: u32 = "",
        /// Entry point.
        0x8 address: u64,
    }

    /// `CALLBACKOP_unregister`.
    struct CallbackUnregister = "struct callback_unregister", 4 {
        /// `CALLBACKTYPE_*`.
        0x0 r#type: u16,
        0x2 _unused: u16,
    }
}
