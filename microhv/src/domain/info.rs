//! Where a vCPU's `vcpu_info` is. Any CPU reads this place on every event, and the guest may move the place once.

#![allow(unsafe_code)] // rebuilds a `SharedBytes` from the atomic pointer that it was taken apart into

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::{PENDING_SEL_OFFSET, UPCALL_PENDING_OFFSET};

/// Bytes of a `vcpu_info`.
pub const INFO_BYTES: usize = 64;

/// The place of a `vcpu_info`, if there is one: an address, which a machine's entry code reads too; 0: none.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct InfoCell {
    at: AtomicPtr<u8>,
}

impl InfoCell {
    /// The `vcpu_info`.
    #[inline]
    pub fn get(&self) -> Option<SharedBytes<'static>> {
        let at = self.at.load(Ordering::Acquire);
        if at.is_null() {
            return None;
        }
        // SAFETY: the pointer comes from `set`, so from a `SharedBytes` of at least INFO_BYTES bytes; the owner of the
        // cell keeps the frame that it lies in until the domain is gone.
        Some(unsafe { SharedBytes::new(at, INFO_BYTES) })
    }

    /// Sets bit `word` (below 64) of `evtchn_pending_sel`, and the upcall byte if the bit was clear. The result is
    /// whether the bit was clear. This is a full barrier: a vCPU that blocks sets its flag, then looks.
    #[inline]
    pub fn mark(&self, word: u32) -> bool {
        let Some(at) = NonNull::new(self.at.load(Ordering::Acquire)) else { return false };
        // SAFETY: as in `get`: 64 bytes, aligned to 8, which are only reached as atomics.
        let (selector, upcall) = unsafe {
            (
                AtomicU64::from_ptr(at.as_ptr().add(PENDING_SEL_OFFSET).cast()),
                AtomicU8::from_ptr(at.as_ptr().add(UPCALL_PENDING_OFFSET)),
            )
        };
        let bit = 1u64.wrapping_shl(word);
        if selector.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return false;
        }
        upcall.swap(1, Ordering::SeqCst);
        true
    }

    /// Sets the upcall; whether it was clear. A full barrier, as [`Self::mark`] is.
    pub fn raise(&self) -> bool {
        self.get().is_some_and(|info| info.swap_u8(UPCALL_PENDING_OFFSET, 1) == 0)
    }

    /// Takes the place away: events are lost from here on.
    pub fn clear(&self) {
        self.at.store(core::ptr::null_mut(), Ordering::Release);
    }

    /// Moves the `vcpu_info` to `place`, which stays valid until the domain is gone.
    ///
    /// # Panics
    /// If `place` is shorter than 64 bytes.
    pub fn set(&self, place: &SharedBytes<'static>) {
        assert!(place.len() >= INFO_BYTES);
        self.at.store(place.as_ptr(), Ordering::Release);
    }
}
