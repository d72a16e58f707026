//! The negotiation: the frontend offers, and the backend answers.

use alloc::string::ToString;
use alloc::sync::Arc;
use pvrt::event::Port;
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::io::blkif::{BLKIF_MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE, VDISK_READONLY};
use ring_abi::io::protocols::XEN_IO_PROTO_ABI_X86_64;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::ring::FrontRing;

use super::queue::Queue;
use super::{BlockError, Geometry, MAX_SEGMENTS};
use crate::xenbus::{Device, Nodes, StoreError};

/// Connects: `Initialised` with the ring, then, once the backend is `Connected`, the geometry.
pub(super) async fn connect(device: &Device) -> Result<(Arc<Queue>, Geometry), BlockError> {
    if !device.offered().await? {
        return Err(BlockError::Disconnected);
    }
    let dom = device.backend_dom();
    let page = Pages::zeroed(1).map_err(|_| BlockError::Resources(Errno::ENOMEM))?;
    let page = Granted::whole(page, dom, false).map_err(BlockError::Resources)?;
    let port = Port::alloc_unbound(dom).map_err(BlockError::Resources)?;
    let (gref, number) = (page.gref(0), port.number());
    let ring = FrontRing::new(page).map_err(|_| BlockError::Disconnected)?;
    // From here on the queue owns the ring and the port, and gives both back however this function ends.
    let queue = Queue::new(dom, ring, port);
    let negotiated = negotiate(device, &queue, gref.to_string(), number.to_string()).await;
    if negotiated.is_err() {
        queue.shut();
    }
    Ok((queue, negotiated?))
}

async fn negotiate(
    device: &Device,
    queue: &Arc<Queue>,
    gref: alloc::string::String,
    port: alloc::string::String,
) -> Result<Geometry, BlockError> {
    loop {
        let transaction = device.store().begin().await?;
        transaction.write(&device.front("ring-ref"), &gref).await?;
        transaction.write(&device.front("event-channel"), &port).await?;
        transaction.write(&device.front("protocol"), XEN_IO_PROTO_ABI_X86_64).await?;
        transaction.write(&device.front("feature-persistent"), "0").await?;
        transaction.write(&device.front("state"), XenbusState::Initialised.to_string()).await?;
        if transaction.commit().await? {
            break;
        }
    }
    if !device.connected().await? {
        return Err(BlockError::Disconnected);
    }
    let geometry = geometry(device).await?;
    queue.start();
    device.set_state(XenbusState::Connected).await?;
    let (ended, ending) = (queue.clone(), queue.clone());
    // Requests without an answer get none any more when the backend ends.
    device.follow(async move { ended.ended().await }, move || ending.shut()).await?;
    Ok(geometry)
}

/// Reads and checks what the backend says of the disk.
async fn geometry(device: &Device) -> Result<Geometry, BlockError> {
    let store = device.store();
    let bad = |node: &str| BlockError::Store(StoreError::BadValue(device.back(node)));
    let sectors: u64 = store.read_as(&device.back("sectors")).await?;
    let sector_size: u32 = store.read_or(&device.back("sector-size"), SECTOR_SIZE as u32).await?;
    if !sector_size.is_power_of_two() || !(SECTOR_SIZE as u32..=4096).contains(&sector_size) {
        return Err(bad("sector-size"));
    }
    let info: u32 = store.read_or(&device.back("info"), 0).await?;
    let flush: u32 = store.read_or(&device.back("feature-flush-cache"), 0).await?;
    let discard: u32 = store.read_or(&device.back("feature-discard"), 0).await?;
    let indirect: usize = store.read_or(&device.back("feature-max-indirect-segments"), 0).await?;
    let max_segments = if indirect > BLKIF_MAX_SEGMENTS_PER_REQUEST {
        indirect.min(MAX_SEGMENTS)
    } else {
        BLKIF_MAX_SEGMENTS_PER_REQUEST
    };
    Ok(Geometry {
        sectors,
        sector_size,
        read_only: info & VDISK_READONLY != 0,
        flush: flush != 0,
        discard: discard != 0,
        max_segments,
    })
}
