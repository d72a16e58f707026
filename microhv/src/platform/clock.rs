//! Time.

/// How the TSC gives system time: ns = `system_ns` + (((tsc - `tsc`) << `shift`) * `mul` >> 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeParams {
    /// TSC value at which system time was `system_ns`.
    pub tsc: u64,
    /// System time in ns at `tsc`.
    pub system_ns: u64,
    /// 32.32 fixed-point ns per shifted tick.
    pub mul: u32,
    /// Left shift of the tick count, right when negative.
    pub shift: i8,
    /// Changes whenever the other fields do.
    pub generation: u32,
    /// TSC frequency.
    pub tsc_khz: u32,
    /// All CPUs' TSCs tell the same, so that a reader may use one set of parameters on any of them.
    pub is_stable: bool,
}

/// Clocks and the timer.
pub trait Clock {
    /// System time: ns since boot.
    fn now_ns(&self) -> u64;
    /// This CPU's TSC.
    fn tsc(&self) -> u64;
    /// How the TSC gives system time.
    fn time_params(&self) -> TimeParams;
    /// `TimeParams::generation` alone.
    fn clock_generation(&self) -> u32;
    /// Wall time in ns since 1970 at system time 0, as read from the RTC at boot.
    fn boot_wall_ns(&self) -> u64;
    /// Programs this CPU's timer interrupt: system time, or none.
    fn set_timer(&self, deadline_ns: Option<u64>);
}
