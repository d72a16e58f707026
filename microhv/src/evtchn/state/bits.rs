//! The pending and mask bits of a domain's ports, in its `shared_info`.

#![allow(unsafe_code)] // words of the shared page as atomics, without a check of bounds for each

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::{EVTCHN_MASK_OFFSET, EVTCHN_PENDING_OFFSET};

const WORDS: usize = 64;
const _: () = assert!(EVTCHN_MASK_OFFSET == EVTCHN_PENDING_OFFSET + WORDS * 8);

/// The words of pending and of mask bits. Port numbers are taken modulo 4,096, so that none is outside.
#[derive(Clone, Copy, Debug)]
pub(in crate::evtchn) struct Bits {
    /// Pending words, then mask words.
    words: NonNull<[AtomicU64; 2 * WORDS]>,
}

// SAFETY: atomics, which any thread may reach; the page stays as long as the domain, whose part this is.
unsafe impl Send for Bits {}
// SAFETY: as for `Send`.
unsafe impl Sync for Bits {}

const fn bit(port: u32) -> u64 {
    1 << (port % 64)
}

const fn word(port: u32) -> usize {
    port as usize / 64 % WORDS
}

impl Bits {
    /// The bits in `shared_info`, which stays valid as long as the value is used.
    pub(in crate::evtchn) fn new(shared_info: &SharedBytes) -> Self {
        let part = shared_info.slice(EVTCHN_PENDING_OFFSET, 2 * WORDS * 8).expect("shared_info is a page");
        Self { words: NonNull::new(part.as_ptr().cast()).expect("shared bytes are somewhere") }
    }

    #[inline]
    fn pending(&self, port: u32) -> &AtomicU64 {
        // SAFETY: 128 aligned words of the shared page, which is there as long as this; guests write atomics only.
        let words = unsafe { self.words.as_ref() };
        &words[word(port)]
    }

    #[inline]
    fn mask(&self, port: u32) -> &AtomicU64 {
        // SAFETY: as in `pending`.
        let words = unsafe { self.words.as_ref() };
        &words[WORDS + word(port)]
    }

    /// Sets the pending bit; whether it was clear.
    #[inline]
    pub(in crate::evtchn) fn set_pending(&self, port: u32) -> bool {
        self.pending(port).fetch_or(bit(port), Ordering::SeqCst) & bit(port) == 0
    }

    pub(in crate::evtchn) fn clear_pending(&self, port: u32) {
        self.pending(port).fetch_and(!bit(port), Ordering::SeqCst);
    }

    #[inline]
    pub(in crate::evtchn) fn is_pending(&self, port: u32) -> bool {
        self.pending(port).load(Ordering::Acquire) & bit(port) != 0
    }

    #[inline]
    pub(in crate::evtchn) fn is_masked(&self, port: u32) -> bool {
        self.mask(port).load(Ordering::Relaxed) & bit(port) != 0
    }

    /// Clears the mask bit; whether it was set.
    #[inline]
    pub(in crate::evtchn) fn unmask(&self, port: u32) -> bool {
        self.mask(port).fetch_and(!bit(port), Ordering::SeqCst) & bit(port) != 0
    }
}
