//! A block frontend with no will of its own: every word on the ring and in xenstore is the case's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, PAGE_SIZE};
use zerocopy::{FromZeros, IntoBytes};

use crate::device::Device;
use crate::shared::Granted;
use crate::{Env, Need, Problem, Verdict};

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

/// One ring with its event channel.
pub struct Ring {
    memory: Granted,
    port: Port,
    /// Slots of the ring.
    pub slots: u32,
    /// Next request's index.
    pub produced: u32,
    /// Next response's index.
    pub consumed: u32,
}

impl Ring {
    /// An empty ring of `pages` pages for `dom`, its indices at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory, grant or port is left.
    pub fn new(dom: DomId, pages: usize, index: u32) -> Verdict<Self> {
        let memory = Granted::new(dom, pages, false)?;
        let port = open_port(dom)?;
        let fit = (pages * PAGE_SIZE - SLOTS) / SLOT_BYTES;
        let bytes = memory.bytes();
        let next = index.wrapping_add(1);
        for (offset, value) in [(REQ_PROD, index), (RSP_PROD, index), (REQ_EVENT, next), (RSP_EVENT, next)] {
            bytes.store_u32(offset, value);
        }
        Ok(Self { memory, port, slots: 1 << fit.ilog2(), produced: index, consumed: index })
    }

    /// Opens another port for `dom`.
    ///
    /// # Errors
    /// [`Problem::Error`]: none is left.
    pub fn open_port(&mut self, dom: DomId) -> Verdict {
        self.port = open_port(dom)?;
        Ok(())
    }

    /// The ring's memory.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.memory.bytes()
    }

    /// The grant of ring page `page`.
    pub fn gref(&self, page: usize) -> u32 {
        self.memory.gref(page)
    }

    /// The event channel's number.
    pub fn port_number(&self) -> u32 {
        self.port.number().raw()
    }

    /// Whether the backend has the ring mapped.
    pub fn in_use(&self) -> bool {
        self.memory.in_use()
    }

    fn slot(&self, index: u32) -> usize {
        SLOTS + (index & (self.slots - 1)) as usize * SLOT_BYTES
    }

    /// Writes a request into the next slot, unseen as yet.
    pub fn push(&mut self, request: &BlkifRequest) {
        self.bytes().write(self.slot(self.produced), request.as_bytes());
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the backend all requests written, and notifies it.
    pub fn publish(&self) {
        self.bytes().store_u32(REQ_PROD, self.produced);
        self.port.notify();
    }

    /// Notifies the backend.
    pub fn notify(&self) {
        self.port.notify();
    }

    /// Forgets the events that have come.
    pub fn drain_events(&self) {
        while self.port.take_event() {}
    }

    /// Waits for an event, at most `ms`; whether one came.
    pub async fn event(&self, ms: u64) -> bool {
        time::timeout(ms * 1_000_000, self.port.wait()).await.is_ok()
    }

    /// Responses that wait.
    pub fn waiting(&self) -> u32 {
        self.bytes().load_u32(RSP_PROD).wrapping_sub(self.consumed)
    }

    fn take(&mut self) -> BlkifResponse {
        let response = self.bytes().read_value(self.slot(self.consumed));
        self.consumed = self.consumed.wrapping_add(1);
        response
    }

    /// The next response. The wait is for the event that `rsp_event` asks for, so that a lost one is noticed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none within [`PATIENCE_MS`], more than there are requests, or no event with it.
    pub async fn response(&mut self) -> Verdict<BlkifResponse> {
        let asked = self.produced.wrapping_sub(self.consumed);
        if self.waiting() == 0 {
            self.bytes().store_u32(RSP_EVENT, self.consumed.wrapping_add(1));
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            let end = time::now_ns() + PATIENCE_MS * 1_000_000;
            while self.waiting() == 0 {
                let left = end.saturating_sub(time::now_ns()) / 1_000_000;
                if left == 0 || !self.event(left).await {
                    ensure!(self.waiting() == 0, "there is a response, but no event though rsp_event asked");
                    return Err(Problem::Fail(format!("no response within {PATIENCE_MS} ms")));
                }
            }
        }
        let waiting = self.waiting();
        ensure!(waiting <= asked, "{waiting} responses to {asked} requests");
        Ok(self.take())
    }

    /// Whether no response comes within `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one does.
    pub async fn silent(&mut self, ms: u64) -> Verdict {
        time::sleep(ms * 1_000_000).await;
        ensure_eq!(self.waiting(), 0, "responses that nobody asked for");
        Ok(())
    }

    /// Asks, with nothing else in flight, and gives the response to this very request.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no response, or another id in it.
    pub async fn ask(&mut self, request: &BlkifRequest) -> Verdict<BlkifResponse> {
        self.push(request);
        self.publish();
        let response = self.response().await?;
        ensure_eq!(response.id, request.id, "the response's id");
        Ok(response)
    }

    /// Asks, and gives the status.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn status(&mut self, request: &BlkifRequest) -> Verdict<i16> {
        Ok(self.ask(request).await?.status)
    }

    /// Asks for what must succeed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: it does not.
    pub async fn succeeds(&mut self, what: &str, request: &BlkifRequest) -> Verdict {
        let status = self.status(request).await?;
        ensure_eq!(status, BLKIF_RSP_OKAY, "status of {what}");
        Ok(())
    }

    /// Asks for what must be refused, with any status but success.
    ///
    /// # Errors
    /// [`Problem::Fail`]: it is not.
    pub async fn refused(&mut self, what: &str, request: &BlkifRequest) -> Verdict<i16> {
        let status = self.status(request).await?;
        ensure!(status < 0, "status of {what}: {status}, is to be an error");
        Ok(status)
    }
}

fn open_port(dom: DomId) -> Verdict<Port> {
    Port::alloc_unbound(dom).map_err(|errno| Problem::Error(format!("alloc_unbound: {errno}")))
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
    /// [`Problem`]: there is no such disk, or its backend does not follow.
    pub async fn prepare(env: &'a mut Env, disk: Need) -> Verdict<Device<'a>> {
        let path = env.disk(disk).map(|disk| disk.path.clone());
        let path = path.ok_or_else(|| Problem::Skip(disk.missing().into()))?;
        Self::prepare_path(env, &path).await
    }

    /// As [`prepare`](Self::prepare), for the device whose frontend's directory is `path`.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
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
    /// As [`connect`](Self::connect).
    pub async fn usual(env: &'a mut Env) -> Verdict<Self> {
        Self::connect(env, &Options::default()).await
    }

    /// Connects a prepared device.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
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
    /// [`Problem::Error`]: nothing is left, or xenstore refuses.
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

    /// A feature of the backend's: its number, 0 where the key is missing.
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

    /// The bytes of `count` sectors from `sector` on, by ordinary requests into fresh memory.
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

    /// The first byte of each of `count` sectors from `sector` on that cases have written, each of which must have one
    /// value throughout.
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

    /// Looks whether `count` sectors from `sector` on have the pattern of `seed`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one has not.
    pub async fn holds(&mut self, what: &str, sector: u64, count: u64, seed: u8) -> Verdict {
        let wanted: Vec<u8> = (sector..sector + count).map(|at| pattern(at, seed)).collect();
        let seen = self.look(sector, count).await?;
        ensure!(seen == wanted, "{what}: sectors {sector}+{count} begin {seen:x?}, not {wanted:x?}");
        Ok(())
    }

    /// Closes both ends in order, and looks that the backend gives the rings back.
    ///
    /// # Errors
    /// [`Problem::Fail`]: it does not.
    pub async fn close(mut self) -> Verdict {
        self.device.close().await?;
        self.given_back().await
    }

    /// Waits until no ring is mapped any more.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one stays so.
    pub async fn given_back(&self) -> Verdict {
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while self.rings.iter().any(Ring::in_use) {
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

/// A direct request with up to 11 segments, its id made of its content.
pub fn transfer(operation: u8, sector: u64, segments: &[BlkifRequestSegment]) -> BlkifRequest {
    let mut request = BlkifRequest::new_zeroed();
    request.operation = operation;
    request.nr_segments = segments.len() as u8;
    request.id = sector ^ 0xc0_de00_0000_0000 ^ u64::from(operation) << 56;
    request.sector_number = sector;
    request.seg[..segments.len()].copy_from_slice(segments);
    request
}
