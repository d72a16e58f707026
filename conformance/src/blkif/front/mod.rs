//! A block frontend that does only what a case tells it to: the case decides every word on the ring and in
//! xenstore.

mod ring;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::PAGE_SIZE;
use zerocopy::FromZeros;

use crate::device::Device;
use crate::shared::Granted;
use crate::{Env, Need, Problem, Verdict};
pub use ring::Ring;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 112;
/// How long a response may take.
pub const PATIENCE_MS: u64 = 8_000;

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which disk: [`Need::Disk`], [`Need::ReadOnlyDisk`] or [`Need::BigSectorDisk`].
    pub disk: Need,
    /// `ring-page-order`; `None` writes `ring-ref` alone.
    pub order: Option<u32>,
    /// Where the ring's indices start.
    pub index: u32,
    /// `feature-persistent`; `None` leaves the key out.
    pub persistent: Option<bool>,
    /// `protocol`; `None` leaves the key out.
    pub protocol: Option<&'static str>,
    /// `multi-queue-num-queues`; `None` leaves the key out.
    pub queues: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disk: Need::Disk,
            order: None,
            index: 0,
            persistent: None,
            protocol: Some("x86_64-abi"),
            queues: None,
        }
    }
}

/// A connected disk.
pub struct Front<'a> {
    /// The device's directories.
    pub device: Device<'a>,
    /// The rings, one unless more queues were asked for.
    pub rings: Vec<Ring>,
    /// Size in sectors of 512 bytes, as the backend says.
    pub sectors: u64,
}

impl<'a> Front<'a> {
    /// Opens the device and brings both ends to where the toolstack left them.
    ///
    /// # Errors
    /// [`Problem`]: there is no such disk, or the backend does not reach the state that it should.
    pub async fn prepare(env: &'a mut Env, disk: Need) -> Verdict<Device<'a>> {
        let path = env.disk(disk).map(|disk| disk.path.clone());
        let path = path.ok_or_else(|| Problem::Skip(disk.missing().into()))?;
        Self::prepare_path(env, &path).await
    }

    /// Does the same as [`prepare`](Self::prepare) for the device whose frontend has the directory `path`.
    ///
    /// # Errors
    /// The errors of [`prepare`](Self::prepare).
    pub async fn prepare_path(env: &'a mut Env, path: &str) -> Verdict<Device<'a>> {
        let mut device = Device::open(env, path).await?;
        device.reset().await?;
        for key in [
            "ring-ref",
            "ring-page-order",
            "num-ring-pages",
            "event-channel",
            "feature-persistent",
            "multi-queue-num-queues",
            "protocol",
        ] {
            device.remove_front(key).await?;
        }
        Ok(device)
    }

    /// Connects as `options` say.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend does not connect.
    pub async fn connect(env: &'a mut Env, options: &Options) -> Verdict<Self> {
        let device = Self::prepare(env, options.disk).await?;
        Self::connect_device(device, options).await
    }

    /// Connects with the usual options.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    pub async fn usual(env: &'a mut Env) -> Verdict<Self> {
        Self::connect(env, &Options::default()).await
    }

    /// Connects a prepared device.
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect).
    pub async fn connect_device(mut device: Device<'a>, options: &Options) -> Verdict<Self> {
        let rings = Self::announce(&mut device, options).await?;
        device.set_state(XenbusState::Initialised).await?;
        use XenbusState::{Closed, Closing, Connected};
        let state = device.wait_state(&[Connected, Closing, Closed]).await?;
        if state != Connected {
            let error = device.read_back("error").await?;
            return Err(Problem::Fail(format!("the backend refuses: state {state:?}, error {error:?}")));
        }
        let sectors = device.number_back("sectors").await?;
        device.set_state(Connected).await?;
        Ok(Self { device, rings, sectors })
    }

    /// Makes rings and writes the frontend's keys, but not its state.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory, grant or port is left, or xenstore refuses.
    pub async fn announce(device: &mut Device<'a>, options: &Options) -> Verdict<Vec<Ring>> {
        let pages = 1usize << options.order.unwrap_or(0);
        let count = options.queues.unwrap_or(1).max(1);
        let mut rings = Vec::new();
        for queue in 0..count {
            let ring = Ring::new(device.dom, pages, options.index)?;
            let place = if count == 1 { String::new() } else { format!("queue-{queue}/") };
            if options.order.is_none() {
                device.write_front(&format!("{place}ring-ref"), ring.gref(0)).await?;
            } else {
                for page in 0..pages {
                    device.write_front(&format!("{place}ring-ref{page}"), ring.gref(page)).await?;
                }
            }
            device.write_front(&format!("{place}event-channel"), ring.port_number()).await?;
            rings.push(ring);
        }
        if let Some(order) = options.order {
            device.write_front("ring-page-order", order).await?;
        }
        if let Some(queues) = options.queues {
            device.write_front("multi-queue-num-queues", queues).await?;
        }
        if let Some(persistent) = options.persistent {
            device.write_front("feature-persistent", u32::from(persistent)).await?;
        }
        if let Some(protocol) = options.protocol {
            device.write_front("protocol", protocol).await?;
        }
        Ok(rings)
    }

    /// The first ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.rings[0]
    }

    /// A buffer of `pages` pages for the backend to read and write.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn buffer(&self, pages: usize) -> Verdict<Granted> {
        Granted::new(self.device.dom, pages, false)
    }

    /// Reads a feature key of the backend's; 0 where the key is missing.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn feature(&mut self, key: &str) -> Verdict<u32> {
        Ok(self.device.read_back(key).await?.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }

    /// Writes a pattern of its own to each of `count` sectors from `sector` on, by ordinary requests.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a write fails.
    pub async fn fill(&mut self, sector: u64, count: u64, seed: u8) -> Verdict {
        let buffer = self.buffer(1)?;
        for at in (sector..sector + count).step_by(8) {
            let part = (sector + count - at).min(8);
            for n in 0..part {
                buffer.bytes().fill(n as usize * 512, 512, pattern(at + n, seed));
            }
            let request = transfer(BLKIF_OP_WRITE, at, &[segment(buffer.gref(0), 0, part as u8 - 1)]);
            self.ring().succeeds("a write", &request).await?;
        }
        Ok(())
    }

    /// Reads `count` sectors from `sector` on, by ordinary requests into fresh memory.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a read fails.
    pub async fn content(&mut self, sector: u64, count: u64) -> Verdict<Vec<u8>> {
        let buffer = self.buffer(1)?;
        let mut content = Vec::new();
        for at in (sector..sector + count).step_by(8) {
            let part = (sector + count - at).min(8);
            buffer.bytes().fill(0, PAGE_SIZE, 0x5a);
            let request = transfer(BLKIF_OP_READ, at, &[segment(buffer.gref(0), 0, part as u8 - 1)]);
            self.ring().succeeds("a read", &request).await?;
            let mut bytes = [0; PAGE_SIZE];
            buffer.bytes().read(0, &mut bytes);
            content.extend_from_slice(&bytes[..part as usize * 512]);
        }
        Ok(content)
    }

    /// Reads `count` sectors from `sector` on, checks that all bytes of a sector are equal, and returns one byte for
    /// each sector.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a read fails, or a sector is mixed.
    pub async fn look(&mut self, sector: u64, count: u64) -> Verdict<Vec<u8>> {
        let content = self.content(sector, count).await?;
        let mut seen = Vec::new();
        for (at, bytes) in (sector..).zip(content.chunks_exact(512)) {
            ensure!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {at} is mixed");
            seen.push(bytes[0]);
        }
        Ok(seen)
    }

    /// Checks that `count` sectors from `sector` on have the pattern of `seed`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a sector has other bytes.
    pub async fn holds(&mut self, what: &str, sector: u64, count: u64, seed: u8) -> Verdict {
        let wanted: Vec<u8> = (sector..sector + count).map(|at| pattern(at, seed)).collect();
        let seen = self.look(sector, count).await?;
        ensure!(seen == wanted, "{what}: sectors {sector}+{count} begin {seen:x?}, not {wanted:x?}");
        Ok(())
    }

    /// Closes both ends in order, and checks that the backend unmaps the rings.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend does not close, or keeps a ring mapped.
    pub async fn close(mut self) -> Verdict {
        self.device.close().await?;
        self.given_back().await
    }

    /// Waits until the backend has unmapped all rings.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend keeps a ring mapped.
    pub async fn given_back(&self) -> Verdict {
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while self.rings.iter().any(|ring| ring.in_use()) {
            ensure!(time::now_ns() < end, "the backend is closed, but keeps the ring mapped");
            time::sleep(1_000_000).await;
        }
        Ok(())
    }
}

/// Connects to every disk once, to learn the size of its sectors.
///
/// # Errors
/// [`Problem`]: a disk's backend does not connect.
pub async fn survey(env: &mut Env) -> Verdict {
    for n in 0..env.disks.len() {
        let path = env.disks[n].path.clone();
        let device = Front::prepare_path(env, &path).await?;
        let mut front = Front::connect_device(device, &Options::default()).await?;
        let size = front.device.number_back("sector-size").await?;
        front.close().await?;
        env.disks[n].sector_size = size;
    }
    Ok(())
}

/// The byte that fills `sector` by the pattern of `seed`: neighbours and seeds differ.
pub fn pattern(sector: u64, seed: u8) -> u8 {
    (sector as u8).wrapping_mul(7).wrapping_add(seed)
}

/// A segment of one request.
pub fn segment(gref: u32, first_sect: u8, last_sect: u8) -> BlkifRequestSegment {
    BlkifRequestSegment { gref, first_sect, last_sect, ..BlkifRequestSegment::default() }
}

/// A direct request with up to 11 segments, whose id is computed from its content.
pub fn transfer(operation: u8, sector: u64, segments: &[BlkifRequestSegment]) -> BlkifRequest {
    let mut request = BlkifRequest::new_zeroed();
    request.operation = operation;
    request.nr_segments = segments.len() as u8;
    request.id = sector ^ 0xc0_de00_0000_0000 ^ u64::from(operation) << 56;
    request.sector_number = sector;
    request.seg[..segments.len()].copy_from_slice(segments);
    request
}
