//! One end of an event channel.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32};

use ring_abi::types::DomId;
use ring_abi::types::Pirq;

use crate::domain::Domain;
use crate::sync::{Mutex, rank};

/// What a port is.
#[derive(Debug)]
pub enum PortState {
    /// Not open.
    Free,
    /// Waits for a domain to bind to it.
    Unbound {
        /// Who may.
        remote: DomId,
    },
    /// Bound to a port of another, or the same, domain.
    Interdomain {
        /// The peer. Closing either end drops both references, so no cycle outlives a domain.
        remote: Arc<Domain>,
        /// The peer's port.
        port: u32,
    },
    /// A physical interrupt.
    Pirq {
        /// Its number.
        pirq: Pirq,
    },
    /// A virtual interrupt.
    Virq {
        /// Its number.
        virq: u32,
    },
    /// From a vCPU of the domain to another.
    Ipi,
}

/// A port: its state under its own lock, and whom it notifies.
#[derive(Debug)]
pub struct PortCell {
    pub(in crate::evtchn) state: Mutex<rank::Port, PortState>,
    /// vCPU that is notified.
    pub(in crate::evtchn) notify_vcpu: AtomicU32,
    /// It is an IPI: sending needs no look at the state. One that is being closed may still become pending.
    pub(in crate::evtchn) is_ipi: AtomicBool,
}

impl PortCell {
    pub(in crate::evtchn) const fn new() -> Self {
        Self {
            state: Mutex::new(PortState::Free),
            notify_vcpu: AtomicU32::new(0),
            is_ipi: AtomicBool::new(false),
        }
    }
}
