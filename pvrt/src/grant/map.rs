//! Other domains' grants mapped into this kernel.
#![allow(unsafe_code)] // mappings become accessors

use alloc::vec::Vec;
use ring_abi::grant::{GNTMAP_HOST_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};

use super::{BATCH, FAILED, GrantStatus, check};
use crate::hypercall::grant as call;
use crate::mem;

/// Grants mapped at consecutive addresses; unmapped on drop, in one batch. A view of the bytes borrows the mapping:
///
/// ```compile_fail,E0505
/// fn unmapped_too_early(map: pvrt::grant::GrantMap) {
///     let bytes = map.bytes();
///     drop(map);
///     bytes.store_u32(0, 1);
/// }
/// ```
#[derive(Debug)]
pub struct GrantMap {
    va: usize,
    handles: Vec<u32>,
    /// Bytes of window addresses held; more than `handles` have when a mapping failed half-way. Each message of a ring asks how
    /// long the ring is.
    len: usize,
}

/// Maps grants of `dom`, all or none.
///
/// # Errors
/// The status of the first that was refused.
pub fn map_grants(dom: DomId, refs: &[GrantRef], writable: bool) -> Result<GrantMap, GrantStatus> {
    let va = window(refs.len())?;
    let mut map = GrantMap { va, handles: Vec::with_capacity(refs.len()), len: refs.len() * PAGE_SIZE };
    let flags = GNTMAP_HOST_MAP | if writable { 0 } else { GNTMAP_READONLY };
    let mut failure = Ok(());
    for chunk in refs.chunks(BATCH) {
        let mut entries = [GnttabMapGrantRef::default(); BATCH];
        let first = map.handles.len();
        for (i, (entry, gref)) in entries.iter_mut().zip(chunk).enumerate() {
            *entry = GnttabMapGrantRef {
                host_addr: host_addr(va, first + i),
                flags,
                r#ref: gref.raw(),
                dom: dom.raw(),
                status: FAILED.0,
                ..Default::default()
            };
        }
        // SAFETY: the addresses are window pages taken for this mapping.
        let called = unsafe { call::map(&mut entries[..chunk.len()]) };
        for (i, entry) in entries[..chunk.len()].iter().enumerate() {
            let status = if called.is_ok() { check(entry.status) } else { Err(FAILED) };
            match status {
                Ok(()) if failure.is_ok() => {
                    failure = map.mapped(first + i, entry);
                }
                Ok(()) => unmap_one(host_addr(va, first + i), entry.handle),
                Err(_) if failure.is_err() => {}
                Err(status) => failure = Err(status),
            }
        }
        failure?;
    }
    Ok(map)
}

/// Window pages for a mapping; on the host a mapping is where its frames are.
#[cfg(freestanding)]
fn window(count: usize) -> Result<usize, GrantStatus> {
    mem::take_window(count).ok_or(GrantStatus(ring_abi::grant::GNTST_NO_SPACE))
}

#[cfg(not(freestanding))]
fn window(count: usize) -> Result<usize, GrantStatus> {
    if count == 0 { Err(FAILED) } else { Ok(0) }
}

/// The address for page `index`, as the hypercall takes it.
fn host_addr(va: usize, index: usize) -> u64 {
    (va + index * PAGE_SIZE) as u64
}

fn unmap_one(host_addr: u64, handle: u32) {
    let mut entry = GnttabUnmapGrantRef { host_addr, handle, ..Default::default() };
    // SAFETY: mapped by this module a moment ago, and not handed out.
    let _ = unsafe { call::unmap(core::slice::from_mut(&mut entry)) };
}

impl GrantMap {
    /// Records the mapping of page `index`.
    #[cfg(freestanding)]
    fn mapped(&mut self, _index: usize, entry: &GnttabMapGrantRef) -> Result<(), GrantStatus> {
        self.handles.push(entry.handle);
        Ok(())
    }

    /// Records the mapping of page `index`: the frames must follow one another, since they are not moved.
    #[cfg(not(freestanding))]
    fn mapped(&mut self, index: usize, entry: &GnttabMapGrantRef) -> Result<(), GrantStatus> {
        self.handles.push(entry.handle);
        let va = mem::host::va_of_maddr(entry.dev_bus_addr).ok_or(FAILED)?;
        if index == 0 {
            self.va = va;
        }
        if va == self.va + index * PAGE_SIZE { Ok(()) } else { Err(FAILED) }
    }

    /// Address of the first byte.
    pub fn va(&self) -> usize {
        self.va
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.len / PAGE_SIZE
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.shared()
    }

    /// The bytes of page `index`.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn page(&self, index: usize) -> SharedBytes<'_> {
        self.shared().slice(index * PAGE_SIZE, PAGE_SIZE).expect("a page of this mapping")
    }
}

impl SharedMemory for GrantMap {
    fn shared(&self) -> SharedBytes<'_> {
        // SAFETY: mapped while `self` lives, and the accessor borrows it.
        unsafe { SharedBytes::new(self.va as *mut u8, self.len) }
    }
}

impl Drop for GrantMap {
    fn drop(&mut self) {
        let (mut first, mut all_gone) = (0, true);
        for chunk in self.handles.chunks(BATCH) {
            let mut entries = [GnttabUnmapGrantRef::default(); BATCH];
            for (i, (entry, handle)) in entries.iter_mut().zip(chunk).enumerate() {
                let host_addr = if cfg!(freestanding) { host_addr(self.va, first + i) } else { 0 };
                *entry = GnttabUnmapGrantRef { host_addr, handle: *handle, ..Default::default() };
            }
            first += chunk.len();
            // SAFETY: the mapping goes away with `self`, which accessors borrow: none is left.
            let called = unsafe { call::unmap(&mut entries[..chunk.len()]) };
            let refused = entries[..chunk.len()].iter().find(|entry| entry.status != 0);
            if let Err(errno) = called {
                log::error!("unmapping grants at {:#x}: {errno}", self.va);
            } else if let Some(entry) = refused {
                log::error!("unmapping grants at {:#x}: {}", self.va, GrantStatus(entry.status));
            }
            all_gone &= called.is_ok() && refused.is_none();
        }
        // Else a page may still be mapped: nothing else may come to lie there.
        if all_gone {
            mem::free_window(self.va, self.count());
        }
    }
}
