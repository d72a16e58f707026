//! Time.

use super::CpuId;

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
    /// Changes whenever the other fields do; never 0 once the clock runs.
    pub generation: u32,
    /// TSC frequency.
    pub tsc_khz: u32,
    /// Whether the TSCs of all CPUs are one clock, so that one set of parameters serves everywhere.
    pub is_one_clock: bool,
}

impl TimeParams {
    /// The parameters for a CPU by whose TSC they are to count, as [`Clock::tsc_offset`] says of it.
    #[must_use]
    pub fn by_tsc_with(self, offset: u64) -> Self {
        Self { tsc: self.tsc.wrapping_sub(offset), ..self }
    }
}

/// Clocks and the timer.
pub trait Clock {
    /// System time: ns since boot, as this CPU knows it.
    fn now_ns(&self) -> u64;
    /// This CPU's TSC.
    fn tsc(&self) -> u64;
    /// What is to be added to the TSC of `cpu`, modulo 2^64, so that it becomes the boot CPU's; 0 if the TSCs are one clock.
    fn tsc_offset(&self, cpu: CpuId) -> u64;
    /// How the boot CPU's TSC gives system time.
    fn time_params(&self) -> TimeParams;
    /// `TimeParams::generation` alone.
    fn clock_generation(&self) -> u32;
    /// Programs this CPU's timer interrupt: system time, or none.
    fn set_timer(&self, deadline_ns: Option<u64>);
}
