#![cfg_attr(freestanding, no_std)]
//! Sends packets as fast as netback takes them, or checks and counts what comes. Words on the command line:
//!
//! | word | meaning |
//! | --- | --- |
//! | `role=send` | sends from the first packet that asks for a load on, until one asks for the end |
//! | `role=sink` | asks for a load, checks and counts the packets, and asks for the end |
//! | `role=both` | asks for a load, sends one as well, and counts what comes |
//! | `role=pour` | sends without being asked, and counts what netback took |
//! | `to=MAC` | the other end |
//! | `size=BYTES` | of a packet with its Ethernet header (64) |
//! | `segment=BYTES` | the packets are TCP that is to be cut into segments |
//! | `lend=no` | netback is not lent the buffers |
//! | `batch=N` | packets from one flush to the next (32); the sender flushes when the ring is full, too |
//! | `warm=N` | packets before those that count (2,000) |
//! | `count=N` | packets that count (20,000) |
//!
//! `role=sink`, `both` and `pour` execute a mark when counting begins and when it ends, and print `netload: ` lines.

extern crate alloc;

pub mod frame;

#[cfg(freestanding)]
mod load;
#[cfg(freestanding)]
pub use load::start;
