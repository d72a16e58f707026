//! The block path on the host, nothing in it a stand-in but hypercalls and disk: the frontend library speaks to
//! xenstored over a xenstore ring, and to the block backend over a block ring.

use std::sync::Arc;
use std::vec::Vec;

use backends::{BlockDevice, BlockOp, Client, DiscardLimits, Geometry, Segment, SubmitError};
use dom0::blkdev::{Disk, Disks};
use dom0::xenstore::{Nodes, Quotas, Xenstore, serve_rings};
use frontends::blkfront;
use pvrt::event::Port;
use pvrt::executor::{block_on_test, join_all, spawn, time};
use pvrt::mem::{Pages, map_foreign};
use ring_abi::types::{DomId, PAGE_SIZE};
use spin::Mutex;

const GUEST: u16 = 5;
const BACK: &str = "/local/domain/0/backend/vbd/5/51712";
const FRONT: &str = "/local/domain/5/device/vbd/51712";
const SECTORS: usize = 8192;

/// A disk in memory: operations end at a kick, in an order of its own.
struct RamDisk {
    bytes: Mutex<Vec<u8>>,
    waiting: Mutex<Vec<(Arc<Client>, u32)>>,
    flushes: Mutex<usize>,
}

impl RamDisk {
    fn new() -> Arc<Self> {
        let bytes = (0..SECTORS * 512).map(|at| (at / 512 * 7 + at) as u8).collect();
        Arc::new(Self { bytes: Mutex::new(bytes), waiting: Mutex::default(), flushes: Mutex::default() })
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: SECTORS as u64,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: false,
            flush: true,
            discard: Some(DiscardLimits { granularity: 1, alignment: 0, max_sectors: 64 }),
            seg_max: 30,
        }
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let mut waiting = self.waiting.lock();
        if waiting.len() == 16 {
            return Err(SubmitError::Full);
        }
        let mut disk = self.bytes.lock();
        let mut at = sector as usize * 512;
        for segment in segments {
            let page = map_foreign(DomId::SELF, &[segment.maddr.mfn()], true).expect("a frame");
            let end = at + segment.len as usize;
            match op {
                BlockOp::Read => page.bytes().write(segment.maddr.offset(), &disk[at..end]),
                _ => page.bytes().read(segment.maddr.offset(), &mut disk[at..end]),
            }
            at = end;
        }
        match op {
            BlockOp::Discard { sectors } => disk[at..at + sectors as usize * 512].fill(0),
            BlockOp::Flush => *self.flushes.lock() += 1,
            _ => {}
        }
        let place = tag as usize % (waiting.len() + 1);
        waiting.insert(place, (client.clone(), tag));
        Ok(())
    }

    fn kick(&self) {
        let mut clients: Vec<Arc<Client>> = Vec::new();
        for (client, tag) in self.waiting.lock().drain(..) {
            client.complete(tag, true);
            clients.push(client);
        }
        clients.iter().for_each(|client| client.room());
    }
}

/// dom0 with a disk; gives its store.
fn control_domain(disk: Arc<RamDisk>) -> Xenstore {
    let store = Xenstore::new(Quotas::XEN);
    let disks = Disks::new();
    disks.add(Disk { name: "vda".into(), id: None, device: disk });
    spawn(serve_rings(store.clone()));
    spawn(store.clone().settle());
    spawn(dom0::blkback::run(store.clone(), Arc::new(disks)));
    store
}

/// What a toolstack does for the guest's xenstore connection: page, port, introduction.
fn guest_store(store: &Xenstore) -> frontends::xenbus::Xenstore {
    let page = Pages::zeroed(1).expect("a page");
    let port = Port::alloc_unbound(DomId::DOM0).expect("a port");
    let client = store.client();
    client.introduce(GUEST, page.mfn(0).raw(), port.number().raw()).expect("introduced");
    // The page is the guest's for as long as the test runs.
    frontends::xenbus::Xenstore::connect(page.leak(), port).expect("a ring")
}

fn make_device(store: &Xenstore) {
    use dom0::xenstore::Perms;
    let client = store.client();
    client
        .atomically(|tx| {
            tx.mkdir(FRONT)?;
            tx.set_perms(FRONT, Perms::shared_with(GUEST, 0))?;
            tx.mkdir(BACK)?;
            tx.set_perms(BACK, Perms::shared_with(0, GUEST))?;
            for (name, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
                tx.write(&format!("{FRONT}/{name}"), value)?;
            }
            for (name, value) in
                [("frontend", FRONT), ("online", "1"), ("params", "/dev/vda"), ("mode", "w"), ("state", "1")]
            {
                tx.write(&format!("{BACK}/{name}"), value)?;
            }
            Ok(())
        })
        .expect("the device's nodes");
}

#[test]
fn frontend_and_backend_agree() {
    let ram = RamDisk::new();
    let store = control_domain(ram.clone());
    make_device(&store);
    let guest = guest_store(&store);
    block_on_test(async {
        for round in 0..2u8 {
            let disk = blkfront::Disk::connect(&guest, FRONT).await.expect("connected");
            let geometry = disk.geometry();
            assert_eq!((geometry.sectors, geometry.max_segments > 11), (SECTORS as u64, true));
            assert!(geometry.flush && geometry.discard && !geometry.read_only);

            // The whole disk, many requests side by side.
            let pieces: Vec<_> =
                (0..SECTORS / 256).map(|_| Arc::new(Pages::zeroed(32).expect("pages"))).collect();
            let reads = pieces.iter().enumerate().map(|(at, pages)| disk.read(at as u64 * 256, pages, 256));
            assert!(join_all(reads).await.iter().all(Result::is_ok));
            for (at, pages) in pieces.iter().enumerate() {
                let mut got = vec![0; 32 * PAGE_SIZE];
                pages.bytes().read(0, &mut got);
                assert_eq!(got, ram.bytes.lock()[at * 256 * 512..][..32 * PAGE_SIZE], "piece {at}");
            }

            // A write of an odd number of sectors, made durable and read back; then a discard.
            let out = Arc::new(Pages::zeroed(300).expect("pages"));
            out.bytes().fill(0, 300 * PAGE_SIZE, 0xa0 + round);
            disk.write(17, &out, 2399).await.expect("written");
            disk.flush().await.expect("flushed");
            assert_eq!(*ram.flushes.lock(), usize::from(round) + 1);
            assert!(ram.bytes.lock()[17 * 512..][..2399 * 512].iter().all(|byte| *byte == 0xa0 + round));
            assert_ne!(ram.bytes.lock()[(17 + 2399) * 512], 0xa0 + round);
            disk.discard(100, 200).await.expect("discarded");
            assert!(ram.bytes.lock()[100 * 512..][..200 * 512].iter().all(|byte| *byte == 0));

            disk.close().await.expect("closed");
            // As a kernel does that starts after a boot loader: the same nodes again.
            let client = store.client();
            time::sleep(10_000).await;
            assert_eq!(client.read_str(&format!("{BACK}/state")).as_deref(), Ok("6"));
            client.write(&format!("{FRONT}/state"), "1").expect("reset");
            time::sleep(10_000).await;
        }
        assert_eq!(pvrt::grant::usage().used, 0, "every grant came back");
    });
}

#[test]
fn a_range_beyond_the_disk_is_refused_by_both_ends() {
    let store = control_domain(RamDisk::new());
    make_device(&store);
    let guest = guest_store(&store);
    block_on_test(async {
        let disk = blkfront::Disk::connect(&guest, FRONT).await.expect("connected");
        let pages = Arc::new(Pages::zeroed(1).expect("a page"));
        assert!(disk.read(SECTORS as u64 - 8, &pages, 8).await.is_ok());
        assert!(disk.read(SECTORS as u64 - 7, &pages, 8).await.is_err());
        assert!(disk.read(u64::MAX, &pages, 8).await.is_err());
    });
}
