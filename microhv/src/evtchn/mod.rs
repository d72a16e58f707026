//! Event channels, 2-level: 4,096 ports a domain, a pending and a mask bit each in `shared_info`.
//!
//! Locks: `Ports::binding` guards which ports are open; two domains' are taken in id order. Each port's own lock
//! guards the port's state, is taken after, and is all that a send takes. So a send sees a peer that is there, or none;
//! and closing waits for the sends that see the peer.

mod bind;
mod deliver;
pub mod state;
#[cfg(test)]
mod tests;

use crate::platform::GuestFault;

pub use bind::{Opened, Publish, bind_vcpu};

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
    /// The guest could not be told the port.
    Fault,
}

impl From<GuestFault> for EvtchnError {
    fn from(_: GuestFault) -> Self {
        Self::Fault
    }
}
