//! Time.

/// How the TSC gives system time: ns = `system_ns` + (((tsc - `tsc`) << `shift`) * `mul` >> 32). One set of parameters serves on
/// any CPU that is used.
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
    /// Changes whenever the other fields do; never 0 once the clock runs.
    pub generation: u32,
    /// TSC frequency.
    pub tsc_khz: u32,
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
    /// Programs this CPU's timer interrupt: system time, or none.
    fn set_timer(&self, deadline_ns: Option<u64>);
}
