//! Grants for device access only: the frame's machine address, no mapping, no TLB flush.
#![allow(unsafe_code)] // the grant hypercalls are unsafe for those who map addresses; these do not

use alloc::vec::Vec;
use arrayvec::ArrayVec;
use ring_abi::grant::{GNTMAP_DEVICE_MAP, GNTMAP_READONLY, GnttabMapGrantRef, GnttabUnmapGrantRef};
use ring_abi::types::{DomId, GrantRef, Maddr};

use super::{BATCH, FAILED, GrantStatus, check};
use crate::hypercall::grant as call;

/// A granted frame that a device may use; given back on drop. Many are given back at once by [`device_unmap`].
#[derive(Debug)]
pub struct DeviceGrant {
    maddr: u64,
    handle: u32,
}

impl DeviceGrant {
    /// The frame's machine address.
    pub fn maddr(&self) -> Maddr {
        Maddr::new(self.maddr)
    }
}

impl Drop for DeviceGrant {
    fn drop(&mut self) {
        unmap(&mut [entry(self)]);
    }
}

/// Asks for device access to grants of `dom`, each `(reference, readonly)`: a device that only reads the frame needs
/// it read-only. Appends one result for each to `out`.
pub fn device_map(dom: DomId, grants: &[(GrantRef, bool)], out: &mut Vec<Result<DeviceGrant, GrantStatus>>) {
    for chunk in grants.chunks(BATCH) {
        // Only what is used is initialised: most batches are short.
        let mut entries = ArrayVec::<_, BATCH>::new();
        entries.extend(chunk.iter().map(|(gref, readonly)| GnttabMapGrantRef {
            flags: GNTMAP_DEVICE_MAP | if *readonly { GNTMAP_READONLY } else { 0 },
            r#ref: gref.raw(),
            dom: dom.raw(),
            status: FAILED.0,
            ..Default::default()
        }));
        // SAFETY: no entry maps an address.
        let called = unsafe { call::map(&mut entries) };
        out.extend(entries.iter().map(|entry| {
            called.map_err(|_| FAILED)?;
            check(entry.status)?;
            Ok(DeviceGrant { maddr: entry.dev_bus_addr, handle: entry.handle })
        }));
    }
}

/// Gives device access back, many at a time.
pub fn device_unmap(grants: impl IntoIterator<Item = DeviceGrant>) {
    let mut entries = ArrayVec::<_, BATCH>::new();
    for grant in grants {
        entries.push(entry(&grant));
        core::mem::forget(grant);
        if entries.is_full() {
            unmap(&mut entries);
            entries.clear();
        }
    }
    unmap(&mut entries);
}

/// The bus address must be given: with 0 nothing would be released.
fn entry(grant: &DeviceGrant) -> GnttabUnmapGrantRef {
    GnttabUnmapGrantRef { dev_bus_addr: grant.maddr, handle: grant.handle, ..Default::default() }
}

fn unmap(entries: &mut [GnttabUnmapGrantRef]) {
    if entries.is_empty() {
        return;
    }
    // SAFETY: no entry unmaps an address.
    let called = unsafe { call::unmap(entries) };
    if let Some(bad) = entries.iter().find(|entry| called.is_err() || entry.status != 0) {
        log::error!("giving up device access, handle {}: {}", bad.handle, GrantStatus(bad.status));
    }
}
