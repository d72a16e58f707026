//! The pending and mask bits of a domain's ports, in its `shared_info`.

#![allow(unsafe_code)] // words of the shared page as atomics, without a check of bounds for each

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use ring_abi::shared::SharedBytes;
use ring_abi::shared_info::{EVTCHN_MASK_OFFSET, EVTCHN_PENDING_OFFSET};
use ring_abi::types::Port;

use super::TWO_LEVEL_PORTS;
use crate::nospec::Wrapped;
use crate::sync::words::AtomicU64;

const WORDS: usize = 64;
const _: () = assert!(EVTCHN_MASK_OFFSET == EVTCHN_PENDING_OFFSET + WORDS * 8);

/// The words of pending and of mask bits. Port numbers count modulo 4,096, so that none is outside.
#[derive(Clone, Copy, Debug)]
pub struct Bits {
    /// Pending words, then mask words.
    words: NonNull<[[AtomicU64; WORDS]; 2]>,
}

// SAFETY: atomics, which any thread may reach; the page stays as long as the domain, whose part this is.
unsafe impl Send for Bits {}
// SAFETY: as for `Send`.
unsafe impl Sync for Bits {}

const fn bit(port: Port) -> u64 {
    1 << (port.raw() % 64)
}

impl Bits {
    /// The bits in `shared_info`, which stays valid as long as the value is used.
    pub(in crate::evtchn) fn new(shared_info: &SharedBytes) -> Self {
        let part = shared_info.slice(EVTCHN_PENDING_OFFSET, 2 * WORDS * 8).expect("shared_info is a page");
        Self { words: NonNull::new(part.as_ptr().cast()).expect("shared bytes are somewhere") }
    }

    /// The word of `port`'s bit among the pending words, or among the mask words behind them.
    #[inline]
    fn word(&self, port: Port, is_mask: bool) -> &AtomicU64 {
        // SAFETY: 128 aligned words of the shared page, which is there as long as this; guests write atomics only.
        let words = unsafe { self.words.as_ref() };
        words[usize::from(is_mask)].wrapped(port.raw() as usize / 64)
    }

    /// Sets the pending bit. Returns whether the bit was clear.
    #[must_use = "an event that is new is to be delivered"]
    #[inline]
    pub(in crate::evtchn) fn set_pending(&self, port: Port) -> bool {
        self.word(port, false).fetch_or(bit(port), Ordering::SeqCst) & bit(port) == 0
    }

    pub(in crate::evtchn) fn clear_pending(&self, port: Port) {
        self.word(port, false).fetch_and(!bit(port), Ordering::SeqCst);
    }

    /// Clears the pending bit of a port, which two levels may not have. Returns whether the bit was set.
    pub(in crate::evtchn) fn take_pending(&self, port: Port) -> bool {
        port.raw() < TWO_LEVEL_PORTS
            && self.word(port, false).fetch_and(!bit(port), Ordering::SeqCst) & bit(port) != 0
    }

    /// Whether `port` is pending, masked or not.
    #[inline]
    pub fn is_pending(&self, port: Port) -> bool {
        self.word(port, false).load(Ordering::Acquire) & bit(port) != 0
    }

    /// Whether `port` is masked.
    #[inline]
    pub fn is_masked(&self, port: Port) -> bool {
        self.word(port, true).load(Ordering::Relaxed).rotate_right(port.raw() % 64) & 1 != 0
    }

    /// Clears the mask bit. Returns whether the bit was set.
    #[must_use = "an event may wait"]
    #[inline]
    pub(in crate::evtchn) fn unmask(&self, port: Port) -> bool {
        self.word(port, true).fetch_and(!bit(port), Ordering::SeqCst) & bit(port) != 0
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model {
    use alloc::boxed::Box;

    use loom::thread;

    use super::*;

    /// An event comes while its port is unmasked: at least one of both sides sees that there is something to deliver.
    #[test]
    fn an_event_of_a_port_that_is_unmasked_meanwhile_is_not_lost() {
        loom::model(|| {
            let words: Box<[[AtomicU64; WORDS]; 2]> =
                Box::new([(); 2].map(|()| core::array::from_fn(|_| AtomicU64::new(0))));
            let bits = Bits { words: NonNull::from(Box::leak(words)) };
            let port = Port::new(5);
            bits.word(port, true).store(bit(port), Ordering::Relaxed);
            let sender = thread::spawn(move || bits.set_pending(port) && !bits.is_masked(port));
            let is_seen = bits.unmask(port) && bits.is_pending(port);
            assert!(sender.join().unwrap() || is_seen);
        });
    }
}
