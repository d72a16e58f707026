#![cfg_attr(freestanding, no_std)]
//! The public Xen PV ABI of x86_64, at the level of Xen 4.17: wire structures, numbers and rings.
//!
//! Structures carry the header's field names; every one is checked against the installed headers by the layout test.

pub mod errno;
pub mod guest_context;
pub mod hypercall;
pub mod shared;
pub mod types;
