//! One end of an event channel.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use ring_abi::types::{DomId, Pirq, Port};

use crate::domain::Domain;
use crate::sync::{Mutex, rank};

/// What a port is.
#[derive(Clone, Debug, Default)]
pub enum PortState {
    /// Not open.
    #[default]
    Free,
    /// Waits for a domain to bind to it.
    Unbound {
        /// The domain that may bind.
        remote: DomId,
    },
    /// Bound to a port of another, or the same, domain.
    Interdomain {
        /// The peer. Closing either end drops both references, so no cycle outlives a domain.
        remote: Arc<Domain>,
        /// The peer's port.
        port: Port,
    },
    /// A physical interrupt.
    Pirq {
        /// The number of the PIRQ.
        pirq: Pirq,
    },
    /// A virtual interrupt.
    Virq {
        /// The number of the VIRQ.
        virq: u32,
    },
    /// From a vCPU of the domain to another.
    Ipi,
}

impl PortState {
    /// The domain of the port's peer.
    pub(in crate::evtchn) const fn peer(&self) -> Option<&Arc<Domain>> {
        if let Self::Interdomain { remote, .. } = self { Some(remote) } else { None }
    }
}

/// A port: its state under its own lock, and the vCPU that the port notifies.
#[derive(Debug, Default)]
pub struct PortCell {
    /// What the port is.
    pub state: Mutex<rank::Port, PortState>,
    /// vCPU that is notified.
    notify_vcpu: AtomicU16,
    /// The port is an IPI with two levels: sending needs no look at the state. An IPI that is being closed may still become
    /// pending.
    pub(in crate::evtchn) is_ipi: AtomicBool,
    /// An event came while the FIFO had no word for the port. This and what follows is used under `Ports::fifo`.
    pub(in crate::evtchn) waits: AtomicBool,
    /// The priority, below 16.
    pub(in crate::evtchn) priority: AtomicU8,
    /// The queue that the port was last on: 16 times the vCPU, and the priority.
    pub(in crate::evtchn) queue: AtomicU16,
}

const _: () = assert!(size_of::<PortCell>() == 32, "a domain may have 131,071");

impl PortCell {
    /// vCPU that is notified.
    #[inline]
    pub fn vcpu(&self) -> u32 {
        self.notify_vcpu.load(Ordering::Relaxed).into()
    }

    /// Makes the port notify `vcpu`, which there is.
    pub(in crate::evtchn) fn set_vcpu(&self, vcpu: u32) {
        self.notify_vcpu.store(vcpu as u16, Ordering::Relaxed);
    }
}
