//! Single pages of other domains' grants, mapped for long and unmapped one by one or many at a time.
#![allow(unsafe_code)] // mappings become accessors

use alloc::vec::Vec;
use arrayvec::ArrayVec;
use ring_abi::grant::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};

use super::{BATCH, FAILED, GrantStatus, check};
use crate::hypercall::grant as call;
use crate::mem;

/// One mapped page, which costs no allocation of its own. Unmapped on drop; [`unmap_pages`] unmaps many at once.
///
/// ```compile_fail,E0505
/// fn unmapped_too_early(page: pvrt::grant::GrantPage) {
///     use ring_abi::shared::SharedMemory;
///     let bytes = page.shared();
///     drop(page);
///     bytes.store_u32(0, 1);
/// }
/// ```
#[derive(Debug)]
pub struct GrantPage {
    va: usize,
    handle: u32,
}

/// Maps grants of `dom`, each `(reference, readonly)`, and appends the pages to `out` in order: all or none. The program
/// does not write a page that is mapped for reading.
///
/// # Errors
/// The status of the first that was refused.
pub fn map_pages(
    dom: DomId,
    grants: &[(GrantRef, bool)],
    out: &mut Vec<GrantPage>,
) -> Result<(), GrantStatus> {
    let before = out.len();
    for chunk in grants.chunks(BATCH) {
        if let Err(status) = map_chunk(dom, chunk, out) {
            unmap_pages(out.drain(before..));
            return Err(status);
        }
    }
    Ok(())
}

/// Maps as many as one hypercall takes; what was mapped stands in `out` in any case.
fn map_chunk(dom: DomId, chunk: &[(GrantRef, bool)], out: &mut Vec<GrantPage>) -> Result<(), GrantStatus> {
    let va = window(chunk.len())?;
    let mut entries = ArrayVec::<_, BATCH>::new();
    entries.extend(chunk.iter().enumerate().map(|(index, (gref, readonly))| GnttabMapGrantRef {
        host_addr: (va + index * PAGE_SIZE) as u64,
        flags: GNTMAP_HOST_MAP | if *readonly { GNTMAP_READONLY } else { 0 },
        r#ref: gref.raw(),
        dom: dom.raw(),
        status: FAILED.0,
        ..Default::default()
    }));
    // SAFETY: the addresses are window pages taken for these mappings.
    let called = unsafe { call::map(&mut entries) };
    let mut result = Ok(());
    for (index, entry) in entries.iter().enumerate() {
        let status = called.map_err(|_| FAILED).and_then(|()| check(entry.status));
        match status.and_then(|()| mapped_at(va + index * PAGE_SIZE, entry)) {
            Ok(va) => out.push(GrantPage { va, handle: entry.handle }),
            Err(status) => {
                mem::free_window(va + index * PAGE_SIZE, 1);
                result = result.and(Err(status));
            }
        }
    }
    result
}

/// Addresses for `count` pages; on the host a page is where its frame is.
#[cfg(freestanding)]
fn window(count: usize) -> Result<usize, GrantStatus> {
    mem::take_window(count).ok_or(GrantStatus(ring_abi::grant::GNTST_NO_SPACE))
}

#[cfg(not(freestanding))]
fn window(_count: usize) -> Result<usize, GrantStatus> {
    Ok(0)
}

/// Where a page is that was to be mapped at `va`.
#[cfg(freestanding)]
fn mapped_at(va: usize, _entry: &GnttabMapGrantRef) -> Result<usize, GrantStatus> {
    Ok(va)
}

#[cfg(not(freestanding))]
fn mapped_at(_va: usize, entry: &GnttabMapGrantRef) -> Result<usize, GrantStatus> {
    mem::host::va_of_maddr(entry.dev_bus_addr).ok_or(FAILED)
}

/// Unmaps pages, many by one hypercall.
pub fn unmap_pages(pages: impl IntoIterator<Item = GrantPage>) {
    let mut some = ArrayVec::<GrantPage, BATCH>::new();
    for page in pages {
        some.push(page);
        if some.is_full() {
            unmap(&some);
            some.drain(..).for_each(core::mem::forget);
        }
    }
    unmap(&some);
    some.drain(..).for_each(core::mem::forget);
}

fn unmap(pages: &[GrantPage]) {
    if pages.is_empty() {
        return;
    }
    let mut entries = ArrayVec::<_, BATCH>::new();
    entries.extend(pages.iter().map(|page| GnttabUnmapGrantRef {
        host_addr: if cfg!(freestanding) { page.va as u64 } else { 0 },
        handle: page.handle,
        ..Default::default()
    }));
    // SAFETY: the caller gives the pages up, which accessors borrow: none is left.
    let called = unsafe { call::unmap(&mut entries) };
    for (page, entry) in pages.iter().zip(&entries) {
        match called {
            Ok(()) if entry.status == 0 => mem::free_window(page.va, 1),
            // The page may still be mapped: nothing else may come to lie there.
            Ok(()) => log::error!("unmapping a page at {:#x}: {}", page.va, GrantStatus(entry.status)),
            Err(errno) => log::error!("unmapping a page at {:#x}: {errno}", page.va),
        }
    }
}

impl SharedMemory for GrantPage {
    #[inline]
    fn shared(&self) -> SharedBytes<'_> {
        // SAFETY: mapped while `self` lives, and the accessor borrows it.
        unsafe { SharedBytes::new(self.va as *mut u8, PAGE_SIZE) }
    }
}

impl Drop for GrantPage {
    fn drop(&mut self) {
        unmap(core::slice::from_ref(self));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GrantUsage, Granted, usage};
    use super::*;
    use crate::mem::Pages;

    const PEER: DomId = DomId::new(1);

    fn granted(count: usize) -> Granted {
        Granted::whole(Pages::zeroed(count).expect("pages"), PEER, false).expect("grants")
    }

    #[test]
    fn pages_are_mapped_apart_and_go_one_by_one() {
        let lent = granted(3);
        let grants: Vec<_> = lent.refs().map(|gref| (gref, false)).collect();
        let mut pages = Vec::new();
        map_pages(PEER, &grants, &mut pages).expect("mapped");
        pages[1].shared().write(7, b"here");
        let mut bytes = [0; 4];
        lent.memory().page(1).read(7, &mut bytes);
        assert_eq!(&bytes, b"here");
        drop(pages.remove(1));
        let lent = lent.end().expect_err("two are mapped");
        assert_eq!(usage().used, 2);
        unmap_pages(pages);
        assert!(lent.end().is_ok());
        assert_eq!(usage(), GrantUsage::default());
    }

    #[test]
    fn all_are_mapped_or_none() {
        let lent = granted(BATCH + 3);
        let mut grants: Vec<_> = lent.refs().map(|gref| (gref, true)).collect();
        let mut pages = Vec::new();
        for bad in [0, BATCH - 1, BATCH + 1] {
            let good = core::mem::replace(&mut grants[bad].0, GrantRef::new(u32::MAX));
            assert!(map_pages(PEER, &grants, &mut pages).is_err());
            assert!(pages.is_empty() && !lent.in_use());
            grants[bad].0 = good;
        }
        map_pages(PEER, &grants, &mut pages).expect("mapped");
        assert_eq!(pages.len(), BATCH + 3);
        unmap_pages(pages);
        assert!(!lent.in_use());
    }
}
