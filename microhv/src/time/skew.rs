//! Clocks of vCPUs where the TSCs of the CPUs are not one clock.
//!
//! Each vCPU's clock then shows the parameters of the CPU on which the vCPU runs. What is known of the TSCs' differences is wrong by
//! a little, so a vCPU that moves could see its time go back. Its clock goes on from the larger of both times: it leads the
//! system's by what the new CPU is behind, until the vCPU moves again. (I57)

use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::{Clock, CpuId, Platform, TimeParams};
use crate::time::publish_time;

/// The CPU whose TSC a vCPU's clock counts by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShownOn {
    cpu: CpuId,
    /// How far the clock leads the system's.
    lead_ns: u64,
    /// System time when the vCPU last left a CPU.
    left_ns: u64,
}

impl ShownOn {
    /// The vCPU leaves its CPU, whose time is `now_ns`.
    pub(super) fn leave(&mut self, now_ns: u64) {
        self.left_ns = now_ns;
    }

    /// The clock counts by the TSC of `cpu` from now on, whose time is `now_ns`. Returns whether it did not before.
    pub(super) fn move_to(&mut self, cpu: CpuId, now_ns: u64) -> bool {
        let moves = self.cpu != cpu;
        if moves {
            self.lead_ns = (self.left_ns + self.lead_ns).saturating_sub(now_ns);
            self.cpu = cpu;
        }
        moves
    }

    /// The parameters that the vCPU sees.
    pub(super) fn params(&self, clock: &impl Clock) -> TimeParams {
        let params = clock.time_params();
        if params.is_one_clock {
            return params;
        }
        let params = params.by_tsc_with(clock.tsc_offset(self.cpu));
        TimeParams { system_ns: params.system_ns + self.lead_ns, ..params }
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Shows a vCPU, to which this CPU has gone over, the clock by this CPU's TSC.
    pub(super) fn show_own_clock(&self, domain: &Domain, vcpu: &Vcpu) {
        let now = self.platform.now_ns();
        let mut time = vcpu.time.lock();
        if time.shown_on.move_to(self.platform.cpu(), now) {
            time.published = 0;
            time.time_area.iter_mut().for_each(|area| area.published = 0);
        }
        drop(time);
        publish_time(&self.platform, vcpu);
        self.publish_time_area(domain, vcpu);
    }
}
