//! Domains are shut down and destroyed, and nothing is left of them.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::evtchn::EVTCHNOP_ALLOC_UNBOUND;
use ring_abi::evtchn::VIRQ_DOM_EXC;
use ring_abi::hypercall::*;
use ring_abi::sched::{SCHEDOP_SHUTDOWN, SchedShutdown};
use ring_abi::types::Port;

use super::*;
use crate::hypercall::HypercallError;
use crate::platform::PowerAction;
use crate::testing::World;

#[test]
fn shutdown_tells_dom0_and_keeps_the_reason() {
    let world = World::new(256);
    let port = world.hv.bind_virq(&world.dom0, VIRQ_DOM_EXC, 0, |_| Ok(())).expect("bound");
    let guest = world.guest(2);
    let mut op = SchedShutdown { reason: 1 };
    assert_eq!(world.op(&guest, __HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut op), 0);
    assert!(world.dom0.events.is_pending(port));
    let seen = info(&world, &guest);
    assert_ne!(seen.flags & XEN_DOMINF_SHUTDOWN, 0);
    assert_eq!(seen.shutdown_code(), 1);
    world.hv.crash_domain(&guest, format_args!("later"));
    assert_eq!(info(&world, &guest).shutdown_code(), 1, "the first reason stays");
    assert!(world.settle().is_none_or(|vcpu| vcpu.domain().id != guest.id));
    assert_eq!(simple(&world, XEN_DOMCTL_RESUMEDOMAIN, &guest), 0);
    assert_eq!(info(&world, &guest).flags & XEN_DOMINF_SHUTDOWN, 0);
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0);
    assert_eq!(simple(&world, XEN_DOMCTL_RESUMEDOMAIN, &guest), 0, "nothing to resume");
    assert_eq!(guest.pause_count.load(Ordering::Relaxed), 0);
}

#[test]
fn dom0_takes_the_machine_with_it() {
    for (reason, action) in [(0, PowerAction::Off), (1, PowerAction::Reboot), (3, PowerAction::Crash)] {
        let world = World::new(64);
        let mut op = SchedShutdown { reason };
        world.op(&world.dom0, __HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut op);
        assert_eq!(world.hv.platform.events.lock().power, [action]);
    }
}

/// Frees all that is left of dead domains, in as many pieces as that takes.
fn reap_all(world: &World) {
    let reaped = (0..1000).any(|_| {
        world.hv.reap_dead();
        !world.hv.unfinished.has_dead()
    });
    assert!(reaped, "a reference keeps a dead domain");
}

#[test]
fn destroying_gives_all_back_even_in_pieces() {
    let world = World::new(512);
    let heap_of_ports = world.dom0.events.open_ports();
    let free = world.hv.frames.free_pages();
    for round in 0..20 {
        world.hv.platform.pending.store(round % 2 == 1, Ordering::Relaxed);
        let domain = create(&world, 2);
        domain.mm.set_max_pages(64);
        let l4 = base(&world, &domain);
        for _ in 0..30 {
            base(&world, &domain);
        }
        assert_eq!(set_context(&world, &domain, 0, &good_context(l4)), 0);
        assert_eq!(simple(&world, XEN_DOMCTL_UNPAUSEDOMAIN, &domain), 0);
        world.settle();
        let mut op = ring_abi::evtchn::EvtchnAllocUnbound { dom: domain.id.raw(), remote_dom: 0, port: 0 };
        assert_eq!(world.op(&world.dom0, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut op), 0);
        let port = world
            .hv
            .bind_interdomain(&world.dom0, &domain, Port::new(op.port), 0, |_| Ok(()))
            .expect("bound");
        let id = domain.id;
        assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0);
        assert_eq!(domain.dying(), DyingState::Dead);
        assert_eq!(world.hv.evtchn_close(&world.dom0, port), Ok(()));
        assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &domain), 0, "again does no harm");
        drop(domain);
        world.settle();
        reap_all(&world);
        assert!(!world.hv.domains.contains(id));
        assert_eq!(world.hv.frames.free_pages(), free, "round {round}");
        assert_eq!(world.hv.unfinished.room(), 0, "round {round}: the lists keep no memory");
    }
    assert_eq!(world.dom0.events.open_ports(), heap_of_ports);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &world.dom0), HypercallError::Invalid.errno());
}

/// Two CPUs destroy one domain: its end is noted once, since its number may soon be another's.
#[test]
fn a_domain_that_two_cpus_destroy_ends_once() {
    let ends = [0, 5, 20, 80, 120, 160, 10_000];
    for plan in (0..40).flat_map(|first| ends.map(|second| [first, second])) {
        let world = World::new(256);
        let free = world.hv.frames.free_pages();
        let domain = create(&world, 1);
        domain.mm.set_max_pages(64);
        base(&world, &domain);
        let kill = || {
            while world.hv.kill_domain(&domain).is_err() {}
        };
        world.at_once(&plan, kill, kill);
        assert_eq!((domain.dying(), world.hv.unfinished.dead()), (DyingState::Dead, 1), "{plan:?}");
        drop(domain);
        reap_all(&world);
        assert_eq!((world.hv.frames.free_pages(), world.hv.unfinished.dead()), (free, 0), "{plan:?}");
    }
}

#[test]
fn whoever_asks_is_told_that_there_is_more_to_destroy() {
    let world = World::new(512);
    let free = world.hv.frames.free_pages();
    let domain = create(&world, 2);
    domain.mm.set_max_pages(64);
    for _ in 0..30 {
        base(&world, &domain);
    }
    let mut op = XenDomctl::new(XEN_DOMCTL_DESTROYDOMAIN, domain.id);
    op.want_return();
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(domctl(&world, &mut op), HypercallError::Again.errno());
    assert_eq!(domain.dying(), DyingState::Dying, "it has begun");
    let calls = (1..100).find(|_| domctl(&world, &mut op) == 0).expect("it comes to an end");
    assert!(calls < 99);
    drop(domain);
    reap_all(&world);
    assert_eq!(world.hv.frames.free_pages(), free);
}

/// A new domain gets the number of a dead one of which parts are still to be freed. The page that the hypervisor lent to
/// the dead domain is not the new one's.
#[test]
fn a_new_domain_of_a_number_does_not_get_the_page_of_the_last() {
    let world = World::new(256);
    let old = create(&world, 8);
    let (id, page) = (old.id, old.shared_info_mfn);
    assert_eq!(simple(&world, XEN_DOMCTL_DESTROYDOMAIN, &old), 0);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    drop(old);
    world.hv.reap_dead();
    assert!(
        !world.hv.domains.contains(id) && world.hv.unfinished.has_dead(),
        "its vCPUs are still to be freed"
    );
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    let new = world.hv.create_domain(Some(id), DomainConfig::default()).expect("the number is free");
    assert!(world.hv.get_page(page, &new).is_none(), "the former domain's shared_info");
}
