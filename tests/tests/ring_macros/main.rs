//! The ring engines of `ring-abi` against the macros of Xen's own `io/ring.h`.
//!
//! `peer.c` is compiled with the installed headers when the test runs, and loaded: both ends of a ring are then in
//! one process, each end ours or the macros'. In lockstep all four pairings do the same and must leave the same bytes;
//! in threads they run against each other and must lose neither a message nor a wake-up.

mod lockstep;
mod peer;
mod random;
mod threads;
