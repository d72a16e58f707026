//! Console: the ring between a domain and the daemon that shows it, seen from the domain.
//!
//! A booted kernel prints its report on the very ring that the cases use. [`front::Front`] has the ring to itself while
//! a case runs, and gives it back with the indices where they then stand; what the cases write are no lines of the
//! report.
//!
//! ABI: `xen/include/public/io/console.h`, `docs/misc/console.txt`.

use alloc::sync::Arc;
use alloc::vec::Vec;

pub mod front;
pub mod input;
pub mod nodes;
pub mod output;
pub mod ruined;

/// Whoever looks at a domain's console and types, where it is within reach.
pub trait Watcher: Send + Sync {
    /// Takes what was shown since the last call.
    fn shown(&self) -> Vec<u8>;
    /// Types; gives how many bytes were taken.
    fn enter(&self, bytes: &[u8]) -> usize;
}

/// The console of the domain that a case runs in.
#[derive(Clone)]
pub struct Console {
    /// Its ring.
    pub ring: pvrt::console::Ring,
    /// The other end's user.
    pub watcher: Option<Arc<dyn Watcher>>,
}
