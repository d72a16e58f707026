//! Staging grants: pages that a frontend lends for the life of a connection, so that small copies cost no hypercall.
//!
//! ABI: `XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING` and its like, `xen/include/public/io/netif.h`.

use alloc::vec::Vec;

use ring_abi::grant::GNTST_OKAY;
use ring_abi::ring::RingPage;
use ring_abi::types::{GrantRef, PAGE_SIZE};

use super::packet::{CopyOp, Place};

/// Most pages that one vif lends; its queues share them evenly.
pub const MAX_STAGED: usize = 256;

/// One page that a frontend lends.
struct Staged<M> {
    gref: GrantRef,
    readonly: bool,
    page: M,
}

/// Bytes that a page on loan takes in the stage, where a mapping takes `mapped`.
pub(super) const fn staged_bytes(mapped: usize) -> usize {
    size_of::<Staged<()>>() + mapped
}

/// The pages that the frontend of one queue lends.
pub struct Stage<M> {
    /// In the order of the references.
    pages: Vec<Staged<M>>,
    /// Most pages.
    most: usize,
}

impl<M: RingPage> Stage<M> {
    /// A stage for one of `queues` queues.
    #[must_use]
    pub(super) fn new(queues: usize) -> Self {
        Self { pages: Vec::new(), most: MAX_STAGED / queues.max(1) }
    }

    /// Most pages that the queue lends.
    #[must_use]
    pub const fn most(&self) -> usize {
        self.most
    }

    /// Number of pages.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether the frontend lends no page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    fn find(&self, gref: GrantRef) -> Result<usize, usize> {
        self.pages.binary_search_by_key(&gref, |staged| staged.gref)
    }

    /// Whether the frontend lends the page `gref`.
    #[must_use]
    pub fn has(&self, gref: GrantRef) -> bool {
        self.find(gref).is_ok()
    }

    /// Keeps room for `count` more pages; false: that is more than a queue lends, or there is no memory.
    pub(super) fn reserve(&mut self, count: usize) -> bool {
        self.pages.len() + count <= self.most && self.pages.try_reserve_exact(count).is_ok()
    }

    /// Adds a page that is not there yet. The caller has made room.
    pub(super) fn add(&mut self, gref: GrantRef, readonly: bool, page: M) {
        if let Err(at) = self.find(gref) {
            self.pages.insert(at, Staged { gref, readonly, page });
        }
    }

    /// Gives the page back, if the frontend lends the page.
    pub(super) fn remove(&mut self, gref: GrantRef) -> Option<M> {
        self.find(gref).ok().map(|at| self.pages.remove(at).page)
    }

    /// The page, for reading.
    fn readable(&self, gref: GrantRef) -> Option<&M> {
        self.find(gref).ok().map(|at| &self.pages[at].page)
    }

    /// The page, for writing: a page that the frontend lends for reading is none.
    fn writable(&self, gref: GrantRef) -> Option<&M> {
        let staged = &self.pages[self.find(gref).ok()?];
        (!staged.readonly).then_some(&staged.page)
    }
}

/// Memory that the processor reaches without a hypercall.
pub trait Reach {
    /// A page of memory.
    type Page: RingPage;

    /// The page of `place`, to be read or, where `write` says so, to be written; `None`: only the hypervisor reaches the
    /// page.
    fn page(&self, place: Place, write: bool) -> Option<&Self::Page>;
}

impl<M: RingPage> Stage<M> {
    /// The page of a grant in this stage, as [`Reach::page`] gives a page.
    #[must_use]
    pub fn page(&self, gref: GrantRef, write: bool) -> Option<&M> {
        if write { self.writable(gref) } else { self.readable(gref) }
    }
}

/// Does `op` at once, if both sides are within `reach`; false: the hypervisor must do the copy.
///
/// The bytes go through `scratch` in pieces, because neither side is memory of the program's own: both may change at any
/// time.
pub fn copy_within_reach(op: &mut CopyOp, reach: &impl Reach, scratch: &mut [u8; 256]) -> bool {
    let (source, dest, len) = (op.source(), op.dest(), usize::from(op.len()));
    let (from, to) = (usize::from(source.offset()), usize::from(dest.offset()));
    if from + len > PAGE_SIZE || to + len > PAGE_SIZE {
        return false; // the hypervisor's answer is an error
    }
    let (Some(source), Some(dest)) = (reach.page(source, false), reach.page(dest, true)) else {
        return false;
    };
    let mut done = 0;
    while done < len {
        let piece = &mut scratch[..(len - done).min(256)];
        source.copy_out(from + done, piece);
        dest.copy_in(to + done, piece);
        done += piece.len();
    }
    op.set_status(GNTST_OKAY);
    true
}
