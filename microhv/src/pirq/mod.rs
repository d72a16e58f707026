//! Physical interrupts as domains see them.

use alloc::sync::Arc;

use crate::Hypervisor;
use crate::domain::Domain;
use crate::error::HypercallError;
use crate::platform::Platform;

/// The interrupts of the machine and who has them.
#[derive(Debug, Default)]
pub struct Irqs {}

impl Irqs {
    /// None is in use.
    pub const fn new() -> Self {
        Self {}
    }
}

/// The PIRQs of one domain.
#[derive(Debug, Default)]
pub struct Pirqs {}

impl Pirqs {
    /// None is mapped.
    pub const fn new() -> Self {
        Self {}
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Routes `pirq` of `domain` to its event channel `port`; `will_share` as `BIND_PIRQ__WILL_SHARE`.
    ///
    /// # Errors
    /// `Invalid`: no such PIRQ; `Exists`: bound already.
    pub fn pirq_bind(
        &self,
        domain: &Arc<Domain>,
        pirq: u32,
        port: u32,
        will_share: bool,
    ) -> Result<(), HypercallError> {
        let _ = (domain, pirq, port, will_share);
        Err(HypercallError::Invalid)
    }

    /// Ends what [`Hypervisor::pirq_bind`] did.
    pub fn pirq_unbind(&self, domain: &Arc<Domain>, pirq: u32) {
        let _ = (domain, pirq);
    }
}
