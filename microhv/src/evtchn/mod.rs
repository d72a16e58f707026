//! Event channels, 2-level: 4,096 ports a domain, a pending and a mask bit each in `shared_info`.
//!
//! Locks: `Ports::binding` guards which ports are open; two domains' are taken in id order. Each port's own lock
//! guards its state, is taken after, in (domain id, port) order, and is all that a send takes. So a send sees a peer
//! that is there, or none; and closing waits for the sends that see it.

mod bind;
mod deliver;
pub mod state;
#[cfg(test)]
mod tests;

use ring_abi::evtchn::{VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};

pub use bind::PortStatus;
pub use deliver::{is_masked, is_pending};

/// Whether each vCPU has its own port for the VIRQ; others belong to the domain and start on vCPU 0.
pub const fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}
