//! Where a vCPU's `vcpu_info` is: read on every event by any CPU, moved once by its guest.

#![allow(unsafe_code)] // rebuilds a `SharedBytes` from the atomic pointer that it was taken apart into

use core::sync::atomic::{AtomicPtr, Ordering};

use ring_abi::shared::SharedBytes;

/// Bytes of a `vcpu_info`.
pub const INFO_BYTES: usize = 64;

/// The place of a `vcpu_info`, if there is one.
#[derive(Debug)]
pub struct InfoCell {
    at: AtomicPtr<u8>,
}

impl InfoCell {
    /// A cell for the 64 bytes at `offset` of `bytes`; `None` for no place yet.
    pub fn new(place: Option<SharedBytes>) -> Self {
        let cell = Self { at: AtomicPtr::new(core::ptr::null_mut()) };
        if let Some(place) = place {
            cell.set(&place);
        }
        cell
    }

    /// The `vcpu_info`.
    #[inline]
    pub fn get(&self) -> Option<SharedBytes> {
        let at = self.at.load(Ordering::Acquire);
        if at.is_null() {
            return None;
        }
        // SAFETY: the pointer comes from `set`, so from a `SharedBytes` of at least INFO_BYTES bytes; the owner of the
        // cell keeps the frame that it lies in until the domain is gone.
        Some(unsafe { SharedBytes::new(at, INFO_BYTES) })
    }

    /// Takes the place away: events are lost from here on.
    pub fn clear(&self) {
        self.at.store(core::ptr::null_mut(), Ordering::Release);
    }

    /// Moves it to `place`, which stays valid until the domain is gone.
    ///
    /// # Panics
    /// If `place` is shorter than 64 bytes.
    pub fn set(&self, place: &SharedBytes) {
        assert!(place.len() >= INFO_BYTES);
        self.at.store(place.as_ptr(), Ordering::Release);
    }
}
