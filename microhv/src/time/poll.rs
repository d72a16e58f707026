//! Waits of `SCHEDOP_poll`: that a vCPU waits, for which port, and until when.
//!
//! These three change under the lock of the vCPU's times. A CPU that ends a wait clears the vCPU's flags first, and the vCPU may
//! run, and wait again, before the CPU takes the lock. The CPU then leaves what the new wait has set. (I55)

use core::sync::atomic::Ordering;

use ring_abi::types::Port;

use super::state::{TimerKind, VcpuTime};
use crate::Hypervisor;
use crate::domain::{Domain, PauseFlags, Vcpu};
use crate::platform::Platform;

fn polls(vcpu: &Vcpu) -> bool {
    vcpu.pause_flags.load(Ordering::Acquire) & PauseFlags::POLLING != 0
}

impl<P: Platform> Hypervisor<P> {
    /// The vCPU that runs here begins to wait for an event of `port`, or of one of several (`None`).
    pub(crate) fn begin_poll(&self, domain: &Domain, vcpu: &Vcpu, port: Option<Port>) {
        let mut time = vcpu.time.lock();
        if domain.events.poller_entered(vcpu, port) {
            // Another CPU is about to end the last wait, and will find this one.
            self.set_poll_timer(&mut time, None);
        }
        self.hold(vcpu, PauseFlags::WAITING);
    }

    /// Lets the wait that the vCPU has begun end at a system time, unless the wait is over.
    pub(crate) fn end_poll_at(&self, vcpu: &Vcpu, deadline_ns: u64) {
        let mut time = vcpu.time.lock();
        if polls(vcpu) {
            self.set_poll_timer(&mut time, Some(deadline_ns));
        }
    }

    /// A wait of the vCPU is over, and its flags were cleared.
    pub(crate) fn end_poll(&self, domain: &Domain, vcpu: &Vcpu) {
        let mut time = vcpu.time.lock();
        if !polls(vcpu) {
            domain.events.poller_left(vcpu);
            self.set_poll_timer(&mut time, None);
        }
    }

    /// A wait without an end, as most are, leaves the timers alone.
    fn set_poll_timer(&self, time: &mut VcpuTime, deadline_ns: Option<u64>) {
        let was_set = core::mem::replace(&mut time.poll_ends, deadline_ns.is_some());
        if (was_set || time.poll_ends)
            && let Some((cpu, id)) = time.timer(TimerKind::Poll)
        {
            self.arm(cpu, id, deadline_ns);
        }
    }
}
