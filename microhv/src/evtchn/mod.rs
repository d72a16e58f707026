//! Event channels: with two levels 4,096 ports a domain, a pending and a mask bit each in `shared_info`; with the FIFO 131,072,
//! a word each in pages of the guest, which links the port into the queue of its vCPU and priority.
//!
//! A domain begins with two levels. The guest turns to the FIFO by giving a vCPU a control block, and a reset brings the domain
//! back. Both layouts have all in common but the bits that an event sets.
//!
//! Locks: `Ports::binding` guards which ports are open; two domains' are taken in id order. Each port's own lock
//! guards the port's state, is taken after, and is all that a send takes. So a send sees a peer that is there, or none;
//! and closing waits for the sends that see the peer.

mod bind;
mod deliver;
mod fifo;
pub mod state;
#[cfg(test)]
mod tests;

use crate::platform::GuestFault;

pub use bind::{Opened, Publish, bind_vcpu};
pub use fifo::set_priority;

/// Why a request about a port is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvtchnError {
    /// No such port or VIRQ, or the port is not in a state for this.
    Invalid,
    /// There is no such vCPU.
    NoEntry,
    /// The VIRQ has a port already.
    Exists,
    /// Every port of the domain is in use.
    NoSpace,
    /// No memory for the port.
    NoMemory,
    /// The port could not be written to the guest.
    Fault,
    /// The port is closed.
    Access,
    /// The domain's layout has no such operation.
    NoSys,
    /// The domain's layout has no such pages.
    NotSupported,
}

impl From<GuestFault> for EvtchnError {
    fn from(_: GuestFault) -> Self {
        Self::Fault
    }
}
