//! Whichever allocation for a domain is the first over its budget, the domain ends, and no other domain is
//! affected.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use alloc::sync::Arc;

use pvrt::account::{self, Figures};
use pvrt::event::Port;
use pvrt::executor::{block_on_test, live_tasks, spawn};
use pvrt::grant::Granted;
use pvrt::host::{charged_allocations, overdraw_at, set_memory};
use pvrt::mem::{Pages, map_foreign};
use ring_abi::grant::GTF_PERMIT_ACCESS;
use ring_abi::io::xs_wire::{self, XsdSockmsg};
use ring_abi::io::{blkif::BlkifRing, console};
use ring_abi::ring::FrontRing;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn};
use zerocopy::{FromBytes, IntoBytes};

use pvrt::executor::settle;

use super::*;
use crate::toolstack::disks::tests::start;
use crate::toolstack::nodes;
use crate::xenstore::{Access, Client, Nodes, Perms, serve_rings};

/// How long a domain waits for an answer before it takes itself for cut off.
const PATIENCE_MS: u32 = 2_000;

/// A domain's end of its rings.
struct Guest<'a> {
    id: DomId,
    store: ByteRing<SharedBytes<'a>>,
    port: Port,
}

impl<'a> Guest<'a> {
    /// A domain that has been introduced, with an account. `page` is for its ring of the store.
    fn introduce(client: &Client, id: u16, page: &'a Pages) -> (Self, Account) {
        let id = DomId::new(id);
        let account = Account::claim(DOMAIN_BYTES + DISK_BYTES).unwrap();
        account.assign(id);
        let home = nodes::home(id);
        client.write(&home, "").unwrap();
        client.set_perms(&home, Perms::owned_by(id.raw(), Access::None)).unwrap();
        let port = Port::alloc_unbound(DomId::DOM0).unwrap();
        client.introduce(id.raw(), page.mfn(0).raw(), port.number().raw()).unwrap();
        let store = xs_wire::client(page.bytes()).unwrap();
        (Self { id, store, port }, account)
    }

    /// Sends a request and returns the answer; `None`: the store no longer answers.
    async fn ask(&mut self, kind: u32, tx_id: u32, payload: &[u8]) -> Option<(u32, Vec<u8>)> {
        let header = XsdSockmsg { r#type: kind, req_id: 1, tx_id, len: payload.len() as u32 };
        let message = [header.as_bytes(), payload].concat();
        let mut sent = 0;
        for _ in 0..PATIENCE_MS {
            sent += self.store.write(&message[sent..]).ok()?;
            self.port.notify();
            if sent == message.len() {
                break;
            }
            time::sleep(1_000_000).await;
        }
        loop {
            let header = XsdSockmsg::read_from_bytes(&self.take(16).await?).unwrap();
            let body = self.take(header.len as usize).await?;
            if header.r#type != xs_wire::XS_WATCH_EVENT {
                return Some((header.r#type, body));
            }
        }
    }

    async fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut got = vec![0; count];
        let mut at = 0;
        for _ in 0..PATIENCE_MS {
            at += self.store.read(&mut got[at..]).ok()?;
            if at == count {
                return Some(got);
            }
            self.port.notify();
            time::sleep(1_000_000).await;
        }
        None
    }

    /// Makes dom0 keep as much in the store as a domain can.
    async fn storm(&mut self) -> Option<()> {
        self.ask(xs_wire::XS_WATCH, 0, b"data\0token\0").await?;
        for index in 0..6 {
            self.ask(xs_wire::XS_WRITE, 0, format!("data/{index}\0{index:0>200}").as_bytes()).await?;
        }
        let (_, id) = self.ask(xs_wire::XS_TRANSACTION_START, 0, b"\0").await?;
        let id = core::str::from_utf8(&id[..id.len() - 1]).unwrap().parse().unwrap();
        self.ask(xs_wire::XS_WRITE, id, b"data/t\0value").await?;
        self.ask(xs_wire::XS_DIRECTORY, id, b"data\0").await?;
        self.ask(xs_wire::XS_TRANSACTION_END, id, b"T\0").await?;
        self.ask(xs_wire::XS_RM, 0, b"data/1\0").await.map(drop)
    }

    /// Whether the store answers the domain.
    async fn is_served(&mut self) -> bool {
        let written = self.ask(xs_wire::XS_WRITE, 0, b"alive\0yes").await;
        let read = self.ask(xs_wire::XS_READ, 0, b"alive\0").await;
        self.ask(xs_wire::XS_RM, 0, b"alive\0").await;
        written == Some((xs_wire::XS_WRITE, b"OK\0".to_vec()))
            && read == Some((xs_wire::XS_READ, b"yes".to_vec()))
    }

    /// Opens the domain's console, and writes to it.
    async fn print(&self, toolstack: &Toolstack) {
        let page = Pages::zeroed(1).unwrap();
        // The entry that a domain builder would write, in the stand-in's own table.
        let mut frames = [0];
        pvrt::hypercall::grant::setup_table(&mut frames).unwrap();
        let table = map_foreign(DomId::SELF, &[Mfn::new(frames[0])], true).unwrap();
        table.bytes().store_u32(4, page.mfn(0).raw() as u32);
        table.bytes().store_u32(0, u32::from(GTF_PERMIT_ACCESS));
        let port = Port::alloc_unbound(DomId::DOM0).unwrap();
        if toolstack.consoles().add(self.id, "one", port.number()).is_err() {
            return;
        }
        let mut ring = console::frontend(page.bytes()).unwrap();
        for _ in 0..20 {
            let _ = ring.write(b"a line of output of a domain\n");
            port.notify();
            time::sleep(1_000_000).await;
        }
        // The console must unmap the page before the page is freed.
        toolstack.consoles().remove(self.id);
        settle().await;
    }

    /// Connects the domain's disk, as far as the backend allows.
    async fn connect_disk(&self, client: &Client) {
        let front = format!("{}/device/vbd/51712", nodes::home(self.id));
        let back = format!("/local/domain/0/backend/vbd/{}/51712", self.id);
        let state = |path: &str| client.read_str(&format!("{path}/state")).unwrap_or_default();
        let page = Arc::new(Pages::zeroed(1).unwrap());
        let _ring: FrontRing<BlkifRing, SharedBytes<'_>> = FrontRing::new(page.bytes()).unwrap();
        let granted = Granted::whole(page.clone(), DomId::DOM0, false).unwrap();
        let port = Port::alloc_unbound(DomId::DOM0).unwrap();
        for _ in 0..50 {
            if state(&back) == "2" {
                break;
            }
            time::sleep(1_000_000).await;
        }
        for (name, value) in [
            ("ring-ref", format!("{}", granted.gref(0).raw())),
            ("event-channel", format!("{}", port.number())),
            ("protocol", "x86_64-abi".into()),
            ("state", "3".into()),
        ] {
            let _ = client.write(&format!("{front}/{name}"), value);
        }
        time::sleep(50_000_000).await;
        let _ = client.write(&format!("{front}/state"), "6");
        for _ in 0..100 {
            if !matches!(state(&back).as_str(), "3" | "4" | "5") {
                break;
            }
            time::sleep(10_000_000).await;
        }
    }
}

/// What must be the same before and after a domain.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    tasks: u64,
    watches: usize,
    connections: usize,
    consoles: usize,
    accounts: Vec<Figures>,
}

fn figures(toolstack: &Toolstack) -> Left {
    let store = toolstack.0.store.figures();
    let mut accounts = account::all();
    accounts.iter_mut().for_each(|figures| figures.peak = 0);
    Left {
        tasks: live_tasks(),
        watches: store.watches,
        connections: store.connections,
        consoles: toolstack.consoles().count(),
        accounts,
    }
}

/// Runs a domain beside a neighbour, in a kernel of its own. The domain's allocation number `nth` goes over the
/// budget, or none if 0. Returns the number of allocations that were charged.
fn life(nth: u64) -> u64 {
    let run = move || {
        let (toolstack, client) = start();
        let store = client.store().clone();
        let pages = [Pages::zeroed(1).unwrap(), Pages::zeroed(1).unwrap()];
        block_on_test(async {
            spawn(serve_rings(store.clone()));
            spawn(toolstack.clone().watch_budgets());
            // The first domain's disk comes with the second life below.
            client.rm("/local/domain/0/backend/vbd/1").unwrap();
            let one = toolstack.find("one").unwrap();
            time::sleep(1_000_000).await;
            let (mut neighbour, _account) = Guest::introduce(&client, 2, &pages[1]);
            assert!(neighbour.is_served().await);
            let before = figures(&toolstack);

            let first = charged_allocations();
            if nth > 0 {
                overdraw_at(first + nth);
            }
            let (mut guest, account) = Guest::introduce(&client, 1, &pages[0]);
            for disk in &one.config.disks {
                nodes::write_device(&store, one.id, disk, DomId::DOM0).unwrap();
            }
            guest.storm().await;
            guest.print(&toolstack).await;
            guest.connect_disk(&client).await;
            let (charged, failed) = (charged_allocations() - first, account.is_overdrawn());
            overdraw_at(0);
            if nth == 0 {
                assert!(guest.is_served().await && !failed);
            } else {
                assert!(failed, "allocation {nth} did not go over the budget");
                assert!(neighbour.is_served().await, "the neighbour, after allocation {nth}");
            }
            if let Some(domain) = toolstack.domain(one.id) {
                toolstack.destroy(&domain).await.unwrap();
            }
            drop(account);
            time::sleep(12_000_000_000).await;

            assert!(toolstack.domain(one.id).is_none(), "allocation {nth}");
            assert!(
                neighbour.is_served().await,
                "the neighbour, after the end of the domain, allocation {nth}"
            );
            client.write("/tool/x", "dom0 works").unwrap();
            client.rm("/tool/x").unwrap();
            assert_eq!(figures(&toolstack), before, "allocation {nth}");
            charged
        })
    };
    std::thread::spawn(run).join().unwrap_or_else(|_| panic!("allocation {nth}"))
}

#[test]
fn each_allocation_too_many_ends_its_domain_alone() {
    let charged = life(0);
    assert!(charged > 100, "only {charged} allocations were charged");
    for nth in 1..=charged {
        life(nth);
    }
}

/// A task that outlives its domain goes over the budget when another domain already has the number.
#[test]
fn an_account_that_is_over_ends_no_domain_of_the_same_number() {
    let (toolstack, client) = start();
    block_on_test(async {
        spawn(serve_rings(client.store().clone()));
        let one = toolstack.find("one").unwrap();
        let [former, present] = [(); 2].map(|()| Account::claim(DOMAIN_BYTES).unwrap());
        former.assign(one.id);
        present.assign(one.id);
        toolstack.stop(former);
        time::sleep(CLOSE_NS).await;
        assert!(toolstack.domain(one.id).is_some());
        toolstack.stop(present);
        time::sleep(CLOSE_NS).await;
        assert!(toolstack.domain(one.id).is_none(), "its own account ends it");
    });
}

#[test]
fn a_claim_that_dom0_cannot_keep_is_refused_with_what_is_missing() {
    let config = |disks: &str| {
        let text = format!("name='x'\nkernel='/boot/k'\nmemory=8\ndisk=[{disks}]\n");
        let config = crate::config::Config::parse("t.cfg", text.as_bytes()).unwrap();
        DomainConfig::from_config(&config).unwrap().0
    };
    let reserve = pvrt::account::RESERVE_BYTES;
    set_memory(reserve + 2 * DOMAIN_BYTES + DISK_BYTES - 1024);
    let first = claim(&config("'phy:/dev/vda,xvda,w'")).unwrap();
    let error = claim(&config("")).unwrap_err();
    assert_eq!(error, Shortage { wanted: DOMAIN_BYTES, missing: 1024 });
    assert_eq!(format!("{error}"), "dom0 needs 1536 KiB for it and lacks 1 KiB of them");
    // The next claim can use what the first gives back.
    drop(first);
    claim(&config("")).unwrap();
}
