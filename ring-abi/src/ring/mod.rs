//! Rings of requests and responses on shared pages, safe against a peer that writes anything at any time.
//!
//! The head has 64 bytes: `req_prod`, `req_event`, `rsp_prod`, `rsp_event`, each u32. Slots follow, whose number is a
//! power of two. A slot holds a request, and later the response in the request's place. Indices run freely and wrap at
//! 2^32. Each end keeps the truth about its own indices in private memory. Of the shared page, an end trusts only what
//! the end has checked.
//!
//! ABI: `xen/include/public/io/ring.h`.

mod back;
pub mod bytes;
mod front;

use core::fmt;
use core::sync::atomic::{Ordering, fence};

pub use back::{BackRing, Waiting};
pub use front::FrontRing;

use crate::layout::constants;
use crate::payload::Payload;
use crate::shared::SharedMemory;

constants! { "io/blkif.h";
    /// Offset of `req_prod`.
    REQ_PROD: usize = 0 => "offsetof(struct blkif_sring, req_prod)";
    /// Offset of `req_event`.
    REQ_EVENT: usize = 4 => "offsetof(struct blkif_sring, req_event)";
    /// Offset of `rsp_prod`.
    RSP_PROD: usize = 8 => "offsetof(struct blkif_sring, rsp_prod)";
    /// Offset of `rsp_event`.
    RSP_EVENT: usize = 12 => "offsetof(struct blkif_sring, rsp_event)";
    /// Offset of the first slot.
    SLOTS: usize = 64 => "offsetof(struct blkif_sring, ring)";
}

/// The messages of one kind of ring.
pub trait RingProtocol {
    /// What the frontend sends.
    type Request: Payload + Copy;
    /// What the backend answers.
    type Response: Payload + Copy;

    /// Bytes of a slot: the larger of the two, rounded up as a C union is.
    const SLOT_BYTES: usize = {
        let bytes = max(size_of::<Self::Request>(), size_of::<Self::Response>());
        bytes.next_multiple_of(max(align_of::<Self::Request>(), align_of::<Self::Response>()))
    };
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Number of slots that fit in a ring of `bytes` bytes, rounded down to a power of two; 0 if no slot fits.
#[must_use]
pub const fn slots<P: RingProtocol>(bytes: usize) -> u32 {
    let fit = bytes.saturating_sub(SLOTS) / P::SLOT_BYTES;
    match fit.checked_ilog2() {
        Some(log) if log < 31 => 1 << log,
        Some(_) => 1 << 30,
        None => 0,
    }
}

/// Memory of a ring. Offsets are in bytes and come from our own arithmetic.
pub trait RingPage {
    /// Length in bytes.
    fn ring_bytes(&self) -> usize;
    /// Loads an index; nothing after is done before (acquire).
    fn load_index(&self, offset: usize) -> u32;
    /// Stores an index; everything before is done first (release).
    fn store_index(&self, offset: usize, value: u32);
    /// Copies bytes out, each read once.
    fn copy_out(&self, offset: usize, target: &mut [u8]);
    /// Copies bytes in.
    fn copy_in(&self, offset: usize, source: &[u8]);
    /// Orders all earlier stores before all later loads.
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

impl<T: SharedMemory> RingPage for T {
    fn ring_bytes(&self) -> usize {
        self.shared().len()
    }

    #[inline]
    fn load_index(&self, offset: usize) -> u32 {
        self.shared().load_u32(offset)
    }

    #[inline]
    fn store_index(&self, offset: usize, value: u32) {
        self.shared().store_u32(offset, value);
    }

    #[inline(always)]
    fn copy_out(&self, offset: usize, target: &mut [u8]) {
        self.shared().read(offset, target);
    }

    #[inline(always)]
    fn copy_in(&self, offset: usize, source: &[u8]) {
        self.shared().write(offset, source);
    }
}

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The peer claims to have produced more than the ring can hold. Nothing on this ring can be trusted: disconnect.
    ProducerOverrun {
        /// The peer's index.
        prod: u32,
        /// Ours.
        cons: u32,
    },
    /// The peer claims to have consumed what this end never produced. This is as bad as an overrun.
    ConsumerOverrun {
        /// The peer's index.
        cons: u32,
        /// Ours.
        prod: u32,
    },
    /// No room for another request: wait for responses.
    Full,
    /// The memory does not hold a single slot.
    TooSmall,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProducerOverrun { prod, cons } => {
                write!(f, "ring overrun: peer produced up to {prod:#x}, consumed here up to {cons:#x}")
            }
            Self::ConsumerOverrun { cons, prod } => {
                write!(f, "ring overrun: peer consumed up to {cons:#x}, produced here up to {prod:#x}")
            }
            Self::Full => write!(f, "ring full"),
            Self::TooSmall => write!(f, "ring memory too small"),
        }
    }
}

impl core::error::Error for RingError {}

/// Whether this end must notify the peer: this end moved its producer index from `old` to `new`, and the peer asked to
/// be woken at `event`.
const fn must_notify(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

/// Offset of the slot of `index`.
#[inline]
const fn slot_offset<P: RingProtocol>(index: u32, slots: u32) -> usize {
    SLOTS + (index & slots.wrapping_sub(1)) as usize * P::SLOT_BYTES
}

/// Makes an empty ring whose indices start at `index`. The frontend does this before the frontend grants the page.
pub fn initialise(page: &impl RingPage, index: u32) {
    page.store_index(REQ_PROD, index);
    page.store_index(RSP_PROD, index);
    page.store_index(REQ_EVENT, index.wrapping_add(1));
    page.store_index(RSP_EVENT, index.wrapping_add(1));
    page.copy_in(16, &[0; SLOTS - 16]);
    page.full_barrier();
}

#[cfg(test)]
mod tests;
