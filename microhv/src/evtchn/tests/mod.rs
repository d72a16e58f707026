//! Ports from the guests' side, with the invariants checked after every step.

mod fifo;
mod queues;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::*;
use ring_abi::hypercall::__HYPERVISOR_EVENT_CHANNEL_OP;
use ring_abi::shared_info::{
    EVTCHN_MASK_OFFSET as MASK, EVTCHN_PENDING_OFFSET as PENDING, PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET,
    UPCALL_PENDING_OFFSET,
};
use ring_abi::types::{DOMID_SELF, DomId, Port};

use super::EvtchnError;
use super::state::{Binding, MAX_PORTS, PortState, Ports, TWO_LEVEL_PORTS};
use crate::domain::{Domain, DomainConfig, PauseFlags};
use crate::hypercall::HypercallError;
use crate::platform::GuestFault;
use crate::testing::World;

const EVTCHN: u32 = __HYPERVISOR_EVENT_CHANNEL_OP;

fn errno(error: HypercallError) -> i64 {
    error.errno()
}

fn alloc(world: &World, owner: &Arc<Domain>, remote: &Domain) -> u32 {
    let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote.id.raw(), port: 0 };
    assert_eq!(world.op(owner, EVTCHN, EVTCHNOP_ALLOC_UNBOUND, &mut op), 0);
    op.port
}

fn bind(world: &World, local: &Arc<Domain>, remote: &Domain, port: u32) -> Result<u32, i64> {
    let mut op = EvtchnBindInterdomain {
        remote_dom: remote.id.raw(),
        remote_port: port,
        ..EvtchnBindInterdomain::default()
    };
    match world.op(local, EVTCHN, EVTCHNOP_BIND_INTERDOMAIN, &mut op) {
        0 => Ok(op.local_port),
        error => Err(error),
    }
}

fn send(world: &World, domain: &Arc<Domain>, port: u32) -> i64 {
    world.op(domain, EVTCHN, EVTCHNOP_SEND, &mut EvtchnSend { port })
}

fn close(world: &World, domain: &Arc<Domain>, port: u32) -> i64 {
    world.op(domain, EVTCHN, EVTCHNOP_CLOSE, &mut EvtchnClose { port })
}

fn is_pending(domain: &Domain, port: u32) -> bool {
    domain.events.is_pending(Port::new(port))
}

fn clear(domain: &Domain) {
    for word in 0..64 {
        domain.shared_info.store_u64(PENDING + word * 8, 0);
    }
    for vcpu in &domain.vcpus {
        let info = vcpu.info.get().expect("vcpu_info");
        info.store_u64(PENDING_SEL_OFFSET, 0);
        info.store_u8(UPCALL_PENDING_OFFSET, 0);
    }
}

fn upcall(domain: &Domain, vcpu: u32) -> (u64, u8) {
    let info = domain.vcpu(vcpu).expect("vCPU").info.get().expect("vcpu_info");
    (info.load_u64(PENDING_SEL_OFFSET), info.load_u8(UPCALL_PENDING_OFFSET))
}

/// Each port's peer points back, counts and hints are right, and VIRQs agree with their ports.
fn check(domains: &[&Arc<Domain>]) {
    for domain in domains {
        let mut open = 0;
        let binding = domain.events.binding.lock();
        for port in 0..binding.known() {
            let Some(cell) = domain.events.cell(Port::new(port)) else { continue };
            match &*cell.state.lock() {
                PortState::Free => {
                    assert!(
                        port == 0 || binding.taken[port as usize / 64] & 1 << (port % 64) == 0,
                        "{domain:?} port {port} counts as taken"
                    );
                    assert!(!is_pending(domain, port), "{domain:?} port {port} is closed and pending");
                    continue;
                }
                PortState::Interdomain { remote, port: peer }
                    if !(Arc::ptr_eq(remote, domain) && peer.raw() == port) =>
                {
                    let cell = remote.events.cell(*peer).expect("the peer's cell");
                    match &*cell.state.try_lock().expect("nobody else runs") {
                        PortState::Interdomain { remote, port: back } => {
                            assert!(Arc::ptr_eq(remote, domain) && back.raw() == port);
                        }
                        other => panic!("{domain:?} port {port}: peer is {other:?}"),
                    }
                }
                PortState::Virq { virq } => {
                    let bound =
                        |vcpu: &crate::domain::Vcpu| vcpu.events.virq_port(*virq) == Some(Port::new(port));
                    assert_eq!(domain.vcpus.iter().filter(|vcpu| bound(vcpu)).count(), 1);
                }
                _ => {}
            }
            open += 1;
        }
        assert_eq!(open, binding.open);
        for vcpu in &domain.vcpus {
            for virq in 0..NR_VIRQS {
                if let Some(port) = vcpu.events.virq_port(virq) {
                    let state = domain.events.cell(port).expect("cell").state.lock();
                    assert!(matches!(*state, PortState::Virq { virq: bound } if bound == virq));
                }
            }
        }
    }
}

#[test]
fn closing_all_goes_on_where_it_was_interrupted() {
    let world = World::new(256);
    let guest = world.guest(1);
    let ports: Vec<u32> = (0..300).map(|_| alloc(&world, &guest, &guest)).collect();
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    // Something always waits, so each call closes one port. No call looks again at ports that are closed already.
    for (left, _) in ports.iter().enumerate().rev().take(299) {
        assert!(!world.hv.evtchn_close_all(&guest), "{left}");
        assert_eq!(guest.events.open_ports() as usize, left);
    }
    assert!(world.hv.evtchn_close_all(&guest));
    // Only the last port of the domain is open: the hypervisor passes over the others in pieces.
    let last = *ports.last().expect("some");
    for _ in 0..300 {
        alloc(&world, &guest, &guest);
    }
    (1..last).for_each(|port| assert_eq!(close(&world, &guest, port), 0));
    let calls = 1 + (0..100).take_while(|_| !world.hv.evtchn_close_all(&guest)).count();
    assert!((2..70).contains(&calls), "{calls} calls");
    world.hv.platform.pending.store(false, Ordering::Relaxed);
}

#[test]
fn ports_begin_at_one_and_the_lowest_is_taken() {
    let world = World::new(64);
    let guest = world.guest(1);
    assert_eq!(alloc(&world, &guest, &world.dom0), 1);
    assert_eq!(alloc(&world, &guest, &world.dom0), 2);
    assert_eq!(alloc(&world, &guest, &world.dom0), 3);
    assert_eq!(close(&world, &guest, 2), 0);
    assert_eq!(close(&world, &guest, 2), errno(HypercallError::Invalid));
    assert_eq!(alloc(&world, &guest, &world.dom0), 2);
    for port in [0, TWO_LEVEL_PORTS, MAX_PORTS, u32::MAX] {
        assert_eq!(close(&world, &guest, port), errno(HypercallError::Invalid));
        assert_eq!(send(&world, &guest, port), errno(HypercallError::Invalid));
    }
    check(&[&world.dom0, &guest]);
}

#[test]
fn a_pair_carries_events_both_ways() {
    let world = World::new(64);
    let guest = world.guest(1);
    let theirs = alloc(&world, &guest, &world.dom0);
    assert_eq!(send(&world, &guest, theirs), 0, "an unbound port swallows");
    let ours = bind(&world, &world.dom0, &guest, theirs).expect("bound");
    assert!(is_pending(&world.dom0, ours), "binding makes the local port pending");
    assert!(!is_pending(&guest, theirs));
    clear(&world.dom0);
    assert_eq!(send(&world, &world.dom0, ours), 0);
    assert!(is_pending(&guest, theirs));
    assert_eq!(upcall(&guest, 0), (1, 1));
    assert_eq!(send(&world, &guest, theirs), 0);
    assert!(is_pending(&world.dom0, ours));
    check(&[&world.dom0, &guest]);

    assert_eq!(close(&world, &guest, theirs), 0);
    let mut status = EvtchnStatus { dom: DOMID_SELF, port: ours, ..EvtchnStatus::default() };
    assert_eq!(world.op(&world.dom0, EVTCHN, EVTCHNOP_STATUS, &mut status), 0);
    assert_eq!((status.status, status.u[0]), (EVTCHNSTAT_UNBOUND, guest.id.raw().into()));
    check(&[&world.dom0, &guest]);
}

#[test]
fn only_the_named_domain_binds() {
    let world = World::new(64);
    let (a, b) = (world.guest(1), world.guest(1));
    let port = alloc(&world, &a, &world.dom0);
    assert_eq!(bind(&world, &b, &a, port), Err(errno(HypercallError::Invalid)));
    assert_eq!(bind(&world, &world.dom0, &a, 4000), Err(errno(HypercallError::Invalid)));
    assert!(bind(&world, &world.dom0, &a, port).is_ok());
    assert_eq!(bind(&world, &world.dom0, &a, port), Err(errno(HypercallError::Invalid)), "bound already");
    let mut op = EvtchnAllocUnbound { dom: b.id.raw(), remote_dom: 0, port: 0 };
    assert_eq!(world.op(&a, EVTCHN, EVTCHNOP_ALLOC_UNBOUND, &mut op), errno(HypercallError::NotPermitted));
    op.dom = 0x7ff5;
    assert_eq!(
        world.op(&world.dom0, EVTCHN, EVTCHNOP_ALLOC_UNBOUND, &mut op),
        errno(HypercallError::NoSuchDomain)
    );
    check(&[&world.dom0, &a, &b]);
}

#[test]
fn a_port_may_be_joined_to_one_of_the_same_domain() {
    let world = World::new(64);
    let guest = world.guest(1);
    let first = alloc(&world, &guest, &guest);
    let second = bind(&world, &guest, &guest, first).expect("bound");
    clear(&guest);
    assert_eq!(send(&world, &guest, second), 0);
    assert!(is_pending(&guest, first) && !is_pending(&guest, second));
    assert_eq!(close(&world, &guest, first), 0);
    check(&[&guest]);
    assert_eq!(close(&world, &guest, second), 0);
    assert_eq!(guest.events.open_ports(), 0);
}

#[test]
fn a_masked_port_raises_no_upcall_until_unmasked() {
    let world = World::new(64);
    let guest = world.guest(1);
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
    guest.shared_info.store_u64(MASK, 1 << ipi.port);
    assert_eq!(send(&world, &guest, ipi.port), 0);
    assert!(is_pending(&guest, ipi.port));
    assert_eq!(upcall(&guest, 0), (0, 0));
    let mut unmask = EvtchnUnmask { port: ipi.port };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_UNMASK, &mut unmask), 0);
    assert_eq!(upcall(&guest, 0), (1, 1));
    clear(&guest);
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_UNMASK, &mut unmask), 0);
    assert_eq!(upcall(&guest, 0), (0, 0), "nothing was pending");
}

#[test]
fn virqs_bind_once_and_where_they_belong() {
    let world = World::new(64);
    let guest = world.guest(2);
    let try_bind = |virq, vcpu| {
        let mut op = EvtchnBindVirq { virq, vcpu, port: 0 };
        let result = world.op(&guest, EVTCHN, EVTCHNOP_BIND_VIRQ, &mut op);
        if result == 0 { Ok(op.port) } else { Err(result) }
    };
    let timer = try_bind(VIRQ_TIMER, 1).expect("bound");
    assert_eq!(try_bind(VIRQ_TIMER, 1), Err(errno(HypercallError::Exists)));
    assert!(try_bind(VIRQ_TIMER, 0).is_ok());
    assert_eq!(try_bind(VIRQ_CONSOLE, 1), Err(errno(HypercallError::Invalid)));
    assert!(try_bind(VIRQ_CONSOLE, 0).is_ok());
    assert_eq!(try_bind(VIRQ_TIMER, 2), Err(errno(HypercallError::NoEntry)));
    assert_eq!(try_bind(NR_VIRQS, 0), Err(errno(HypercallError::Invalid)));
    world.hv.send_vcpu_virq(&guest, &guest.vcpus[1], VIRQ_TIMER);
    assert!(is_pending(&guest, timer));
    assert_eq!((upcall(&guest, 0).1, upcall(&guest, 1).1), (0, 1));
    assert_eq!(send(&world, &guest, timer), errno(HypercallError::Invalid), "nobody sends a VIRQ by port");
    check(&[&guest]);
    assert_eq!(close(&world, &guest, timer), 0);
    world.hv.send_vcpu_virq(&guest, &guest.vcpus[1], VIRQ_TIMER);
    assert!(!is_pending(&guest, timer));
    assert!(try_bind(VIRQ_TIMER, 1).is_ok());
    check(&[&guest]);
}

#[test]
fn ports_move_between_vcpus_but_ipis_do_not() {
    let world = World::new(64);
    let guest = world.guest(2);
    let port = alloc(&world, &guest, &world.dom0);
    let mut op = EvtchnBindVcpu { port, vcpu: 1 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_VCPU, &mut op), 0);
    op.vcpu = 2;
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_VCPU, &mut op), errno(HypercallError::NoEntry));
    let ours = bind(&world, &world.dom0, &guest, port).expect("bound");
    send(&world, &world.dom0, ours);
    assert_eq!((upcall(&guest, 0).1, upcall(&guest, 1).1), (0, 1));
    let mut ipi = EvtchnBindIpi { vcpu: 1, port: 0 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
    let mut op = EvtchnBindVcpu { port: ipi.port, vcpu: 0 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_VCPU, &mut op), errno(HypercallError::Invalid));
}

#[test]
fn all_ports_can_be_open_and_no_more() {
    let world = World::new(64);
    let guest = world.guest(1);
    for port in 1..TWO_LEVEL_PORTS {
        assert_eq!(alloc(&world, &guest, &world.dom0), port);
    }
    let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: 0, port: 0 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_ALLOC_UNBOUND, &mut op), errno(HypercallError::NoSpace));
    assert_eq!(close(&world, &guest, TWO_LEVEL_PORTS - 1), 0);
    assert_eq!(alloc(&world, &guest, &world.dom0), TWO_LEVEL_PORTS - 1);
    check(&[&guest]);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let mut reset = EvtchnReset { dom: DOMID_SELF };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_RESET, &mut reset), 0, "in continuations");
    assert_eq!(guest.events.open_ports(), 0);
    check(&[&guest]);
}

/// A guest that runs may open ports as fast as they are closed: a toolstack resets the ports of a domain that it holds.
#[test]
fn anothers_ports_are_reset_while_it_is_held() {
    let world = World::new(64);
    let guest = world.guest(1);
    alloc(&world, &guest, &guest);
    let mut reset = EvtchnReset { dom: guest.id.raw() };
    for (pauses, result) in [(0, errno(HypercallError::Invalid)), (1, 0)] {
        guest.controller_pause_count.store(pauses, Ordering::Relaxed);
        assert_eq!(world.op(&world.dom0, EVTCHN, EVTCHNOP_RESET, &mut reset), result);
        assert_eq!(guest.events.open_ports(), 1 - pauses);
    }
}

#[test]
fn the_limit_of_createdomain_holds() {
    let world = World::new(256);
    let limited = |highest| {
        let config = DomainConfig { max_evtchn_port: Some(Port::new(highest)), ..DomainConfig::default() };
        world.hv.create_domain(None, config).expect("a domain")
    };
    let open_all = |domain: &Arc<Domain>| {
        (1..).find(|_| world.hv.alloc_unbound(domain, DomId::new(0), |_| Ok(())).is_err()).expect("an end")
            - 1
    };
    assert_eq!(open_all(&limited(2)), 2);
    for none in [TWO_LEVEL_PORTS, MAX_PORTS, u32::MAX] {
        assert_eq!(open_all(&limited(none)), TWO_LEVEL_PORTS - 1);
    }
}

#[test]
fn free_ports_are_found_from_any_on() {
    let world = World::new(64);
    let ports = Ports::new(Some(Port::new(200)), &world.dom0.shared_info);
    let mut binding = ports.binding.lock();
    let free = |binding: &Binding, from| binding.lowest_free(from).map(Port::raw);
    assert_eq!((free(&binding, 0), free(&binding, 70), free(&binding, 64)), (Some(0), Some(70), Some(64)));
    binding.taken = vec![u64::MAX, 0b1011, u64::MAX];
    assert_eq!((free(&binding, 0), free(&binding, 66), free(&binding, 67)), (Some(66), Some(66), Some(68)));
    assert_eq!((free(&binding, 128), free(&binding, 200), free(&binding, 201)), (Some(192), Some(200), None));
    binding.taken[1] = u64::MAX;
    assert_eq!((free(&binding, 0), free(&binding, 5000)), (Some(192), None));
}

#[test]
fn a_fault_leaves_no_port_behind() {
    const FAULT: GuestFault = GuestFault { copied: 0 };
    let world = World::new(64);
    let guest = world.guest(1);
    let out = guest.clone();
    let result = world.hv.alloc_unbound(&out, DomId::new(0), |_| Err(FAULT));
    assert_eq!(result, Err(EvtchnError::Fault));
    let result = world.hv.bind_virq(&out, VIRQ_TIMER, 0, |_| Err(FAULT));
    assert_eq!(result, Err(EvtchnError::Fault));
    let theirs = Port::new(alloc(&world, &world.dom0, &guest));
    let result = world.hv.bind_interdomain(&out, &world.dom0, theirs, 0, |_| Err(FAULT));
    assert_eq!(result, Err(EvtchnError::Fault));
    assert_eq!(guest.events.open_ports(), 0);
    assert!(world.hv.bind_virq(&out, VIRQ_TIMER, 0, |_| Ok(())).is_ok());
    check(&[&world.dom0, &guest]);
}

#[test]
fn unknown_operations_are_refused() {
    let world = World::new(64);
    for command in [14, u32::MAX] {
        let mut op = EvtchnInitControl::default();
        assert_eq!(world.op(&world.dom0, EVTCHN, command, &mut op), errno(HypercallError::NoSys));
    }
}

#[test]
fn an_event_wakes_a_blocked_vcpu() {
    let world = World::new(64);
    let guest = world.guest(1);
    let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
    assert_eq!(world.op(&guest, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
    let info = guest.vcpus[0].info.get().expect("info");
    info.store_u8(UPCALL_MASK_OFFSET, 1);
    assert_eq!(world.call(&guest, ring_abi::hypercall::__HYPERVISOR_SCHED_OP, &[1]), 0);
    assert_eq!(info.load_u8(UPCALL_MASK_OFFSET), 0, "block unmasks");
    assert_ne!(guest.vcpus[0].pause_flags.load(Ordering::Relaxed) & PauseFlags::BLOCKED, 0);
    send(&world, &guest, ipi.port);
    assert_eq!(guest.vcpus[0].pause_flags.load(Ordering::Relaxed), 0);
    // While an event is pending, the vCPU does not block.
    assert_eq!(world.call(&guest, ring_abi::hypercall::__HYPERVISOR_SCHED_OP, &[1]), 0);
    assert_eq!(guest.vcpus[0].pause_flags.load(Ordering::Relaxed), 0);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc(usize, usize),
    Bind(usize, usize, u32),
    Virq(usize, u32),
    Ipi(usize),
    Close(usize, u32),
    Send(usize, u32),
    Reset(usize),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        3 => (0..3usize, 0..3usize).prop_map(|(a, b)| Step::Alloc(a, b)),
        4 => (0..3usize, 0..3usize, 0..8u32).prop_map(|(a, b, p)| Step::Bind(a, b, p)),
        1 => (0..3usize, 0..4u32).prop_map(|(a, v)| Step::Virq(a, v)),
        1 => (0..3usize).prop_map(Step::Ipi),
        4 => (0..3usize, 0..8u32).prop_map(|(a, p)| Step::Close(a, p)),
        2 => (0..3usize, 0..8u32).prop_map(|(a, p)| Step::Send(a, p)),
        1 => (0..3usize).prop_map(Step::Reset),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]
    #[test]
    fn any_sequence_keeps_the_invariants(steps in proptest::collection::vec(step(), 1..60)) {
        let world = World::new(64);
        let domains = [world.dom0.clone(), world.guest(1), world.guest(1)];
        let hv = &world.hv;
        for step in steps {
            // A call may be refused: only the state that it leaves behind is tested.
            let _ = match step {
                Step::Alloc(a, b) => hv.alloc_unbound(&domains[a], domains[b].id, |_| Ok(())).map(drop),
                Step::Bind(a, b, p) => hv.bind_interdomain(&domains[a], &domains[b], Port::new(p), 0, |_| Ok(())).map(drop),
                Step::Virq(a, v) => hv.bind_virq(&domains[a], v, 0, |_| Ok(())).map(drop),
                Step::Ipi(a) => hv.bind_ipi(&domains[a], 0, |_| Ok(())).map(drop),
                Step::Close(a, p) => hv.evtchn_close(&domains[a], Port::new(p)),
                Step::Send(a, p) => hv.evtchn_send(&domains[a], Port::new(p)),
                Step::Reset(a) => { assert!(hv.evtchn_close_all(&domains[a])); Ok(()) }
            };
            check(&domains.iter().collect::<Vec<_>>());
        }
        for domain in &domains {
            assert!(hv.evtchn_close_all(domain));
        }
        let idle: Vec<_> = domains.iter().map(|domain| domain.events.open_ports()).collect();
        proptest::prop_assert_eq!(idle, [0, 0, 0]);
    }
}
