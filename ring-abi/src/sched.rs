//! `sched_op`.

use crate::layout::{constants, wire};

constants! { "sched.h";
    SCHEDOP_YIELD: u32 = 0 => "SCHEDOP_yield";
    SCHEDOP_BLOCK: u32 = 1 => "SCHEDOP_block";
    SCHEDOP_SHUTDOWN: u32 = 2 => "SCHEDOP_shutdown";
    SCHEDOP_POLL: u32 = 3 => "SCHEDOP_poll";
    SCHEDOP_REMOTE_SHUTDOWN: u32 = 4 => "SCHEDOP_remote_shutdown";
    SCHEDOP_SHUTDOWN_CODE: u32 = 5 => "SCHEDOP_shutdown_code";
    SCHEDOP_WATCHDOG: u32 = 6 => "SCHEDOP_watchdog";
    SCHEDOP_PIN_OVERRIDE: u32 = 7 => "SCHEDOP_pin_override";
    SHUTDOWN_POWEROFF: u32 = 0 => "SHUTDOWN_poweroff";
    SHUTDOWN_REBOOT: u32 = 1 => "SHUTDOWN_reboot";
    SHUTDOWN_SUSPEND: u32 = 2 => "SHUTDOWN_suspend";
    SHUTDOWN_CRASH: u32 = 3 => "SHUTDOWN_crash";
    SHUTDOWN_WATCHDOG: u32 = 4 => "SHUTDOWN_watchdog";
    SHUTDOWN_SOFT_RESET: u32 = 5 => "SHUTDOWN_soft_reset";
    SHUTDOWN_MAX: u32 = 5 => "SHUTDOWN_MAX";
}

wire! { "sched.h";
    /// `SCHEDOP_shutdown` and `SCHEDOP_shutdown_code`.
    struct SchedShutdown = "struct sched_shutdown", 4 {
        /// `SHUTDOWN_*`.
        0x0 reason: u32,
    }

    /// `SCHEDOP_poll`.
    struct SchedPoll = "struct sched_poll", 24 {
        /// Address of port numbers (u32).
        0x00 ports: u64,
        0x08 nr_ports: u32,
        0x0c _pad0: u32 = "",
        /// Absolute system time in ns; 0 waits for ever.
        0x10 timeout: u64,
    }

    /// `SCHEDOP_remote_shutdown`.
    struct SchedRemoteShutdown = "struct sched_remote_shutdown", 8 {
        0x0 domain_id: u16,
        0x2 _pad0: u16 = "",
        /// `SHUTDOWN_*`.
        0x4 reason: u32,
    }

    /// `SCHEDOP_watchdog`.
    struct SchedWatchdog = "struct sched_watchdog", 8 {
        /// 0 makes a new watchdog.
        0x0 id: u32,
        /// Seconds; 0 removes the watchdog.
        0x4 timeout: u32,
    }

    /// `SCHEDOP_pin_override`.
    struct SchedPinOverride = "struct sched_pin_override", 4 {
        /// Physical CPU; negative ends the override.
        0x0 pcpu: i32,
    }
}
