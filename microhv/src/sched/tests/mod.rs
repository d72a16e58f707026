//! Scheduling, tested on a machine whose time the tests move.

mod at_once;
mod caps;
mod cores;
mod courtesy;
mod fairness;
mod latency;
mod moving;
mod peace;
mod poll;
mod pools;
mod races;
mod several;
mod stopping;
mod storms;
mod timers;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ring_abi::hypercall::{__HYPERVISOR_SCHED_OP, __HYPERVISOR_VCPU_OP};
use ring_abi::sched::*;
use ring_abi::types::DomId;
use ring_abi::vcpu::*;

use super::*;
use crate::domain::PauseFlags;
use crate::hypercall::HypercallError;
use crate::platform::*;
use crate::testing::{ARGS, World};
use crate::time::state::Runstate;

const MS: u64 = 1_000_000;

impl World {
    /// The domain's first vCPU waits for an event.
    fn sleep(&self, domain: &Domain) {
        self.hv.hold(&domain.vcpus[0], PauseFlags::BLOCKED);
    }

    /// An event comes for the domain's first vCPU.
    fn wake(&self, domain: &Arc<Domain>) {
        self.hv.kick_vcpu(domain, &domain.vcpus[0]);
    }

    /// The domain that runs once all is settled.
    fn runs(&self) -> DomId {
        self.settle().expect("a domain that runs").domain().id
    }
}

/// A world whose dom0 sleeps.
fn quiet() -> World {
    let world = World::new(128);
    world.sleep(&world.dom0);
    world.settle();
    world
}

/// Lets `steps` times `ns` pass. For each domain, the number of steps in which it ran.
fn shares(world: &World, domains: &[&Arc<Domain>], steps: u32, ns: u64) -> Vec<u32> {
    let mut counts = vec![0; domains.len()];
    for _ in 0..steps {
        if let Some(vcpu) = world.settle() {
            let index = domains.iter().position(|domain| Arc::ptr_eq(domain, vcpu.domain()));
            counts[index.expect("one of ours")] += 1;
        }
        world.pass(ns);
    }
    counts
}

#[test]
fn pauses_nest() {
    let world = quiet();
    let guest = world.guest(2);
    assert!(world.settle().is_some());
    assert!(world.hv.pause_domain(&guest));
    assert!(world.hv.pause_domain(&guest));
    assert!(world.settle().is_none());
    world.hv.unpause_domain(&guest);
    assert!(world.settle().is_none());
    world.hv.unpause_domain(&guest);
    assert!(world.settle().is_some());
}

#[test]
fn runstates_add_up_to_the_time_that_passed() {
    let world = quiet();
    let start = world.hv.platform.now_ns();
    let (a, b) = (world.guest(1), world.guest(1));
    shares(&world, &[&a, &b], 100, MS);
    for domain in [&a, &b] {
        let mut time = domain.vcpus[0].time.lock();
        let (state, now) = (time.state, world.hv.platform.now_ns());
        time.enter(state, now);
        let spent: u64 = time.spent_ns[..3].iter().sum();
        assert_eq!(spent, now - start, "{:?}", time.spent_ns);
        assert!(time.spent_ns[Runstate::Running as usize] >= 40 * MS);
    }
}

#[test]
fn what_a_vcpu_asks_of_its_times_is_up_to_now() {
    let world = quiet();
    let guest = world.guest(1);
    world.settle();
    let times = |at: u64| -> [u64; 6] {
        let args = [VCPUOP_GET_RUNSTATE_INFO.into(), 0, at];
        assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &args), 0);
        world.get(at)
    };
    let first = times(ARGS);
    world.pass(7 * MS);
    let second = times(ARGS);
    assert_eq!(second[0], RUNSTATE_RUNNING as u64);
    assert_eq!(second[1], first[1], "the state began when it did");
    assert_eq!(second[2] - first[2], 7 * MS, "and lasts");
    world.put(ARGS + 256, &(ARGS + 512));
    let args = [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA.into(), 0, ARGS + 256];
    assert_eq!(world.call(&guest, __HYPERVISOR_VCPU_OP, &args), 0);
    let area: [u64; 6] = world.get(ARGS + 512);
    assert_eq!((area[1], area[2]), (first[1], 0), "the area has what was before the state began");
}

#[test]
fn only_the_privileged_end_others() {
    let world = quiet();
    let (guest, other) = (world.guest(1), world.guest(1));
    let end = |caller: &Arc<Domain>, domain_id: u16| {
        world.put(ARGS, &SchedRemoteShutdown { domain_id, reason: SHUTDOWN_CRASH, ..Default::default() });
        world.call(caller, __HYPERVISOR_SCHED_OP, &[SCHEDOP_REMOTE_SHUTDOWN.into(), ARGS])
    };
    assert_eq!(end(&guest, 999), HypercallError::NoSuchDomain.errno());
    assert_eq!(end(&guest, other.id.raw()), HypercallError::NotPermitted.errno());
    assert_eq!(other.shutdown.lock().code, None);
    assert_eq!(end(&world.dom0, 999), HypercallError::NoSuchDomain.errno());
    assert_eq!(end(&world.dom0, other.id.raw()), 0);
    assert_eq!(other.shutdown.lock().code, Some(SHUTDOWN_CRASH));
}

fn clear_pending(guest: &Domain) {
    for offset in (0x800..0xa00).step_by(8) {
        guest.shared_info.store_u64(offset, 0);
    }
    let info = guest.vcpus[0].info.get().expect("info");
    info.store_u64(8, 0);
    info.store_u8(0, 0);
}
