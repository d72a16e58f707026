//! `SCHEDOP_poll` ends with an event of its ports, or with its time.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::{EVTCHNOP_BIND_IPI, EvtchnBindIpi};
use ring_abi::hypercall::{__HYPERVISOR_EVENT_CHANNEL_OP, __HYPERVISOR_SCHED_OP, __HYPERVISOR_VCPU_OP};
use ring_abi::sched::*;
use ring_abi::types::Port;
use ring_abi::vcpu::*;

use super::*;
use crate::hypercall::HypercallError;
use crate::platform::*;
use crate::testing::ARGS;
use crate::time::state::TimerKind;

/// A guest without a periodic timer, whose ports are all masked.
fn poller(world: &World) -> Arc<Domain> {
    let guest = world.guest(1);
    world.call(&guest, __HYPERVISOR_VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER.into(), 0]);
    guest.shared_info.store_u64(0xa00, u64::MAX);
    guest
}

/// Binds a port that the guest can send to itself.
fn own_port(world: &World, guest: &Arc<Domain>) -> u32 {
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    world.op(guest, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi);
    ipi.port
}

/// Polls a list of `nr_ports` ports that begins with `port`, until `timeout`.
fn poll(world: &World, guest: &Arc<Domain>, port: u32, nr_ports: u32, timeout: u64) -> i64 {
    world.put(ARGS + 64, &port);
    world.put(ARGS, &SchedPoll { ports: ARGS + 64, nr_ports, timeout, ..SchedPoll::default() });
    world.call(guest, __HYPERVISOR_SCHED_OP, &[SCHEDOP_POLL.into(), ARGS])
}

#[test]
fn poll_ends_by_a_masked_port_or_its_time() {
    let world = quiet();
    let guest = poller(&world);
    let port = own_port(&world, &guest);
    assert_eq!(poll(&world, &guest, port, 129, 0), HypercallError::Invalid.errno());
    assert_eq!(poll(&world, &guest, port, 1, 0), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.evtchn_send(&guest, Port::new(port)), Ok(()));
    assert!(world.settle().is_some(), "a masked port ends it");
    assert_eq!(poll(&world, &guest, port, 1, 0), 0);
    assert!(world.settle().is_some(), "pending before: no wait");
    clear_pending(&guest);
    assert_eq!(poll(&world, &guest, port, 1, world.hv.platform.now_ns() + MS), 0);
    assert!(world.settle().is_none());
    world.pass(MS);
    assert!(world.settle().is_some(), "time is up");
    assert_eq!(guest.vcpus[0].pause_flags.load(Ordering::Relaxed), 0);
    assert_eq!(world.hv.time.deadline(&guest.vcpus[0], TimerKind::Poll), None);
}

#[test]
fn a_poll_of_port_0_is_counted_once_and_ends() {
    let world = quiet();
    let guest = poller(&world);
    for _ in 0..2 {
        assert_eq!(poll(&world, &guest, 0, 1, world.hv.platform.now_ns() + MS), 0);
        assert_eq!(guest.events.pollers(), 1);
        assert!(world.settle().is_none());
        world.pass(MS);
        assert!(world.settle().is_some(), "time is up");
        assert_eq!(guest.events.pollers(), 0, "else each later send would look for vCPUs that poll");
    }
}

#[test]
fn what_was_pending_before_does_not_end_a_poll_of_no_port() {
    let world = quiet();
    let guest = poller(&world);
    let port = own_port(&world, &guest);
    assert_eq!(world.hv.evtchn_send(&guest, Port::new(port)), Ok(()));
    assert_eq!(poll(&world, &guest, port, 0, world.hv.platform.now_ns() + MS), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.evtchn_send(&guest, Port::new(port)), Ok(()));
    assert!(world.settle().is_none(), "the port was pending already");
    world.pass(MS);
    assert!(world.settle().is_some(), "time is up");
}

#[test]
fn a_wait_that_an_event_ended_leaves_no_time_to_the_next() {
    let world = quiet();
    let guest = poller(&world);
    let port = own_port(&world, &guest);
    assert_eq!(poll(&world, &guest, port, 1, world.hv.platform.now_ns() + MS), 0);
    assert!(world.settle().is_none());
    assert_eq!(world.hv.evtchn_send(&guest, Port::new(port)), Ok(()));
    assert!(world.settle().is_some(), "the port ends it before its time");
    assert_eq!(world.hv.time.deadline(&guest.vcpus[0], TimerKind::Poll), None);
    clear_pending(&guest);
    assert_eq!(poll(&world, &guest, port, 1, 0), 0);
    world.pass(2 * MS);
    assert!(world.settle().is_none(), "it waits without an end");
}
