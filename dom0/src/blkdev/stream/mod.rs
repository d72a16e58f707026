//! A disk as a place for bytes in their order: what `xl save` writes and `xl restore` reads.
//!
//! A host sees such a disk as the file itself. The first page is written last, and is zero meanwhile, so that nothing that was left half
//! written, by a power cut above all, looks like a whole stream.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use backends::{BlockOp, Client};
use migration::{IoFailure, Sink, Source};
use pvrt::executor::spawn_join;
use pvrt::executor::sync::Receiver;
use pvrt::mem::Pages;
use ring_abi::types::PAGE_SIZE;

use super::SharedDevice;
use super::io::{IoError, read, write};

/// Pages that are written or read at once; two such buffers take turns.
const PAGES: usize = 64;
const BYTES: usize = PAGES * PAGE_SIZE;
const SECTOR: u64 = 512;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE as u64 / SECTOR;

type Moved = Result<Pages, IoError>;

fn failed(error: IoError) -> IoFailure {
    match error {
        IoError::OutOfRange => IoFailure::Failed("the disk is full".into()),
        IoError::Device => IoFailure::Failed(error.to_string()),
    }
}

fn buffer() -> Result<Pages, IoFailure> {
    Pages::alloc(PAGES).map_err(|_| IoFailure::Failed(format!("no memory for a buffer of {BYTES} bytes")))
}

async fn flush(device: &SharedDevice) -> Result<(), IoFailure> {
    let client = Client::new(1);
    device
        .submit(&client, 0, BlockOp::Flush, 0, &[])
        .map_err(|_| IoFailure::Failed("the disk takes no flush".into()))?;
    device.kick();
    client.ready().await;
    let mut done = Vec::new();
    client.take(&mut done);
    let is_done = done.iter().all(|completion| completion.ok);
    if is_done { Ok(()) } else { Err(IoFailure::Failed("the disk did not flush".into())) }
}

/// Writes a disk from its first byte on.
pub struct DiskSink {
    device: SharedDevice,
    /// The first page's bytes, which are written last.
    first: Vec<u8>,
    filling: Pages,
    filled: usize,
    /// Where the buffer that is being filled goes.
    sector: u64,
    /// The buffer that is being written, or its successor before the first write.
    other: Option<Pages>,
    writing: Option<Receiver<Moved>>,
}

impl DiskSink {
    /// Begins: from now on the disk holds no stream.
    ///
    /// # Errors
    /// The disk's; no memory.
    pub async fn begin(device: SharedDevice) -> Result<Self, IoFailure> {
        let zero = Pages::zeroed(1).map_err(|_| IoFailure::Failed("no memory for a page".into()))?;
        write(&device, 0, zero).await.map_err(failed)?;
        flush(&device).await?;
        Ok(Self {
            device,
            first: Vec::with_capacity(PAGE_SIZE),
            filling: buffer()?,
            filled: 0,
            sector: SECTORS_PER_PAGE,
            other: Some(buffer()?),
            writing: None,
        })
    }

    /// Waits for the write under way, and keeps its buffer.
    async fn written(&mut self) -> Result<(), IoFailure> {
        if let Some(writing) = self.writing.take() {
            self.other = Some(writing.await.unwrap_or(Err(IoError::Device)).map_err(failed)?);
        }
        Ok(())
    }

    /// Begins to write what was filled, which is whole pages if nothing follows.
    async fn pass_on(&mut self) -> Result<(), IoFailure> {
        self.written().await?;
        let next = match self.other.take() {
            Some(pages) => pages,
            None => buffer()?, // the last write failed, and took its buffer along
        };
        let full = core::mem::replace(&mut self.filling, next);
        let (device, sector) = (self.device.clone(), self.sector);
        self.sector += PAGES as u64 * SECTORS_PER_PAGE;
        self.filled = 0;
        self.writing = Some(spawn_join(async move { write(&device, sector, full).await }));
        Ok(())
    }

    /// Makes the stream whole: when this has returned, the stream outlives a power cut.
    ///
    /// # Errors
    /// The disk's.
    pub async fn finish(mut self) -> Result<(), IoFailure> {
        self.written().await?;
        // The last buffer's rest may lie beyond the disk's end, so only as many pages as are needed are written.
        let count = self.filled.div_ceil(PAGE_SIZE);
        if count > 0 {
            let used =
                Pages::zeroed(count).map_err(|_| IoFailure::Failed("no memory for the last pages".into()))?;
            let mut bytes = alloc::vec![0; self.filled];
            self.filling.bytes().read(0, &mut bytes);
            used.bytes().write(0, &bytes);
            write(&self.device, self.sector, used).await.map_err(failed)?;
        }
        flush(&self.device).await?;
        let first = Pages::zeroed(1).map_err(|_| IoFailure::Failed("no memory for a page".into()))?;
        first.bytes().write(0, &self.first);
        write(&self.device, 0, first).await.map_err(failed)?;
        flush(&self.device).await
    }
}

impl Sink for DiskSink {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), IoFailure> {
        let (head, mut rest) = bytes.split_at(bytes.len().min(PAGE_SIZE - self.first.len()));
        self.first.extend_from_slice(head);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BYTES - self.filled));
            self.filling.bytes().write(self.filled, now);
            self.filled += now.len();
            rest = later;
            if self.filled == BYTES {
                self.pass_on().await?;
            }
        }
        Ok(())
    }
}

/// Reads a disk from its first byte on.
pub struct DiskSource {
    device: SharedDevice,
    /// What was read, how much of it is there, and how much was taken.
    current: Option<Pages>,
    there: usize,
    taken: usize,
    /// Where the read under way began, and where the next begins.
    ahead: Option<(Receiver<Moved>, u64)>,
    sector: u64,
}

impl DiskSource {
    /// Begins at the first byte.
    pub fn new(device: SharedDevice) -> Self {
        Self { device, current: None, there: 0, taken: 0, ahead: None, sector: 0 }
    }

    fn read_ahead(&mut self, pages: Pages) {
        let (device, sector) = (self.device.clone(), self.sector);
        self.sector += PAGES as u64 * SECTORS_PER_PAGE;
        self.ahead = Some((spawn_join(async move { read(&device, sector, pages).await }), sector));
    }

    /// Has the next buffer.
    async fn next(&mut self) -> Result<(), IoFailure> {
        if self.ahead.is_none() {
            self.read_ahead(buffer()?);
        }
        let Some((reading, sector)) = self.ahead.take() else { return Err(IoFailure::End) };
        let pages = match reading.await.unwrap_or(Err(IoError::Device)) {
            Ok(pages) => pages,
            Err(IoError::OutOfRange) => return Err(IoFailure::End),
            Err(error) => return Err(failed(error)),
        };
        let left = self.device.geometry().sectors.saturating_sub(sector).saturating_mul(SECTOR);
        self.there = BYTES.min(usize::try_from(left).unwrap_or(BYTES));
        self.taken = 0;
        let former = match self.current.replace(pages) {
            Some(former) => former,
            None => buffer()?,
        };
        self.read_ahead(former);
        Ok(())
    }
}

impl Source for DiskSource {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), IoFailure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.taken == self.there {
                self.next().await?;
            }
            let count = rest.len().min(self.there - self.taken);
            let (now, later) = rest.split_at_mut(count);
            if let Some(pages) = &self.current {
                pages.bytes().read(self.taken, now);
            }
            self.taken += count;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
