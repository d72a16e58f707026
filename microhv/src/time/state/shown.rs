//! By which CPU's TSC a vCPU's clock counts, and how far the clock leads the system's: `skew` says why.

use crate::platform::{Clock, CpuId, TimeParams};

/// The CPU whose TSC a vCPU's clock counts by.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::time) struct ShownOn {
    cpu: CpuId,
    /// How far the clock leads the system's.
    lead_ns: u64,
    /// System time when the vCPU last left a CPU.
    left_ns: u64,
}

impl ShownOn {
    /// The vCPU leaves its CPU, whose time is `now_ns`.
    pub(in crate::time) fn leave(&mut self, now_ns: u64) {
        self.left_ns = now_ns;
    }

    /// The clock counts by the TSC of `cpu` from now on, whose time is `now_ns`. Returns whether it did not before.
    pub(in crate::time) fn move_to(&mut self, cpu: CpuId, now_ns: u64) -> bool {
        let moves = self.cpu != cpu;
        if moves {
            self.lead_ns = (self.left_ns + self.lead_ns).saturating_sub(now_ns);
            self.cpu = cpu;
        }
        moves
    }

    /// The parameters that the vCPU sees.
    pub(in crate::time) fn params(&self, clock: &impl Clock) -> TimeParams {
        let params = clock.time_params();
        if params.is_one_clock {
            return params;
        }
        let params = params.by_tsc_with(clock.tsc_offset(self.cpu));
        TimeParams { system_ns: params.system_ns + self.lead_ns, ..params }
    }
}
