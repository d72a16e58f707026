//! What a domain and a vCPU hold of event channels.

mod bits;
mod cells;
mod fifo;
mod port;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ring_abi::evtchn::{
    EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_NR_CHANNELS, EVTCHN_FIFO_PRIORITY_DEFAULT, NR_VIRQS,
};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{Mfn, Port};

pub use bits::Bits;
pub(crate) use cells::PortRecords;
pub use port::{PortCell, PortState};

pub(super) use cells::{BUCKET, Cells};
pub(super) use fifo::{Fifo, PIECE, Part, Raised};

use crate::domain::Vcpu;
use crate::nospec::At;
use crate::sync::{Mutex, rank};

/// Ports of a domain with two levels: 64 words of 64 bits. Port 0 is never given out.
pub const TWO_LEVEL_PORTS: u32 = EVTCHN_2L_NR_CHANNELS as u32;
/// Ports of a domain with the FIFO.
pub const MAX_PORTS: u32 = EVTCHN_FIFO_NR_CHANNELS as u32;

/// How many ports that are on a queue are passed over for one that is free.
const LINKED_TRIES: u32 = 1024;

/// Guarded by `Ports::binding`.
#[derive(Debug)]
pub(crate) struct Binding {
    /// Ports that are not free, a bit each: a word for each bucket of cells that was made. A guest chooses which
    /// are free, and how often one is sought.
    pub(in crate::evtchn) taken: Vec<u64>,
    /// One more than the highest port that the domain may have.
    limit: u32,
    /// The domain has turned to the FIFO.
    is_fifo: bool,
    /// Ports that are open.
    pub(crate) open: u32,
}

impl Binding {
    /// The lowest free port from `from` on.
    pub(in crate::evtchn) fn lowest_free(&self, from: u32) -> Option<Port> {
        let (first, below) = (from as usize / BUCKET, (1u64 << (from % 64)) - 1);
        let mut words = self.taken.iter().enumerate().skip(first);
        let taken = |(at, bits): (usize, &u64)| *bits | if at == first { below } else { 0 };
        let known = words.by_ref().map(|word| (word.0, taken(word))).find(|(_, bits)| *bits != u64::MAX);
        let beyond = self.taken.len().max(first);
        let (word, bits) = known.unwrap_or((beyond, if beyond == first { below } else { 0 }));
        let port = (word * BUCKET) as u32 + bits.trailing_ones();
        let end = if self.is_fifo { MAX_PORTS } else { TWO_LEVEL_PORTS };
        (port < end.min(self.limit)).then_some(Port::new(port))
    }

    fn taken_word(&mut self, port: Port) -> &mut u64 {
        self.taken.at_mut(port.raw() as usize / BUCKET).expect("a bucket that was made has a word")
    }

    /// Opens the free `port`, whose cell is `cell`.
    pub(in crate::evtchn) fn open(&mut self, port: Port, cell: &PortCell, state: PortState, vcpu: u32) {
        cell.set_vcpu(vcpu);
        cell.priority.store(EVTCHN_FIFO_PRIORITY_DEFAULT as u8, Ordering::Relaxed);
        let is_ipi = matches!(state, PortState::Ipi);
        *cell.state.lock() = state;
        cell.is_ipi.store(is_ipi && !self.is_fifo, Ordering::Release);
        self.open += 1;
        *self.taken_word(port) |= 1 << (port.raw() % 64);
    }

    /// Lets `port` be opened again.
    pub(in crate::evtchn) fn note_closed(&mut self, port: Port) {
        self.open -= 1;
        *self.taken_word(port) &= !(1 << (port.raw() % 64));
    }

    /// Ports that were ever open, or may have been, and port 0.
    pub(crate) fn known(&self) -> u32 {
        (self.taken.len() * BUCKET) as u32
    }
}

/// The bit of [`Ports::heeds`] that says: the domain has turned to the FIFO. The bit is beyond all counts of vCPUs.
const OF_FIFO: u32 = 1 << 31;

/// The ports of one domain.
#[derive(Debug)]
pub struct Ports {
    pub(in crate::evtchn) cells: Cells,
    /// The pending and mask bits of two levels.
    pub(in crate::evtchn) bits: Bits,
    /// Whether `fifo` is there, as senders see it who do not take its lock.
    is_fifo: AtomicBool,
    /// Ports are opened, bound and closed under this lock.
    pub(crate) binding: Mutex<rank::Binding, Binding>,
    /// vCPUs in `SCHEDOP_poll`, and [`OF_FIFO`]: what a sender heeds besides the port's bits.
    heeds: AtomicU32,
    /// The port at which `close_ports` goes on where it was interrupted.
    pub(in crate::evtchn) closing_at: AtomicU32,
    /// The FIFO, of a domain that has turned to it. One lock guards all queues, so that no vCPU sees a queue
    /// half changed.
    pub(in crate::evtchn) fifo: Mutex<rank::Fifo, Option<Box<Fifo>>>,
}

impl Ports {
    /// No port is open. `highest` is the highest to give out; `None`, or one beyond the ABI's, for no limit but the ABI's.
    /// `shared_info` is the domain's.
    pub fn new(highest: Option<Port>, shared_info: &SharedBytes) -> Self {
        let limit = highest.map_or(MAX_PORTS, |port| port.raw().saturating_add(1).min(MAX_PORTS));
        Self {
            cells: Cells::new(),
            bits: Bits::new(shared_info),
            is_fifo: AtomicBool::new(false),
            binding: Mutex::new(Binding { taken: Vec::new(), limit, is_fifo: false, open: 0 }),
            heeds: AtomicU32::new(0),
            closing_at: AtomicU32::new(1),
            fifo: Mutex::new(None),
        }
    }

    /// The cell of `port`, if the port was ever open.
    #[inline]
    pub fn cell(&self, port: Port) -> Option<&PortCell> {
        self.cells.get(port)
    }

    /// Takes what is kept about the ports of a domain that is dead. None can be opened any more.
    pub(crate) fn take_records(&mut self) -> PortRecords {
        let buckets = core::mem::take(&mut self.binding.get_mut().taken).len();
        PortRecords::new(core::mem::replace(&mut self.cells, Cells::new()), buckets)
    }

    /// Number of ports in use.
    pub fn open_ports(&self) -> u32 {
        self.binding.lock().open
    }

    /// Whether the domain has turned to the FIFO.
    #[inline]
    pub(crate) fn is_fifo(&self) -> bool {
        self.is_fifo.load(Ordering::Acquire)
    }

    /// Visits the frames that the FIFO holds: of control blocks and of pages of words.
    pub(crate) fn visit_fifo_frames(&self, visit: impl FnMut(Mfn)) {
        if let Some(fifo) = self.fifo.lock().as_ref() {
            fifo.frames().for_each(visit);
        }
    }

    /// The frames of the FIFO's words, in their order.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn fifo_array(&self) -> Vec<Mfn> {
        self.fifo.lock().as_ref().map_or_else(Vec::new, |fifo| fifo.array_frames())
    }

    /// Turns to the FIFO, or back to two levels. No port is open when the domain goes back: no event is under way.
    pub(in crate::evtchn) fn set_fifo(&self, binding: &mut Binding, fifo: Option<Box<Fifo>>) {
        binding.is_fifo = fifo.is_some();
        *self.fifo.lock() = fifo;
        self.is_fifo.store(binding.is_fifo, Ordering::SeqCst);
        // A sender sets a bit, then looks here; the domain looks at its bits later.
        let fifo = if binding.is_fifo { OF_FIFO } else { 0 };
        let _ =
            self.heeds.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(old & !OF_FIFO | fifo));
    }

    /// The lowest free port. One that the guest left on a queue is not given out: its word still links the queue. A guest that
    /// leaves so many there gets none.
    pub(in crate::evtchn) fn lowest_free(&self, binding: &Binding) -> Option<Port> {
        let mut port = binding.lowest_free(1)?;
        let fifo = self.fifo.lock();
        let Some(fifo) = fifo.as_ref() else { return Some(port) };
        for _ in 0..LINKED_TRIES {
            if !fifo.is_linked(port) {
                return Some(port);
            }
            port = binding.lowest_free(port.raw() + 1)?;
        }
        None
    }

    /// One more than the highest port that there can be now.
    pub(crate) fn end(&self) -> u32 {
        if self.is_fifo() { MAX_PORTS } else { TWO_LEVEL_PORTS }
    }

    /// Whether `port` is pending, masked or not.
    #[inline]
    pub fn is_pending(&self, port: Port) -> bool {
        if self.is_fifo() {
            return self.fifo.lock().as_ref().is_some_and(|fifo| fifo.is_pending(port));
        }
        self.bits.is_pending(port)
    }

    /// Whether `port` is masked.
    pub fn is_masked(&self, port: Port) -> bool {
        if self.is_fifo() {
            return self.fifo.lock().as_ref().is_none_or(|fifo| fifo.is_masked(port));
        }
        self.bits.is_masked(port)
    }

    /// Clears what is pending of a port that closes, in both layouts: either may be the next.
    pub(in crate::evtchn) fn clear_pending(&self, port: Port, cell: &PortCell) {
        if port.raw() < TWO_LEVEL_PORTS {
            self.bits.clear_pending(port);
        }
        if let Some(fifo) = self.fifo.lock().as_ref() {
            fifo.clear_pending(port, cell);
        }
    }

    /// vCPUs in `SCHEDOP_poll`.
    #[inline]
    pub(crate) fn pollers(&self) -> u32 {
        self.heeds.load(Ordering::Acquire) & !OF_FIFO
    }

    /// Whether a sender heeds more than the port's bits: vCPUs poll, or the domain has turned to the FIFO.
    #[inline]
    pub(in crate::evtchn) fn heeds_more(&self) -> bool {
        self.heeds.load(Ordering::Acquire) != 0
    }

    /// A vCPU ends its `SCHEDOP_poll`. The caller holds the vCPU's times.
    pub(crate) fn poller_left(&self, vcpu: &Vcpu) {
        let poll = &vcpu.events.poll;
        if poll.load(Ordering::Relaxed) != 0 {
            poll.store(0, Ordering::Release);
            self.heeds.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A vCPU begins `SCHEDOP_poll` of one `port`, or of several (`None`). The caller holds the vCPU's times, and has a full
    /// barrier before it looks at ports. Returns whether the end of the vCPU's last wait is not noted yet.
    pub(crate) fn poller_entered(&self, vcpu: &Vcpu, port: Option<Port>) -> bool {
        let poll = &vcpu.events.poll;
        let is_late = poll.load(Ordering::Relaxed) != 0;
        poll.store(port.map_or(VcpuEvents::POLL_ANY, VcpuEvents::polled), Ordering::Release);
        if !is_late {
            self.heeds.fetch_add(1, Ordering::AcqRel);
        }
        is_late
    }
}

/// The event side of a vCPU.
#[derive(Debug)]
pub struct VcpuEvents {
    /// Port bound to each VIRQ, 0 for none. Global VIRQs are kept in vCPU 0.
    pub(in crate::evtchn) virqs: Box<[AtomicU32]>,
    /// [`Self::polled`] of the port that the vCPU polls, [`Self::POLL_ANY`] for several, 0 for none.
    pub(in crate::evtchn) poll: AtomicU32,
}

impl VcpuEvents {
    pub(in crate::evtchn) const POLL_ANY: u32 = u32::MAX;

    /// What says that `port` is polled. A guest may name port 0, too, which never becomes pending.
    pub(in crate::evtchn) const fn polled(port: Port) -> u32 {
        port.raw() + 1
    }

    /// The port bound to `virq`.
    #[inline]
    pub fn virq_port(&self, virq: u32) -> Option<Port> {
        let port = self.virqs.at(virq as usize)?.load(Ordering::Acquire);
        (port != 0).then_some(Port::new(port))
    }
}

impl Default for VcpuEvents {
    /// No VIRQ is bound.
    fn default() -> Self {
        Self { virqs: (0..NR_VIRQS).map(|_| AtomicU32::new(0)).collect(), poll: AtomicU32::new(0) }
    }
}
