//! Attacks on the block backend, through a ring that this guest fills itself.

use frontends::xenbus::{Device, Nodes, StoreError, Xenstore};
use pvrt::executor::{time, yield_now};
use pvrt::grant::Granted;
use pvrt::hypercall::sched;
use pvrt::mem::Pages;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::shared::SharedMemory;
use zerocopy::{FromZeros, IntoBytes};

use crate::block::{Ring, SLOTS};

type Result<T> = core::result::Result<T, StoreError>;

/// A disk, a ring to its backend, and a page to read into.
struct Front {
    device: Device,
    ring: Ring,
    buffer: Granted,
}

impl Front {
    async fn connect(store: &Xenstore) -> Result<Self> {
        let disks = Device::list(store, "vbd").await?;
        let device = Device::open(store, disks.first().ok_or(StoreError::Broken)?).await?;
        Self::reconnect(device).await
    }

    async fn reconnect(device: Device) -> Result<Self> {
        let ring = Ring::connect(&device).await?.ok_or(StoreError::Broken)?;
        let buffer = Pages::zeroed(1).map_err(|_| StoreError::Broken)?;
        let buffer = Granted::whole(buffer, device.backend_dom(), false).map_err(StoreError::Refused)?;
        Ok(Self { device, ring, buffer })
    }

    /// Closes the connection from this end, and begins anew.
    async fn again(self) -> Result<Self> {
        self.device.set_state(XenbusState::Closed).await?;
        self.device.wait_backend(|state| state == XenbusState::Closed).await?;
        self.device.set_state(XenbusState::Initialising).await?;
        Self::reconnect(self.device).await
    }

    /// A request for one page, `index` pages behind the disk's start.
    fn request(&self, operation: u8, index: u32) -> BlkifRequest {
        let mut request = BlkifRequest::new_zeroed();
        request.operation = operation;
        request.nr_segments = 1;
        request.sector_number = u64::from(index % 256) * 8;
        request.seg[0] = self.segment();
        request
    }

    fn segment(&self) -> BlkifRequestSegment {
        BlkifRequestSegment { gref: self.buffer.gref(0).raw(), last_sect: 7, ..FromZeros::new_zeroed() }
    }

    /// Keeps the ring full of requests that `request` makes, for ever.
    async fn fill(&mut self, request: impl Fn(&Self, u32) -> BlkifRequest) -> Result<()> {
        for index in 0.. {
            while self.ring.is_full() {
                sched::yield_cpu();
                yield_now().await;
            }
            let request = request(self, index);
            self.ring.publish(&request);
        }
        Ok(())
    }
}

/// Keeps the ring full of reads.
pub(super) async fn reads(store: Xenstore) -> Result<()> {
    Front::connect(&store).await?.fill(|front, index| front.request(BLKIF_OP_READ, index)).await
}

/// Keeps the ring full of indirect reads with the most segments.
pub(super) async fn indirect(store: Xenstore) -> Result<()> {
    let mut front = Front::connect(&store).await?;
    let segments: u16 = store.read_as(&front.device.back("feature-max-indirect-segments")).await?;
    let list = Pages::zeroed(1).map_err(|_| StoreError::Broken)?;
    let list = Granted::whole(list, front.device.backend_dom(), true).map_err(StoreError::Refused)?;
    for slot in 0..usize::from(segments) {
        list.shared().write(slot * size_of::<BlkifRequestSegment>(), front.segment().as_bytes());
    }
    let request = BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: BLKIF_OP_READ,
        nr_segments: segments,
        indirect_grefs: [list.gref(0).raw(); 8],
        ..FromZeros::new_zeroed()
    };
    front.fill(|_, _| BlkifRequest::from_indirect(&request)).await
}

/// Flushes, and writes that are barriers, in turn.
pub(super) async fn barriers(store: Xenstore) -> Result<()> {
    let mut front = Front::connect(&store).await?;
    front
        .fill(|front, index| match index % 2 {
            0 => front.request(BLKIF_OP_WRITE_BARRIER, index),
            _ => BlkifRequest { operation: BLKIF_OP_FLUSH_DISKCACHE, ..FromZeros::new_zeroed() },
        })
        .await
}

/// Writes random bytes to all slots, then impossible indices, and connects anew.
pub(super) async fn garbage(store: Xenstore) -> Result<()> {
    let mut front = Front::connect(&store).await?;
    let mut word = time::now_ns();
    loop {
        for _ in 0..SLOTS {
            let mut request = BlkifRequest::new_zeroed();
            for byte in request.as_mut_bytes() {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (word >> 56) as u8;
            }
            // Half of the requests have an operation that exists.
            request.operation &= 0x87;
            front.ring.publish(&request);
        }
        front.ring.overrun();
        front.device.wait_backend(|state| state >= XenbusState::Closing).await?;
        front = front.again().await?;
    }
}

/// Connects, and closes each connection at once.
pub(super) async fn reconnect(store: Xenstore) -> Result<()> {
    let mut front = Front::connect(&store).await?;
    loop {
        front = front.again().await?;
    }
}
