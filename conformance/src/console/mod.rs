//! Console: the ring between a domain and the daemon that shows it, seen from the domain.
//!
//! A booted kernel prints its report on the very ring that the cases use. While a case runs, [`front::Front`] has the
//! ring to itself; afterwards the report goes on at the indices that the case left. The report's reader skips what
//! the cases write.
//!
//! ABI: `xen/include/public/io/console.h`, `docs/misc/console.txt`.

pub mod front;
pub mod input;
pub mod nodes;
pub mod output;
pub mod ruined;

pub use crate::ends::{Console, Watcher};
