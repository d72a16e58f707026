//! The frontend against a backend in the same process: a real ring, real grants, a disk in memory.

use super::*;
use crate::xenbus::testing::TestStore;
use alloc::vec::Vec;
use pvrt::event::Port;
use pvrt::executor::{block_on_test, spawn, time, yield_now};
use pvrt::grant::{self, GrantMap, map_grants};
use ring_abi::ring::BackRing;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};
use spin::Mutex;

const FRONT: &str = "device/vbd/51712";
const BACK: &str = "/local/domain/0/backend/vbd/1/51712";
const GUEST: DomId = DomId::new(1);

/// How the backend misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    None,
    /// Answers with the id of a slot that has no request.
    FreeSlot,
    /// Answers with an id that no request ever had.
    UnknownId,
    /// Claims to have answered a thousand requests.
    Overrun,
    /// Answers nothing.
    Silent,
    /// Answers and keeps the pages.
    Keeper,
}

struct Backend {
    store: TestStore,
    disk: Mutex<Vec<u8>>,
    lie: Lie,
    seen: Mutex<Vec<u8>>,
    kept: Mutex<Vec<GrantMap>>,
}

impl Backend {
    fn start(store: &TestStore, sectors: usize, indirect: usize, lie: Lie) -> Arc<Self> {
        store.set(&alloc::format!("{FRONT}/backend"), BACK);
        store.set(&alloc::format!("{FRONT}/backend-id"), "0");
        store.set(&alloc::format!("{FRONT}/state"), "1");
        let disk = (0..sectors * 512).map(|i| (i / 512 * 7 + i) as u8).collect();
        let backend = Arc::new(Self {
            store: store.clone(),
            disk: Mutex::new(disk),
            lie,
            seen: Mutex::default(),
            kept: Mutex::default(),
        });
        backend.node("sectors", sectors);
        backend.node("sector-size", 512);
        backend.node("info", 0);
        backend.node("feature-flush-cache", 1);
        backend.node("feature-discard", 1);
        if indirect > 0 {
            backend.node("feature-max-indirect-segments", indirect);
        }
        backend.node("state", 2);
        spawn(backend.clone().run());
        backend
    }

    fn node(&self, name: &str, value: usize) {
        self.store.set(&alloc::format!("{BACK}/{name}"), &alloc::format!("{value}"));
    }

    fn front<T: core::str::FromStr>(&self, name: &str) -> Option<T> {
        self.store.get(&alloc::format!("{FRONT}/{name}"))?.parse().ok()
    }

    async fn run(self: Arc<Self>) {
        while self.front("state") != Some(3u32) {
            time::sleep(1000).await;
        }
        let gref: u32 = self.front("ring-ref").expect("written");
        let port: u32 = self.front("event-channel").expect("written");
        let page = map_grants(GUEST, &[GrantRef::new(gref)], true).expect("granted");
        let port = Port::bind_interdomain(GUEST, PortNumber::new(port)).expect("bound");
        let mut ring = BackRing::<BlkifRing, GrantMap>::attach(page).expect("a page is enough");
        self.node("state", 4);
        while self.front("state").is_none_or(|state: u32| state < 5) {
            while let Some(request) = ring.next_request().expect("a sane frontend") {
                if self.lie == Lie::Silent {
                    continue;
                }
                self.seen.lock().push(request.operation);
                let status = self.execute(&request);
                let mut response = BlkifResponse { id: request.id, status, ..BlkifResponse::default() };
                response.operation = request.operation;
                if self.lie == Lie::UnknownId {
                    response.id = u64::MAX;
                }
                if self.lie == Lie::FreeSlot {
                    response.id ^= 1;
                }
                ring.push_response(&response);
                // Answers come one by one, and the frontend sends further requests between them.
                if ring.publish_responses() {
                    port.notify();
                }
                if self.lie == Lie::Overrun {
                    ring_abi::shared::SharedMemory::shared(ring.page()).store_u32(8, 1000);
                    port.notify();
                }
                yield_now().await;
            }
            if !ring.arm_and_recheck().expect("a sane frontend") {
                pvrt::executor::select(port.wait(), time::sleep(1_000_000)).await;
            }
        }
        drop(ring);
        self.node("state", 6);
    }

    fn execute(&self, request: &BlkifRequest) -> i16 {
        match request.operation {
            BLKIF_OP_READ | BLKIF_OP_WRITE => {
                let segments = &request.seg[..usize::from(request.nr_segments)];
                self.transfer(request.operation, request.sector_number, segments)
            }
            BLKIF_OP_INDIRECT => {
                let request = request.as_indirect();
                let list =
                    map_grants(GUEST, &[GrantRef::new(request.indirect_grefs[0])], false).expect("granted");
                let segments: Vec<BlkifRequestSegment> =
                    (0..usize::from(request.nr_segments)).map(|i| list.page(0).read_value(i * 8)).collect();
                self.transfer(request.indirect_op, request.sector_number, &segments)
            }
            BLKIF_OP_FLUSH_DISKCACHE => BLKIF_RSP_OKAY,
            BLKIF_OP_DISCARD => {
                let request = request.as_discard();
                let (from, to) = (request.sector_number, request.sector_number + request.nr_sectors);
                self.disk.lock()[from as usize * 512..to as usize * 512].fill(0);
                BLKIF_RSP_OKAY
            }
            _ => BLKIF_RSP_EOPNOTSUPP,
        }
    }

    fn transfer(&self, operation: u8, first: u64, segments: &[BlkifRequestSegment]) -> i16 {
        let mut disk = self.disk.lock();
        let mut at = first as usize * 512;
        for segment in segments {
            let page = map_grants(GUEST, &[GrantRef::new(segment.gref)], operation == BLKIF_OP_READ);
            let Ok(page) = page else { return BLKIF_RSP_ERROR };
            let (from, to) =
                (usize::from(segment.first_sect) * 512, usize::from(segment.last_sect + 1) * 512);
            let Some(part) = disk.get_mut(at..at + to - from) else { return BLKIF_RSP_ERROR };
            if operation == BLKIF_OP_READ {
                page.page(0).write(from, part);
            } else {
                page.page(0).read(from, part);
            }
            if self.lie == Lie::Keeper {
                self.kept.lock().push(page);
            }
            at += to - from;
        }
        BLKIF_RSP_OKAY
    }
}

fn buffer(pages: usize) -> Arc<Pages> {
    Arc::new(Pages::zeroed(pages).expect("pages"))
}

fn bytes(buffer: &Pages, len: usize) -> Vec<u8> {
    let mut out = alloc::vec![0; len];
    buffer.bytes().read(0, &mut out);
    out
}

#[test]
fn reads_direct_and_indirect() {
    for (indirect, expected) in [(0, BLKIF_OP_READ), (256, BLKIF_OP_INDIRECT)] {
        let store = TestStore::new();
        let backend = Backend::start(&store, 2000, indirect, Lie::None);
        block_on_test(async {
            let client = store.connect();
            let disk = Disk::connect(&client, FRONT).await.expect("connected");
            assert_eq!(disk.geometry().sectors, 2000);
            assert_eq!(store.get(&alloc::format!("{FRONT}/state")).as_deref(), Some("4"));
            let whole = buffer(250);
            disk.read(0, &whole, 2000).await.expect("read");
            assert_eq!(bytes(&whole, 2000 * 512), *backend.disk.lock());
            assert!(backend.seen.lock().contains(&expected));
            let one = buffer(1);
            disk.read(1999, &one, 1).await.expect("read");
            assert_eq!(bytes(&one, 512), backend.disk.lock()[1999 * 512..]);
            let statistics = disk.statistics();
            assert_eq!(statistics.bytes, 2001 * 512);
            assert_eq!(statistics.requests as usize, backend.seen.lock().len());
            disk.close().await.expect("closed");
            assert_eq!(grant::usage().used, 0);
            assert_eq!(store.get(&alloc::format!("{FRONT}/state")).as_deref(), Some("6"));
        });
    }
}

#[test]
fn writes_flush_and_discard() {
    let store = TestStore::new();
    let backend = Backend::start(&store, 1000, 32, Lie::None);
    block_on_test(async {
        let client = store.connect();
        let disk = Disk::connect(&client, FRONT).await.expect("connected");
        let data = buffer(30);
        data.bytes().fill(0, data.len(), 0xa5);
        disk.write(100, &data, 237).await.expect("written");
        disk.flush().await.expect("flushed");
        assert!(backend.disk.lock()[100 * 512..337 * 512].iter().all(|byte| *byte == 0xa5));
        assert_ne!(backend.disk.lock()[337 * 512..338 * 512], [0xa5; 512]);
        disk.discard(100, 2).await.expect("discarded");
        assert!(backend.disk.lock()[100 * 512..102 * 512].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn more_requests_than_slots() {
    let store = TestStore::new();
    let backend = Backend::start(&store, 1000, 0, Lie::None);
    block_on_test(async {
        let client = store.connect();
        let disk = Disk::connect(&client, FRONT).await.expect("connected");
        let disk = &disk;
        let all = (0..200u64).map(|sector| async move {
            let page = buffer(1);
            disk.read(sector, &page, 1).await?;
            Ok::<_, BlockError>(bytes(&page, 512))
        });
        for (sector, got) in join_all(all).await.into_iter().enumerate() {
            assert_eq!(got.expect("read"), backend.disk.lock()[sector * 512..(sector + 1) * 512]);
        }
    });
}

#[test]
fn bad_ranges_never_reach_the_ring() {
    let store = TestStore::new();
    let backend = Backend::start(&store, 100, 0, Lie::None);
    block_on_test(async {
        let client = store.connect();
        let disk = Disk::connect(&client, FRONT).await.expect("connected");
        let page = buffer(1);
        for (first, sectors) in [(0, 0), (100, 1), (99, 2), (u64::MAX, 1), (u64::MAX, 8), (0, 9)] {
            assert_eq!(
                disk.read(first, &page, sectors).await,
                Err(BlockError::BadRange),
                "{first} {sectors}"
            );
        }
        assert_eq!(disk.discard(1, u64::MAX).await, Err(BlockError::BadRange));
        assert!(backend.seen.lock().is_empty());
    });
}

#[test]
fn a_dropped_request_keeps_its_buffer_until_answered() {
    let store = TestStore::new();
    let _backend = Backend::start(&store, 100, 0, Lie::None);
    block_on_test(async {
        let client = store.connect();
        let disk = Disk::connect(&client, FRONT).await.expect("connected");
        let page = buffer(1);
        {
            let mut read = core::pin::pin!(disk.read(0, &page, 8));
            core::future::poll_fn(|context| {
                assert!(read.as_mut().poll(context).is_pending());
                core::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(Arc::strong_count(&page), 2);
        time::sleep(10_000_000).await;
        assert_eq!(Arc::strong_count(&page), 1);
        disk.read(0, &page, 8).await.expect("the slot is free again");
    });
}

#[test]
fn lying_backends_are_disconnected() {
    for lie in [Lie::FreeSlot, Lie::UnknownId, Lie::Overrun] {
        let store = TestStore::new();
        let _backend = Backend::start(&store, 100, 0, lie);
        block_on_test(async {
            let client = store.connect();
            let disk = Disk::connect(&client, FRONT).await.expect("connected");
            let page = buffer(1);
            let mut result = Ok(());
            for _ in 0..3 {
                let read = time::timeout(1_000_000_000, disk.read(0, &page, 8)).await;
                result = read.expect("an answer, or the end");
                time::sleep(10_000_000).await;
            }
            assert_eq!(result, Err(BlockError::Disconnected));
            assert_eq!(Arc::strong_count(&page), 1);
        });
    }
}

/// A backend that still had the pages could change what was read after the frontend has checked the bytes.
#[test]
fn a_backend_that_keeps_pages_is_disconnected() {
    let store = TestStore::new();
    let backend = Backend::start(&store, 100, 0, Lie::Keeper);
    block_on_test(async {
        let client = store.connect();
        let disk = Disk::connect(&client, FRONT).await.expect("connected");
        let page = buffer(1);
        assert_eq!(disk.read(0, &page, 8).await, Err(BlockError::Disconnected));
        assert_eq!(backend.kept.lock().len(), 1);
        assert_eq!(Arc::strong_count(&page), 2, "not freed");
        assert_eq!(grant::usage().busy, 2, "that page and the ring");
        // Only when the backend lets go of the page is the page the reader's alone.
        backend.kept.lock().clear();
        assert_eq!(grant::usage().busy, 1);
        assert_eq!(Arc::strong_count(&page), 1);
    });
}

#[test]
fn shutting_with_requests_in_flight_fails_them() {
    let store = TestStore::new();
    let _backend = Backend::start(&store, 100, 0, Lie::Silent);
    block_on_test(async {
        let client = store.connect();
        let disk = Arc::new(Disk::connect(&client, FRONT).await.expect("connected"));
        let page = buffer(1);
        let (other, waiting) = (disk.clone(), page.clone());
        let read = pvrt::executor::spawn_join(async move { other.read(0, &waiting, 8).await });
        time::sleep(1_000_000).await;
        disk.queue.shut();
        assert_eq!(read.await, Ok(Err(BlockError::Disconnected)));
    });
}

#[test]
fn a_bad_sector_size_is_refused() {
    for size in [0, 1, 513, 8192] {
        let store = TestStore::new();
        let backend = Backend::start(&store, 100, 0, Lie::None);
        backend.node("sector-size", size);
        block_on_test(async {
            let client = store.connect();
            let refused = Disk::connect(&client, FRONT).await.err();
            assert!(
                matches!(refused, Some(BlockError::Store(StoreError::BadValue(_)))),
                "{size}: {refused:?}"
            );
        });
    }
}

/// The toolstack takes a disk away that its backend has not offered yet: nobody waits for an offer for ever.
#[test]
fn a_disk_that_goes_before_the_offer_ends_the_attempt() {
    block_on_test(async {
        let store = TestStore::new();
        for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
            store.set(&alloc::format!("{FRONT}/{node}"), value);
        }
        store.set(&alloc::format!("{BACK}/state"), "1");
        let client = store.connect();
        spawn(async move {
            time::sleep(1000).await;
            store.remove(BACK);
        });
        assert_eq!(Disk::connect(&client, FRONT).await.err(), Some(BlockError::Disconnected));
    });
}
