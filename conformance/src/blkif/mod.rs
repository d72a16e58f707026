//! Block: what a frontend may expect of a backend, and the other way round.
//!
//! ABI: `xen/include/public/io/blkif.h`.

pub mod front;
pub mod transfers;
