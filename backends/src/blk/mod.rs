//! blkback: serves a block frontend's ring from a [`BlockDevice`](crate::BlockDevice), without copies.
//!
//! The frontend's frames are taken for device access only and their machine addresses go into the device's
//! descriptors. A frame belongs to its request until the device has returned every descriptor of it; only then is
//! the grant given back, and only then is the request answered. A long request has its frames taken and given back in
//! pieces, a piece a poll, so that no poll takes long; it goes to the device when it has them all.
//!
//! ABI: `xen/include/public/io/blkif.h`. `feature-persistent` is not offered.

mod engine;
mod request;
mod slot;
#[cfg(test)]
mod tests;

pub use engine::{
    BUDGET_INDIRECT, BlkBack, Disconnect, MAX_REQUESTS, MAX_SEGMENTS_IN_FLIGHT, Next, OutOfMemory, PIECE,
    Stats, max_bytes,
};
pub use request::{Body, Decoded, MAX_INDIRECT_SEGMENTS, Work, decode, decode_segment};
