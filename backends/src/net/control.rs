//! The control ring: hashes, and pages that the frontend lends.
//!
//! ABI: the section "Control messages" of `xen/include/public/io/netif.h`.

use alloc::vec::Vec;

use ring_abi::io::netif::*;
use ring_abi::ring::{BackRing, RingPage};
use ring_abi::types::{GrantRef, PAGE_SIZE};
use zerocopy::{FromZeros, IntoBytes};

use super::error::Disconnect;
use super::hash::{ALL_KINDS, Hashing, Invalid, MAX_HASH_KEY, MAX_HASH_MAPPING};
use super::stage::{MAX_STAGED, Stage};
use crate::traits::Notifier;

/// Most requests of one poll.
const BUDGET: usize = 4;

/// Entries of the longest list of pages: as many as a page of the list holds.
const MAX_LIST: usize = PAGE_SIZE / size_of::<XenNetifGref>();

/// Most bytes that one poll keeps until its end, where a mapping takes `mapped`: a list, and what the list asks for.
pub(super) const fn poll_bytes(mapped: usize) -> usize {
    MAX_LIST * size_of::<XenNetifGref>() + MAX_STAGED * (size_of::<(GrantRef, bool)>() + mapped)
}

/// The pages of one frontend that the control ring names.
pub trait ControlGrants {
    /// A page that is mapped. Dropping the value unmaps the page.
    type Mapped: RingPage;

    /// Copies the first bytes of the page `gref`; false: the grant is no good.
    fn read(&mut self, gref: GrantRef, target: &mut [u8]) -> bool;

    /// Copies bytes to the front of the page `gref`; false: the grant is no good.
    fn write(&mut self, gref: GrantRef, source: &[u8]) -> bool;

    /// Maps all pages of `grefs`, those with `true` for reading alone, and appends the pages to `out` in order. False: at
    /// least one grant is no good, nothing stays mapped, and `out` is as it was.
    fn map(&mut self, grefs: &[(GrantRef, bool)], out: &mut Vec<Self::Mapped>) -> bool;

    /// Unmaps pages, many at once where that is cheaper.
    fn unmap(&mut self, pages: Vec<Self::Mapped>) {
        drop(pages);
    }
}

/// What the control ring sets.
pub struct Controlled<M> {
    /// How packets to the frontend are hashed.
    pub hashing: Hashing,
    /// The pages that the frontend lends, for each queue.
    pub stages: Vec<Stage<M>>,
}

/// The status and the data of an answer.
type Answer = (u32, u32);

const SUCCESS: Answer = (XEN_NETIF_CTRL_STATUS_SUCCESS, 0);
const NOT_SUPPORTED: Answer = (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0);
const INVALID: Answer = (XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, 0);
const OVERFLOW: Answer = (XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, 0);

/// One control ring.
pub struct Control<P, N> {
    ring: BackRing<NetifCtrlRing, P>,
    notifier: N,
}

impl<P: RingPage, N: Notifier> Control<P, N> {
    /// Serves `ring`.
    pub fn new(ring: BackRing<NetifCtrlRing, P>, notifier: N) -> Self {
        Self { ring, notifier }
    }

    /// Answers some requests. `true`: more wait, and the owner lets other tasks run and polls again. `false`: the owner
    /// waits for an event of the ring's.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring.
    pub fn poll<G: ControlGrants>(
        &mut self,
        state: &mut Controlled<G::Mapped>,
        grants: &mut G,
    ) -> Result<bool, Disconnect> {
        let mut more = true;
        for _ in 0..BUDGET {
            let Some(request) = self.ring.next_request()? else {
                more = false;
                break;
            };
            let (status, data) = state.answer(&request, grants);
            let XenNetifCtrlRequest { id, r#type, .. } = request;
            self.ring.push_response(&XenNetifCtrlResponse { id, r#type, status, data });
            // A list of pages is long work: others come first.
            if matches!(r#type, XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING | XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING) {
                break;
            }
        }
        if self.ring.publish_responses() {
            self.notifier.notify();
        }
        Ok(more || self.ring.arm_and_recheck()?)
    }
}

impl<M: RingPage> Controlled<M> {
    /// Nothing set, for a vif of `queues` queues.
    #[must_use]
    pub fn new(queues: usize) -> Self {
        Self { hashing: Hashing::default(), stages: (0..queues).map(|_| Stage::new(queues)).collect() }
    }

    /// Number of pages that the frontend lends.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.stages.iter().map(Stage::len).sum()
    }

    /// Gives all pages back, at the connection's end.
    pub fn take_pages(&mut self) -> impl Iterator<Item = M> + '_ {
        self.stages.iter_mut().flat_map(Stage::take)
    }

    fn answer<G: ControlGrants<Mapped = M>>(
        &mut self,
        request: &XenNetifCtrlRequest,
        grants: &mut G,
    ) -> Answer {
        let [first, second, third] = request.data;
        match request.r#type {
            XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM => done(self.hashing.set_algorithm(first)),
            XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS if self.hashing.has_algorithm() => (SUCCESS.0, ALL_KINDS),
            XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS => done(self.hashing.set_kinds(first)),
            XEN_NETIF_CTRL_TYPE_SET_HASH_KEY => self.set_key(GrantRef::new(first), second, grants),
            XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE => (SUCCESS.0, MAX_HASH_MAPPING as u32),
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE => done(self.hashing.set_size(first)),
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING => {
                self.set_mapping(GrantRef::new(first), second, third, grants)
            }
            XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE => match self.stage(first) {
                Some(stage) => (SUCCESS.0, stage.most() as u32),
                None => INVALID,
            },
            XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING => self.add(first, GrantRef::new(second), third, grants),
            XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING => self.remove(first, GrantRef::new(second), third, grants),
            _ => NOT_SUPPORTED,
        }
    }

    fn stage(&mut self, queue: u32) -> Option<&mut Stage<M>> {
        self.stages.get_mut(usize::try_from(queue).ok()?)
    }

    fn set_key<G: ControlGrants>(&mut self, gref: GrantRef, len: u32, grants: &mut G) -> Answer {
        let mut key = [0; MAX_HASH_KEY];
        let Some(key) = key.get_mut(..len as usize) else { return OVERFLOW };
        if !key.is_empty() && !grants.read(gref, key) {
            return INVALID;
        }
        self.hashing.set_key(key);
        SUCCESS
    }

    fn set_mapping<G: ControlGrants>(
        &mut self,
        gref: GrantRef,
        count: u32,
        offset: u32,
        grants: &mut G,
    ) -> Answer {
        let queues = self.stages.len() as u32;
        let Ok(entries) = self.hashing.entries(offset, count) else { return INVALID };
        let mut list = [0u32; MAX_HASH_MAPPING];
        let list = &mut list[..entries.len()];
        // The copy is checked, and then the copy is used: the frontend may go on to write its page.
        if !list.is_empty() && !grants.read(gref, list.as_mut_bytes()) {
            return INVALID;
        }
        if list.iter().any(|&queue| queue >= queues) {
            return INVALID;
        }
        for (entry, &queue) in entries.iter_mut().zip(&*list) {
            *entry = queue as u16; // below the number of queues
        }
        SUCCESS
    }

    /// The list of `count` entries in the page `gref`; `None`: there is no such list.
    fn list<G: ControlGrants>(gref: GrantRef, count: u32, grants: &mut G) -> Option<Vec<XenNetifGref>> {
        let count = usize::try_from(count).ok().filter(|&count| count <= MAX_LIST)?;
        let mut list = Vec::new();
        list.try_reserve_exact(count).ok()?;
        list.resize(count, XenNetifGref::new_zeroed());
        let is_read = list.is_empty() || grants.read(gref, list.as_mut_bytes());
        is_read.then_some(list)
    }

    fn add<G: ControlGrants<Mapped = M>>(
        &mut self,
        queue: u32,
        gref: GrantRef,
        count: u32,
        grants: &mut G,
    ) -> Answer {
        let Some(stage) = self.stage(queue).filter(|stage| stage.has_room(count)) else { return INVALID };
        let Some(list) = Self::list(gref, count, grants) else { return INVALID };
        let (mut wanted, mut pages) = (Vec::new(), Vec::new());
        if wanted.try_reserve_exact(list.len()).is_err() || pages.try_reserve_exact(list.len()).is_err() {
            return INVALID;
        }
        wanted.extend(
            list.iter()
                .map(|entry| (GrantRef::new(entry.r#ref), entry.flags & XEN_NETIF_CTRLF_GREF_READONLY != 0)),
        );
        wanted.sort_unstable();
        let twice = wanted.windows(2).any(|pair| pair[0].0 == pair[1].0);
        let there = wanted.iter().any(|&(gref, _)| stage.has(gref));
        let unknown = list.iter().any(|entry| entry.flags & !XEN_NETIF_CTRLF_GREF_READONLY != 0);
        if twice || there || unknown || !stage.reserve(wanted.len()) {
            return INVALID;
        }
        if !grants.map(&wanted, &mut pages) {
            return INVALID;
        }
        assert_eq!(pages.len(), wanted.len(), "a page for each grant");
        for ((gref, readonly), page) in wanted.into_iter().zip(pages) {
            stage.add(gref, readonly, page);
        }
        SUCCESS
    }

    fn remove<G: ControlGrants<Mapped = M>>(
        &mut self,
        queue: u32,
        gref: GrantRef,
        count: u32,
        grants: &mut G,
    ) -> Answer {
        let Some(stage) = self.stage(queue) else { return INVALID };
        let Some(mut list) = Self::list(gref, count, grants) else { return INVALID };
        let mut pages = Vec::new();
        if pages.try_reserve_exact(list.len().min(stage.len())).is_err() {
            return INVALID;
        }
        for entry in &mut list {
            let page = stage.remove(GrantRef::new(entry.r#ref));
            entry.status = if page.is_some() { SUCCESS } else { INVALID }.0 as u16;
            pages.extend(page);
        }
        let removed = pages.len() as u32;
        grants.unmap(pages);
        // The pages are back whether or not the frontend can be told of each.
        if !list.is_empty() && !grants.write(gref, list.as_bytes()) {
            return INVALID;
        }
        (SUCCESS.0, removed)
    }
}

fn done(result: Result<(), Invalid>) -> Answer {
    if result.is_ok() { SUCCESS } else { INVALID }
}
