//! Domains that are neither there nor gone: domains that are being made, that are dead but in the list, or of which
//! parts are left.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use ring_abi::types::{DomId, VcpuId};

use super::ending::Ending;
use super::making::Making;
use crate::domain::{Domain, DomainList};
use crate::sync::{Mutex, rank};

/// Most dead domains at which one search looks for a domain that can go.
const LOOKED_AT: usize = 16;

/// Dead domains. Some are still in the list; of others, parts are left.
#[derive(Debug, Default)]
struct Dead {
    /// Domains that are dead but still in the list.
    listed: VecDeque<u16>,
    /// What is left of the other dead domains.
    endings: Vec<Ending>,
}

impl Dead {
    fn count(&self) -> usize {
        self.listed.len() + self.endings.len()
    }

    /// Gives back the memory of the lists that are empty: an ending is large, and many may have been cut short at one time.
    fn give_back(&mut self) {
        if self.listed.is_empty() {
            self.listed = VecDeque::new();
        }
        if self.endings.is_empty() {
            self.endings = Vec::new();
        }
    }
}

/// Domains that begin, and domains that end.
#[derive(Debug, Default)]
pub struct Unfinished {
    dead: Mutex<rank::Dead, Dead>,
    /// How many `dead` counts.
    dead_count: AtomicUsize,
    /// Domains that are being made. A vCPU has one domain here at most.
    making: Mutex<rank::Making, Vec<Making>>,
}

impl Unfinished {
    /// Notes that a domain is dead. The domain leaves the list when nobody refers to it.
    pub(crate) fn note_dead(&self, id: DomId) {
        let mut dead = self.dead.lock();
        dead.listed.push_back(id.raw());
        self.dead_count.store(dead.count(), Ordering::Release);
    }

    /// Dead domains that are still in the list, or of which something is left.
    #[cfg(test)]
    pub(crate) fn dead(&self) -> usize {
        self.dead_count.load(Ordering::Acquire)
    }

    /// Places for which the lists have memory.
    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        let dead = self.dead.lock();
        dead.listed.capacity() + dead.endings.capacity() + self.making.lock().capacity()
    }

    /// Whether a dead domain is still in the list, or something is left of another.
    pub(crate) fn has_dead(&self) -> bool {
        self.dead_count.load(Ordering::Acquire) != 0
    }

    /// Takes the remains of one dead domain. Remains that an earlier call left come first. Otherwise the call looks at
    /// some dead domains that nobody refers to, `LOOKED_AT` at most. Where `leaves` agrees, the domain leaves the list
    /// and is taken whole; elsewhere the domain's parts are taken and its place in the list stays. `None`: there is
    /// nothing to take.
    #[inline(never)] // two of these are much of the stack
    pub(super) fn take_ending(
        &self,
        domains: &DomainList,
        leaves: impl Fn(&Domain) -> bool,
    ) -> Option<Ending> {
        let mut dead = self.dead.lock();
        let mut taken = dead.endings.pop();
        for _ in 0..dead.listed.len().min(LOOKED_AT) {
            if taken.is_some() {
                break;
            }
            let Some(id) = dead.listed.pop_front() else { break };
            // Takes the whole domain, or, while others map its pages and its number must stay taken, all but its
            // place in the list.
            let mut stays = false;
            let gone = domains.take_if(id, |unshared| {
                match unshared {
                    Some(domain) if leaves(domain) => return true,
                    Some(domain) if !domain.vcpus.is_empty() => taken = Some(Ending::of_husk(domain)),
                    _ => {}
                }
                stays = true;
                false
            });
            if stays {
                dead.listed.push_back(id);
            }
            if let Some(domain) = gone {
                taken = Some(Ending::of_domain(domain));
            }
        }
        dead.give_back();
        self.dead_count.store(dead.count(), Ordering::Release);
        taken
    }

    /// Keeps what is left of a domain for [`Unfinished::take_ending`].
    pub(super) fn keep_ending(&self, ending: Ending) {
        let mut dead = self.dead.lock();
        dead.endings.push(ending);
        self.dead_count.store(dead.count(), Ordering::Release);
    }

    /// Takes the domain that a vCPU has begun to make.
    pub(super) fn take_making(&self, asker: (DomId, VcpuId)) -> Option<Making> {
        let mut making = self.making.lock();
        let place = making.iter().position(|making| making.asker == Some(asker))?;
        let taken = making.swap_remove(place);
        if making.is_empty() {
            *making = Vec::new();
        }
        Some(taken)
    }

    /// Keeps a domain for [`Unfinished::take_making`].
    pub(super) fn keep_making(&self, making: Making) {
        self.making.lock().push(making);
    }
}
