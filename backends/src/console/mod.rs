//! The back end of a domain's console ring: drain, keep, show; and input the other way.
//!
//! A ring that nobody drains stops the domain (Linux's printk spins for ever after 2048 bytes), so output is always
//! taken and kept in a bounded [`Scrollback`], whether anyone looks or not. Output is taken as fast as a [`Bucket`]
//! lets it be printed: until then it stays in the ring, and the domain waits.
//!
//! ABI: `xen/include/public/io/console.h`.

mod budget;
mod engine;
mod lines;
mod scrollback;

pub use budget::Bucket;
pub use engine::ConsoleBack;
pub use lines::Lines;
pub use scrollback::Scrollback;
