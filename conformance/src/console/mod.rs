//! Console: the ring between a domain and the daemon that shows it, seen from the domain.
//!
//! A booted kernel prints its report on the very ring that the cases use. [`front::Front`] has the ring to itself while
//! a case runs, and gives it back with the indices where they then stand; what the cases write are no lines of the
//! report.
//!
//! ABI: `xen/include/public/io/console.h`, `docs/misc/console.txt`.

pub mod front;
pub mod input;
pub mod nodes;
pub mod output;
pub mod ruined;

pub use crate::ends::{Console, Watcher};
