//! Memory of this kernel that other domains may use: it comes back only when they no longer do.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::{DomId, GrantRef, Mfn};

use super::table;
use crate::hypercall::Result;
use crate::mem::Pages;

/// Memory that waits, without an owner, for the other side to let go of it.
pub struct Kept {
    /// Dropped, and so freed, with this value.
    _memory: Memory,
}

/// What can be kept.
enum Memory {
    Own { _pages: Pages },
    Shared { _pages: Arc<Pages> },
}

/// Memory that can be lent: its frames stay the same until it is dropped.
pub trait Lend {
    /// The pages.
    fn pages(&self) -> &Pages;

    /// The memory as something that waits for the other side.
    fn keep(self) -> Kept;
}

impl Lend for Pages {
    fn pages(&self) -> &Pages {
        self
    }

    fn keep(self) -> Kept {
        Kept { _memory: Memory::Own { _pages: self } }
    }
}

impl Lend for Arc<Pages> {
    fn pages(&self) -> &Pages {
        self
    }

    fn keep(self) -> Kept {
        Kept { _memory: Memory::Shared { _pages: self } }
    }
}

/// Memory and the grants of its pages. The memory comes out by [`Self::end`] alone, which ends the grants in one step with
/// the look whether they are used. Dropped, the memory waits for the other side, and is freed only then.
///
/// ```compile_fail,E0382
/// fn used_while_lent(lent: pvrt::grant::Granted) {
///     let page = lent.end().ok();
///     lent.memory();
/// }
/// ```
pub struct Granted<M: Lend = Pages> {
    /// There until the grants were ended.
    memory: Option<M>,
    /// Entries of the table, in the order in which they were given.
    entries: Vec<u32>,
}

/// The grants were ended as far as the other side did not use them; what is left is still used, and the memory with it.
/// Dropped, the memory is freed when the other side lets go.
#[must_use]
pub struct StillUsed<M: Lend = Pages>(Granted<M>);

impl<M: Lend> StillUsed<M> {
    /// Tries again.
    ///
    /// # Errors
    /// The other side uses the memory still.
    pub fn end(self) -> core::result::Result<M, Self> {
        self.0.end()
    }
}

impl<M: Lend> fmt::Debug for StillUsed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StillUsed({:?})", self.0.entries)
    }
}

impl<M: Lend> Granted<M> {
    /// Nothing is lent yet.
    pub const fn new(memory: M) -> Self {
        Self { memory: Some(memory), entries: Vec::new() }
    }

    /// Nothing is lent yet; `count` grants are to come.
    pub fn with_room(memory: M, count: usize) -> Self {
        Self { memory: Some(memory), entries: Vec::with_capacity(count) }
    }

    /// Lends all of `memory` to `dom`, a grant for each page in order.
    ///
    /// # Errors
    /// The errors of [`Self::allow`]; the memory is freed.
    pub fn whole(memory: M, dom: DomId, readonly: bool) -> Result<Self> {
        let count = memory.pages().count();
        let mut granted = Self::with_room(memory, count);
        for page in 0..count {
            granted.allow(dom, page, readonly)?;
        }
        Ok(granted)
    }

    /// Gives `dom` access to a page of the memory.
    ///
    /// # Errors
    /// `ENOSPC`: the table is full. `EINVAL`: the frame number does not fit an entry.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn allow(&mut self, dom: DomId, page: usize, readonly: bool) -> Result<GrantRef> {
        let mfn: Mfn = self.memory().pages().mfn(page);
        let entry = table::permit(dom, mfn, readonly)?;
        self.entries.push(entry);
        Ok(GrantRef::new(entry))
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        self.memory.as_ref().expect("there until the grants are ended, which takes the value")
    }

    /// The references, as the other domain must know them, in the order in which access was given.
    pub fn refs(&self) -> impl ExactSizeIterator<Item = GrantRef> + '_ {
        self.entries.iter().map(|entry| GrantRef::new(*entry))
    }

    /// The reference of number `index`.
    ///
    /// # Panics
    /// When access was not given so often.
    pub fn gref(&self, index: usize) -> GrantRef {
        GrantRef::new(self.entries[index])
    }

    /// Whether the other domain had any of the pages mapped a moment ago. That domain may map them again at once:
    /// nothing follows from a no.
    pub fn in_use(&self) -> bool {
        table::any_in_use(&self.entries)
    }

    /// Ends the grants and gives the memory back.
    ///
    /// # Errors
    /// [`StillUsed`]: the other side uses some of the pages.
    pub fn end(mut self) -> core::result::Result<M, StillUsed<M>> {
        table::end(&mut self.entries);
        if self.entries.is_empty()
            && let Some(memory) = self.memory.take()
        {
            return Ok(memory);
        }
        Err(StillUsed(self))
    }
}

impl<M: Lend> Drop for Granted<M> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            table::retire(memory.keep(), core::mem::take(&mut self.entries));
        }
    }
}

impl<M: Lend> SharedMemory for Granted<M> {
    fn shared(&self) -> SharedBytes<'_> {
        self.memory().pages().shared()
    }
}

impl<M: Lend> fmt::Debug for Granted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Granted({:?})", self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GrantUsage, device_map, device_unmap, map_grants, usage};
    use super::*;
    use crate::mem;

    const PEER: DomId = DomId::new(0);

    fn pages(count: usize) -> Pages {
        Pages::zeroed(count).expect("pages")
    }

    /// The table itself takes pages.
    fn pages_before() -> usize {
        drop(Granted::whole(pages(1), PEER, true).expect("a grant"));
        mem::usage().total_pages
    }

    #[test]
    fn memory_comes_back_when_nobody_uses_it() {
        let before = pages_before();
        let lent = Granted::whole(pages(3), PEER, false).expect("grants");
        assert_eq!((lent.refs().len(), usage().used), (3, 3));
        assert!(!lent.in_use());
        let back = lent.end().expect("nobody uses it");
        assert_eq!((back.count(), usage().used), (3, 0));
        drop(back);
        assert_eq!(mem::usage().total_pages, before);
    }

    #[test]
    fn memory_in_use_does_not_come_back() {
        let before = pages_before();
        let lent = Granted::whole(pages(3), PEER, false).expect("grants");
        let map = map_grants(DomId::new(1), &[lent.gref(1)], true).expect("mapped");
        let used = lent.end().expect_err("one page is mapped");
        assert_eq!(usage().used, 1, "the others are ended");
        let used = used.end().expect_err("still");
        drop(used);
        assert_eq!(usage(), GrantUsage { used: 1, busy: 1 });
        assert_eq!(mem::usage().total_pages, before + 3, "kept for the other side");
        drop(map);
        assert_eq!(usage(), GrantUsage::default());
        assert_eq!(mem::usage().total_pages, before);
    }

    #[test]
    fn dropped_memory_waits_for_the_other_side() {
        let before = pages_before();
        let lent = Granted::whole(pages(1), PEER, false).expect("a grant");
        let mut mapped = Vec::new();
        device_map(DomId::new(1), &[(lent.gref(0), false)], &mut mapped);
        let mapped: Vec<_> = mapped.into_iter().map(|m| m.expect("mapped")).collect();
        drop(lent);
        assert_eq!(mem::usage().total_pages, before + 1);
        device_unmap(mapped);
        assert_eq!(usage(), GrantUsage::default());
        assert_eq!(mem::usage().total_pages, before);
    }

    #[test]
    fn shared_memory_waits_too() {
        let before = pages_before();
        let shared = Arc::new(pages(1));
        let lent = Granted::whole(shared.clone(), PEER, false).expect("a grant");
        let map = map_grants(DomId::new(1), &[lent.gref(0)], true).expect("mapped");
        drop((lent, shared));
        assert_eq!(mem::usage().total_pages, before + 1);
        drop(map);
        assert_eq!(usage(), GrantUsage::default());
        assert_eq!(mem::usage().total_pages, before);
    }
}
