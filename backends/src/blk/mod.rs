//! blkback: serves a block frontend's ring from a [`BlockDevice`](crate::BlockDevice), without copies.
//!
//! The engine takes the frontend's frames for device access only, and puts the frames' machine addresses into the
//! device's descriptors. A frame belongs to its request until the device has returned every descriptor of the request.
//! Only then does the engine give the grant back, and only after that does the engine answer the request. The engine
//! takes and gives back the frames of a long request in pieces, a piece a poll, so that no poll takes long; the request
//! goes to the device once all its frames are taken.
//!
//! ABI: `xen/include/public/io/blkif.h`. `feature-persistent` is not offered: a persistent grant spares both ends the
//! mapping of pages, but the frontend then copies each byte into or out of a granted page. Here device access maps no
//! page and flushes no TLB, so the copy would cost more than the spared work.

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
