//! Staging grants: pages that a frontend lends for the life of a connection, so that small copies cost no hypercall: the
//! program copies a packet's head by the mapping, and the hypervisor copies what is longer by the grant, which stands.
//!
//! ABI: `XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING` and its like, `xen/include/public/io/netif.h`.

use alloc::vec::Vec;

use ring_abi::grant::GNTST_OKAY;
use ring_abi::ring::RingPage;
use ring_abi::types::{GrantRef, PAGE_SIZE};

use super::packet::{Copier, CopyOp, HEAD_BYTES, Place};

/// Most pages that one vif lends; its queues share them evenly. A queue has room for as many as a receive ring has slots,
/// and for half as many buffers to send from.
pub const MAX_STAGED: usize = 384;

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
    /// The number of the first reference.
    first: u32,
    /// Most pages.
    most: usize,
}

impl<M: RingPage> Stage<M> {
    /// A stage for one of `queues` queues.
    #[must_use]
    pub(super) fn new(queues: usize) -> Self {
        Self { pages: Vec::new(), first: 0, most: MAX_STAGED / queues.max(1) }
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

    #[inline(always)]
    fn staged(&self, gref: GrantRef) -> Option<&Staged<M>> {
        // Frontends lend buffers whose references are in a row, if they can.
        let guess = gref.raw().wrapping_sub(self.first) as usize;
        match self.pages.get(guess) {
            Some(staged) if staged.gref == gref => Some(staged),
            _ => self.search(gref),
        }
    }

    #[inline(never)]
    fn search(&self, gref: GrantRef) -> Option<&Staged<M>> {
        self.find(gref).ok().map(|at| &self.pages[at])
    }

    fn note_first(&mut self) {
        self.first = self.pages.first().map_or(0, |staged| staged.gref.raw());
    }

    /// Whether the frontend lends the page `gref`.
    #[must_use]
    pub fn has(&self, gref: GrantRef) -> bool {
        self.find(gref).is_ok()
    }

    /// Whether the queue may lend `count` more pages.
    pub(super) fn has_room(&self, count: u32) -> bool {
        count as usize <= self.most - self.pages.len()
    }

    /// Keeps room for `count` more pages; false: that is more than a queue lends, or there is no memory.
    pub(super) fn reserve(&mut self, count: usize) -> bool {
        self.pages.len() + count <= self.most && self.pages.try_reserve_exact(count).is_ok()
    }

    /// Gives all pages back.
    pub(super) fn take(&mut self) -> impl Iterator<Item = M> + use<M> {
        core::mem::take(&mut self.pages).into_iter().map(|staged| staged.page)
    }

    /// Adds a page that is not there yet. The caller has made room.
    pub(super) fn add(&mut self, gref: GrantRef, readonly: bool, page: M) {
        if let Err(at) = self.find(gref) {
            self.pages.insert(at, Staged { gref, readonly, page });
            self.note_first();
        }
    }

    /// Gives the page back, if the frontend lends the page.
    pub(super) fn remove(&mut self, gref: GrantRef) -> Option<M> {
        let page = self.find(gref).ok().map(|at| self.pages.remove(at).page);
        self.note_first();
        page
    }

    /// The page, for reading.
    #[inline(always)]
    #[must_use]
    pub fn readable(&self, gref: GrantRef) -> Option<&M> {
        self.staged(gref).map(|staged| &staged.page)
    }

    /// The page, for writing: a page that the frontend lends for reading is none.
    #[inline(always)]
    #[must_use]
    pub fn writable(&self, gref: GrantRef) -> Option<&M> {
        self.staged(gref).filter(|staged| !staged.readonly).map(|staged| &staged.page)
    }
}

impl<M: RingPage> Stage<M> {
    /// Does those of `ops` at once that copy from pages of this stage to the owner's memory: `own` writes bytes at such a
    /// place, or cannot. Gives the number of copies done.
    ///
    /// The bytes go through memory of the program's own, because the frontend may change its pages at any time.
    pub fn fetch(&self, ops: &mut [CopyOp], mut own: impl FnMut(Place, &[u8]) -> bool) -> usize {
        let (mut bytes, mut done) = ([0; HEAD_BYTES], 0);
        for op in ops {
            let (Place::Grant { gref, offset, .. }, dest) = (op.source(), op.dest()) else { continue };
            let (from, len) = (usize::from(offset), usize::from(op.len()));
            let (Some(page), Some(bytes)) = (self.readable(gref), bytes.get_mut(..len)) else { continue };
            if from + len > PAGE_SIZE {
                continue; // the hypervisor's answer is an error
            }
            page.copy_out(from, bytes);
            if own(dest, bytes) {
                op.set_status(GNTST_OKAY);
                done += 1;
            }
        }
        done
    }
}

/// Has `copier` do those of `ops` that [`Stage::fetch`] did not do, `done` of which they did. `rest` is
/// room for a list.
pub fn copy_rest(
    ops: &mut [CopyOp],
    done: usize,
    copier: &mut (impl Copier + ?Sized),
    rest: &mut Vec<CopyOp>,
) {
    if done == 0 {
        return copier.copy(ops);
    }
    if done >= ops.len() {
        return;
    }
    rest.clear();
    rest.extend(ops.iter().filter(|op| !op.ok()));
    copier.copy(rest);
    for (op, copied) in ops.iter_mut().filter(|op| !op.ok()).zip(&*rest) {
        *op = *copied;
    }
}
