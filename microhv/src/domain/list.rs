//! All domains, by id.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use ring_abi::types::{DomId, VcpuId};

use super::Domain;
use super::ending::Ending;
use super::making::Making;
use crate::error::HypercallError;
use crate::sync::{Mutex, RwLock, rank};

/// Ids from here on have a meaning of their own (`DOMID_FIRST_RESERVED`).
pub const FIRST_RESERVED: u16 = 0x7ff0;

/// Dead domains at which one look for those that can go looks at most.
const LOOKED_AT: usize = 16;

/// What is neither alive nor gone.
#[derive(Debug, Default)]
struct Dead {
    /// Domains that are dead but still in the list.
    listed: VecDeque<u16>,
    /// What is left of others.
    endings: Vec<Ending>,
}

impl Dead {
    fn count(&self) -> usize {
        self.listed.len() + self.endings.len()
    }
}

/// The domains that exist, the dying included.
#[derive(Debug, Default)]
pub struct DomainList {
    domains: RwLock<rank::DomainList, BTreeMap<u16, Arc<Domain>>>,
    /// The number given out last.
    last: AtomicU16,
    dead: Mutex<rank::Dead, Dead>,
    /// How many `dead` counts.
    dead_count: AtomicUsize,
    /// Domains that are being made, one for each vCPU that asks for them.
    making: Mutex<rank::Making, Vec<Making>>,
}

impl DomainList {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            domains: RwLock::new(BTreeMap::new()),
            last: AtomicU16::new(0),
            dead: Mutex::new(Dead { listed: VecDeque::new(), endings: Vec::new() }),
            dead_count: AtomicUsize::new(0),
            making: Mutex::new(Vec::new()),
        }
    }

    /// The domain `id`, dying or not. `DOMID_SELF` is no domain here.
    pub fn get(&self, id: DomId) -> Option<Arc<Domain>> {
        self.domains.read().get(&id.raw()).cloned()
    }

    /// The domain that `caller` means by `raw`: itself by `DOMID_SELF` or by its own number.
    ///
    /// # Errors
    /// `NoSuchDomain`.
    #[inline]
    pub fn resolve(&self, caller: &Arc<Domain>, raw: u16) -> Result<Arc<Domain>, HypercallError> {
        if raw == ring_abi::types::DOMID_SELF || raw == caller.id.raw() {
            return Ok(caller.clone());
        }
        self.get(DomId::new(raw)).ok_or(HypercallError::NoSuchDomain)
    }

    /// The domain that `caller` means by `raw`, if it may act on it: itself, or any when it is privileged. (I30)
    ///
    /// # Errors
    /// `NoSuchDomain`; `NotPermitted`.
    #[inline]
    pub fn target(&self, caller: &Arc<Domain>, raw: u16) -> Result<Arc<Domain>, HypercallError> {
        let domain = self.resolve(caller, raw)?;
        if caller.privileged || Arc::ptr_eq(caller, &domain) {
            Ok(domain)
        } else {
            Err(HypercallError::NotPermitted)
        }
    }

    /// Adds a domain.
    ///
    /// # Errors
    /// `Exists` when its id is taken.
    pub fn insert(&self, domain: Arc<Domain>) -> Result<(), HypercallError> {
        let mut domains = self.domains.write();
        if domains.contains_key(&domain.id.raw()) {
            return Err(HypercallError::Exists);
        }
        domains.insert(domain.id.raw(), domain);
        Ok(())
    }

    /// A number that no domain has, after the one given out last, so that numbers are not soon used again.
    pub(crate) fn next_id(&self) -> Option<DomId> {
        let domains = self.domains.read();
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

    /// Notes that a domain is dead: it leaves the list when nobody refers to it.
    pub(crate) fn note_dead(&self, id: DomId) {
        let mut dead = self.dead.lock();
        dead.listed.push_back(id.raw());
        self.dead_count.store(dead.count(), Ordering::Release);
    }

    /// Whether a dead domain is still in the list, or something is left of another.
    #[inline]
    pub(crate) fn has_dead(&self) -> bool {
        self.dead_count.load(Ordering::Acquire) != 0
    }

    /// Takes what is left of a domain that ends: one that was begun, or one that is dead, that
    /// nobody else refers to: all of it where `leaves` says yes, which is not asked again, else all but its place in the
    /// list. `None`: not of those that were looked at.
    pub(super) fn take_ending(&self, leaves: impl Fn(&Domain) -> bool) -> Option<Ending> {
        let mut dead = self.dead.lock();
        let mut taken = dead.endings.pop();
        for _ in 0..dead.listed.len().min(LOOKED_AT) {
            if taken.is_some() {
                break;
            }
            let Some(id) = dead.listed.pop_front() else { break };
            let mut domains = self.domains.write();
            let Some(domain) = domains.get_mut(&id) else { continue };
            match Arc::get_mut(domain) {
                Some(domain) if leaves(domain) => taken = domains.remove(&id).map(Ending::of_domain),
                unshared => {
                    // Its number stays its own while others map its pages, and nothing else of it does.
                    taken = unshared.filter(|domain| !domain.vcpus.is_empty()).map(Ending::of_husk);
                    dead.listed.push_back(id);
                }
            }
        }
        self.dead_count.store(dead.count(), Ordering::Release);
        taken
    }

    /// Keeps what is left of a domain for [`DomainList::take_ending`].
    pub(super) fn keep_ending(&self, ending: Ending) {
        let mut dead = self.dead.lock();
        dead.endings.push(ending);
        self.dead_count.store(dead.count(), Ordering::Release);
    }

    /// Takes the domain that a vCPU has begun to make.
    pub(super) fn take_making(&self, asker: (DomId, VcpuId)) -> Option<Making> {
        let mut making = self.making.lock();
        let place = making.iter().position(|making| making.asker == Some(asker))?;
        Some(making.swap_remove(place))
    }

    /// Keeps a domain for [`DomainList::take_making`].
    pub(super) fn keep_making(&self, making: Making) {
        self.making.lock().push(making);
    }

    /// Takes a domain out of the list.
    pub fn remove(&self, id: DomId) -> Option<Arc<Domain>> {
        self.domains.write().remove(&id.raw())
    }

    /// The first domain with an id of at least `first`.
    pub fn first_from(&self, first: u16) -> Option<Arc<Domain>> {
        self.domains.read().range(first..).next().map(|(_, domain)| domain.clone())
    }

    /// All domains by id.
    pub fn snapshot(&self) -> Vec<Arc<Domain>> {
        self.domains.read().values().cloned().collect()
    }

    /// Whether there is a domain `id`.
    pub fn contains(&self, id: DomId) -> bool {
        self.domains.read().contains_key(&id.raw())
    }
}
