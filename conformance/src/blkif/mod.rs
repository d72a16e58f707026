//! Block: what a frontend may expect of a backend.
//!
//! ABI: `xen/include/public/io/blkif.h`.

pub mod bulk;
pub mod disks;
pub mod front;
pub mod grants;
pub mod indirect;
pub mod nodes;
pub mod pages;
pub mod refusals;
pub mod ring;
pub mod transfers;
