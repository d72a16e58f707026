//! The whole backend over the host stand-in: toolstack, frontend and disk in one program.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use backends::{BlockDevice, BlockOp, Client as Submitter, DiscardLimits, Geometry, Segment, SubmitError};
use pvrt::event::Port;
use pvrt::executor::{block_on_test, spawn, time};
use pvrt::grant::Granted;
use pvrt::mem::{Pages, map_foreign};
use ring_abi::io::blkif::{BLKIF_OP_INDIRECT, BLKIF_OP_READ, BLKIF_OP_WRITE, BlkifRequestSegment, BlkifRing};
use ring_abi::io::blkif::{BlkifRequest, BlkifRequestIndirect};
use ring_abi::ring::{FrontRing, REQ_PROD};
use ring_abi::types::{DomId, PAGE_SIZE};
use spin::Mutex;

use super::{MAX_VBDS, run};
use crate::blkdev::{Disk, Disks, User};
use crate::xenbus::RECONNECT_NS;
use crate::xenstore::{Client, Nodes, Quotas, Xenstore};

const BACK: &str = "/local/domain/0/backend/vbd/7/51712";
const FRONT: &str = "/local/domain/7/device/vbd/51712";

/// A disk of 1000 sectors in memory that answers each kick.
struct RamDisk {
    bytes: Mutex<Vec<u8>>,
    waiting: Mutex<Vec<(Arc<Submitter>, u32)>>,
    read_only: bool,
    /// The device answers nothing meanwhile.
    slow: AtomicBool,
}

impl RamDisk {
    fn new(read_only: bool) -> Arc<Self> {
        let bytes = (0..1000 * 512).map(|i: usize| (i / 512 + i) as u8).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            waiting: Mutex::default(),
            read_only,
            slow: AtomicBool::new(false),
        })
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        Geometry {
            sectors: 1000,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: self.read_only,
            flush: true,
            discard: Some(DiscardLimits { granularity: 1, alignment: 0, max_sectors: 64 }),
            seg_max: 8,
        }
    }
    fn submit(
        &self,
        client: &Arc<Submitter>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let mut disk = self.bytes.lock();
        let mut at = sector as usize * 512;
        for segment in segments {
            let page = map_foreign(DomId::SELF, &[segment.maddr.mfn()], true).unwrap();
            let end = at + segment.len as usize;
            match op {
                BlockOp::Read => page.bytes().write(segment.maddr.offset(), &disk[at..end]),
                _ => page.bytes().read(segment.maddr.offset(), &mut disk[at..end]),
            }
            at = end;
        }
        self.waiting.lock().push((client.clone(), tag));
        Ok(())
    }
    fn kick(&self) {
        if self.slow.load(Ordering::Relaxed) {
            return;
        }
        for (client, tag) in self.waiting.lock().drain(..) {
            client.complete(tag, true);
        }
    }
}

/// Does what the toolstack does for a vbd.
fn make_device(client: &Client, params: &str, mode: &str) {
    client
        .atomically(|tx| {
            for (name, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
                tx.write(&format!("{FRONT}/{name}"), value)?;
            }
            for (name, value) in
                [("frontend", FRONT), ("online", "1"), ("params", params), ("mode", mode), ("state", "1")]
            {
                tx.write(&format!("{BACK}/{name}"), value)?;
            }
            Ok(())
        })
        .unwrap();
}

fn start(disk: Arc<RamDisk>) -> (Xenstore, Client) {
    let (store, client, _) = start_with(disk);
    (store, client)
}

fn start_with(disk: Arc<RamDisk>) -> (Xenstore, Client, Arc<Disks>) {
    let store = Xenstore::new(Quotas::XEN);
    let disks = Arc::new(Disks::new());
    disks.add(Disk { name: "vda".into(), id: None, device: disk });
    spawn(run(store.clone(), disks.clone()));
    let client = store.client();
    (store, client, disks)
}

async fn back_state(client: &Client, state: &str) {
    for _ in 0..1000 {
        if client.read_str(&format!("{BACK}/state")).is_ok_and(|now| now == state) {
            return;
        }
        time::sleep(1_000_000).await;
    }
    panic!("backend stays in {:?}, not {state}", client.read_str(&format!("{BACK}/state")));
}

/// A frontend that has connected.
struct Frontend {
    ring: FrontRing<BlkifRing, Granted<Arc<Pages>>>,
    port: Port,
    pages: Arc<Pages>,
}

impl Frontend {
    async fn connect(client: &Client) -> Self {
        back_state(client, "2").await;
        let pages = Arc::new(Pages::zeroed(1).unwrap());
        let granted = Granted::whole(pages.clone(), DomId::DOM0, false).unwrap();
        let gref = granted.gref(0);
        let ring = FrontRing::new(granted).unwrap();
        let port = Port::alloc_unbound(DomId::DOM0).unwrap();
        let nodes = [
            ("ring-ref", gref.to_string()),
            ("event-channel", port.number().to_string()),
            ("protocol", "x86_64-abi".to_string()),
            ("state", "3".to_string()),
        ];
        for (name, value) in nodes {
            client.write(&format!("{FRONT}/{name}"), value).unwrap();
        }
        back_state(client, "4").await;
        client.write(&format!("{FRONT}/state"), "4").unwrap();
        Self { ring, port, pages }
    }

    async fn exchange(&mut self, request: &BlkifRequest) -> i16 {
        self.ring.push_request(request).unwrap();
        if self.ring.publish_requests() {
            self.port.notify();
        }
        loop {
            if let Some(response) = self.ring.next_response().unwrap() {
                assert_eq!(response.id, request.id);
                return response.status;
            }
            if !self.ring.arm_and_recheck().unwrap() {
                self.port.wait().await;
            }
        }
    }
}

fn whole_page(gref: u32) -> BlkifRequestSegment {
    BlkifRequestSegment { gref, first_sect: 0, last_sect: 7, ..Default::default() }
}

#[test]
fn a_device_from_creation_to_removal() {
    let disk = RamDisk::new(false);
    let (store, client) = start(disk.clone());
    block_on_test(async {
        for round in 0..3u8 {
            make_device(&client, "/dev/vda", "w");
            let mut front = Frontend::connect(&client).await;
            let read = |name: &str| client.read_str(&format!("{BACK}/{name}")).unwrap();
            assert_eq!((read("sectors").as_str(), read("sector-size").as_str()), ("1000", "512"));
            assert_eq!((read("info").as_str(), read("hotplug-status").as_str()), ("0", "connected"));
            assert_eq!(read("feature-max-indirect-segments"), "256");

            let lent = Granted::whole(Pages::zeroed(20).unwrap(), DomId::DOM0, false).unwrap();
            let data = lent.memory();
            let mut request =
                BlkifRequest { operation: BLKIF_OP_WRITE, nr_segments: 1, id: 1, ..Default::default() };
            request.seg[0] = whole_page(lent.gref(0).raw());
            data.page(0).fill(0, PAGE_SIZE, round + 1);
            assert_eq!(front.exchange(&request).await, 0);
            assert!(disk.bytes.lock()[..PAGE_SIZE].iter().all(|byte| *byte == round + 1));

            // Twenty pages by an indirect request.
            let list = Pages::zeroed(1).unwrap();
            let list = Granted::whole(list, DomId::DOM0, true).unwrap();
            for (index, gref) in lent.refs().enumerate() {
                let segment = whole_page(gref.raw());
                list.memory().bytes().write_value(index * 8, &segment);
            }
            let mut indirect = BlkifRequestIndirect {
                operation: BLKIF_OP_INDIRECT,
                indirect_op: BLKIF_OP_READ,
                nr_segments: 20,
                id: 2,
                ..Default::default()
            };
            indirect.indirect_grefs[0] = list.gref(0).raw();
            assert_eq!(front.exchange(&BlkifRequest::from_indirect(&indirect)).await, 0);
            let mut got = alloc::vec![0; 20 * PAGE_SIZE];
            data.bytes().read(0, &mut got);
            assert_eq!(got, disk.bytes.lock()[..20 * PAGE_SIZE]);
            assert!(lent.end().is_ok(), "nothing is used any more");

            // Close from the frontend, then the toolstack takes the device away.
            client.write(&format!("{FRONT}/state"), "5").unwrap();
            back_state(&client, "5").await;
            client.write(&format!("{FRONT}/state"), "6").unwrap();
            back_state(&client, "6").await;
            client.write(&format!("{BACK}/online"), "0").unwrap();
            time::sleep(10_000).await;
            client.rm(FRONT).unwrap();
            client.rm(BACK).unwrap();
            time::sleep(10_000).await;
            assert!(!client.exists(BACK), "nobody writes to what is gone");
        }
        assert_eq!(store.figures().watches, 1, "the backend's own alone is left");
    });
}

#[test]
fn a_dead_domain_and_a_reconnecting_one() {
    let (_, client) = start(RamDisk::new(false));
    block_on_test(async {
        make_device(&client, "vda", "r");
        for _ in 0..2 {
            let mut front = Frontend::connect(&client).await;
            let info = client.read_str(&format!("{BACK}/info")).unwrap();
            assert_eq!(info, "4", "read-only");
            let request =
                BlkifRequest { operation: BLKIF_OP_WRITE, nr_segments: 1, id: 9, ..Default::default() };
            assert_eq!(front.exchange(&request).await, -1);
            client.write(&format!("{FRONT}/state"), "6").unwrap();
            back_state(&client, "6").await;
            client.write(&format!("{FRONT}/state"), "1").unwrap();
        }
        let _front = Frontend::connect(&client).await;
        client.rm(FRONT).unwrap();
        back_state(&client, "6").await;
    });
}

/// A dead domain's write is under way until the device answers, and a write queued behind never begins. The domain has
/// the disk until then.
#[test]
fn a_disk_is_in_use_while_a_dead_domains_write_is_under_way() {
    let disk = RamDisk::new(false);
    let (_, client, disks) = start_with(disk.clone());
    block_on_test(async {
        make_device(&client, "/dev/vda", "w");
        let mut front = Frontend::connect(&client).await;
        let data = Granted::whole(Pages::zeroed(1).unwrap(), DomId::DOM0, false).unwrap();
        disk.slow.store(true, Ordering::Relaxed);
        let mut request =
            BlkifRequest { operation: BLKIF_OP_WRITE, nr_segments: 1, id: 1, ..Default::default() };
        request.seg[0] = whole_page(data.gref(0).raw());
        front.ring.push_request(&request).unwrap();
        let _ = front.ring.publish_requests();
        front.port.notify();
        time::sleep(1_000_000).await;
        assert_eq!(disk.waiting.lock().len(), 1);
        // The frontend queues a second write at the moment of the domain's death.
        front.ring.push_request(&request).unwrap();
        let _ = front.ring.publish_requests();
        client.rm(FRONT).unwrap();
        time::sleep(1_000_000).await;
        let user = User { disk: "vda".into(), domain: DomId::new(7), device: 51712, writable: true };
        assert_eq!(disks.users(), [user]);
        assert_eq!(client.read_str(&format!("{BACK}/state")).as_deref(), Ok("4"));
        disk.slow.store(false, Ordering::Relaxed);
        disk.kick();
        back_state(&client, "6").await;
        assert_eq!(disks.users(), []);
        time::sleep(1_000_000).await;
        assert_eq!(disk.waiting.lock().len(), 0, "what was queued behind never began");
    });
}

#[test]
fn one_that_comes_and_goes_in_a_loop_is_slowed_down() {
    let (_, client) = start(RamDisk::new(false));
    block_on_test(async {
        make_device(&client, "/dev/vda", "w");
        let begun = time::now_ns();
        for round in 0..11 {
            drop(Frontend::connect(&client).await);
            if round == 0 {
                assert!(time::now_ns() - begun < RECONNECT_NS, "the first waits for nothing");
            }
            client.write(&format!("{FRONT}/state"), "6").unwrap();
            back_state(&client, "6").await;
            client.write(&format!("{FRONT}/state"), "1").unwrap();
        }
        assert!(time::now_ns() - begun >= 10 * RECONNECT_NS);
    });
}

#[test]
fn a_domain_has_so_many_disks_and_no_more() {
    let (_, client, disks) = start_with(RamDisk::new(false));
    block_on_test(async {
        let user = |device| User { disk: "vda".into(), domain: DomId::new(7), device, writable: false };
        let others: Vec<_> =
            (0..MAX_VBDS as u32).map(|device| disks.open(user(device), Arc::default())).collect();
        make_device(&client, "/dev/vda", "r");
        back_state(&client, "6").await;
        let why = client.read_str(&format!("{BACK}/hotplug-error")).unwrap();
        assert_eq!(why, "/dev/vda: a domain has 16 disks at most");
        drop(others);
        assert_eq!(disks.users(), []);
    });
}

#[test]
fn discards_are_offered_unless_the_configuration_forbids_them() {
    let (_, client) = start(RamDisk::new(false));
    block_on_test(async {
        for (enabled, offered) in [(None, "1"), (Some("1"), "1"), (Some("0"), "0")] {
            make_device(&client, "/dev/vda", "w");
            if let Some(enabled) = enabled {
                client.write(&format!("{BACK}/discard-enable"), enabled).unwrap();
            }
            back_state(&client, "2").await;
            assert_eq!(client.read_str(&format!("{BACK}/feature-discard")).as_deref(), Ok(offered));
            client.rm(BACK).unwrap();
            client.rm(FRONT).unwrap();
            time::sleep(10_000).await;
        }
    });
}

#[test]
fn a_disk_that_is_taken_away_closes_when_its_frontend_has() {
    let (store, client) = start(RamDisk::new(false));
    block_on_test(async {
        make_device(&client, "/dev/vda", "w");
        let mut front = Frontend::connect(&client).await;
        client.write(&format!("{BACK}/online"), "0").unwrap();
        client.write(&format!("{BACK}/state"), "5").unwrap();
        time::sleep(10_000).await;
        // The backend serves the frontend until the frontend closes.
        let page = Pages::zeroed(1).unwrap();
        let page = Granted::whole(page, DomId::DOM0, false).unwrap();
        let mut request =
            BlkifRequest { operation: BLKIF_OP_READ, nr_segments: 1, id: 1, ..Default::default() };
        request.seg[0] = whole_page(page.gref(0).raw());
        assert_eq!(front.exchange(&request).await, 0);
        client.write(&format!("{FRONT}/state"), "6").unwrap();
        back_state(&client, "6").await;
        assert_eq!(store.figures().watches, 1, "the backend's own alone is left");
    });
}

#[test]
fn a_ring_overrun_closes_the_device() {
    let (_, client) = start(RamDisk::new(false));
    block_on_test(async {
        make_device(&client, "/dev/vda", "w");
        let front = Frontend::connect(&client).await;
        front.pages.bytes().store_u32(REQ_PROD, 33);
        front.port.notify();
        back_state(&client, "5").await;
        let error = client.read_str(&format!("{BACK}/error")).unwrap();
        assert!(error.contains("ring overrun"), "{error}");
    });
}

#[test]
fn refusals_name_the_disk() {
    let (_, client) = start(RamDisk::new(true));
    block_on_test(async {
        for (params, mode, part) in [
            ("/dev/vdb", "r", "/dev/vdb: no such disk (there are /dev/vda)"),
            ("/dev/vda", "w", "is read-only"),
        ] {
            make_device(&client, params, mode);
            back_state(&client, "6").await;
            let error = client.read_str(&format!("{BACK}/hotplug-error")).unwrap();
            assert!(error.contains(part), "{error}");
            client.rm(BACK).unwrap();
            client.rm(FRONT).unwrap();
            time::sleep(10_000).await;
        }
        // Bad parameters of the frontend's.
        make_device(&client, "/dev/vda", "r");
        back_state(&client, "2").await;
        client.write(&format!("{FRONT}/ring-ref"), "9999").unwrap();
        client.write(&format!("{FRONT}/event-channel"), "77").unwrap();
        client.write(&format!("{FRONT}/state"), "3").unwrap();
        back_state(&client, "5").await;
    });
}
