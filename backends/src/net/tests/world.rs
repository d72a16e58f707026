//! Pages of two domains, the copies between them, and both ends' frontends.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use ring_abi::grant::{GNTST_BAD_COPY_ARG, GNTST_BAD_GNTREF, GNTST_OKAY};
use ring_abi::io::netif::*;
use ring_abi::ring::{BackRing, FrontRing};
use ring_abi::shared::{SharedBytes, leaked_pages};
use ring_abi::types::{DomId, Mfn, PAGE_SIZE};

use super::super::*;
use crate::traits::Notifier;

pub(super) const SENDER: DomId = DomId::new(3);
pub(super) const RECEIVER: DomId = DomId::new(7);
/// The first frame of the owner's heads.
const HEADS: u64 = 0x900;

/// Memory of all domains.
#[derive(Default)]
pub(super) struct Memory {
    granted: BTreeMap<(DomId, u32), Vec<u8>>,
    own: BTreeMap<Mfn, Vec<u8>>,
    /// Hypercalls, and copies in them.
    pub(super) calls: usize,
    pub(super) copies: usize,
}

impl Memory {
    pub(super) fn grant(&mut self, domain: DomId, gref: u32) -> &mut Vec<u8> {
        self.granted.entry((domain, gref)).or_insert_with(|| vec![0; PAGE_SIZE])
    }

    pub(super) fn revoke(&mut self, domain: DomId, gref: u32) {
        self.granted.remove(&(domain, gref));
    }

    pub(super) fn own(&mut self, frame: Mfn) -> &mut Vec<u8> {
        self.own.entry(frame).or_insert_with(|| vec![0; PAGE_SIZE])
    }

    fn page(&mut self, place: Place) -> Option<&mut Vec<u8>> {
        match place {
            Place::Grant { domain, gref, .. } => self.granted.get_mut(&(domain, gref.raw())),
            Place::Own { frame, .. } => Some(self.own.get_mut(&frame).expect("a page of the owner's")),
        }
    }

    pub(super) fn read(&mut self, place: Place, len: u16) -> Vec<u8> {
        let start = usize::from(place.offset());
        self.page(place).expect("granted")[start..start + usize::from(len)].to_vec()
    }

    fn one(&mut self, op: &CopyOp) -> i16 {
        let (source, dest, len) = (op.source(), op.dest(), usize::from(op.len()));
        assert!(len > 0, "a copy of nothing");
        for place in [source, dest] {
            if usize::from(place.offset()) + len > PAGE_SIZE {
                return GNTST_BAD_COPY_ARG;
            }
        }
        let Some(from) = self.page(source) else { return GNTST_BAD_GNTREF };
        let bytes = from[source.offset().into()..][..len].to_vec();
        let Some(to) = self.page(dest) else { return GNTST_BAD_GNTREF };
        to[dest.offset().into()..][..len].copy_from_slice(&bytes);
        GNTST_OKAY
    }
}

impl Copier for Memory {
    fn copy(&mut self, ops: &mut [CopyOp]) {
        self.calls += 1;
        self.copies += ops.len();
        for op in ops {
            let status = self.one(op);
            assert_ne!(status, GNTST_BAD_COPY_ARG, "a copy crosses its page: {op:?}");
            op.set_status(status);
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Events(pub(super) Rc<Cell<usize>>);

impl Notifier for Events {
    fn notify(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

pub(super) type Page = SharedBytes<'static>;
pub(super) type Tx = TxQueue<Page, Events>;
pub(super) type Rx = RxQueue<Page, Events>;

/// A sender's frontend and the queue that serves the sender.
pub(super) struct Sender {
    pub(super) memory: Rc<RefCell<Memory>>,
    pub(super) page: Page,
    pub(super) front: FrontRing<NetifTxRing, Page>,
    pub(super) queue: Tx,
    pub(super) intake: Intake,
    pub(super) batch: TxBatch,
    pub(super) events: Events,
    next_gref: u32,
    next_id: u16,
}

impl Sender {
    pub(super) fn new(memory: &Rc<RefCell<Memory>>) -> Self {
        Self::starting_at(memory, 0, 4)
    }

    pub(super) fn starting_at(memory: &Rc<RefCell<Memory>>, index: u32, pages: u64) -> Self {
        let page = leaked_pages(1);
        let front = FrontRing::starting_at(page, index).unwrap();
        let ring = BackRing::attach(page).unwrap();
        let events = Events::default();
        let heads: Vec<Mfn> = (0..pages).map(|page| Mfn::new(HEADS + page * 3)).collect();
        for &frame in &heads {
            memory.borrow_mut().own(frame);
        }
        let queue = TxQueue::new(ring, events.clone(), SENDER, heads).unwrap();
        let (memory, intake, batch) = (memory.clone(), Intake::default(), TxBatch::with_capacity(32));
        Self { memory, page, front, queue, intake, batch, events, next_gref: 8, next_id: 1000 }
    }

    /// A page with `size` bytes at `offset` that no other page has.
    pub(super) fn piece(&mut self, offset: u16, size: u16) -> NetifTxRequest {
        let (gref, id) = (self.next_gref, self.next_id);
        (self.next_gref, self.next_id) = (gref + 1, id.wrapping_add(7));
        for (at, byte) in self.memory.borrow_mut().grant(SENDER, gref).iter_mut().enumerate() {
            *byte = (at as u32 * 31 + gref * 57) as u8;
        }
        NetifTxRequest { gref, offset, flags: 0, id, size }
    }

    /// The bytes of a packet made of `pieces`.
    pub(super) fn bytes(&self, pieces: &[NetifTxRequest]) -> Vec<u8> {
        let mut memory = self.memory.borrow_mut();
        let mut bytes = Vec::new();
        for piece in pieces {
            let start = usize::from(piece.offset);
            let page = memory.grant(SENDER, piece.gref);
            bytes.extend_from_slice(&page[start..start + usize::from(piece.size)]);
        }
        bytes
    }

    /// Makes one packet of `pieces` as a good frontend does, and puts the packet on the ring.
    pub(super) fn push(&mut self, pieces: &[NetifTxRequest], flags: u16, extras: &[NetifExtraInfo]) {
        let size: usize = pieces.iter().map(|piece| usize::from(piece.size)).sum();
        let mut pieces = pieces.to_vec();
        pieces[0].size = size as u16;
        pieces[0].flags = flags;
        if !extras.is_empty() {
            pieces[0].flags |= NETTXF_EXTRA_INFO;
        }
        let last = pieces.len() - 1;
        for piece in &mut pieces[..last] {
            piece.flags |= NETTXF_MORE_DATA;
        }
        self.front.push_request(&pieces[0]).unwrap();
        for (at, extra) in extras.iter().enumerate() {
            let flags = if at + 1 < extras.len() { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
            let extra = NetifExtraInfo { flags, ..*extra };
            self.front.push_request(&NetifTxRequest::from_extra(&extra)).unwrap();
        }
        for piece in &pieces[1..] {
            self.front.push_request(piece).unwrap();
        }
    }

    /// Puts slots on the ring as they are.
    pub(super) fn push_raw(&mut self, slots: &[NetifTxRequest]) {
        slots.iter().for_each(|slot| self.front.push_request(slot).unwrap());
    }

    pub(super) fn take(&mut self, max: usize) -> Result<Taken, Disconnect> {
        let _ = self.front.publish_requests();
        let taken = self.queue.take(max, &mut self.intake, 0, &mut self.batch)?;
        self.queue.read_heads(&mut self.batch, &mut *self.memory.borrow_mut());
        Ok(taken)
    }

    /// The bytes of packet `id`, head first.
    pub(super) fn packet_bytes(&self, id: TxId) -> Vec<u8> {
        let mut memory = self.memory.borrow_mut();
        let packet = self.queue.packet(id);
        packet.parts.iter().flat_map(|part| memory.read(part.place, part.len)).collect()
    }

    /// Answers all packets of the batch.
    pub(super) fn respond_all(&mut self) {
        for id in self.batch.ids().to_vec() {
            self.queue.respond(id, true);
        }
        self.queue.publish();
    }

    /// Answers so far: tag and status.
    pub(super) fn answers(&mut self) -> Vec<(u16, i16)> {
        core::iter::from_fn(|| self.front.next_response().unwrap()).map(|got| (got.id, got.status)).collect()
    }
}

/// What a frontend received.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) bytes: Vec<u8>,
    pub(super) flags: u16,
    pub(super) slots: usize,
    pub(super) gso: Option<(u8, u16)>,
    pub(super) hash: Option<(u8, u32)>,
    pub(super) error: bool,
}

/// A receiver's frontend, which reads as Linux's netfront does, and the queue that serves the receiver.
pub(super) struct Receiver {
    pub(super) memory: Rc<RefCell<Memory>>,
    pub(super) page: Page,
    pub(super) front: FrontRing<NetifRxRing, Page>,
    pub(super) queue: Rx,
    pub(super) events: Events,
    posted: VecDeque<NetifRxRequest>,
    next_gref: u32,
}

impl Receiver {
    pub(super) fn new(memory: &Rc<RefCell<Memory>>) -> Self {
        Self::starting_at(memory, 0)
    }

    pub(super) fn starting_at(memory: &Rc<RefCell<Memory>>, index: u32) -> Self {
        let page = leaked_pages(1);
        let front = FrontRing::starting_at(page, index).unwrap();
        let ring = BackRing::attach(page).unwrap();
        let events = Events::default();
        let queue = RxQueue::new(ring, events.clone(), RECEIVER);
        let (memory, posted) = (memory.clone(), VecDeque::new());
        Self { memory, page, front, queue, events, posted, next_gref: 5000 }
    }

    /// Posts `count` empty pages. True: the backend wants to know.
    pub(super) fn post(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let gref = self.next_gref;
            self.next_gref += 1;
            self.memory.borrow_mut().grant(RECEIVER, gref).fill(0xee);
            let request = NetifRxRequest { id: (gref % 256) as u16, pad: 0, gref };
            self.front.push_request(&request).unwrap();
            self.posted.push_back(request);
        }
        self.front.publish_requests()
    }

    /// The grant of the page that the next packet goes to.
    pub(super) fn next_page(&self) -> u32 {
        self.posted[0].gref
    }

    /// Carries one packet of `sender` to this receiver.
    pub(super) fn carry(&mut self, sender: &Sender, id: TxId) -> Result<bool, Refused> {
        self.deliver(&sender.queue.packet(id))
    }

    pub(super) fn deliver(&mut self, packet: &Packet<'_>) -> Result<bool, Refused> {
        let mut ops = Vec::new();
        let planned = self.queue.plan(packet, &mut ops)?;
        self.memory.borrow_mut().copy(&mut ops);
        Ok(self.queue.finish(planned, &ops))
    }

    fn slot(&mut self) -> Option<(NetifRxRequest, NetifRxResponse)> {
        let response = self.front.next_response().unwrap()?;
        Some((self.posted.pop_front().unwrap(), response))
    }

    /// The next packet that is there.
    pub(super) fn next(&mut self) -> Option<Got> {
        let (mut request, mut response) = self.slot()?;
        let mut got = Got {
            bytes: Vec::new(),
            flags: response.flags & !NETRXF_MORE_DATA,
            slots: 0,
            gso: None,
            hash: None,
            error: false,
        };
        let mut extra = response.flags & NETRXF_EXTRA_INFO != 0;
        loop {
            assert_eq!((response.id, response.offset), (request.id, 0), "the request's own slot");
            got.slots += 1;
            got.error |= response.status < 0;
            let len = response.status.max(0) as usize;
            let page = self.memory.borrow_mut().grant(RECEIVER, request.gref).clone();
            got.bytes.extend_from_slice(&page[..len]);
            if !got.error {
                assert!(page[len..].iter().all(|byte| *byte == 0xee), "written behind the packet");
            }
            while extra {
                let info = self.slot().expect("extra information").1.as_extra();
                match info.r#type {
                    XEN_NETIF_EXTRA_TYPE_GSO => {
                        assert_eq!((info.as_gso().pad, info.as_gso().features), (0, 0));
                        got.gso = Some((info.as_gso().gso_type, info.as_gso().size));
                    }
                    XEN_NETIF_EXTRA_TYPE_HASH => {
                        assert_eq!(
                            u32::from(info.as_hash().algorithm),
                            XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
                        );
                        got.hash = Some((info.as_hash().hash_type, u32::from_le_bytes(info.as_hash().value)));
                    }
                    other => panic!("extra information {other}"),
                }
                extra = info.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0;
            }
            if response.flags & NETRXF_MORE_DATA == 0 {
                return Some(got);
            }
            (request, response) = self.slot().expect("more data");
            assert_eq!(response.flags & !NETRXF_MORE_DATA, 0, "flags of a slot behind the first");
        }
    }
}

pub(super) fn gso(gso_type: u8, size: u16) -> NetifExtraInfo {
    NetifExtraGso { r#type: XEN_NETIF_EXTRA_TYPE_GSO, size, gso_type, ..Default::default() }.into()
}

pub(super) fn mcast(add: bool, addr: MacAddress) -> NetifExtraInfo {
    let r#type = if add { XEN_NETIF_EXTRA_TYPE_MCAST_ADD } else { XEN_NETIF_EXTRA_TYPE_MCAST_DEL };
    NetifExtraMcast { r#type, addr, ..Default::default() }.into()
}

pub(super) fn hash(hash_type: u8, value: u32) -> NetifExtraInfo {
    let (r#type, value) = (XEN_NETIF_EXTRA_TYPE_HASH, value.to_le_bytes());
    NetifExtraHash { r#type, hash_type, algorithm: 1, value, ..Default::default() }.into()
}
