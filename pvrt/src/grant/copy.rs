//! Copies by the hypervisor between grants and this kernel's memory.
#![allow(unsafe_code)] // the copy hypercall writes this kernel's memory

use alloc::vec::Vec;
use ring_abi::grant::{
    GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTST_BAD_COPY_ARG, GnttabCopy, GnttabCopyPtr,
};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, GrantRef, Mfn, PAGE_SIZE};

use super::{FAILED, GrantStatus, check};
use crate::hypercall::grant as call;
use crate::mem::{OutOfMemory, Pages, mfn_of};

/// Copies to be made in one hypercall.
#[derive(Default)]
pub struct CopyBatch {
    entries: Vec<GnttabCopy>,
}

impl CopyBatch {
    /// No copies yet.
    pub const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// Adds a copy of all of `to` from byte `offset` of a grant. Neither side may cross a page.
    ///
    /// # Errors
    /// A side crosses a page; nothing was added.
    pub fn from_grant(
        &mut self,
        dom: DomId,
        gref: GrantRef,
        offset: usize,
        to: SharedBytes,
    ) -> Result<(), GrantStatus> {
        let (local, granted) = ends(dom, gref, offset, to)?;
        let len = to.len() as u16;
        self.entries.push(GnttabCopy {
            source: granted,
            dest: local,
            len,
            flags: GNTCOPY_SOURCE_GREF,
            ..Default::default()
        });
        Ok(())
    }

    /// Adds a copy of all of `from` to byte `offset` of a grant. Neither side may cross a page.
    ///
    /// # Errors
    /// A side crosses a page; nothing was added.
    pub fn to_grant(
        &mut self,
        from: SharedBytes,
        dom: DomId,
        gref: GrantRef,
        offset: usize,
    ) -> Result<(), GrantStatus> {
        let (local, granted) = ends(dom, gref, offset, from)?;
        let len = from.len() as u16;
        self.entries.push(GnttabCopy {
            source: local,
            dest: granted,
            len,
            flags: GNTCOPY_DEST_GREF,
            ..Default::default()
        });
        Ok(())
    }

    /// Makes all copies; one result for each, in order.
    pub fn run(mut self) -> impl ExactSizeIterator<Item = Result<(), GrantStatus>> {
        for entry in &mut self.entries {
            entry.status = FAILED.0;
        }
        // SAFETY: local targets are shared bytes, which anyone may change at any time.
        let called = if self.entries.is_empty() { Ok(()) } else { unsafe { call::copy(&mut self.entries) } };
        self.entries
            .into_iter()
            .map(move |entry| called.map_err(|_| FAILED).and_then(|()| check(entry.status)))
    }
}

/// Pages of this kernel's into which lists of copies may go that somebody else made.
#[derive(Debug)]
pub struct CopyPages {
    pages: Pages,
    frames: Vec<Mfn>,
    /// The same, to be looked up: each copy of a list asks.
    sorted: Vec<Mfn>,
}

impl CopyPages {
    /// Takes `count` pages, at least one.
    ///
    /// # Errors
    /// [`OutOfMemory`]: neither the kernel nor the hypervisor gives so many pages.
    pub fn new(count: usize) -> Result<Self, OutOfMemory> {
        let pages = Pages::zeroed(count)?;
        let frames: Vec<_> = (0..count).map(|index| pages.mfn(index)).collect();
        let mut sorted = frames.clone();
        sorted.sort_unstable();
        Ok(Self { pages, frames, sorted })
    }

    /// The pages.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The frames of the pages, as a list of copies names them.
    pub fn frames(&self) -> &[Mfn] {
        &self.frames
    }

    /// Makes all copies of a list by one hypercall, without an allocation; each copy has its own status. What is not to be
    /// written into a grant must be written into these pages; what is not read from a grant may be any page of this
    /// kernel's.
    ///
    /// # Panics
    /// When a copy is to go to another page of this kernel's: the caller's mistake.
    pub fn copy(&self, list: &mut [GnttabCopy]) {
        for entry in &mut *list {
            entry.status = FAILED.0;
            let is_ours = entry.dest.domid == DomId::SELF.raw()
                && self.sorted.binary_search(&Mfn::new(entry.dest.u)).is_ok();
            assert!(
                entry.flags & GNTCOPY_DEST_GREF != 0 || is_ours,
                "a copy to a page that is not for copies"
            );
        }
        if list.is_empty() {
            return;
        }
        // SAFETY: what is no grant is one of `self.pages`, as checked above, and those are shared bytes, which anyone may
        // change at any time.
        if let Err(errno) = unsafe { call::copy(list) } {
            log::error!("copying between grants: {errno}");
            list.iter_mut().for_each(|entry| entry.status = FAILED.0);
        }
    }
}

/// The local end and the granted end.
fn ends(
    dom: DomId,
    gref: GrantRef,
    offset: usize,
    local: SharedBytes,
) -> Result<(GnttabCopyPtr, GnttabCopyPtr), GrantStatus> {
    let va = local.as_ptr() as usize;
    let local_offset = va % PAGE_SIZE;
    if local_offset + local.len() > PAGE_SIZE || offset >= PAGE_SIZE || offset + local.len() > PAGE_SIZE {
        return Err(GrantStatus(GNTST_BAD_COPY_ARG));
    }
    let own = GnttabCopyPtr {
        u: mfn_of(va - local_offset).raw(),
        domid: DomId::SELF.raw(),
        offset: local_offset as u16,
        ..Default::default()
    };
    let granted = GnttabCopyPtr {
        u: u64::from(gref.raw()),
        domid: dom.raw(),
        offset: offset as u16,
        ..Default::default()
    };
    Ok((own, granted))
}

#[cfg(test)]
mod tests {
    use super::super::Granted;
    use super::*;
    use ring_abi::shared::SharedMemory;

    #[test]
    fn bytes_travel_both_ways() {
        let theirs = Pages::zeroed(1).expect("a page");
        let ours = Pages::zeroed(1).expect("a page");
        let theirs = Granted::whole(theirs, DomId::new(1), false).expect("a grant");
        let gref = theirs.gref(0);
        theirs.shared().write(40, b"from the grant");
        let mut batch = CopyBatch::new();
        let to = ours.shared().slice(8, 14).expect("inside");
        batch.from_grant(DomId::new(1), gref, 40, to).expect("within a page");
        assert!(batch.run().all(|result| result.is_ok()));
        let mut got = [0; 14];
        ours.shared().read(8, &mut got);
        assert_eq!(&got, b"from the grant");

        ours.shared().write(0, b"back");
        let mut batch = CopyBatch::new();
        let from = ours.shared().slice(0, 4).expect("inside");
        batch.to_grant(from, DomId::new(1), gref, 4092).expect("within a page");
        assert!(batch.run().all(|result| result.is_ok()));
        let mut got = [0; 4];
        theirs.shared().read(4092, &mut got);
        assert_eq!(&got, b"back");
    }

    #[test]
    fn crossing_a_page_and_bad_references_fail() {
        let ours = Pages::zeroed(2).expect("pages");
        let dom = DomId::new(1);
        let mut batch = CopyBatch::new();
        let both = ours.shared().slice(4088, 16).expect("inside");
        assert!(batch.from_grant(dom, GrantRef::new(8), 0, both).is_err());
        let one = ours.shared().slice(0, 8).expect("inside");
        assert!(batch.from_grant(dom, GrantRef::new(8), 4089, one).is_err());
        assert!(batch.from_grant(dom, GrantRef::new(8), usize::MAX, one).is_err());
        batch.from_grant(dom, GrantRef::new(u32::MAX), 0, one).expect("within a page");
        assert!(batch.run().all(|result| result.is_err()));
        assert_eq!(CopyBatch::new().run().len(), 0);
    }

    fn granted(domain: u16, bytes: &[u8]) -> Granted<Pages> {
        let pages = Pages::zeroed(1).expect("a page");
        pages.shared().write(0, bytes);
        Granted::whole(pages, DomId::new(domain), false).expect("a grant")
    }

    fn end(granted: Option<&Granted<Pages>>, frame: Mfn, offset: u16) -> GnttabCopyPtr {
        let (u, domid) = match granted {
            Some(granted) => (granted.gref(0).raw().into(), DomId::new(1)),
            None => (frame.raw(), DomId::SELF),
        };
        GnttabCopyPtr { u, domid: domid.raw(), offset, ..Default::default() }
    }

    #[test]
    fn a_list_goes_between_grants_and_pages_for_copies() {
        let (one, two) = (granted(1, b"from one"), granted(1, b""));
        let ours = CopyPages::new(2).expect("pages");
        let frame = ours.frames()[1];
        let entry = |source, dest, flags| GnttabCopy { source, dest, len: 8, flags, ..Default::default() };
        let bad = GnttabCopyPtr { u: u64::from(u32::MAX), domid: 1, ..Default::default() };
        let mut list = [
            entry(end(Some(&one), frame, 0), end(None, frame, 64), GNTCOPY_SOURCE_GREF),
            entry(bad, end(None, frame, 0), GNTCOPY_SOURCE_GREF),
            entry(
                end(Some(&one), frame, 0),
                end(Some(&two), frame, 8),
                GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF,
            ),
            entry(end(None, frame, 64), end(Some(&two), frame, 4088), GNTCOPY_DEST_GREF),
        ];
        ours.copy(&mut list);
        assert_eq!(list.map(|entry| entry.status == 0), [true, false, true, true]);
        let mut got = [0; 8];
        for (bytes, at) in [(two.shared(), 8), (two.shared(), 4088), (ours.pages().page(1), 64)] {
            bytes.read(at, &mut got);
            assert_eq!(&got, b"from one");
        }
        ours.copy(&mut []);
    }

    #[test]
    #[should_panic(expected = "a page that is not for copies")]
    fn a_list_writes_to_no_other_page() {
        let (one, other) = (granted(1, b""), Pages::zeroed(1).expect("a page"));
        let ours = CopyPages::new(1).expect("a page");
        let (source, dest) = (end(Some(&one), other.mfn(0), 0), end(None, other.mfn(0), 0));
        ours.copy(&mut [GnttabCopy {
            source,
            dest,
            len: 1,
            flags: GNTCOPY_SOURCE_GREF,
            ..Default::default()
        }]);
    }
}
