//! The other ends of rings: what a case asks of a frontend that it tries, and of the user at a console.
//!
//! Cases are written against these traits. In this process they are our own frontends and console daemon; in a driver
//! domain they stand for another kernel's.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use pvrt::event::Port;
use ring_abi::shared::SharedBytes;

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

/// A sum of data, by which they are told from other data that came by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many bytes they are.
    pub bytes: usize,
    /// The sum.
    pub value: u64,
}

impl Sum {
    /// FNV-1a, 64 bits.
    pub fn of(data: &[u8]) -> Self {
        let step = |value: u64, byte: &u8| (value ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        Self { bytes: data.len(), value: data.iter().fold(0xcbf2_9ce4_8422_2325, step) }
    }
}

/// What is written to sectors by this seed.
pub fn content(seed: u8, sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|byte| (byte / 3) as u8 ^ seed).collect()
}

/// The domain's end of a console. Operations run one after the other.
pub trait ConsoleFrontend: Send + Sync {
    /// Writes all bytes, waiting for room.
    fn write(self: Arc<Self>, bytes: Vec<u8>) -> Later<()>;
    /// Waits for input, and gives at most `most` bytes of it.
    fn read(self: Arc<Self>, most: usize) -> Later<Vec<u8>>;
}

/// The user at a domain's console, who looks and types; a case has it where the user's end is within reach.
pub trait Watcher: Send + Sync {
    /// Takes what was shown since the last call.
    fn shown(&self) -> Vec<u8>;
    /// Types; gives how many bytes were taken.
    fn enter(&self, bytes: &[u8]) -> usize;
}

/// The console of the domain that a case runs in.
#[derive(Clone)]
pub struct Console {
    /// The console's ring.
    pub ring: pvrt::console::Ring,
    /// The other end's user.
    pub watcher: Option<Arc<dyn Watcher>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_tells_data_apart() {
        assert_eq!(Sum::of(b"a").value, 0xaf63_dc4c_8601_ec8c);
        assert_ne!(Sum::of(&[0; 512]), Sum::of(&[0; 1024]));
        assert_ne!(Sum::of(&content(1, 1)), Sum::of(&content(2, 1)));
    }
}
