//! Frontends that break the rules. The faults of public advisories have the advisory's number.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use ring_abi::io::netif::*;
use ring_abi::ring::{REQ_PROD, RingError, SLOTS};

use super::super::*;
use super::world::*;

fn sender() -> Sender {
    Sender::new(&Rc::new(RefCell::default()))
}

/// Sends slots as they are, and a good packet behind them; gives the fault, or the answers to the slots.
fn send(slots: impl FnOnce(&mut Sender) -> Vec<NetifTxRequest>) -> Result<Vec<i16>, Disconnect> {
    let mut sender = sender();
    let slots = slots(&mut sender);
    sender.push_raw(&slots);
    let good = sender.piece(0, 60);
    sender.push(&[good], 0, &[]);
    let _ = sender.take(32)?;
    let mut parts = sender.batch.ids().iter().flat_map(|&id| sender.queue.packet(id).parts);
    assert!(parts.all(|part| part.len > 0));
    assert_eq!(sender.packet_bytes(*sender.batch.ids().last().unwrap()), sender.bytes(&[good]));
    sender.respond_all();
    let mut answers = sender.answers();
    assert_eq!(answers.pop(), Some((good.id, NETIF_RSP_OKAY)));
    let tags: Vec<_> =
        answers.iter().filter(|(_, status)| *status != NETIF_RSP_NULL).map(|(id, _)| *id).collect();
    assert!(tags.iter().all(|tag| slots.iter().any(|slot| slot.id == *tag)));
    Ok(answers.iter().map(|(_, status)| *status).collect())
}

/// `count` pieces of `size` bytes each; the first slot claims `total`.
fn chain(sender: &mut Sender, count: usize, size: u16, total: u16) -> Vec<NetifTxRequest> {
    let mut pieces: Vec<_> = (0..count).map(|_| sender.piece(0, size)).collect();
    pieces[..count - 1].iter_mut().for_each(|piece| piece.flags = NETTXF_MORE_DATA);
    pieces[0].size = total;
    pieces
}

#[test]
fn xsa_39_more_requests_than_the_ring_has() {
    let mut sender = sender();
    sender.page.store_u32(REQ_PROD, 257);
    let overrun = Disconnect::Ring(RingError::ProducerOverrun { prod: 257, cons: 0 });
    assert_eq!(sender.take(32), Err(overrun));
    assert_eq!(sender.queue.arm(), Err(overrun));
    let mut receiver = Receiver::new(&Rc::new(RefCell::default()));
    receiver.page.store_u32(REQ_PROD, u32::MAX);
    assert!(receiver.queue.room().is_err() && receiver.queue.arm(3).is_err());
    let mut ops = Vec::new();
    let packet = Packet { len: 0, offload: &Offload::default(), parts: &[] };
    assert!(matches!(receiver.queue.plan(&packet, &mut ops), Err(Refused::Ruined(_))));
}

#[test]
fn xsa_39_ring_that_ends_within_a_packet() {
    let mut ends = Vec::new();
    for count in [1, 2, 18] {
        let mut sender = sender();
        let mut pieces = chain(&mut sender, count, 100, 100 * count as u16);
        pieces[count - 1].flags = NETTXF_MORE_DATA;
        sender.push_raw(&pieces);
        ends.push(sender.take(32));
    }
    let mut sender = sender();
    let mut first = sender.piece(0, 60);
    first.flags = NETTXF_EXTRA_INFO;
    sender.push_raw(&[first]);
    ends.push(sender.take(32));
    let more = NetifExtraInfo { flags: XEN_NETIF_EXTRA_FLAG_MORE, ..gso(1, 1) };
    let mut sender = self::sender();
    sender.push_raw(&[first, NetifTxRequest::from_extra(&more)]);
    ends.push(sender.take(32));
    assert_eq!(ends, vec![Err(Disconnect::Unfinished); 5]);
}

#[test]
fn slots_without_end() {
    // As many as Linux's back end takes, then an error, then the end.
    assert_eq!(send(|s| chain(s, MAX_SLOTS, 20, 380)), Ok(vec![NETIF_RSP_OKAY; 19]));
    assert_eq!(send(|s| chain(s, MAX_SLOTS + 1, 20, 400)), Ok(vec![NETIF_RSP_ERROR; 20]));
    assert_eq!(send(|s| chain(s, MAX_SLOTS + 2, 20, 420)), Ok(vec![NETIF_RSP_ERROR; 21]));
    assert_eq!(send(|s| chain(s, MAX_SLOTS + 3, 20, 440)), Err(Disconnect::TooManySlots));
}

#[test]
fn sizes_that_do_not_add_up() {
    // A packet of 65,536 bytes has a size of 0: an error, as some frontends do that by mistake.
    assert_eq!(send(|s| chain(s, 16, 4096, 0)), Ok(vec![NETIF_RSP_ERROR; 16]));
    assert_eq!(send(|s| chain(s, 2, 100, 99)), Ok(vec![NETIF_RSP_ERROR; 2]));
    assert_eq!(send(|s| chain(s, 2, 100, 113)), Ok(vec![NETIF_RSP_ERROR; 2]));
    assert_eq!(send(|s| chain(s, 2, 100, 114)), Ok(vec![NETIF_RSP_OKAY; 2]));
    for size in [0, 1, 13] {
        assert_eq!(send(|s| vec![s.piece(0, size)]), Ok(vec![NETIF_RSP_ERROR]), "{size} bytes");
    }
    assert_eq!(send(|s| vec![s.piece(4096 - 14, 14)]), Ok(vec![NETIF_RSP_OKAY]));
}

#[test]
fn pieces_that_leave_their_page() {
    let crosses = |offset, size| Err(Disconnect::CrossesPage { offset, size });
    assert_eq!(send(|s| vec![s.piece(0, 4096)]), Ok(vec![NETIF_RSP_OKAY]));
    assert_eq!(send(|s| vec![s.piece(1, 4096)]), crosses(1, 4096));
    assert_eq!(send(|s| vec![s.piece(4095, 60)]), crosses(4095, 60));
    assert_eq!(send(|s| vec![s.piece(u16::MAX, u16::MAX)]), crosses(u16::MAX, u16::MAX));
    let second = |offset, size: u16| {
        send(move |s| {
            let mut pieces = chain(s, 2, 100, 100u16.wrapping_add(size));
            (pieces[1].offset, pieces[1].size) = (offset, size);
            pieces
        })
    };
    assert_eq!(second(4000, 96), Ok(vec![NETIF_RSP_OKAY; 2]));
    assert_eq!(second(4000, 97), crosses(4000, 97));
    assert_eq!(second(u16::MAX, 1), crosses(u16::MAX, 1));
    // A fault that is answered does not hide one that ends the connection.
    assert_eq!(second(0, u16::MAX), crosses(0, u16::MAX));
}

#[test]
fn extra_information_that_does_not_exist() {
    let extra = |extra: NetifExtraInfo| {
        send(move |s| {
            let mut first = s.piece(0, 60);
            first.flags = NETTXF_EXTRA_INFO;
            vec![first, NetifTxRequest { id: first.id, ..NetifTxRequest::from_extra(&extra) }]
        })
    };
    for kind in [0, 5, 6, 255] {
        let info = NetifExtraInfo { r#type: kind, ..Default::default() };
        assert_eq!(extra(info), Err(Disconnect::BadExtra(kind)));
    }
    assert_eq!(extra(gso(XEN_NETIF_GSO_TYPE_TCPV4, 0)), Err(Disconnect::GsoWithoutSize));
    for kind in [0, 3, 255] {
        assert_eq!(extra(gso(kind, 1448)), Err(Disconnect::BadGso(kind)));
    }
    assert_eq!(extra(gso(XEN_NETIF_GSO_TYPE_TCPV4, 1)), Ok(vec![NETIF_RSP_OKAY, NETIF_RSP_NULL]));
    assert_eq!(extra(hash(255, 1)), Ok(vec![NETIF_RSP_OKAY, NETIF_RSP_NULL]));
}

#[test]
fn extra_information_fills_the_ring() {
    let mut sender = sender();
    let mut first = sender.piece(0, 60);
    first.flags = NETTXF_EXTRA_INFO;
    sender.push_raw(&[first]);
    for at in 0..255 {
        let flags = if at < 254 { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
        let extra = NetifExtraInfo { flags, ..gso(XEN_NETIF_GSO_TYPE_TCPV4, at + 1) };
        sender.push_raw(&[NetifTxRequest::from_extra(&extra)]);
    }
    assert_eq!(sender.take(32), Ok(Taken::Empty));
    assert_eq!(sender.queue.packet(sender.batch.ids()[0]).offload.gso.unwrap().size, 255);
    sender.respond_all();
    assert_eq!(sender.answers().len(), 256);
}

#[test]
fn xsa_423_headers_over_many_slots_are_in_the_head() {
    let mut sender = sender();
    let pieces: Vec<_> = (0..10).map(|at| sender.piece(0, if at == 0 { 14 } else { 10 })).collect();
    sender.push(&pieces, 0, &[]);
    let _ = sender.take(1);
    let packet = sender.queue.packet(sender.batch.ids()[0]);
    assert_eq!((packet.len, packet.head_len()), (104, 54));
    let id = sender.batch.ids()[0];
    assert!(sender.queue.extend_head(id, &mut *sender.memory.borrow_mut()));
    assert_eq!(sender.queue.packet(id).head_len(), 104);
    assert_eq!(sender.packet_bytes(id), sender.bytes(&pieces));
}

#[test]
fn xsa_448_slots_without_bytes() {
    let zeros = send(|s| {
        let mut pieces = chain(s, 5, 60, 160);
        for at in [1, 3, 4] {
            pieces[at].size = 0;
        }
        pieces[2].size = 100;
        pieces
    });
    assert_eq!(zeros, Ok(vec![NETIF_RSP_OKAY; 5]));
}

#[test]
fn xsa_362_and_367_grants_that_fail() {
    let mut sender = sender();
    let pieces: Vec<_> = (0..3).map(|_| sender.piece(0, 300)).collect();
    let short = [sender.piece(0, 20), sender.piece(0, 300)];
    sender.memory.borrow_mut().revoke(SENDER, pieces[1].gref);
    sender.memory.borrow_mut().revoke(SENDER, short[1].gref);
    for piece in &pieces {
        sender.push(&[*piece], 0, &[]);
    }
    sender.push(&short, 0, &[gso(1, 1)]);
    assert_eq!(sender.take(32), Ok(Taken::Empty));
    assert_eq!(sender.batch.ids().len(), 2, "the packet behind a bad one is still taken");
    sender.queue.publish();
    let error = NETIF_RSP_ERROR;
    assert_eq!(sender.answers()[..3], [(pieces[1].id, error), (short[0].id, error), (short[1].id, error)]);
    assert_eq!(sender.queue.under_way(), 2);
    assert_eq!(sender.queue.stats(), TxStats { packets: 2, bytes: 600, errors: 2 });

    // A head whose first copy fails, and not the last.
    let short = [sender.piece(0, 20), sender.piece(0, 300)];
    sender.memory.borrow_mut().revoke(SENDER, short[0].gref);
    sender.push(&short, 0, &[]);
    let _ = sender.take(1);
    assert_eq!(sender.batch.ids(), []);

    // A head that cannot be made longer.
    let pieces = [sender.piece(0, 60), sender.piece(0, 60)];
    sender.push(&pieces, 0, &[]);
    let _ = sender.take(1);
    let id = sender.batch.ids()[0];
    sender.memory.borrow_mut().revoke(SENDER, pieces[1].gref);
    assert!(!sender.queue.extend_head(id, &mut *sender.memory.borrow_mut()));
    sender.queue.respond(id, false);
}

#[test]
fn xsa_155_slots_that_change_after_the_look() {
    let mut sender = sender();
    sender.intake.credit = Credit::new(1 << 20, 1000, 0);
    let piece = sender.piece(0, 60);
    sender.push(&[piece], 0, &[]);
    let _ = sender.take(1);
    let id = sender.batch.ids()[0];
    // Everything that the frontend can still reach changes.
    sender.page.fill(SLOTS, 4096 - SLOTS, 0xff);
    assert_eq!(sender.packet_bytes(id), sender.bytes(&[piece]));
    sender.respond_all();
    assert_eq!(sender.answers(), [(piece.id, NETIF_RSP_OKAY)]);
}

#[test]
fn xsa_216_answers_show_nothing_else() {
    let mut sender = sender();
    let piece = sender.piece(0, 60);
    sender.page.fill(SLOTS, 4096 - SLOTS, 0);
    sender.push(&[piece], 0, &[gso(1, 9)]);
    let _ = sender.take(1);
    sender.page.fill(SLOTS, 4096 - SLOTS, 0x5a);
    sender.respond_all();
    let mut slots = [0; 24];
    sender.page.read(SLOTS, &mut slots);
    assert_eq!((&slots[4..12], &slots[16..24]), (&[0x5a; 8][..], &[0x5a; 8][..]));
    assert_eq!(slots[12..16], [0, 0, 1, 0]);
}

#[test]
fn requests_that_are_taken_back() {
    let memory = Rc::new(RefCell::default());
    let (mut sender, mut receiver) = (Sender::new(&memory), Receiver::new(&memory));
    let _ = receiver.post(9);
    let piece = sender.piece(0, 60);
    sender.push(&[piece], 0, &[]);
    let _ = sender.take(1);
    assert_eq!(receiver.carry(&sender, sender.batch.ids()[0]), Ok(true));
    receiver.page.store_u32(REQ_PROD, 0);
    assert!(receiver.queue.room().is_err());
    // The requests that the back end knows of are used up first.
    for _ in 0..8 {
        assert_eq!(receiver.carry(&sender, sender.batch.ids()[0]), Ok(true));
    }
    assert!(matches!(receiver.carry(&sender, sender.batch.ids()[0]), Err(Refused::Ruined(_))));
}

#[test]
fn receive_pages_that_are_not_granted_hurt_their_owner_alone() {
    let memory = Rc::new(RefCell::default());
    let (mut sender, mut receiver) = (Sender::new(&memory), Receiver::new(&memory));
    let _ = receiver.post(2);
    let gref = receiver.next_page();
    memory.borrow_mut().revoke(RECEIVER, gref);
    for _ in 0..2 {
        let piece = sender.piece(0, 60);
        sender.push(&[piece], 0, &[]);
    }
    let _ = sender.take(2);
    let ids = sender.batch.ids().to_vec();
    assert_eq!(receiver.carry(&sender, ids[0]), Ok(false));
    assert_eq!(receiver.carry(&sender, ids[1]), Ok(true));
    receiver.queue.publish();
    assert!(receiver.next().unwrap().error);
    assert_eq!(receiver.next().unwrap().bytes, sender.packet_bytes(ids[1]));
}

proptest! {
    /// A frontend that writes anything anywhere never makes the engine panic, copy past a page, or keep more than its
    /// heads; and every slot that the engine took is answered once.
    #[test]
    fn anything_on_both_rings(
        writes in prop::collection::vec((any::<bool>(), 0usize..1024, any::<u32>(), 0u8..8), 1..120),
        near in any::<bool>(),
    ) {
        let memory = Rc::new(RefCell::default());
        let (mut sender, mut receiver) = (Sender::new(&memory), Receiver::new(&memory));
        let grefs: Vec<u32> = (0..8).map(|_| sender.piece(0, 60).gref).collect();
        let _ = receiver.post(20);
        let mut under_way: Vec<TxId> = Vec::new();
        let mut taken = 0;
        for (tx, word, value, action) in writes {
            let page = if tx { sender.page } else { receiver.page };
            // Slots that make some sense, and indices close to the true ones.
            let value = match word {
                0 if near => taken + value % 40,
                word if near && word >= 16 && (word - 16) % 3 == 0 => grefs[value as usize % 8],
                word if near && word >= 16 && (word - 16) % 3 == 1 => (value & 0xff) | (value >> 12 & 0xf) << 16,
                _ => value,
            };
            page.store_u32(word * 4, value);
            match action {
                0..=2 => {
                    if sender.queue.take(value as usize % 20, &mut sender.intake, 0, &mut sender.batch).is_err() {
                        return Ok(());
                    }
                    sender.queue.read_heads(&mut sender.batch, &mut *memory.borrow_mut());
                    under_way.extend_from_slice(sender.batch.ids());
                    taken = sender.page.load_u32(REQ_PROD);
                }
                3 if !under_way.is_empty() => {
                    let id = under_way.swap_remove(value as usize % under_way.len());
                    if let Err(Refused::Ruined(_)) = receiver.carry(&sender, id) {
                        return Ok(());
                    }
                    sender.queue.respond(id, true);
                }
                4 if !under_way.is_empty() => {
                    let id = under_way[value as usize % under_way.len()];
                    let _ = sender.queue.extend_head(id, &mut *memory.borrow_mut());
                }
                5 => sender.queue.publish(),
                6 => receiver.queue.publish(),
                _ => {
                    let _ = (sender.queue.arm(), receiver.queue.arm(1 + value % 19));
                }
            }
            prop_assert_eq!(sender.queue.under_way(), under_way.len());
            prop_assert!(under_way.len() <= MAX_HEADS);
        }
    }
}
