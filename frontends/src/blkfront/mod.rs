//! The block frontend: many requests in flight, direct and indirect, flush and discard.
//!
//! ABI: `xen/include/public/io/blkif.h`. A grant lasts for one request; the frontend does not use `feature-persistent`.

mod connect;
mod queue;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use core::fmt;
use pvrt::executor::join_all;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::PAGE_SIZE;

use crate::xenbus::{Device, StoreError, Xenstore};
use queue::{Command, Queue};

/// Sectors in a page. Sectors here are always of 512 bytes, whatever the disk's own size.
pub const SECTORS_PER_PAGE: usize = PAGE_SIZE / SECTOR_SIZE;
/// Most segments of one indirect request: 256 KiB, an eighth of what one indirect page can list.
const MAX_SEGMENTS: usize = 64;

/// What the backend says about a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// The disk's own sector size in bytes. The first sector and the length of a request must be multiples of this
    /// size.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Flushes are understood.
    pub flush: bool,
    /// Discards are understood.
    pub discard: bool,
    /// Most segments of one request; a segment is at most a page.
    pub max_segments: usize,
}

/// Why a block request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The disk or the backend reported an error.
    Io,
    /// The backend does not know the operation.
    Unsupported,
    /// The range is outside the disk or the buffer, or not in whole sectors of the disk.
    BadRange,
    /// The disk is read-only.
    ReadOnly,
    /// The backend broke the protocol, or went away.
    Disconnected,
    /// No grant, page or port was left.
    Resources(Errno),
    /// Xenstore failed, or says nonsense.
    Store(StoreError),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => write!(f, "input or output error"),
            Self::Unsupported => write!(f, "operation not supported"),
            Self::BadRange => write!(f, "range outside the disk"),
            Self::ReadOnly => write!(f, "disk is read-only"),
            Self::Disconnected => write!(f, "backend is gone"),
            Self::Resources(errno) => write!(f, "{errno}"),
            Self::Store(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for BlockError {}

impl From<StoreError> for BlockError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// How much went through a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests on the ring.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// A connected disk. Several tasks may await requests of one disk side by side.
pub struct Disk {
    device: Device,
    queue: Arc<Queue>,
    geometry: Geometry,
}

impl Disk {
    /// Connects to the disk at `path`, for example `device/vbd/51712`.
    ///
    /// # Errors
    /// [`BlockError`]: xenstore refused a request, the backend's nodes make no sense, or this kernel has no page, grant
    /// or port left.
    pub async fn connect(store: &Xenstore, path: &str) -> Result<Self, BlockError> {
        let device = Device::open(store, path).await?;
        let (queue, geometry) = connect::connect(&device).await?;
        Ok(Self { device, queue, geometry })
    }

    /// What the backend says about the disk.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What went through since the connection.
    pub fn statistics(&self) -> Statistics {
        self.queue.statistics()
    }

    /// Reads `sectors` sectors from `first` on into `buffer`, from the buffer's start.
    ///
    /// The buffer is shared with the request: if the caller drops the future early, the request keeps the buffer until
    /// the backend has answered.
    ///
    /// # Errors
    /// [`BlockError`]: the range lies outside the disk or the buffer, the backend reported an error or is gone, or no
    /// grant is left.
    pub async fn read(&self, first: u64, buffer: &Arc<Pages>, sectors: usize) -> Result<(), BlockError> {
        self.transfer(BLKIF_OP_READ, first, buffer, sectors).await
    }

    /// Writes `sectors` sectors from `first` on from `buffer`, from the buffer's start.
    ///
    /// # Errors
    /// [`BlockError`]: the disk is read-only, the range lies outside the disk or the buffer, the backend reported an
    /// error or is gone, or no grant is left.
    pub async fn write(&self, first: u64, buffer: &Arc<Pages>, sectors: usize) -> Result<(), BlockError> {
        if self.geometry.read_only {
            return Err(BlockError::ReadOnly);
        }
        self.transfer(BLKIF_OP_WRITE, first, buffer, sectors).await
    }

    /// Makes every earlier write durable. On a disk without a cache to flush, this call succeeds at once.
    ///
    /// # Errors
    /// [`BlockError`]: the backend reported an error or is gone.
    pub async fn flush(&self) -> Result<(), BlockError> {
        if !self.geometry.flush {
            return Ok(());
        }
        self.queue.submit(Command::Flush).await
    }

    /// Tells the disk that `sectors` sectors from `first` on are not needed.
    ///
    /// # Errors
    /// [`BlockError`]: the disk has no discards, the range lies outside the disk, or the backend reported an error or
    /// is gone.
    pub async fn discard(&self, first: u64, sectors: u64) -> Result<(), BlockError> {
        if !self.geometry.discard {
            return Err(BlockError::Unsupported);
        }
        self.check(first, sectors)?;
        self.queue.submit(Command::Discard { first, sectors }).await
    }

    /// Checks a range against the disk.
    fn check(&self, first: u64, sectors: u64) -> Result<(), BlockError> {
        let unit = u64::from(self.geometry.sector_size) / SECTOR_SIZE as u64;
        let inside = first.checked_add(sectors).is_some_and(|end| end <= self.geometry.sectors);
        if sectors == 0 || !inside || !first.is_multiple_of(unit) || !sectors.is_multiple_of(unit) {
            return Err(BlockError::BadRange);
        }
        Ok(())
    }

    async fn transfer(
        &self,
        operation: u8,
        first: u64,
        buffer: &Arc<Pages>,
        sectors: usize,
    ) -> Result<(), BlockError> {
        self.check(first, sectors as u64)?;
        if sectors > buffer.count() * SECTORS_PER_PAGE {
            return Err(BlockError::BadRange);
        }
        let step = self.geometry.max_segments * SECTORS_PER_PAGE;
        let part = |at: usize| {
            let sectors = step.min(sectors - at);
            self.queue.submit(Command::Transfer {
                operation,
                first: first + at as u64,
                sectors,
                buffer: buffer.clone(),
                page: at / SECTORS_PER_PAGE,
            })
        };
        if sectors <= step {
            return part(0).await;
        }
        join_all((0..sectors).step_by(step).map(part)).await.into_iter().collect()
    }

    /// Closes the connection in order: the backend answers first what is in flight.
    ///
    /// # Errors
    /// [`BlockError`]: xenstore refused to read or write a state, or the connection to xenstore broke.
    pub async fn close(self) -> Result<(), BlockError> {
        self.queue.drain().await;
        self.device.set_state(XenbusState::Closing).await?;
        self.device
            .wait_backend(|state| {
                matches!(state, XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown)
            })
            .await?;
        self.queue.shut();
        self.device.set_state(XenbusState::Closed).await?;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.queue.shut();
    }
}
