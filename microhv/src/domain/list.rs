//! All domains, by id.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering};

use ring_abi::types::DomId;

use super::Domain;
use crate::sync::{Mutex, rank};

/// Ids from here on have a meaning of their own (`DOMID_FIRST_RESERVED`).
pub const FIRST_RESERVED: u16 = 0x7ff0;

/// Why a domain is not the caller's to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainError {
    /// There is no such domain.
    NoSuchDomain,
    /// The caller may not act on the domain.
    NotPermitted,
}

/// The domains that exist, the dying included.
#[derive(Debug, Default)]
pub struct DomainList {
    domains: Mutex<rank::DomainList, BTreeMap<u16, Arc<Domain>>>,
    /// The number given out last.
    last: AtomicU16,
}

impl DomainList {
    /// The domain `id`, dying or not. `DOMID_SELF` is no domain here.
    pub fn get(&self, id: DomId) -> Option<Arc<Domain>> {
        self.domains.lock().get(&id.raw()).cloned()
    }

    /// The domain that `caller` means by `raw`: `caller` by `DOMID_SELF` or by its own number.
    ///
    /// # Errors
    /// `NoSuchDomain`: no domain has this number.
    #[inline]
    pub fn resolve(&self, caller: &Arc<Domain>, raw: u16) -> Result<Arc<Domain>, DomainError> {
        if raw == ring_abi::types::DOMID_SELF || raw == caller.id.raw() {
            return Ok(caller.clone());
        }
        self.get(DomId::new(raw)).ok_or(DomainError::NoSuchDomain)
    }

    /// The domain that `caller` means by `raw`, if `caller` may act on the domain: any domain may act on itself, a
    /// privileged domain on all. (I30)
    ///
    /// # Errors
    /// `NoSuchDomain`: no domain has this number. `NotPermitted`: `caller` may not act on the domain.
    #[inline]
    pub fn target(&self, caller: &Arc<Domain>, raw: u16) -> Result<Arc<Domain>, DomainError> {
        let domain = self.resolve(caller, raw)?;
        if caller.privileged || Arc::ptr_eq(caller, &domain) {
            Ok(domain)
        } else {
            Err(DomainError::NotPermitted)
        }
    }

    /// Adds a domain. `false`: another domain has the id.
    #[must_use]
    pub(crate) fn insert(&self, domain: &Arc<Domain>) -> bool {
        let mut domains = self.domains.lock();
        let is_free = !domains.contains_key(&domain.id.raw());
        if is_free {
            domains.insert(domain.id.raw(), domain.clone());
        }
        is_free
    }

    /// A number that no domain has. The search goes on after the number given out last, so that numbers are not soon
    /// used again.
    pub(crate) fn next_id(&self) -> Option<DomId> {
        let domains = self.domains.lock();
        let mut id = self.last.load(Ordering::Relaxed);
        for _ in 1..FIRST_RESERVED {
            id = if id + 1 < FIRST_RESERVED { id + 1 } else { 1 };
            if !domains.contains_key(&id) {
                self.last.store(id, Ordering::Relaxed);
                return Some(DomId::new(id));
            }
        }
        None
    }

    /// Shows `look` the domain `id`, or shows `None` if anybody else refers to the domain. If `look` says so, this
    /// takes the domain out of the list.
    pub(crate) fn take_if(
        &self,
        id: u16,
        look: impl FnOnce(Option<&mut Domain>) -> bool,
    ) -> Option<Arc<Domain>> {
        let mut domains = self.domains.lock();
        let leaves = look(Arc::get_mut(domains.get_mut(&id)?));
        if leaves { domains.remove(&id) } else { None }
    }

    /// The first domain with an id of at least `first`.
    pub fn first_from(&self, first: u16) -> Option<Arc<Domain>> {
        self.domains.lock().range(first..).next().map(|(_, domain)| domain.clone())
    }

    /// All domains by id.
    pub fn snapshot(&self) -> Vec<Arc<Domain>> {
        self.domains.lock().values().cloned().collect()
    }

    /// Whether there is a domain `id`.
    pub fn contains(&self, id: DomId) -> bool {
        self.domains.lock().contains_key(&id.raw())
    }
}
