//! The other ends of rings: what a case may ask of the frontend under test, and of the user at a console.
//!
//! Cases use these traits. On the host our own frontends and console daemon implement them; in a driver domain
//! another kernel's frontends stand behind them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use pvrt::event::Port;
use ring_abi::shared::SharedBytes;

/// The future result of an operation of a frontend.
pub type Later<T> = Pin<Box<dyn Future<Output = Result<T, FrontError>> + Send>>;

/// Why an operation of a frontend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontError {
    /// The backend answered with an error.
    Failed,
    /// The operation is not supported.
    Unsupported,
    /// The frontend sent no request: the disk is read-only, or the range is not on the disk.
    Refused,
    /// There is no connection, or no longer.
    Gone,
}

/// The frontends of a kernel that is not the case's.
pub trait Frontends: Send + Sync {
    /// Starts the frontend that has the directory `path`, and returns the frontend once it is connected.
    fn connect(&self, path: &str) -> Later<Arc<dyn BlockFrontend>>;
    /// Starts the network frontend of the device whose frontend's directory is `path`, and gives it once it is connected.
    fn network(&self, path: &str) -> Later<Arc<dyn NetFrontend>> {
        let _ = path;
        Box::pin(async { Err(FrontError::Unsupported) })
    }
    /// The frontend of a console whose ring is in `page` and whose event channel is `port`.
    /// [`FrontError::Unsupported`]: there is no console frontend to try.
    fn console(
        &self,
        page: SharedBytes<'static>,
        port: Port,
    ) -> Result<Arc<dyn ConsoleFrontend>, FrontError> {
        let _ = (page, port);
        Err(FrontError::Unsupported)
    }
}

/// What is to be done to a frame, or has been done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum is the pseudo header's alone.
    pub blank: bool,
    /// The data is known to be good.
    pub validated: bool,
    /// Segments: `XEN_NETIF_GSO_TYPE_*`, and bytes of payload in each.
    pub gso: Option<(u8, u16)>,
}

/// A connected network frontend. Sending and receiving may run side by side.
pub trait NetFrontend: Send + Sync {
    /// Sends a frame, waiting for room; the backend sees the frame when the operation ends.
    fn send(self: Arc<Self>, frame: Vec<u8>, offload: Offload) -> Later<()>;
    /// Waits for the next frame.
    fn receive(self: Arc<Self>) -> Later<(Vec<u8>, Offload)>;
    /// Closes the connection in order.
    fn close(self: Arc<Self>) -> Later<()>;
}

/// A connected block frontend. Operations may run side by side.
pub trait BlockFrontend: Send + Sync {
    /// Reads sectors of 512 bytes, and returns the [`Sum`] of the data.
    fn read(self: Arc<Self>, sector: u64, sectors: usize) -> Later<Sum>;
    /// Writes sectors with the [`content`] of `seed`.
    fn write(self: Arc<Self>, sector: u64, sectors: usize, seed: u8) -> Later<()>;
    /// Makes what was written durable.
    fn flush(self: Arc<Self>) -> Later<()>;
    /// Discards sectors.
    fn discard(self: Arc<Self>, sector: u64, sectors: u64) -> Later<()>;
    /// Closes the connection in order.
    fn close(self: Arc<Self>) -> Later<()>;
}

/// A checksum, which tells the right data from others.
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

/// The data that a write with this seed writes.
pub fn content(seed: u8, sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|byte| (byte / 3) as u8 ^ seed).collect()
}

/// The domain's end of a console. Operations run one after the other.
pub trait ConsoleFrontend: Send + Sync {
    /// Writes all bytes, waiting for room.
    fn write(self: Arc<Self>, bytes: Vec<u8>) -> Later<()>;
    /// Waits for input, and returns at most `most` bytes of it.
    fn read(self: Arc<Self>, most: usize) -> Later<Vec<u8>>;
}

/// The user at a domain's console. A case can read what the user sees and can type, where the console daemon
/// runs in the same process.
pub trait Watcher: Send + Sync {
    /// Takes what was shown since the last call.
    fn shown(&self) -> Vec<u8>;
    /// Types, and returns how many bytes the daemon took.
    fn enter(&self, bytes: &[u8]) -> usize;
}

/// The console of the domain that a case runs in.
#[derive(Clone)]
pub struct Console {
    /// The console's ring.
    pub ring: pvrt::console::Ring,
    /// The user at the other end.
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
