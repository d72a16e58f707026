#![cfg_attr(freestanding, no_std)]
//! Conformance cases for Xen's PV ABI: rings, device protocols, xenstore and hypercalls.
//!
//! A [`Case`] states one rule with its source in the public headers or protocol documents, and finds out whether what
//! it runs on keeps it. Cases stand on `pvrt` alone, so that one text runs in three places: as the PV kernel
//! `guests/conformance` on any system with the ABI, against whatever backends that system has; as dom0, for the
//! hypercalls; and on the host, in one process with both ends of each ring. Nothing here knows of microhv.
//!
//! A module uses those below its own alone:
//!
//! - [`run`](mod@run): running cases, and the report;
//! - [`areas`]: all cases;
//! - [`hypercall`]: the cases of hypercalls, traps and instructions;
//! - [`xenbus`], [`xenstore`], [`consolefront`], [`console`], [`netfront`], [`netif`], [`blkfront`], [`blkif`]: the
//!   cases of these areas;
//! - [`case`]: what a case is;
//! - [`device`]: the two directories of a device;
//! - [`env`](mod@env): where cases run, and what is there;
//! - [`ends`]: the other ends of rings, as cases use them;
//! - [`store`]: xenstore's wire protocol, message by message;
//! - [`served`]: a device of which the case is the backend;
//! - [`shared`]: memory lent to the other end;
//! - [`verdict`]: what a case needs, and what comes of it.

extern crate alloc;

#[macro_use]
pub mod case;
pub mod areas;
pub mod blkfront;
pub mod blkif;
pub mod console;
pub mod consolefront;
pub mod device;
pub mod ends;
pub mod env;
pub mod hypercall;
pub mod netfront;
pub mod netif;
pub mod run;
pub mod served;
pub mod shared;
pub mod store;
pub mod verdict;
pub mod xenbus;
pub mod xenstore;

pub use areas::registry;
pub use case::Case;
pub use env::Env;
pub use verdict::{Need, Outcome, Problem, Verdict};
