//! The FIFO layout: a word for each port in pages of the guest, and for each vCPU a control block of 16 queues.
//!
//! A queue is a list of ports, each linked by the word of the one before; the guest takes ports off its head, the hypervisor
//! adds them at its tail. The guest may write every word and every control block at any time, so that the hypervisor
//! believes neither: its tails, and which queue a port was on, are its own, and a port is looked up anew each time. (I32)
//! A guest that writes nonsense loses its own events.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::*;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{Mfn, PAGE_SIZE, Port};

use super::{MAX_PORTS, PortCell};
use crate::nospec::At;

/// Ports that get their events of before in one go.
pub(in crate::evtchn) const PIECE: u32 = 64;
/// Ports whose words are in a page.
const PAGE_PORTS: usize = PAGE_SIZE / 4;
const MAX_PAGES: usize = MAX_PORTS as usize / PAGE_PORTS;
/// How often a link is tried with the word marked busy: a guest that keeps to the rules changes such a word four times.
const LINK_TRIES: u32 = 4;

/// No port has this number: a queue without a tail.
const NO_PORT: Port = Port::new(0);

const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;

/// A part of a page of the guest's, which holds a writable reference.
#[derive(Debug)]
pub(in crate::evtchn) struct Part {
    mfn: Mfn,
    bytes: SharedBytes<'static>,
}

impl Part {
    /// `bytes` of the frame `mfn`, whose reference the caller hands over once the part is added.
    pub(in crate::evtchn) const fn new(mfn: Mfn, bytes: SharedBytes<'static>) -> Self {
        Self { mfn, bytes }
    }
}

/// The word of a port.
#[derive(Clone, Copy)]
struct Word {
    page: SharedBytes<'static>,
    offset: usize,
}

impl Word {
    /// Sets the bit and says whether it was set, in one instruction whatever the guest does.
    #[inline(always)]
    fn test_and_set(self, bit: u32) -> bool {
        self.page.or_u32(self.offset, bit) & bit != 0
    }

    fn clear(self, bit: u32) {
        self.page.and_u32(self.offset, !bit);
    }

    fn has(self, bit: u32) -> bool {
        self.page.load_u32(self.offset) & bit != 0
    }

    /// Lets the word, which is the tail of a queue, name the next port. `false`: the guest has taken the word's port off the
    /// queue, which is empty. A guest that changes the word at each try loses the next port.
    fn link(self, next: Port) -> bool {
        for attempt in 0..=LINK_TRIES {
            if attempt == 1 {
                self.page.or_u32(self.offset, BUSY); // the guest does not unmask the port meanwhile
            }
            let word = self.page.load_u32(self.offset);
            if word & LINKED == 0 {
                if attempt != 0 {
                    self.clear(BUSY);
                }
                return false;
            }
            let linked = word & !(BUSY | EVTCHN_FIFO_LINK_MASK) | next.raw();
            if self.page.compare_exchange_u32(self.offset, word, linked).is_ok() {
                return true;
            }
        }
        self.clear(BUSY);
        true
    }
}

/// What an event that was set asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::evtchn) struct Raised {
    /// The port was not pending.
    pub(in crate::evtchn) is_new: bool,
    /// A queue of the vCPU was empty: the vCPU gets an upcall.
    pub(in crate::evtchn) upcall: bool,
}

/// The pages of a domain that has turned to the FIFO, and the tails of its queues.
#[derive(Debug)]
pub(in crate::evtchn) struct Fifo {
    array: Vec<Part>,
    /// Ports below this one have their events of before they had words.
    adopted: u32,
    /// Of each vCPU.
    controls: Vec<Option<Part>>,
    /// Of each vCPU, the page that its call added and then left to be adopted, since other work waited.
    added: Vec<Option<Mfn>>,
    /// The port that was added last to each queue; 16 queues for each vCPU.
    tails: Vec<Port>,
}

impl Fifo {
    /// Bytes that it takes for so many vCPUs.
    pub(in crate::evtchn) const fn bytes(vcpus: usize) -> usize {
        let queues = vcpus * EVTCHN_FIFO_MAX_QUEUES * size_of::<Port>();
        let of_vcpus = vcpus * (size_of::<Option<Part>>() + size_of::<Option<Mfn>>());
        size_of::<Self>() + MAX_PAGES * size_of::<Part>() + of_vcpus + queues
    }

    /// For so many vCPUs, none of which has a control block; `None`: there is no memory for it.
    pub(in crate::evtchn) fn new(vcpus: usize) -> Option<Box<Self>> {
        let (array, controls, added, tails) = Default::default();
        let mut fifo = Self { array, adopted: 0, controls, added, tails };
        fifo.array.try_reserve_exact(MAX_PAGES).ok()?;
        fifo.controls.try_reserve_exact(vcpus).ok()?;
        fifo.controls.resize_with(vcpus, || None);
        fifo.added.try_reserve_exact(vcpus).ok()?;
        fifo.added.resize(vcpus, None);
        fifo.tails.try_reserve_exact(vcpus * EVTCHN_FIFO_MAX_QUEUES).ok()?;
        fifo.tails.resize(vcpus * EVTCHN_FIFO_MAX_QUEUES, NO_PORT);
        Some(Box::new(fifo))
    }

    /// The place of the control block of `vcpu`, if the vCPU has none yet.
    pub(in crate::evtchn) fn free_control(&mut self, vcpu: u32) -> Option<&mut Option<Part>> {
        self.controls.at_mut(vcpu as usize).filter(|control| control.is_none())
    }

    /// Adds a page of words, if there is room.
    #[must_use = "the page's reference may be left with the caller"]
    pub(in crate::evtchn) fn add_page(&mut self, page: Part) -> bool {
        let has_room = self.array.len() < MAX_PAGES;
        if has_room {
            self.array.push(page);
        }
        has_room
    }

    /// Keeps for the next call of `vcpu` that its call has added the page `mfn`. Another vCPU may add pages meanwhile, and do
    /// what this call left.
    pub(in crate::evtchn) fn keep_added(&mut self, vcpu: u32, mfn: Mfn) {
        if let Some(added) = self.added.at_mut(vcpu as usize) {
            *added = Some(mfn);
        }
    }

    /// Whether the call of `vcpu` that goes on here has added the page `mfn` before. The answer is given once.
    pub(in crate::evtchn) fn take_added(&mut self, vcpu: u32, mfn: Mfn) -> bool {
        self.added.at_mut(vcpu as usize).is_some_and(|added| added.take() == Some(mfn))
    }

    /// Whether [`Self::next_piece`] has one.
    pub(in crate::evtchn) fn has_piece(&self) -> bool {
        self.adopted < (self.array.len() * PAGE_PORTS) as u32
    }

    /// The first of the next [`PIECE`] ports that have got words, if there are any that the caller was not given yet.
    pub(in crate::evtchn) fn next_piece(&mut self) -> Option<u32> {
        let first = self.adopted;
        let has_piece = self.has_piece();
        self.adopted += if has_piece { PIECE } else { 0 };
        has_piece.then_some(first)
    }

    /// Takes a page away; its frame, with the reference.
    pub(in crate::evtchn) fn take_page(&mut self) -> Option<Mfn> {
        let part = self.array.pop().or_else(|| self.controls.iter_mut().find_map(Option::take))?;
        self.adopted = self.adopted.min((self.array.len() * PAGE_PORTS) as u32);
        Some(part.mfn)
    }

    /// The frames that the FIFO has references on; one that it has several of comes as often.
    pub(in crate::evtchn) fn frames(&self) -> impl Iterator<Item = Mfn> {
        self.array.iter().chain(self.controls.iter().flatten()).map(|part| part.mfn)
    }

    /// The frames of the words, in their order.
    #[cfg(any(test, feature = "testing"))]
    pub(in crate::evtchn) fn array_frames(&self) -> Vec<Mfn> {
        self.array.iter().map(|part| part.mfn).collect()
    }

    fn word(&self, port: Port) -> Option<Word> {
        let at = port.raw() as usize;
        let page = self.array.at(at / PAGE_PORTS)?;
        Some(Word { page: page.bytes, offset: at % PAGE_PORTS * 4 })
    }

    /// Makes `port`, which notifies `vcpu`, pending, and adds the port to its queue unless the port is masked or on one. The
    /// event is lost if the vCPU has no control block.
    pub(in crate::evtchn) fn set_pending(&mut self, port: Port, cell: &PortCell, vcpu: u32) -> Raised {
        let Some(word) = self.word(port) else {
            cell.waits.store(true, Ordering::Relaxed); // for its page
            return Raised::default();
        };
        let has_queues = matches!(self.controls.at(vcpu as usize), Some(Some(_)));
        let is_new = has_queues && !word.test_and_set(PENDING);
        Raised { is_new, upcall: self.enqueue(word, port, cell, vcpu) }
    }

    /// Adds a port to the queue of its vCPU and priority; whether the vCPU gets an upcall. A vCPU without a control block has
    /// no queue: its ports stay pending.
    fn enqueue(&mut self, word: Word, port: Port, cell: &PortCell, vcpu: u32) -> bool {
        let Some(Some(control)) = self.controls.at(vcpu as usize) else { return false };
        let control = control.bytes;
        // After the pending bit was set: a guest that unmasks the port later sees that bit, and calls.
        if word.has(MASKED) || word.test_and_set(LINKED) {
            return false;
        }
        let priority = cell.priority.load(Ordering::Relaxed);
        let queue = vcpu as u16 * EVTCHN_FIFO_MAX_QUEUES as u16 + u16::from(priority);
        // A port that was the tail of its last queue was taken off: that queue is empty, whatever the port's word says now.
        let last = cell.queue.swap(queue, Ordering::Relaxed);
        if let Some(tail) = self.tails.at_mut(usize::from(last))
            && *tail == port
        {
            *tail = NO_PORT;
        }
        let Some(tail) = self.tails.at_mut(usize::from(queue)) else { return false };
        let tail = core::mem::replace(tail, port);
        if tail != NO_PORT && self.word(tail).is_some_and(|word| word.link(port)) {
            return false;
        }
        let head = offset_of!(EvtchnFifoControlBlock, head) + usize::from(priority) * 4;
        control.store_u32(head, port.raw());
        let ready = Word { page: control, offset: offset_of!(EvtchnFifoControlBlock, ready) };
        !ready.test_and_set(1 << priority)
    }

    /// Unmasks `port`; what there is to do if an event of the port waited.
    pub(in crate::evtchn) fn unmask(&mut self, port: Port, cell: &PortCell, vcpu: u32) -> Raised {
        let Some(word) = self.word(port) else { return Raised::default() };
        word.clear(MASKED);
        let upcall = word.has(PENDING) && self.enqueue(word, port, cell, vcpu);
        Raised { is_new: false, upcall }
    }

    /// Clears the pending bit. The guest takes a port that is on a queue off without an event.
    pub(in crate::evtchn) fn clear_pending(&self, port: Port, cell: &PortCell) {
        cell.waits.store(false, Ordering::Relaxed);
        if let Some(word) = self.word(port) {
            word.clear(PENDING);
        }
    }

    /// Whether the port is pending.
    pub(in crate::evtchn) fn is_pending(&self, port: Port) -> bool {
        self.word(port).is_some_and(|word| word.has(PENDING))
    }

    /// Whether the port is masked; one without a word is.
    pub(in crate::evtchn) fn is_masked(&self, port: Port) -> bool {
        self.word(port).is_none_or(|word| word.has(MASKED))
    }

    /// Whether the port is on a queue.
    pub(in crate::evtchn) fn is_linked(&self, port: Port) -> bool {
        self.word(port).is_some_and(|word| word.has(LINKED))
    }
}
