//! The block frontend against a hostile backend.

use std::sync::Arc;

use dom0::xenstore::Client;
use frontends::blkfront::Disk;
use frontends::xenbus::Xenstore;
use pvrt::event::Port;
use pvrt::executor::join_all;
use pvrt::executor::time::{sleep, timeout};
use pvrt::grant::{GrantMap, map_grants};
use pvrt::mem::Pages;
use ring_abi::io::blkif::{BlkifRequest, BlkifResponse, BlkifRing};
use ring_abi::ring::{REQ_PROD, RSP_PROD, RingProtocol, SLOTS};
use ring_abi::types::GrantRef;

use crate::devices::{self, GUEST, Paths};
use crate::input::Input;

const PATHS: Paths =
    Paths { back: "/local/domain/0/backend/vbd/5/51712", front: "/local/domain/5/device/vbd/51712" };

fn make_device(dom0: &Client, input: &Input) {
    let back = [
        ("sectors", "2048"),
        ("sector-size", "512"),
        ("info", "0"),
        ("feature-flush-cache", "1"),
        ("feature-discard", "1"),
        ("feature-max-indirect-segments", "32"),
    ];
    PATHS.make(dom0, input, &back, &[]);
}

/// The backend's side of the ring, without any engine that would keep it honest.
struct Liar {
    page: GrantMap,
    port: Port,
    /// Pages that it took and keeps.
    kept: Vec<GrantMap>,
    answered: u32,
}

impl Liar {
    /// Does one wrong or right thing.
    fn act(&mut self, input: &Input) {
        let page = self.page.bytes();
        let slot = |index: u32| SLOTS + index as usize % 32 * BlkifRing::SLOT_BYTES;
        match input.below(8) {
            // The next answer: to the request in its slot, or to whatever.
            0..=4 => {
                let request: BlkifRequest = page.read_value(slot(self.answered));
                let mut response =
                    BlkifResponse { id: request.id, operation: request.operation, ..Default::default() };
                match input.u8() {
                    0..=0xbf => {}
                    0xc0..=0xcf => response.id = u64::from(input.u8() % 40),
                    0xd0..=0xdf => response.id = input.u64(),
                    0xe0..=0xef => response.status = input.u16() as i16,
                    _ => response.operation = input.u8(),
                }
                let waits = page.load_u32(REQ_PROD) != self.answered;
                if waits || input.u8() == 0xff {
                    page.write_value(slot(self.answered), &response);
                    self.answered = self.answered.wrapping_add(1);
                    page.store_u32(RSP_PROD, self.answered);
                }
            }
            5 => page.store_u32(input.below(4) * 4, input.u32()),
            6 => page.write(slot(u32::from(input.u8())), &input.take(16)),
            _ => {
                let request: BlkifRequest = page.read_value(slot(u32::from(input.u8())));
                let gref = GrantRef::new(request.seg[0].gref);
                if let Ok(map) = map_grants(GUEST, &[gref], true) {
                    map.bytes().fill(0, 512, 0xee);
                    self.kept.push(map);
                }
            }
        }
        self.port.notify();
    }
}

async fn backend(dom0: &Client, input: &Input) {
    let Some(([page], port)) = PATHS.attach(dom0, 3, ["ring-ref"]).await else { return };
    let state = if input.u8() & 15 == 0 { input.text(2) } else { "4".into() };
    PATHS.set_state(dom0, &state);
    let mut liar = Liar { page, port, kept: Vec::new(), answered: 0 };
    while !input.is_empty() {
        liar.act(input);
        sleep(u64::from(input.u8() & 3) * 100).await;
    }
    PATHS.set_state(dom0, "6");
}

async fn frontend(guest: &Xenstore) {
    let Ok(Ok(disk)) = timeout(1_000_000, Disk::connect(guest, PATHS.front)).await else { return };
    let buffer = Arc::new(Pages::zeroed(24).expect("pages"));
    let transfers = (0..6u64).map(|index| {
        let (disk, buffer) = (&disk, &buffer);
        async move {
            let _ = match index {
                0 => disk.flush().await,
                1 => disk.discard(8, 16).await,
                2 | 3 => disk.write(index * 8, buffer, 100).await,
                _ => disk.read(index * 8, buffer, 150).await,
            };
        }
    });
    let answered = timeout(100_000, join_all(transfers)).await.is_ok();
    if answered {
        let _ = timeout(100_000, disk.close()).await;
    }
}

/// Nodes and answers of any kind: every request ends or can be given up, and once both ends are gone no grant is left.
pub(crate) fn run(data: &[u8]) {
    devices::meet(data, make_device, async |guest, _| frontend(guest).await, backend);
}
