//! What a domain and a vCPU hold of event channels.

mod bits;
mod cells;
mod port;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};

use ring_abi::evtchn::NR_VIRQS;
use ring_abi::shared::SharedBytes;
use ring_abi::types::Port;

pub use bits::Bits;
pub use port::{PortCell, PortState};

pub(super) use cells::Cells;

use crate::domain::Vcpu;
use crate::sync::{Mutex, rank};

/// Ports of a domain: 64 words of 64 bits. Port 0 is never given out.
pub const MAX_PORTS: u32 = 4096;

/// Guarded by `Ports::binding`.
#[derive(Debug)]
pub(crate) struct Binding {
    /// Ports that are not free, a bit each; port 0 and those beyond the limit too. A guest chooses which are free, and
    /// how often one is sought.
    pub(in crate::evtchn) taken: [u64; MAX_PORTS as usize / 64],
    /// Ports that are open.
    pub(in crate::evtchn) open: u32,
}

impl Binding {
    fn new(limit: u32) -> Self {
        let mut taken = [u64::MAX; MAX_PORTS as usize / 64];
        (1..limit).for_each(|port| taken[port as usize / 64] &= !(1 << (port % 64)));
        Self { taken, open: 0 }
    }

    /// The lowest free port.
    pub(in crate::evtchn) fn lowest_free(&self) -> Option<Port> {
        let (word, bits) = self.taken.iter().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        Some(Port::new(word as u32 * 64 + bits.trailing_ones()))
    }

    /// Opens the free `port`, whose cell is `cell`.
    pub(in crate::evtchn) fn open(&mut self, port: Port, cell: &PortCell, state: PortState, vcpu: u32) {
        cell.notify_vcpu.store(vcpu, Ordering::Relaxed);
        let is_ipi = matches!(state, PortState::Ipi);
        *cell.state.lock() = state;
        cell.is_ipi.store(is_ipi, Ordering::Release);
        self.open += 1;
        self.taken[port.raw() as usize / 64] |= 1 << (port.raw() % 64);
    }

    /// Lets `port` be opened again.
    pub(in crate::evtchn) fn note_closed(&mut self, port: Port) {
        self.open -= 1;
        self.taken[port.raw() as usize / 64] &= !(1 << (port.raw() % 64));
    }
}

/// The ports of one domain.
#[derive(Debug)]
pub struct Ports {
    pub(in crate::evtchn) cells: Cells,
    /// The pending and mask bits.
    pub bits: Bits,
    /// Ports are opened, bound and closed under this lock.
    pub(crate) binding: Mutex<rank::Binding, Binding>,
    /// vCPUs in `SCHEDOP_poll`.
    pub(in crate::evtchn) pollers: AtomicU32,
    /// The port at which `close_ports` goes on where it was interrupted.
    pub(in crate::evtchn) closing_at: AtomicU32,
}

impl Ports {
    /// No port is open. `highest` is the highest to give out; `None`, or one from 4,096 on, for no limit but the ABI's.
    /// `shared_info` is the domain's.
    pub fn new(highest: Option<Port>, shared_info: &SharedBytes) -> Self {
        let limit = highest.map_or(MAX_PORTS, |port| port.raw().saturating_add(1).min(MAX_PORTS));
        Self {
            cells: Cells::new(),
            bits: Bits::new(shared_info),
            binding: Mutex::new(Binding::new(limit)),
            pollers: AtomicU32::new(0),
            closing_at: AtomicU32::new(1),
        }
    }

    /// The cell of `port`, if the port was ever open.
    #[inline]
    pub fn cell(&self, port: Port) -> Option<&PortCell> {
        self.cells.get(port)
    }

    /// Frees what is kept about the ports of a domain that is dead. None can be opened any more.
    pub(crate) fn clear(&mut self) {
        self.cells.clear();
    }

    /// Number of ports in use.
    pub fn open_ports(&self) -> u32 {
        self.binding.lock().open
    }

    /// vCPUs in `SCHEDOP_poll`.
    #[inline]
    pub(crate) fn pollers(&self) -> u32 {
        self.pollers.load(Ordering::Acquire)
    }

    /// A vCPU ends its `SCHEDOP_poll`.
    pub(crate) fn poller_left(&self, vcpu: &Vcpu) {
        if vcpu.events.poll.swap(0, Ordering::AcqRel) != 0 {
            self.pollers.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A vCPU begins `SCHEDOP_poll` of one `port`, or of several (`None`).
    pub(crate) fn poller_entered(&self, vcpu: &Vcpu, port: Option<Port>) {
        let polled = port.map_or(VcpuEvents::POLL_ANY, VcpuEvents::polled);
        if vcpu.events.poll.swap(polled, Ordering::AcqRel) == 0 {
            self.pollers.fetch_add(1, Ordering::AcqRel);
        }
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
        let port = self.virqs.get(virq as usize)?.load(Ordering::Acquire);
        (port != 0).then_some(Port::new(port))
    }
}

impl Default for VcpuEvents {
    /// No VIRQ is bound.
    fn default() -> Self {
        Self { virqs: (0..NR_VIRQS).map(|_| AtomicU32::new(0)).collect(), poll: AtomicU32::new(0) }
    }
}
