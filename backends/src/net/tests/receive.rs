//! Packets that reach a frontend.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use ring_abi::io::netif::*;

use super::super::*;
use super::world::*;

fn pair() -> (Sender, Receiver) {
    let memory = Rc::new(RefCell::default());
    (Sender::new(&memory), Receiver::new(&memory))
}

fn one(sender: &mut Sender, pieces: &[NetifTxRequest], flags: u16, extras: &[NetifExtraInfo]) -> TxId {
    sender.push(pieces, flags, extras);
    let _ = sender.take(1).unwrap();
    sender.batch.ids()[0]
}

#[test]
fn small_packet_from_guest_to_guest_is_two_copies() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(4);
    let piece = sender.piece(17, 64);
    let id = one(&mut sender, &[piece], NETTXF_DATA_VALIDATED, &[]);
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    assert_eq!(sender.memory.borrow().copies, 2);
    assert!(receiver.next().is_none(), "not published");
    receiver.queue.publish();
    assert_eq!(receiver.events.0.get(), 1);
    let got = receiver.next().unwrap();
    assert_eq!((&got.bytes, got.slots), (&sender.bytes(&[piece]), 1));
    assert_eq!((got.flags, got.gso, got.hash, got.error), (NETRXF_DATA_VALIDATED, None, None, false));
    assert_eq!(receiver.queue.room(), Ok(3));
    assert_eq!(receiver.queue.stats(), RxStats { packets: 1, bytes: 64, errors: 0 });
}

#[test]
fn batch_is_one_event() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(32);
    let pieces: Vec<_> = (0..32).map(|_| sender.piece(0, 90)).collect();
    pieces.iter().for_each(|piece| sender.push(&[*piece], 0, &[]));
    let _ = sender.take(32).unwrap();
    let mut ops = Vec::new();
    let plans: Vec<_> = sender
        .batch
        .ids()
        .iter()
        .map(|&id| receiver.queue.plan(&sender.queue.packet(id), &mut ops).unwrap())
        .collect();
    sender.memory.borrow_mut().copy(&mut ops);
    assert!(plans.into_iter().all(|planned| receiver.queue.finish(planned, &ops)));
    receiver.queue.publish();
    assert_eq!((sender.memory.borrow().calls, receiver.events.0.get()), (2, 1));
    for piece in &pieces {
        assert_eq!(receiver.next().unwrap().bytes, sender.bytes(&[*piece]));
    }
    assert!(receiver.next().is_none());
}

#[test]
fn segmentation_and_hash_stand_behind_the_first_slot() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(40);
    let pieces: Vec<_> = (0..16).map(|_| sender.piece(0, 4000)).collect();
    let extras = [gso(XEN_NETIF_GSO_TYPE_TCPV4, 1448), hash(1, 0xdead_beef)];
    let id = one(&mut sender, &pieces, NETTXF_CSUM_BLANK, &extras);
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    receiver.queue.publish();
    let got = receiver.next().unwrap();
    assert_eq!(got.bytes, sender.bytes(&pieces));
    assert_eq!((got.gso, got.hash), (Some((XEN_NETIF_GSO_TYPE_TCPV4, 1448)), Some((1, 0xdead_beef))));
    assert_eq!(got.flags, NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED | NETRXF_EXTRA_INFO);
    // No part was cut: a copy for the head, and one for each part.
    assert_eq!((got.slots, sender.memory.borrow().copies), (16, 1 + 17));
    assert_eq!(receiver.queue.room(), Ok(22));
}

#[test]
fn one_kind_of_extra_information_alone() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(40);
    let piece = sender.piece(0, 2000);
    for extra in [gso(XEN_NETIF_GSO_TYPE_TCPV6, 1), hash(0, 7)] {
        let id = one(&mut sender, &[piece], 0, &[extra]);
        assert_eq!(receiver.carry(&sender, id), Ok(true));
    }
    receiver.queue.publish();
    let first = receiver.next().unwrap();
    assert_eq!((first.gso, first.hash), (Some((XEN_NETIF_GSO_TYPE_TCPV6, 1)), None));
    let second = receiver.next().unwrap();
    assert_eq!((second.gso, second.hash), (None, Some((0, 7))));
}

#[test]
fn too_little_room_takes_nothing() {
    let (mut sender, mut receiver) = pair();
    let pieces: Vec<_> = (0..5).map(|_| sender.piece(0, 4096)).collect();
    let id = one(&mut sender, &pieces, 0, &[gso(XEN_NETIF_GSO_TYPE_TCPV4, 1448)]);
    for posted in 0..6 {
        assert_eq!(receiver.carry(&sender, id), Err(Refused::NoRoom { needed: 6 }), "{posted}");
        assert_eq!(receiver.queue.arm(6), Ok(false));
        assert_eq!(receiver.post(1), posted == 5, "the frontend tells when all wait");
    }
    assert_eq!(receiver.queue.arm(6), Ok(true));
    // With whole parts the packet takes one slot more, as is not there.
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    receiver.queue.publish();
    let got = receiver.next().unwrap();
    assert_eq!((&got.bytes, got.slots), (&sender.bytes(&pieces), 5));
}

#[test]
fn many_small_parts_share_slots() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(256);
    // Nineteen parts that no two of them fit in a page: more slots than a frontend takes.
    let pieces: Vec<_> = (0..19).map(|_| sender.piece(0, 2100)).collect();
    let id = one(&mut sender, &pieces, 0, &[]);
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    // Parts that fit share a page.
    let small: Vec<_> = (0..10).map(|_| sender.piece(0, 600)).collect();
    let id = one(&mut sender, &small, 0, &[]);
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    receiver.queue.publish();
    let got = receiver.next().unwrap();
    assert_eq!((&got.bytes, got.slots), (&sender.bytes(&pieces), 10));
    let got = receiver.next().unwrap();
    assert_eq!((&got.bytes, got.slots), (&sender.bytes(&small), 2));
}

#[test]
fn failed_copy_is_an_error_in_the_packets_place() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(40);
    let good = sender.piece(0, 70);
    let pieces = [sender.piece(0, 2000), sender.piece(0, 4096), sender.piece(0, 4096)];
    let mut ops = Vec::new();
    sender.push(&[good], 0, &[]);
    sender.push(&pieces, 0, &[gso(XEN_NETIF_GSO_TYPE_TCPV4, 1), hash(0, 1)]);
    sender.push(&[good], 0, &[]);
    let _ = sender.take(3).unwrap();
    sender.memory.borrow_mut().revoke(SENDER, pieces[2].gref);
    let ids = sender.batch.ids().to_vec();
    let plans: Vec<_> =
        ids.iter().map(|&id| receiver.queue.plan(&sender.queue.packet(id), &mut ops).unwrap()).collect();
    sender.memory.borrow_mut().copy(&mut ops);
    let went: Vec<_> = plans.into_iter().map(|planned| receiver.queue.finish(planned, &ops)).collect();
    assert_eq!(went, [true, false, true]);
    receiver.queue.publish();
    assert_eq!(receiver.next().unwrap().bytes, sender.bytes(&[good]));
    let bad = receiver.next().unwrap();
    assert_eq!((bad.error, bad.bytes.len(), bad.slots), (true, 0, 3));
    assert_eq!((bad.gso, bad.hash), (Some((1, 1)), Some((0, 1))));
    assert_eq!(receiver.next().unwrap().bytes, sender.bytes(&[good]));
    assert_eq!(receiver.queue.stats(), RxStats { packets: 2, bytes: 140, errors: 1 });
}

/// Does all copies at once but one.
struct AllBut {
    memory: Rc<RefCell<Memory>>,
    left: usize,
    asked: usize,
}

impl AtOnce for AllBut {
    fn copy(&mut self, copy: &CopyIn) -> bool {
        self.asked += 1;
        let dest = Place::Grant { domain: RECEIVER, gref: copy.gref, offset: copy.offset };
        let mut op = [CopyOp::new(copy.source, dest, copy.len)];
        if self.asked - 1 != self.left {
            self.memory.borrow_mut().copy(&mut op);
        }
        op[0].ok()
    }
}

#[test]
fn what_is_copied_at_once_is_in_no_list() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(40);
    // One slot; a head and the rest of a slot; a packet of many slots.
    let pieces = [[sender.piece(0, 70)].to_vec(), [sender.piece(0, 2000)].to_vec()];
    let long = [sender.piece(0, 3000), sender.piece(0, 4096), sender.piece(0, 100)].to_vec();
    for (pieces, copies) in pieces.into_iter().chain([long]).zip([1, 2, 4]) {
        // Each copy is left to the list in turn, and then none.
        for left in 0..=copies {
            let id = one(&mut sender, &pieces, 0, &[]);
            let mut ops = Vec::new();
            let mut now = AllBut { memory: sender.memory.clone(), left, asked: 0 };
            let packet = sender.queue.packet(id);
            let planned = receiver.queue.plan_with(&packet, &mut ops, &mut now).unwrap();
            assert_eq!(
                (now.asked, ops.len(), planned.is_there()),
                (copies, usize::from(left < copies), ops.is_empty())
            );
            sender.memory.borrow_mut().copy(&mut ops);
            assert!(receiver.queue.finish(planned, &ops));
            receiver.queue.publish();
            assert_eq!(receiver.next().unwrap().bytes, sender.bytes(&pieces));
            sender.queue.respond(id, true);
            sender.queue.publish();
            let _ = receiver.post(5);
        }
    }
}

#[test]
#[should_panic = "before its bytes"]
fn nothing_is_published_before_its_bytes() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(1);
    let piece = sender.piece(0, 60);
    let id = one(&mut sender, &[piece], 0, &[]);
    let _planned = receiver.queue.plan(&sender.queue.packet(id), &mut Vec::new());
    receiver.queue.publish();
}

#[test]
fn changed_head_arrives_changed() {
    let (mut sender, mut receiver) = pair();
    let _ = receiver.post(2);
    let pieces = [sender.piece(0, 60), sender.piece(9, 500)];
    let id = one(&mut sender, &pieces, 0, &[]);
    let Place::Own { frame, offset } = sender.queue.packet(id).parts[0].place else { panic!("no head") };
    sender.memory.borrow_mut().own(frame)[usize::from(offset)..][..6].copy_from_slice(b"router");
    let mut expected = sender.bytes(&pieces);
    expected[..6].copy_from_slice(b"router");
    assert_eq!(receiver.carry(&sender, id), Ok(true));
    receiver.queue.publish();
    assert_eq!(receiver.next().unwrap().bytes, expected);
}

proptest! {
    /// Packets of any shape arrive whole and in order, over the edge of the rings' indices, in batches of any size.
    #[test]
    fn what_is_sent_arrives(
        packets in prop::collection::vec(
            (prop::collection::vec((0u16..4096, 0u16..4096), 1..=MAX_SLOTS), any::<bool>(), any::<bool>(), any::<u32>()),
            1..24,
        ),
        start in prop_oneof![Just(0), Just(u32::MAX - 9), any::<u32>()],
    ) {
        let memory = Rc::new(RefCell::default());
        let mut sender = Sender::starting_at(&memory, start, 4);
        let mut receiver = Receiver::starting_at(&memory, start.wrapping_add(77));
        for (shape, small, segmented, value) in &packets {
            let mut left = MAX_PACKET as u16;
            let pieces: Vec<_> = shape.iter().enumerate().map(|(at, &(offset, size))| {
                let size = if *small { size % 300 } else { size };
                let size = if at == 0 { size.max(14) } else { size.min(left) };
                left -= size;
                sender.piece(offset.min(4096 - size), size)
            }).collect();
            let mut extras = Vec::new();
            if *segmented {
                extras.push(gso(XEN_NETIF_GSO_TYPE_TCPV4, (*value as u16).max(1)));
            }
            if value % 3 == 0 {
                extras.push(hash((value % 4) as u8, *value));
            }
            let id = one(&mut sender, &pieces, 0, &extras);
            let _ = receiver.post((*value % 5) as usize);
            let went = loop {
                match receiver.carry(&sender, id) {
                    Err(Refused::NoRoom { needed }) => {
                        let room = receiver.queue.room().unwrap() as u32;
                        prop_assert!(room < needed && needed <= 19);
                        prop_assert!(!receiver.queue.arm(needed).unwrap());
                        prop_assert!(receiver.post((needed - room) as usize), "told at the last");
                    }
                    went => break went,
                }
            };
            prop_assert_eq!(went, Ok(true));
            receiver.queue.publish();
            let got = receiver.next().unwrap();
            prop_assert_eq!(&got.bytes, &sender.bytes(&pieces));
            prop_assert!(got.slots <= 17);
            prop_assert_eq!(got.gso, segmented.then_some((1, (*value as u16).max(1))));
            prop_assert_eq!(got.hash, (value % 3 == 0).then_some(((value % 4) as u8, *value)));
            sender.respond_all();
            prop_assert_eq!(sender.answers().len(), pieces.len() + extras.len());
        }
    }
}
