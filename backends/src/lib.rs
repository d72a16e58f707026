#![cfg_attr(freestanding, no_std)]
#![forbid(unsafe_code)]
//! Backend protocol engines of the control domain: block, console and network.
//!
//! Each engine speaks one side of a public Xen protocol to a frontend it does not trust, and stands on three small
//! traits ([`Grants`], [`Notifier`], [`BlockDevice`]), so that the same code serves a real device under the control
//! domain and runs against an in-memory frontend under `cargo test`.
//!
//! - [`blk`]: the block ring (blkback), zero-copy: the engine takes grants for device access only;
//! - [`xenbus`]: the state machine of a backend instance, pure; [`vbd`]: the nodes of a block backend;
//! - [`console`]: the console ring's back end, with scroll-back and line assembly.
//! - [`net`]: the network's rings: a guest's packets as lists of copies.
//!
//! No task lives here: an engine's owner polls the engine, and the engine says when the owner must poll again.

extern crate alloc;

pub mod blk;
mod client;
pub mod console;
pub mod net;
mod traits;
pub mod vbd;
pub mod xenbus;

pub use client::{Client, Completion};
pub use traits::{
    BlockDevice, BlockOp, DiscardLimits, Geometry, GrantRead, Grants, Notifier, ReadSink, Segment,
    SubmitError,
};
