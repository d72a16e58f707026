//! A domain that is destroyed unless it is kept.

use pvrt::hypercall::{Result, domctl};
use ring_abi::domctl::XenDomctlCreatedomain;
use ring_abi::types::DomId;

/// A domain under construction. Dropping it destroys the domain.
#[derive(Debug)]
pub struct OwnedDomain {
    id: DomId,
}

impl OwnedDomain {
    /// Makes a domain.
    ///
    /// # Errors
    /// As `domctl::create`.
    pub fn create(config: &XenDomctlCreatedomain) -> Result<Self> {
        domctl::create(config).map(|id| Self { id })
    }

    /// Its number.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// Leaves the domain alive.
    pub fn keep(self) -> DomId {
        let id = self.id;
        core::mem::forget(self);
        id
    }
}

impl Drop for OwnedDomain {
    fn drop(&mut self) {
        if let Err(errno) = domctl::destroy(self.id) {
            log::error!("d{}: destroying it: {errno}", self.id);
        }
    }
}
