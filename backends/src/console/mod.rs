//! The back end of a domain's console ring: takes output, keeps output, shows output, and delivers input.
//!
//! A ring that nobody empties stops the domain: Linux's printk spins for ever once 2048 bytes wait. So the back end
//! takes output whether anyone looks or not, and keeps the last of the output in a bounded [`Scrollback`]. The back
//! end's owner limits the rate by a [`Bucket`]: output over the rate stays in the ring, and the domain waits.
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
