//! Console, from the other end: what a daemon may expect of a domain's frontend, and what that must bear of a daemon.
//!
//! The case is the daemon; [`ConsoleFrontend`] is what it tries.
//!
//! ABI: `xen/include/public/io/console.h`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::blkfront::Later;

pub mod back;
pub mod hostile;
pub mod input;
pub mod output;

/// The domain's end of a console. Operations run one after the other.
pub trait ConsoleFrontend: Send + Sync {
    /// Writes all bytes, waiting for room.
    fn write(self: Arc<Self>, bytes: Vec<u8>) -> Later<()>;
    /// Waits for input, and gives at most `most` bytes of it.
    fn read(self: Arc<Self>, most: usize) -> Later<Vec<u8>>;
}
