//! The states by which two ends of a device connect, and at which state each end reads the other's keys.
//!
//! ABI: `xen/include/public/io/xenbus.h`, and the state diagrams of `io/blkif.h`. The device is a disk.

pub mod keys;
pub mod states;
pub mod vanished;
