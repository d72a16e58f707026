//! `vcpu_op`.

use crate::layout::{constants, wire};

constants! { "vcpu.h";
    VCPUOP_INITIALISE: u32 = 0 => "VCPUOP_initialise";
    VCPUOP_UP: u32 = 1 => "VCPUOP_up";
    VCPUOP_DOWN: u32 = 2 => "VCPUOP_down";
    VCPUOP_IS_UP: u32 = 3 => "VCPUOP_is_up";
    VCPUOP_GET_RUNSTATE_INFO: u32 = 4 => "VCPUOP_get_runstate_info";
    XEN_RUNSTATE_UPDATE: u64 = 0x8000000000000000 => "XEN_RUNSTATE_UPDATE";
    RUNSTATE_RUNNING: i32 = 0 => "RUNSTATE_running";
    RUNSTATE_RUNNABLE: i32 = 1 => "RUNSTATE_runnable";
    RUNSTATE_BLOCKED: i32 = 2 => "RUNSTATE_blocked";
    RUNSTATE_OFFLINE: i32 = 3 => "RUNSTATE_offline";
    VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5 => "VCPUOP_register_runstate_memory_area";
    VCPUOP_SET_PERIODIC_TIMER: u32 = 6 => "VCPUOP_set_periodic_timer";
    VCPUOP_STOP_PERIODIC_TIMER: u32 = 7 => "VCPUOP_stop_periodic_timer";
    VCPUOP_SET_SINGLESHOT_TIMER: u32 = 8 => "VCPUOP_set_singleshot_timer";
    VCPUOP_STOP_SINGLESHOT_TIMER: u32 = 9 => "VCPUOP_stop_singleshot_timer";
    VCPU_SSHOTTMR_FUTURE: u32 = 1 => "VCPU_SSHOTTMR_future";
    VCPUOP_REGISTER_VCPU_INFO: u32 = 10 => "VCPUOP_register_vcpu_info";
    VCPUOP_SEND_NMI: u32 = 11 => "VCPUOP_send_nmi";
    VCPUOP_GET_PHYSID: u32 = 12 => "VCPUOP_get_physid";
    VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13 => "VCPUOP_register_vcpu_time_memory_area";
}

wire! { "vcpu.h";
    /// How long a vCPU was in each state.
    struct VcpuRunstateInfo = "struct vcpu_runstate_info", 48 {
        /// `RUNSTATE_*`.
        0x00 state: i32,
        0x04 _pad0: u32 = "",
        /// System time in ns of entry to `state`; bit 63 is `XEN_RUNSTATE_UPDATE`.
        0x08 state_entry_time: u64,
        /// Nanoseconds in each `RUNSTATE_*`.
        0x10 time: [u64; 4],
    }

    /// `VCPUOP_register_runstate_memory_area`.
    struct VcpuRegisterRunstateMemoryArea = "struct vcpu_register_runstate_memory_area", 8 {
        /// Guest-virtual address of a [`VcpuRunstateInfo`].
        0x0 addr: u64,
    }

    /// `VCPUOP_set_periodic_timer`.
    struct VcpuSetPeriodicTimer = "struct vcpu_set_periodic_timer", 8 {
        0x0 period_ns: u64,
    }

    /// `VCPUOP_set_singleshot_timer`.
    struct VcpuSetSingleshotTimer = "struct vcpu_set_singleshot_timer", 16 {
        /// Absolute system time.
        0x0 timeout_abs_ns: u64,
        /// `VCPU_SSHOTTMR_*`.
        0x8 flags: u32,
        0xc _pad0: u32 = "",
    }

    /// `VCPUOP_register_vcpu_info`.
    struct VcpuRegisterVcpuInfo = "struct vcpu_register_vcpu_info", 16 {
        0x0 mfn: u64,
        /// Byte offset in the frame, a multiple of 8 and at most 4032.
        0x8 offset: u32,
        0xc rsvd: u32,
    }

    /// `VCPUOP_get_physid`.
    struct VcpuGetPhysid = "struct vcpu_get_physid", 8 {
        /// Low half APIC id, high half ACPI id.
        0x0 phys_id: u64,
    }

    /// `VCPUOP_register_vcpu_time_memory_area`.
    struct VcpuRegisterTimeMemoryArea = "struct vcpu_register_time_memory_area", 8 {
        /// Guest-virtual address of a [`crate::shared_info::VcpuTimeInfo`].
        0x0 addr: u64,
    }
}

/// Shorter name.
pub type RunstateInfo = VcpuRunstateInfo;
