//! Block, from the other end: what a backend may expect of a frontend, and what a frontend must bear of a backend.
//!
//! The case is the backend; [`BlockFrontend`] is what it tries: our own in this process, or, in a driver domain, the
//! stock ones of another kernel, by way of [`agent`].
//!
//! ABI: `xen/include/public/io/blkif.h`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;

pub mod agent;
pub mod back;
pub mod connect;
pub mod hostile;
pub mod orders;
pub mod requests;
pub mod ring;

pub use orders::{Sum, content};
use pvrt::event::Port;
use ring_abi::shared::SharedBytes;

use crate::consolefront::ConsoleFrontend;

/// What an operation of a frontend gives, later.
pub type Later<T> = Pin<Box<dyn Future<Output = Result<T, FrontError>> + Send>>;

/// Why an operation of a frontend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontError {
    /// The backend answered with an error.
    Failed,
    /// The operation is not supported.
    Unsupported,
    /// The frontend did not even ask: the disk is read-only, or the range is not on it.
    Refused,
    /// There is no connection, or no longer.
    Gone,
}

/// The frontends of a kernel that is not the case's.
pub trait Frontends: Send + Sync {
    /// Starts the frontend of the device whose frontend's directory is `path`, and gives it once it is connected.
    fn connect(&self, path: &str) -> Later<Arc<dyn BlockFrontend>>;
    /// The frontend of a console whose ring is in `page` and whose event channel is `port`. [`FrontError::Unsupported`]:
    /// there is none to try.
    fn console(
        &self,
        page: SharedBytes<'static>,
        port: Port,
    ) -> Result<Arc<dyn ConsoleFrontend>, FrontError> {
        let _ = (page, port);
        Err(FrontError::Unsupported)
    }
}

/// A connected block frontend. Operations may run side by side.
pub trait BlockFrontend: Send + Sync {
    /// Reads sectors of 512 bytes; gives the [`Sum`] of what was read.
    fn read(self: Arc<Self>, sector: u64, sectors: usize) -> Later<Sum>;
    /// Writes sectors: [`content`] of `seed`.
    fn write(self: Arc<Self>, sector: u64, sectors: usize, seed: u8) -> Later<()>;
    /// Makes what was written durable.
    fn flush(self: Arc<Self>) -> Later<()>;
    /// Gives up sectors.
    fn discard(self: Arc<Self>, sector: u64, sectors: u64) -> Later<()>;
    /// Closes the connection in order.
    fn close(self: Arc<Self>) -> Later<()>;
}
