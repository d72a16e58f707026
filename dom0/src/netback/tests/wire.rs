//! A network card by hand: a card that has packets until the test lets them go.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::{Context, Poll, Waker};

use backends::net::{Copier, CopyOp, Offload, Place};
use pvrt::grant::CopyPages;
use ring_abi::types::{Mfn, PAGE_SIZE};
use spin::Mutex;

use super::super::copier::Hypervisor;
use crate::net::wire::*;

/// What a card can do that does all.
pub(super) const ABLE: WireFeatures = WireFeatures {
    mac: [2, 0, 0, 0, 0, 0x77],
    mtu: 1500,
    checksum: true,
    tso4: true,
    tso6: true,
    max_spans: 30,
    slots: 64,
};

/// A packet that the card has.
struct Held {
    token: u32,
    spans: Vec<Span>,
    told: Told,
}

/// What was said of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) offload: Offload,
    pub(super) checksum_at: Option<ChecksumAt>,
    pub(super) header_len: u16,
}

#[derive(Default)]
struct State {
    held: VecDeque<Held>,
    over: Vec<Transmitted>,
    came: VecDeque<Received>,
    /// Packets that went out.
    frames: Vec<(Vec<u8>, Told)>,
    waker: Option<Waker>,
    is_broken: bool,
    is_soon: bool,
}

pub(super) struct HandWire {
    features: WireFeatures,
    state: Mutex<State>,
}

struct Page(CopyPages);

impl ReceiveBuffers for Page {
    fn read(&self, _: u16, offset: usize, out: &mut [u8]) {
        self.0.pages().page(0).read(offset, out);
    }
    fn write(&self, _: u16, offset: usize, bytes: &[u8]) {
        self.0.pages().page(0).write(offset, bytes);
    }
    fn give_back(&self, _: &[ReceivedPart]) {}
}

/// Reads machine memory, as a card does.
fn read(span: &Span) -> Vec<u8> {
    let pages = CopyPages::new(1).unwrap();
    let maddr = span.maddr.raw();
    let (frame, offset) = (Mfn::new(maddr / PAGE_SIZE as u64), (maddr % PAGE_SIZE as u64) as u16);
    let to = Place::Own { frame: pages.frames()[0], offset: 0 };
    let mut ops = [CopyOp::new(Place::Own { frame, offset }, to, span.len as u16)];
    Hypervisor(&pages).copy(&mut ops);
    assert!(ops[0].ok(), "the card reads what is no memory");
    let mut bytes = alloc::vec![0; span.len as usize];
    pages.pages().page(0).read(0, &mut bytes);
    bytes
}

impl HandWire {
    pub(super) fn new(features: WireFeatures) -> Arc<Self> {
        Arc::new(Self { features, state: Mutex::default() })
    }

    /// Reads the `count` oldest packets that the card has, and gives them back.
    pub(super) fn let_go(&self, count: usize) {
        self.let_go_silently(count);
        self.state.lock().waker.take().into_iter().for_each(Waker::wake);
    }

    /// The same, while the interrupt is still on its way.
    pub(super) fn let_go_silently(&self, count: usize) {
        let mut state = self.state.lock();
        for _ in 0..count {
            let Held { token, spans, told } = state.held.pop_front().expect("the card has so many");
            state.frames.push((spans.iter().flat_map(read).collect(), told));
            state.over.push(Transmitted { token, sent: true });
        }
    }

    /// Number of packets that the card has.
    pub(super) fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Whether somebody waits for what the card has.
    pub(super) fn is_soon(&self) -> bool {
        self.state.lock().is_soon
    }

    /// The packets that went out since the last call.
    pub(super) fn frames(&self) -> Vec<(Vec<u8>, Told)> {
        core::mem::take(&mut self.state.lock().frames)
    }

    /// The card breaks. A card that `resets` gives back unsent what the card had.
    pub(super) fn fail(&self, resets: bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.is_broken = true;
        if resets {
            let unsent = state.held.drain(..).map(|held| Transmitted { token: held.token, sent: false });
            state.over.extend(unsent);
        }
        state.waker.take().into_iter().for_each(Waker::wake);
    }

    /// A frame comes in.
    pub(super) fn hear(&self, frame: &[u8]) {
        let page = Page(CopyPages::new(1).unwrap());
        page.0.pages().page(0).write(0, frame);
        let part = ReceivedPart { frame: page.0.frames()[0], buffer: 0, offset: 0, len: frame.len() as u16 };
        let parts = [part].into_iter().collect();
        let received = Received::new(Offload::default(), None, parts, Arc::new(page));
        let mut state = self.state.lock();
        state.came.push_back(received);
        state.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl Wire for HandWire {
    fn name(&self) -> &str {
        "eth0"
    }
    fn features(&self) -> WireFeatures {
        self.features
    }
    fn link_up(&self) -> bool {
        true
    }
    fn transmit(&self, token: u32, packet: Outgoing<'_>) -> Result<(), TransmitError> {
        let mut state = self.state.lock();
        if state.is_broken {
            return Err(TransmitError::Broken);
        }
        if state.held.len() == self.features.slots {
            return Err(TransmitError::Full);
        }
        assert!(packet.spans.len() <= self.features.max_spans);
        assert!(state.held.iter().all(|held| held.token != token), "a token is out twice");
        let told =
            Told { offload: *packet.offload, checksum_at: packet.checksum_at, header_len: packet.header_len };
        state.held.push_back(Held { token, spans: packet.spans.to_vec(), told });
        Ok(())
    }
    fn kick(&self) {}
    fn hasten(&self, soon: bool) {
        self.state.lock().is_soon = soon;
    }
    fn transmitted(&self, out: &mut Vec<Transmitted>) {
        out.append(&mut self.state.lock().over);
    }
    fn receive(&self) -> Option<Received> {
        self.state.lock().came.pop_front()
    }
    fn malformed(&self) -> u64 {
        0
    }
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if !state.over.is_empty() || !state.came.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
