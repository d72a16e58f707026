//! Packets that a good frontend sends.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use ring_abi::io::netif::*;
use ring_abi::types::{GrantRef, Mfn};

use super::super::*;
use super::world::*;

fn sender() -> Sender {
    Sender::new(&Rc::new(RefCell::default()))
}

#[test]
fn small_packet_costs_one_copy() {
    let mut sender = sender();
    let piece = sender.piece(100, 60);
    sender.push(&[piece], 0, &[]);
    assert_eq!(sender.take(32), Ok(Taken::Empty));
    let id = sender.batch.ids()[0];
    let packet = sender.queue.packet(id);
    assert_eq!((packet.len, packet.head_len(), packet.parts.len()), (60, 60, 1));
    assert_eq!(*packet.offload, Offload::default());
    assert_eq!(packet.parts[0].place, Place::Own { frame: Mfn::new(0x900), offset: 0 });
    assert_eq!((id.index(), id.head_at()), (0, (0, 0)));
    assert_eq!(sender.packet_bytes(id), sender.bytes(&[piece]));
    assert_eq!((sender.memory.borrow().calls, sender.memory.borrow().copies), (1, 1));
    assert_eq!(sender.answers(), []);
    sender.respond_all();
    assert_eq!(sender.answers(), [(piece.id, NETIF_RSP_OKAY)]);
    assert_eq!(sender.queue.stats(), TxStats { packets: 1, bytes: 60, errors: 0 });
}

#[test]
fn batch_is_one_hypercall_and_one_event() {
    let mut sender = sender();
    for _ in 0..40 {
        let piece = sender.piece(0, 64);
        sender.push(&[piece], 0, &[]);
    }
    assert_eq!(sender.take(32), Ok(Taken::More));
    assert_eq!(sender.batch.ids().len(), 32);
    assert_eq!((sender.memory.borrow().calls, sender.memory.borrow().copies), (1, 32));
    sender.respond_all();
    assert_eq!(sender.events.0.get(), 1);
    assert_eq!(sender.answers().len(), 32);
    // The frontend has not armed again, and is not woken again.
    assert_eq!(sender.take(32), Ok(Taken::Empty));
    sender.respond_all();
    assert_eq!(sender.events.0.get(), 1);
    assert_eq!(sender.take(32), Ok(Taken::Empty));
    assert_eq!(sender.memory.borrow().calls, 2, "a batch of nothing costs no hypercall");
    sender.queue.publish();
    assert_eq!(sender.events.0.get(), 1);
}

#[test]
fn headers_of_linux_are_a_head_of_their_own() {
    // A linear area with the headers, and payload in pages.
    let mut sender = sender();
    let pieces = [sender.piece(2, 66), sender.piece(100, 1448)];
    sender.push(&pieces, NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED, &[]);
    assert_eq!(sender.take(1), Ok(Taken::More));
    let id = sender.batch.ids()[0];
    let packet = sender.queue.packet(id);
    assert_eq!((packet.len, packet.head_len(), packet.parts.len()), (1514, 66, 2));
    assert_eq!(packet.offload.checksum, Checksum::Partial);
    let Place::Grant { domain, gref, offset } = packet.parts[1].place else { panic!("no grant") };
    assert_eq!((domain, gref, offset), (SENDER, GrantRef::new(pieces[1].gref), 100));
    assert_eq!(sender.memory.borrow().copies, 1);
    assert_eq!(sender.packet_bytes(id), sender.bytes(&pieces));

    // Where the headers go on in the second slot, the head is made longer.
    assert!(sender.queue.extend_head(id, &mut *sender.memory.borrow_mut()));
    assert_eq!(sender.queue.packet(id).head_len(), 256);
    assert_eq!(sender.packet_bytes(id), sender.bytes(&pieces));
    assert_eq!(sender.memory.borrow().copies, 2);
    assert!(sender.queue.extend_head(id, &mut *sender.memory.borrow_mut()), "as long as there is");
    assert_eq!(sender.memory.borrow().calls, 2, "and then costs nothing");
    sender.respond_all();
    let ids: Vec<_> = pieces.iter().map(|piece| (piece.id, NETIF_RSP_OKAY)).collect();
    assert_eq!(sender.answers(), ids);
}

#[test]
fn largest_packet_with_extra_information() {
    let mut sender = sender();
    let pieces: Vec<_> = (0..16).map(|at| sender.piece(0, if at == 15 { 4095 } else { 4096 })).collect();
    assert_eq!(pieces.iter().map(|piece| u32::from(piece.size)).sum::<u32>(), MAX_PACKET as u32);
    let extras = [gso(XEN_NETIF_GSO_TYPE_TCPV6, 1428), hash(3, 0x1234_5678)];
    sender.push(&pieces, NETTXF_CSUM_BLANK, &extras);
    assert_eq!(sender.take(9), Ok(Taken::Empty));
    let id = sender.batch.ids()[0];
    let packet = sender.queue.packet(id);
    assert_eq!((packet.len, packet.head_len(), packet.parts.len()), (65_535, 256, 17));
    let expected = Offload {
        checksum: Checksum::Partial,
        gso: Some(Gso { kind: GsoKind::TcpV6, size: 1428 }),
        hash: Some(PacketHash { kind: 3, value: 0x1234_5678 }),
    };
    assert_eq!(*packet.offload, expected);
    assert_eq!(sender.packet_bytes(id), sender.bytes(&pieces));
    sender.respond_all();
    let answers = sender.answers();
    assert_eq!(answers.len(), 18);
    assert_eq!(answers.iter().filter(|(_, status)| *status == NETIF_RSP_NULL).count(), 2);
    assert!(pieces.iter().all(|piece| answers.contains(&(piece.id, NETIF_RSP_OKAY))));
}

#[test]
fn flags_say_what_is_known_of_the_checksum() {
    let mut sender = sender();
    let both = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED;
    for flags in [0, NETTXF_DATA_VALIDATED, NETTXF_CSUM_BLANK, both] {
        let piece = sender.piece(0, 60);
        sender.push(&[piece], flags, &[]);
    }
    assert_eq!(sender.take(4), Ok(Taken::More));
    let known: Vec<_> =
        sender.batch.ids().iter().map(|&id| sender.queue.packet(id).offload.checksum).collect();
    assert_eq!(known, [Checksum::Complete, Checksum::Verified, Checksum::Partial, Checksum::Partial]);
}

#[test]
fn answers_come_in_any_order_and_heads_are_used_again() {
    let mut sender = Sender::starting_at(&Rc::new(RefCell::default()), u32::MAX - 5, 1);
    let pieces: Vec<_> = (0..20).map(|_| sender.piece(0, 60)).collect();
    pieces.iter().for_each(|piece| sender.push(&[*piece], 0, &[]));
    assert_eq!(sender.take(32), Ok(Taken::NoHead));
    assert_eq!(sender.batch.ids().len(), HEADS_PER_PAGE);
    let ids = sender.batch.ids().to_vec();
    for at in [9, 3] {
        sender.queue.respond(ids[at], true);
    }
    sender.queue.publish();
    assert_eq!(sender.answers(), [(pieces[9].id, 0), (pieces[3].id, 0)]);
    assert_eq!(sender.queue.under_way(), 14);
    assert_eq!(sender.take(32), Ok(Taken::NoHead));
    let again = sender.batch.ids().to_vec();
    assert_eq!(again, [ids[3], ids[9]]);
    assert_eq!(sender.packet_bytes(again[0]), sender.bytes(&pieces[16..17]));
    // The packets that stayed are what they were.
    assert_eq!(sender.packet_bytes(ids[0]), sender.bytes(&pieces[..1]));
}

#[test]
#[should_panic = "answered twice"]
fn a_packet_is_answered_once() {
    let mut sender = sender();
    let piece = sender.piece(0, 60);
    sender.push(&[piece], 0, &[]);
    let _ = sender.take(1);
    sender.respond_all();
    sender.respond_all();
}

#[test]
fn multicast_addresses_are_no_packets() {
    let mut sender = sender();
    let (wanted, other) = ([1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 9]);
    let piece = sender.piece(0, 0);
    sender.push(&[piece], 0, &[mcast(true, wanted)]);
    sender.push(&[piece], 0, &[mcast(true, other)]);
    sender.push(&[piece], 0, &[mcast(false, other)]);
    sender.push(&[piece], 0, &[mcast(false, other)]);
    assert_eq!(sender.take(9), Ok(Taken::Empty));
    assert_eq!(sender.batch.ids(), []);
    sender.queue.publish();
    let ok = [(piece.id, NETIF_RSP_OKAY), (0, NETIF_RSP_NULL)];
    assert_eq!(sender.answers(), ok.repeat(4));
    let filter = &mut sender.intake.filter;
    assert!(filter.wants(other), "not asked for yet");
    filter.ask(true);
    assert!(filter.wants(wanted) && !filter.wants(other));
    assert!(filter.wants([0xff; 6]) && filter.wants([0x02, 0, 0, 0, 0, 1]));

    // The table is full after 64, and the frontend is told.
    for at in 0..64 {
        sender.push(&[piece], 0, &[mcast(true, [1, 0, 0, 0, 1, at])]);
    }
    assert_eq!(sender.take(99), Ok(Taken::Empty));
    sender.queue.publish();
    let answers = sender.answers();
    let refused: Vec<_> = answers.iter().filter(|(_, status)| *status == NETIF_RSP_ERROR).collect();
    assert_eq!(refused, [&(piece.id, NETIF_RSP_ERROR)]);
}

proptest! {
    /// Whatever the pieces of a packet are, head and parts together are the packet, within pages.
    #[test]
    fn head_and_parts_are_the_packet(
        sizes in prop::collection::vec((0u16..4096, 0u16..4096), 1..=MAX_SLOTS),
        small in any::<bool>(),
        extend in any::<bool>(),
    ) {
        let mut sender = sender();
        let pieces: Vec<_> = sizes.iter().enumerate().map(|(at, &(offset, size))| {
            let size = if small { size % 90 } else { size };
            let size = if at == 0 { size.max(14) } else { size };
            sender.piece(offset.min(4096 - size), size)
        }).collect();
        let bytes = sender.bytes(&pieces);
        prop_assume!(bytes.len() <= MAX_PACKET);
        sender.push(&pieces, 0, &[]);
        prop_assert_eq!(sender.take(2), Ok(Taken::Empty));
        let id = sender.batch.ids()[0];
        if extend {
            prop_assert!(sender.queue.extend_head(id, &mut *sender.memory.borrow_mut()));
            prop_assert_eq!(usize::from(sender.queue.packet(id).head_len()), bytes.len().min(HEAD_BYTES));
        }
        prop_assert_eq!(sender.packet_bytes(id), bytes);
        let packet = sender.queue.packet(id);
        prop_assert!(packet.parts.len() <= MAX_PARTS && packet.parts.iter().all(|part| part.len > 0));
        prop_assert!(usize::from(packet.head_len()) >= 54.min(packet.len as usize));
        sender.respond_all();
        prop_assert_eq!(sender.answers().len(), pieces.len());
    }
}
