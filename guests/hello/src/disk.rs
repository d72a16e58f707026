//! The disk check: the checksum of everything, then, where writing is allowed, a pattern and back.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use frontends::blkfront::{BlockError, Disk, SECTORS_PER_PAGE};
use frontends::xenbus::{Device, StoreError, Xenstore};
use pvrt::executor::sync::Receiver;
use pvrt::executor::{join_all, spawn_join};
use pvrt::marker::mark;
use pvrt::mem::Pages;
use pvrt::{println, time};
use ring_abi::types::PAGE_SIZE;
use sha2::{Digest, Sha256};

/// Pages of one read: 128 KiB, one indirect request.
const CHUNK_PAGES: usize = 32;
/// Reads in flight.
const DEPTH: usize = 16;
/// Pages of the write check: 1 MiB.
const PATTERN_PAGES: usize = 256;

/// What can fail.
#[derive(Debug)]
pub(crate) enum Error {
    /// Xenstore.
    Store(StoreError),
    /// The disk.
    Block(BlockError),
    /// The disk returned another byte than was written; the byte's offset.
    Differs(usize),
    /// No memory for the buffers.
    Memory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "{error}"),
            Self::Block(error) => write!(f, "disk: {error}"),
            Self::Differs(offset) => write!(f, "disk: byte {offset} is not what was written"),
            Self::Memory => write!(f, "out of memory"),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<BlockError> for Error {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

/// Checks the first disk, if there is one; then times `reads` reads of one page.
pub(crate) async fn check(store: &Xenstore, reads: u64) -> Result<(), Error> {
    let disks = Device::list(store, "vbd").await?;
    let Some(path) = disks.first() else {
        println!("hello: no disk");
        return Ok(());
    };
    let disk = Arc::new(Disk::connect(store, path).await?);
    let geometry = disk.geometry();
    let access = if geometry.read_only { "read-only" } else { "writable" };
    println!(
        "hello: disk {path}: {} sectors of 512 bytes, {access}, {} segments a request",
        geometry.sectors, geometry.max_segments
    );
    let start = time::tsc();
    let digest = checksum(&disk).await?;
    println!("hello: sha256 {digest}");
    report("read", &disk, start, (0, 0));
    if !geometry.read_only && geometry.sectors > 0 {
        let before = disk.statistics();
        let start = time::tsc();
        pattern(&disk).await?;
        println!("hello: pattern written, flushed, verified, and the first contents restored");
        report("pattern", &disk, start, (before.requests, before.bytes));
    }
    if reads > 0 {
        single_reads(&disk, reads).await?;
    }
    match Arc::try_unwrap(disk) {
        Ok(disk) => disk.close().await?,
        Err(_) => log::warn!("a request still holds the disk"),
    }
    Ok(())
}

/// Times `count` reads of one page of the first disk, with as many in flight as for a checksum, by this domain's own
/// clock; repeats that `rounds` times.
pub(crate) async fn time_reads(store: &Xenstore, count: u64, rounds: u64) -> Result<(), Error> {
    let disks = Device::list(store, "vbd").await?;
    let Some(path) = disks.first() else {
        println!("hello: no disk");
        return Ok(());
    };
    let disk = Disk::connect(store, path).await?;
    let buffers: Vec<Arc<Pages>> = (0..DEPTH).map(|_| pages(1)).collect::<Result<_, _>>()?;
    for _ in 0..rounds {
        let start = time::now_ns();
        side_by_side(&disk, &buffers, count).await?;
        let took = (time::now_ns() - start).max(1);
        let rate = u128::from(count) * 1_000_000_000 / u128::from(took);
        println!("hello: {count} reads of the disk, {DEPTH} at a time: {rate} a second");
    }
    disk.close().await?;
    Ok(())
}

/// The sector for read number `index`; the reads are spread over the disk.
fn sector(disk: &Disk, index: u64) -> u64 {
    let pages = (disk.geometry().sectors / SECTORS_PER_PAGE as u64).max(1);
    index.wrapping_mul(7919) % pages * SECTORS_PER_PAGE as u64
}

/// Reads one page `count` times, a read into each of the buffers at once.
async fn side_by_side(disk: &Disk, buffers: &[Arc<Pages>], count: u64) -> Result<(), BlockError> {
    let lanes = buffers.iter().zip(0..).map(|(buffer, lane)| async move {
        for index in (lane..count).step_by(buffers.len()) {
            disk.read(sector(disk, index), buffer, SECTORS_PER_PAGE).await?;
        }
        Ok::<(), BlockError>(())
    });
    join_all(lanes).await.into_iter().collect()
}

/// Prints the time and the requests of a phase.
fn report(phase: &str, disk: &Disk, start: u64, (requests, bytes): (u64, u64)) {
    let ticks = time::tsc() - start;
    let now = disk.statistics();
    let requests = now.requests - requests;
    println!(
        "hello: {phase}: {requests} requests, {} bytes, {} TSC ticks a request",
        now.bytes - bytes,
        ticks / requests.max(1)
    );
}

/// Lower-case hexadecimal digits.
struct Hex([u8; 32]);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One read in flight.
struct Read {
    buffer: Arc<Pages>,
    sectors: usize,
    done: Receiver<Result<(), BlockError>>,
}

fn pages(count: usize) -> Result<Arc<Pages>, Error> {
    Pages::alloc(count).map(Arc::new).map_err(|_| Error::Memory)
}

/// The SHA-256 of the whole disk, read with many requests in flight.
async fn checksum(disk: &Arc<Disk>) -> Result<Hex, Error> {
    let total = disk.geometry().sectors;
    let mut next = 0;
    let mut flying: VecDeque<Read> = VecDeque::with_capacity(DEPTH);
    let mut spare: Vec<Arc<Pages>> = Vec::new();
    let mut hash = Sha256::new();
    let mut page = vec![0; PAGE_SIZE];
    loop {
        while next < total && flying.len() < DEPTH {
            let sectors = (total - next).min((CHUNK_PAGES * SECTORS_PER_PAGE) as u64) as usize;
            let buffer = match spare.pop() {
                Some(buffer) => buffer,
                None => pages(CHUNK_PAGES)?,
            };
            let (disk, target, first) = (disk.clone(), buffer.clone(), next);
            let done = spawn_join(async move { disk.read(first, &target, sectors).await });
            flying.push_back(Read { buffer, sectors, done });
            next += sectors as u64;
        }
        let Some(read) = flying.pop_front() else { break };
        read.done.await.map_err(|_| BlockError::Disconnected)??;
        let bytes = read.sectors * 512;
        for at in (0..bytes).step_by(PAGE_SIZE) {
            let part = &mut page[..PAGE_SIZE.min(bytes - at)];
            read.buffer.bytes().read(at, part);
            hash.update(part);
        }
        spare.push(read.buffer);
    }
    Ok(Hex(hash.finalize().into()))
}

/// Times reads of 4096 bytes: one after the other, then as many at once as there are slots.
async fn single_reads(disk: &Disk, count: u64) -> Result<(), Error> {
    let buffer = pages(1)?;
    disk.read(0, &buffer, SECTORS_PER_PAGE).await?;
    mark::<210>();
    let start = time::tsc();
    for index in 0..count {
        disk.read(sector(disk, index), &buffer, SECTORS_PER_PAGE).await?;
    }
    let ticks = time::tsc() - start;
    mark::<211>();
    println!("hello: {count} reads of 4096 bytes, one at a time: {} TSC ticks each", ticks / count);
    let buffers: Vec<Arc<Pages>> = (0..32).map(|_| pages(1)).collect::<Result<_, _>>()?;
    mark::<212>();
    let start = time::tsc();
    side_by_side(disk, &buffers, count).await?;
    let ticks = time::tsc() - start;
    mark::<213>();
    println!("hello: {count} reads of 4096 bytes, 32 at a time: {} TSC ticks each", ticks / count);
    Ok(())
}

/// Writes a pattern over the start of the disk, checks it, and restores the old contents even after a
/// failure.
async fn pattern(disk: &Disk) -> Result<(), Error> {
    let sectors = disk.geometry().sectors.min((PATTERN_PAGES * SECTORS_PER_PAGE) as u64) as usize;
    let count = sectors.div_ceil(SECTORS_PER_PAGE);
    let saved = pages(count)?;
    let written = pages(count)?;
    disk.read(0, &saved, sectors).await?;
    let mut word = 0x9e37_79b9_7f4a_7c15u64 ^ time::tsc();
    for at in (0..count * PAGE_SIZE).step_by(8) {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        written.bytes().store_u64(at, word);
    }
    let checked = write_and_verify(disk, &written, sectors).await;
    write_and_verify(disk, &saved, sectors).await?;
    checked
}

/// Writes a buffer, flushes, reads it back and compares.
async fn write_and_verify(disk: &Disk, buffer: &Arc<Pages>, sectors: usize) -> Result<(), Error> {
    disk.write(0, buffer, sectors).await?;
    disk.flush().await?;
    let back = pages(buffer.count())?;
    disk.read(0, &back, sectors).await?;
    let mut pair = [vec![0; PAGE_SIZE], vec![0; PAGE_SIZE]];
    let bytes = sectors * 512;
    for at in (0..bytes).step_by(PAGE_SIZE) {
        let len = PAGE_SIZE.min(bytes - at);
        buffer.bytes().read(at, &mut pair[0][..len]);
        back.bytes().read(at, &mut pair[1][..len]);
        if let Some(offset) = (0..len).find(|i| pair[0][*i] != pair[1][*i]) {
            return Err(Error::Differs(at + offset));
        }
    }
    Ok(())
}
