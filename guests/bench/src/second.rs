//! Events to another vCPU of this domain.

use core::sync::atomic::{AtomicU32, Ordering};

use pvrt::hypercall::event;
use ring_abi::types::Port;

use crate::measure::Bench;
use crate::{polling, vcpus};

/// The port that the second vCPU waits for, and the port by which it answers.
static PING: AtomicU32 = AtomicU32::new(0);
static PONG: AtomicU32 = AtomicU32::new(0);

/// Times events to vCPU 1: sends while the vCPU is down, and round trips.
pub(crate) fn run(bench: &Bench) {
    let (ping, pong) = match (event::bind_ipi(1), event::bind_ipi(0)) {
        (Ok(ping), Ok(pong)) => (ping, pong),
        (ping, _) => return bench.skip("evtchn_send_vcpu", ping.err()),
    };
    polling::mask(1);
    bench.time("evtchn_send_vcpu", || {
        polling::take(ping, 1);
        polling::send(ping);
    });
    polling::take(ping, 1);
    PING.store(ping.raw(), Ordering::Relaxed);
    PONG.store(pong.raw(), Ordering::Relaxed);
    if let Err(errno) = vcpus::start_second(second) {
        return bench.skip("vcpu_round_trip", errno);
    }
    bench.time("vcpu_round_trip", || {
        polling::send(ping);
        polling::wait(pong, 0);
    });
    polling::look_again();
}

/// vCPU 1: answers every event, for ever.
extern "C" fn second() -> ! {
    let (ping, pong) = (PING.load(Ordering::Relaxed), PONG.load(Ordering::Relaxed));
    loop {
        polling::wait(Port::new(ping), 1);
        polling::send(Port::new(pong));
    }
}
