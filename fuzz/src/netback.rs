//! The network backend's engine: a hostile sender, a hostile receiver, a hostile control ring, and their nodes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use backends::Notifier;
use backends::net::vif::Connection;
use backends::net::{
    Control, ControlGrants, Controlled, Copier, CopyOp, Credit, Flow, HEAD_BYTES, HEADS_PER_PAGE, Intake,
    MAX_PARTS, MAX_STAGED, MIN_PACKET, Packet, Place, Planned, Refused, RxQueue, TxBatch, TxId, TxQueue,
};
use ring_abi::io::netif::{NetifCtrlRing, NetifRxRing, NetifTxRing};
use ring_abi::ring::{BackRing, REQ_PROD, RingProtocol, SLOTS};
use ring_abi::types::{DomId, GrantRef, Mfn};

use crate::input::Input;
use crate::page::HostilePage;

const SENDER: DomId = DomId::new(3);
const RECEIVER: DomId = DomId::new(7);
/// References below this are granted.
const GRANTED: u32 = 200;
/// The frame of the heads.
const HEADS: Mfn = Mfn::new(0x77);

struct Ignored;

impl Notifier for Ignored {
    fn notify(&mut self) {}
}

/// A copier that copies nothing, and checks what it is asked.
struct Checker {
    input: Input,
}

impl Copier for Checker {
    fn copy(&mut self, ops: &mut [CopyOp]) {
        assert!(!ops.is_empty(), "a hypercall for nothing");
        for op in ops {
            let mut granted = true;
            for (place, writes) in [(op.source(), false), (op.dest(), true)] {
                assert!(!op.is_empty() && u32::from(place.offset()) + u32::from(op.len()) <= 4096);
                match place {
                    Place::Own { frame, offset } => {
                        assert_eq!(frame, HEADS, "another page of dom0's");
                        let within = usize::from(offset) % HEAD_BYTES + usize::from(op.len());
                        assert!(within <= HEAD_BYTES, "a head runs into the next");
                    }
                    Place::Grant { domain, gref, .. } => {
                        assert_eq!(domain, if writes { RECEIVER } else { SENDER }, "the wrong way");
                        granted &= gref.raw() < GRANTED;
                    }
                }
            }
            op.set_status(if granted && self.input.u8() & 15 != 0 { 0 } else { -3 });
        }
    }
}

/// What every packet keeps to, whatever its sender wrote.
fn check(packet: &Packet<'_>) {
    let sum: u32 = packet.parts.iter().map(|part| u32::from(part.len)).sum();
    assert!(packet.len == sum && packet.len as usize >= MIN_PACKET && packet.parts.len() <= MAX_PARTS);
    assert!(matches!(packet.parts[0].place, Place::Own { .. }) && packet.parts[0].len > 0);
    assert!(packet.parts[1..].iter().all(|part| {
        let Place::Grant { domain, offset, .. } = part.place else { return false };
        domain == SENDER && part.len > 0 && u32::from(offset) + u32::from(part.len) <= 4096
    }));
    assert!(packet.offload.gso.is_none_or(|gso| gso.size > 0));
}

/// One batch of packets to the receiver. False: the receiver is over.
fn deliver(
    tx: &TxQueue<HostilePage, Ignored>,
    rx: &mut RxQueue<HostilePage, Ignored>,
    ids: &[TxId],
    copier: &mut Checker,
) -> bool {
    let mut ops = Vec::new();
    let mut plans: Vec<Planned> = Vec::new();
    for &id in ids {
        match rx.plan(&tx.packet(id), &mut ops) {
            Ok(planned) => plans.push(planned),
            Err(Refused::NoRoom { needed }) => {
                assert!((1..=19).contains(&needed));
                if rx.arm(needed).is_err() {
                    return false;
                }
            }
            Err(Refused::Ruined(error)) => {
                assert!(error.to_string().len() < 200, "a log line of any length");
                return false;
            }
        }
    }
    if !ops.is_empty() {
        copier.copy(&mut ops);
    }
    for planned in plans {
        let _ = rx.finish(planned, &ops);
    }
    rx.publish();
    true
}

fn publish<R: RingProtocol>(page: &HostilePage, input: &Input, slots: u32) {
    let index = page.word(REQ_PROD);
    let more = input.below(40) as u32;
    for at in 0..more {
        let offset = SLOTS + (index.wrapping_add(at) % slots) as usize * R::SLOT_BYTES;
        page.set(offset, &input.take(R::SLOT_BYTES));
    }
    page.set(REQ_PROD, &index.wrapping_add(more).to_le_bytes());
}

/// A sender and a receiver that write anything between any two reads.
pub(crate) fn run(data: &[u8]) {
    let input = Input::new(data);
    let (tx_page, rx_page) = (HostilePage::new(4096, &input), HostilePage::new(4096, &input));
    let ring = BackRing::<NetifTxRing, _>::new(tx_page.clone()).expect("room for slots");
    let mut tx = TxQueue::new(ring, Ignored, SENDER, vec![HEADS]).expect("memory");
    let ring = BackRing::<NetifRxRing, _>::new(rx_page.clone()).expect("room for slots");
    let mut rx = RxQueue::new(ring, Ignored, RECEIVER);
    let mut intake = Intake::default();
    let mut now = 0;
    if input.u8() & 3 == 0 {
        intake.credit = Credit::new(input.u16().into(), u64::from(input.u16()), 0);
    }
    let (mut batch, mut copier) = (TxBatch::default(), Checker { input: input.clone() });
    let mut under_way: Vec<TxId> = Vec::new();
    while !input.is_empty() {
        match input.u8() % 7 {
            0 => publish::<NetifTxRing>(&tx_page, &input, 256),
            1 => publish::<NetifRxRing>(&rx_page, &input, 256),
            2 => {
                now += u64::from(input.u16());
                if let Err(error) = tx.take(input.below(40), &mut intake, now, &mut batch) {
                    assert!(error.to_string().len() < 200, "a log line of any length");
                    return;
                }
                tx.read_heads(&mut batch, &mut copier);
                batch.ids().iter().for_each(|&id| check(&tx.packet(id)));
                under_way.extend_from_slice(batch.ids());
            }
            3 if !under_way.is_empty() => {
                let count = 1 + input.below(under_way.len());
                if !deliver(&tx, &mut rx, &under_way[..count], &mut copier) {
                    return;
                }
                under_way.drain(..count).for_each(|id| tx.respond(id, true));
                tx.publish();
            }
            4 if !under_way.is_empty() => {
                let id = under_way[input.below(under_way.len())];
                let _ = tx.extend_head(id, &mut copier);
                check(&tx.packet(id));
            }
            5 if !under_way.is_empty() => {
                let id = under_way.swap_remove(input.below(under_way.len()));
                tx.respond(id, input.u8() & 1 != 0);
            }
            _ => {
                if tx.arm().is_err() {
                    return;
                }
            }
        }
        assert_eq!(tx.under_way(), under_way.len());
        assert!(under_way.len() <= HEADS_PER_PAGE);
    }
}

/// Pages that are mapped, by reference.
type MappedPages = Rc<RefCell<BTreeMap<u32, usize>>>;

struct Lent {
    gref: u32,
    page: HostilePage,
    mapped: MappedPages,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut mapped = self.mapped.borrow_mut();
        let times = mapped.get_mut(&self.gref).expect("mapped");
        *times -= 1;
    }
}

impl ring_abi::ring::RingPage for Lent {
    fn ring_bytes(&self) -> usize {
        self.page.ring_bytes()
    }

    fn load_index(&self, offset: usize) -> u32 {
        self.page.load_index(offset)
    }

    fn store_index(&self, offset: usize, value: u32) {
        self.page.store_index(offset, value);
    }

    fn copy_out(&self, offset: usize, target: &mut [u8]) {
        self.page.copy_out(offset, target);
    }

    fn copy_in(&self, offset: usize, source: &[u8]) {
        self.page.copy_in(offset, source);
    }
}

struct Lender {
    input: Input,
    mapped: MappedPages,
}

impl ControlGrants for Lender {
    type Mapped = Lent;

    fn read(&mut self, gref: GrantRef, target: &mut [u8]) -> bool {
        assert!(!target.is_empty() && target.len() <= 4096);
        let bytes = self.input.take(target.len());
        target[..bytes.len()].copy_from_slice(&bytes);
        gref.raw() < GRANTED
    }

    fn write(&mut self, gref: GrantRef, source: &[u8]) -> bool {
        assert!(!source.is_empty() && source.len() <= 4096);
        gref.raw() < GRANTED
    }

    fn map(&mut self, grefs: &[(GrantRef, bool)], out: &mut Vec<Lent>) -> bool {
        if grefs.iter().any(|(gref, _)| gref.raw() >= GRANTED) {
            return false;
        }
        for (gref, _) in grefs {
            *self.mapped.borrow_mut().entry(gref.raw()).or_default() += 1;
            let page = HostilePage::new(4096, &self.input);
            out.push(Lent { gref: gref.raw(), page, mapped: self.mapped.clone() });
        }
        true
    }
}

/// A frontend that asks anything of the control ring, and connects with any nodes.
pub(crate) fn control(data: &[u8]) {
    let input = Input::new(data);
    nodes(&input);
    let page = HostilePage::new(4096, &input);
    let ring = BackRing::<NetifCtrlRing, _>::new(page.clone()).expect("room for slots");
    let mut control = Control::new(ring, Ignored);
    let queues = 1 + input.below(4);
    let mut state = Controlled::new(queues);
    let mapped = MappedPages::default();
    let mut lender = Lender { input: input.clone(), mapped: mapped.clone() };
    while !input.is_empty() {
        publish::<NetifCtrlRing>(&page, &input, 128);
        let polled = control.poll(&mut state, &mut lender);
        let lent: usize = state.stages.iter().map(|stage| stage.len()).sum();
        assert!(lent <= MAX_STAGED && lent == mapped.borrow().values().sum::<usize>());
        let addresses = [input.u8(); 8];
        let hash = state.hashing.hash(&Flow::V4(addresses, Some([input.u8(); 4])));
        assert!(state.hashing.queue(hash, queues) < queues);
        if polled.is_err() {
            break;
        }
    }
    drop(state);
    assert_eq!(mapped.borrow().values().sum::<usize>(), 0, "a page that is not given back");
}

/// A frontend's parameters, each any text.
fn nodes(input: &Input) {
    const MAX_QUEUES: usize = 4;
    match Connection::read(|_| (input.u8() & 7 != 0).then(|| input.text(input.below(12))), MAX_QUEUES) {
        Ok(connection) => {
            assert!((1..=MAX_QUEUES).contains(&connection.queues.len()));
        }
        Err(error) => assert!(error.to_string().len() < 200, "a log line of any length"),
    }
}
