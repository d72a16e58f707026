//! The states by which two ends of a device find each other, and what each reads of the other when.
//!
//! ABI: `xen/include/public/io/xenbus.h`, and the state diagrams of `io/blkif.h`. The device is a disk.

pub mod keys;
pub mod states;
pub mod vanished;
