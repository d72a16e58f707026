//! Clocks of vCPUs where the TSCs of the CPUs are not one clock.
//!
//! Each vCPU's clock then shows the parameters of the CPU on which the vCPU runs. What is known of the TSCs' differences is wrong by
//! a little, so a vCPU that moves could see its time go back. The vCPU's clock goes on from the larger of both times: the clock leads
//! the system's by what the new CPU is behind, until the vCPU moves again. (I59)

use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::platform::Platform;
use crate::time::publish_time;

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
