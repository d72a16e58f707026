//! How domains begin, stop and end. These operations reach into every room below: memory, event channels, grants,
//! timers.
//!
//! - `making`: a domain and its vCPUs, in pieces; `context`: a vCPU's whole state
//! - `stop`: shutdown and crash
//! - `kill`, `ending`: what a domain has is given back, then what is left of the domain itself
//! - `unfinished`: domains that are neither there nor gone

mod context;
mod ending;
mod kill;
mod making;
mod stop;
mod unfinished;

pub(crate) use context::fill_context;
pub use unfinished::Unfinished;

use crate::mem::MemError;
use crate::sched::pools::PoolError;

/// Why a domain was not made or ended, or why a vCPU did not get its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleError {
    /// Something else waits for the CPU: the same call goes on.
    Again,
    /// The number is taken, or the vCPU has a state.
    Exists,
    /// A value that no domain or vCPU can have.
    Invalid,
    /// There is no memory, or no number.
    NoMemory,
    /// There is no such CPU pool.
    NoSuchPool,
    /// The CPU pool has no CPU.
    NoCpu,
    /// The vCPU cannot have this GDT.
    Gdt(MemError),
}

impl From<PoolError> for LifecycleError {
    fn from(error: PoolError) -> Self {
        if error == PoolError::NoCpu { Self::NoCpu } else { Self::NoSuchPool }
    }
}
