//! Events on their queues: order, priorities, vCPUs, masks, and guests that write where they must not.

use proptest::prelude::*;
use ring_abi::evtchn::fifo::{BUSY, HEAD_OFFSET, LINKED, MASKED, PENDING as EVENT, READY_OFFSET};

use super::fifo::Fifo;
use super::*;
use crate::platform::MachineMemory;

const DEFAULT: u32 = EVTCHN_FIFO_PRIORITY_DEFAULT;

/// The word of queue `priority` in a control block.
fn head(priority: u32) -> usize {
    HEAD_OFFSET + priority as usize * 4
}

#[test]
fn events_of_a_queue_come_in_their_order_with_one_upcall() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let ports: Vec<u32> = (0..5).map(|_| guest.ipi(0)).collect();
    let order = [3, 0, 4, 1, 2].map(|n: usize| ports[n]);
    for (n, port) in order.iter().enumerate() {
        guest.send(*port);
        guest.send(*port);
        assert_eq!(guest.take_upcall(0), n == 0, "of the empty queue alone");
    }
    assert_eq!(guest.control(0, READY_OFFSET), 1 << DEFAULT);
    assert_eq!(guest.control(0, head(DEFAULT)), order[0]);
    assert_eq!(guest.array.word(order[0]), EVENT | LINKED | order[1]);
    assert_eq!(guest.array.word(order[4]), EVENT | LINKED, "the tail");
    assert_eq!(guest.events(0), order);
    // The queue is empty, though its tail is known: a new event has a new head.
    for port in [order[4], order[4], order[1]] {
        guest.send(port);
        assert!(guest.take_upcall(0));
        assert_eq!(guest.control(0, head(DEFAULT)), port);
        assert_eq!(guest.events(0), [port]);
    }
}

#[test]
fn a_masked_port_is_linked_by_its_unmask() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let port = guest.ipi(0);
    guest.array.mask(port);
    guest.unmask(port);
    assert_eq!((guest.array.word(port), guest.take_upcall(0)), (0, false), "nothing was pending");
    guest.array.mask(port);
    guest.send(port);
    assert_eq!((guest.array.word(port), guest.take_upcall(0)), (EVENT | MASKED, false));
    assert!(is_pending(&guest.domain, port) && guest.domain.events.is_masked(Port::new(port)));
    guest.unmask(port);
    assert_eq!((guest.array.word(port), guest.take_upcall(0)), (EVENT | LINKED, true));
    guest.unmask(port);
    assert!(!guest.take_upcall(0));
    assert_eq!(guest.events(0), [port]);
}

#[test]
fn priorities_choose_the_queue_from_the_next_event_on() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let (first, second) = (guest.ipi(0), guest.ipi(0));
    let invalid = errno(HypercallError::Invalid);
    assert_eq!(guest.priority(first, EVTCHN_FIFO_PRIORITY_MIN + 1), invalid);
    assert_eq!(guest.priority(first, u32::MAX), invalid);
    assert_eq!(guest.priority(4000, 1), invalid);
    for priority in 0..=EVTCHN_FIFO_PRIORITY_MIN {
        assert_eq!(guest.priority(first, priority), 0);
        guest.send(first);
        assert_eq!(guest.control(0, READY_OFFSET), 1 << priority);
        assert_eq!(guest.control(0, head(priority)), first);
        assert_eq!(guest.events(0), [first]);
    }
    // The port is the last tail of queue 15; as it moves, that queue is known to be empty.
    guest.send(first);
    assert_eq!(guest.priority(first, 3), 0);
    guest.send(first);
    assert_eq!(guest.control(0, READY_OFFSET), 1 << 15, "it stays where it is linked");
    assert_eq!(guest.events(0), [first]);
    guest.send(first);
    assert_eq!(guest.control(0, READY_OFFSET), 1 << 3);
    assert_eq!(guest.priority(second, 15), 0);
    guest.send(second);
    assert_eq!(guest.control(0, head(15)), second, "not linked behind what is on another queue");
    assert_eq!(guest.events(0), [first, second], "the lower number first");
    // A port that is opened anew begins with the default.
    assert_eq!(close(&world, &guest.domain, first), 0);
    assert_eq!(guest.priority(first, 3), errno(HypercallError::Access));
    let again = guest.ipi(0);
    assert_eq!(again, first);
    guest.send(again);
    assert_eq!(guest.control(0, READY_OFFSET), 1 << DEFAULT);
}

#[test]
fn a_port_that_moves_to_another_vcpu_is_linked_there_next() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 2);
    let theirs = alloc(&world, &guest.domain, &world.dom0);
    let ours = bind(&world, &world.dom0, &guest.domain, theirs).expect("bound");
    let mate = guest.ipi(0);
    send(&world, &world.dom0, ours);
    guest.to_vcpu(theirs, 1);
    send(&world, &world.dom0, ours);
    assert_eq!((guest.control(0, READY_OFFSET), guest.control(1, READY_OFFSET)), (1 << DEFAULT, 0));
    assert!(guest.take_upcall(0) && !guest.take_upcall(1));
    assert_eq!(guest.events(0), [theirs]);
    send(&world, &world.dom0, ours);
    assert!(!guest.take_upcall(0) && guest.take_upcall(1));
    guest.send(mate);
    assert_eq!(guest.control(0, head(DEFAULT)), mate, "the queue that the port left is empty");
    assert_eq!((guest.events(0), guest.events(1)), (vec![mate], vec![theirs]));
}

#[test]
fn a_closed_port_is_taken_off_without_an_event_and_not_given_out_before() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let (first, second) = (guest.ipi(0), guest.ipi(0));
    guest.send(first);
    guest.send(second);
    assert_eq!(close(&world, &guest.domain, first), 0);
    assert_eq!(guest.array.word(first), LINKED | second);
    let third = guest.ipi(0);
    assert_ne!(third, first, "its word links the second");
    assert_eq!(guest.events(0), [second]);
    let again = guest.ipi(0);
    assert_eq!((again, guest.array.word(again)), (first, 0));
    // A guest that says of all words that they are linked gets no port, in bounded time.
    for port in again + 1..1024 {
        guest.array.set_word(port, LINKED);
    }
    guest.grow();
    for port in 1024..2048 {
        guest.array.set_word(port, LINKED);
    }
    let got = world.hv.alloc_unbound(&guest.domain, DomId::new(0), |_| Ok(()));
    assert_eq!(got, Err(EvtchnError::NoSpace));
    check(&[&guest.domain]);
}

/// The walk of the frame table knows the references that the FIFO has on control blocks and pages of words.
#[test]
fn the_frame_table_knows_what_the_fifo_holds() {
    let world = World::new(256);
    let differences = || world.hv.check_frames();
    let before = differences();
    let guest = Fifo::ready(&world, 2);
    assert_eq!(differences(), before);
    assert_eq!(guest.pages.len() + guest.controls.len(), 3);
}

/// The first ports of a bucket of 64 are passed over while the guest says that they are on a queue.
#[test]
fn a_lower_bucket_is_made_after_a_higher_one() {
    let world = World::new(256);
    let guest = Fifo::ready(&world, 1);
    while alloc_any(&guest).expect("free").raw() != 63 {}
    (64..128).for_each(|port| guest.array.set_word(port, LINKED));
    assert_eq!(alloc_any(&guest), Ok(Port::new(128)));
    (64..128).for_each(|port| guest.array.set_word(port, 0));
    assert_eq!(alloc_any(&guest), Ok(Port::new(64)));
    assert_eq!(close(&world, &guest.domain, 128), 0);
    for port in 65..=128 {
        assert_eq!(alloc_any(&guest), Ok(Port::new(port)));
    }
    check(&[&guest.domain]);
}

#[test]
fn a_guest_that_rewrites_words_harms_its_own_queues_alone() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let (first, second, third) = (guest.ipi(0), guest.ipi(0), guest.ipi(0));
    guest.send(first);
    // Rubbish in the tail's word: its link is set, a mark of the hypervisor's goes, the rest stays.
    guest.array.set_word(first, EVENT | LINKED | BUSY | EVTCHN_FIFO_LINK_MASK | 1 << 20);
    guest.send(second);
    assert_eq!(guest.array.word(first), EVENT | LINKED | 1 << 20 | second);
    // The tail is off the queue, says the guest.
    guest.array.set_word(second, 0);
    guest.send(third);
    assert_eq!(guest.array.word(second), 0);
    assert_eq!(guest.control(0, head(DEFAULT)), third);
    // Control block and words all ones.
    let block = world.hv.platform.shared(guest.controls[0]);
    block.fill(0, 4096, 0xff);
    let words = world.hv.platform.shared(guest.pages[0]);
    words.fill(0, 4096, 0xff);
    for port in [first, second, third] {
        guest.send(port);
        guest.unmask(port);
        assert_eq!(close(&world, &guest.domain, port), 0);
    }
    assert_eq!(words.load_u32(0), u32::MAX, "port 0 has no event");
    // All that have a word are linked, says the guest.
    assert_eq!(alloc_any(&guest), Ok(Port::new(1024)));
    words.fill(0, 4096, 0);
    block.fill(0, 4096, 0);
    let port = guest.ipi(0);
    guest.take_upcall(0);
    guest.send(port);
    assert!(guest.take_upcall(0));
    assert_eq!(guest.events(0), [port]);
}

fn alloc_any(guest: &Fifo<'_>) -> Result<Port, EvtchnError> {
    guest.world.hv.alloc_unbound(&guest.domain, DomId::new(0), |_| Ok(()))
}

#[test]
fn a_poll_sees_words_and_other_ports() {
    let world = World::new(256);
    let guest = Fifo::ready(&world, 1);
    let port = guest.ipi(0);
    guest.array.mask(port);
    assert!(!guest.domain.events.poller_entered(&guest.domain.vcpus[0], Some(Port::new(port))));
    world.hv.hold(&guest.domain.vcpus[0], PauseFlags::WAITING);
    guest.send(port);
    assert_eq!(guest.domain.vcpus[0].pause_flags.load(Ordering::Relaxed), 0, "masked or not");
    assert!(is_pending(&guest.domain, port) && !is_pending(&guest.domain, 5000));
    assert!(guest.domain.events.is_masked(Port::new(5000)));
}

/// Two domains send to a guest whose vCPU takes, masks and unmasks meanwhile: no event stays on the way.
#[test]
fn no_event_is_lost_while_the_guest_takes_others() {
    const ROUNDS: u32 = 3_000;
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 1);
    let ports: Vec<u32> = (0..6).map(|_| guest.ipi(0)).collect();
    let sent: Vec<core::sync::atomic::AtomicU32> = ports.iter().map(|_| Default::default()).collect();
    let done = core::sync::atomic::AtomicU32::new(0);
    let (hv, domain) = (&world.hv, guest.domain.clone());
    let mut queues = guest.queues.remove(0);
    let array = &guest.array;
    std::thread::scope(|scope| {
        for half in [0, 1] {
            let (ports, sent, done, domain) = (&ports, &sent, &done, &domain);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let n = (round % 3) as usize * 2 + half;
                    sent[n].fetch_add(1, Ordering::SeqCst);
                    hv.evtchn_send(domain, Port::new(ports[n])).expect("sent");
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        let mut seen = vec![0; ports.len()];
        let mut rounds = 0u32;
        loop {
            let finished = done.load(Ordering::SeqCst) == 2;
            while let Some(port) = queues.next(array) {
                let n = ports.iter().position(|p| *p == port).expect("one of them");
                seen[n] = sent[n].load(Ordering::SeqCst);
                rounds += 1;
                if rounds.is_multiple_of(5) {
                    array.mask(port);
                }
                if !array.unmask(port) {
                    hv.evtchn_unmask(&domain, Port::new(port)).expect("unmasked");
                }
            }
            if finished {
                break;
            }
        }
        let all: Vec<u32> = sent.iter().map(|sent| sent.load(Ordering::SeqCst)).collect();
        assert_eq!(seen, all, "after the last send of each port came an event");
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(usize),
    Mask(usize),
    Unmask(usize),
    Move(usize, u32),
    Priority(usize, u32),
    Take(u32),
    Scribble(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8usize).prop_map(Step::Send),
        2 => (0..8usize).prop_map(Step::Mask),
        3 => (0..8usize).prop_map(Step::Unmask),
        1 => (0..8usize, 0..2u32).prop_map(|(n, v)| Step::Move(n, v)),
        2 => (0..8usize, 0..16u32).prop_map(|(n, p)| Step::Priority(n, p)),
        4 => (0..2u32).prop_map(Step::Take),
        1 => (0..8usize, any::<u32>()).prop_map(|(n, w)| Step::Scribble(n, w)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against a model of what waits: each event that is neither masked nor taken comes once, on its vCPU. A guest that
    /// scribbles is no longer compared; the hypervisor bears it.
    #[test]
    fn every_event_comes_once(steps in proptest::collection::vec(step(), 1..120)) {
        let world = World::new(256);
        let mut guest = Fifo::ready(&world, 2);
        let pairs: Vec<(u32, u32)> = (0..8).map(|_| {
            let theirs = alloc(&world, &guest.domain, &world.dom0);
            (theirs, bind(&world, &world.dom0, &guest.domain, theirs).expect("bound"))
        }).collect();
        let (mut waits, mut masked, mut keeps_rules) = ([false; 8], [false; 8], true);
        for step in steps {
            match step {
                Step::Send(n) => { send(&world, &world.dom0, pairs[n].1); waits[n] = true; }
                Step::Mask(n) => { guest.array.mask(pairs[n].0); masked[n] = true; }
                Step::Unmask(n) => { guest.unmask(pairs[n].0); masked[n] = false; }
                Step::Move(n, vcpu) => guest.to_vcpu(pairs[n].0, vcpu),
                Step::Priority(n, priority) => assert_eq!(guest.priority(pairs[n].0, priority), 0),
                Step::Take(vcpu) => {
                    if !keeps_rules { continue } // it might go round in its own words
                    for port in guest.events(vcpu) {
                        let n = pairs.iter().position(|pair| pair.0 == port).expect("one of them");
                        prop_assert!(waits[n] && !masked[n], "port {port}");
                        waits[n] = false;
                    }
                }
                Step::Scribble(n, word) => { guest.array.set_word(pairs[n].0, word); keeps_rules = false; }
            }
        }
        if keeps_rules {
            for vcpu in [0, 1] {
                for port in guest.events(vcpu) {
                    let n = pairs.iter().position(|pair| pair.0 == port).expect("one of them");
                    prop_assert!(core::mem::take(&mut waits[n]));
                }
            }
            for n in 0..8 {
                prop_assert!(!waits[n] || masked[n], "event {n} was lost");
            }
        }
        check(&[&world.dom0, &guest.domain]);
        guest.reset();
        check(&[&world.dom0, &guest.domain]);
    }
}
