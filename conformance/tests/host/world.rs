//! What a case on the host runs in: a domain with a xenstore ring and disks, and dom0's services, in one thread.

use std::sync::Arc;

use conformance::Verdict;
use conformance::console::{Console, Watcher};
use conformance::env::{BackendDevice, Devices, FrontendPlace, Toolstack};
use conformance::store::Store;
use conformance::{Case, Env, Need, Outcome, run};
use dom0::blkdev::{Disk, Disks};
use dom0::consoled::Consoles;
use dom0::netback::Network;
use dom0::xenstore::{Access, Client, Nodes, Perms, Quotas, Xenstore, serve_rings};
use pvrt::event::Port;
use pvrt::executor::{block_on_test, spawn};
use pvrt::mem::{Pages, map_foreign};
use ring_abi::grant::{GNTTAB_RESERVED_CONSOLE, GTF_PERMIT_ACCESS};
use ring_abi::io::console::{IN, OUT};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn};
use spin::Mutex;

use crate::disk::RamDisk;
use crate::fronts::Ours;

/// The case's domain.
const GUEST: u16 = 5;
/// The domain whose frontends are tried.
const NEIGHBOUR: u16 = 6;
/// Sectors of each disk.
const SECTORS: usize = 2048;
/// The disks: number, name in dom0, mode.
const DISKS: [(u32, &str, &str); 3] = [(51712, "vda", "w"), (51728, "vdb", "r"), (51744, "vdc", "w")];
/// The needs that they meet.
const DISK_KINDS: [Need; 3] = [Need::Disk, Need::ReadOnlyDisk, Need::BigSectorDisk];
/// The one with large sectors.
const BIG: usize = 2;

/// The network interfaces, on one bridge.
const VIFS: u32 = 2;
/// The needs that they meet.
const VIF_KINDS: [Need; 2] = [Need::Vifs, Need::MendingVifs];

/// Where the console's indices begin: not far from their wrap.
const OUT_START: u32 = 5000u32.wrapping_neg();
const IN_START: u32 = 600u32.wrapping_neg();

/// Somebody attached to the case's console.
struct Attached {
    shown: Arc<Mutex<Vec<u8>>>,
    consoles: Consoles,
}

impl Watcher for Attached {
    fn shown(&self) -> Vec<u8> {
        std::mem::take(&mut self.shown.lock())
    }

    fn enter(&self, bytes: &[u8]) -> usize {
        // For a moment: the domain waits for each that is attached and does not read.
        self.consoles.attach(DomId::new(GUEST), false).map_or(0, |keyboard| keyboard.write(bytes))
    }
}

/// dom0's client, as the toolstack that a case may be.
struct Dom0(Mutex<Client>);

impl Toolstack for Dom0 {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.lock().read(path).ok()
    }

    fn write(&self, path: &str, value: &[u8]) {
        self.0.lock().write(path, value).expect("dom0 may write");
    }

    fn remove(&self, path: &str) {
        self.0.lock().rm(path).expect("dom0 may remove");
    }
}

/// dom0 with its disks; gives its store.
fn control_domain() -> Xenstore {
    let store = Xenstore::new(Quotas::XEN);
    let disks = Disks::new();
    for (_, name, _) in DISKS {
        let device = RamDisk::new(SECTORS, |geometry| {
            if name == DISKS[BIG].1 {
                geometry.sector_size = 4096;
                geometry.physical_sector_size = 4096;
            }
        });
        disks.add(Disk { name: name.into(), id: None, device });
    }
    spawn(serve_rings(store.clone()));
    spawn(store.clone().settle());
    spawn(dom0::blkback::run(store.clone(), Arc::new(disks)));
    spawn(dom0::netback::run(store.clone(), Arc::new(Network::new())));
    store
}

/// What a toolstack writes for a domain, with its disks or without, with its network interfaces or without.
fn make_domain(store: &Xenstore, with_disks: bool, with_vifs: bool) {
    let client = store.client();
    let home = format!("/local/domain/{GUEST}");
    let told = Perms::shared_with(0, GUEST);
    let own = Perms::owned_by(GUEST, Access::None);
    client
        .atomically(|tx| {
            tx.mkdir(&home)?;
            tx.set_perms(&home, told.clone())?;
            tx.write(&format!("{home}/domid"), GUEST.to_string())?;
            tx.write(&format!("{home}/name"), "conformance")?;
            for node in ["data", "device", "control", "drivers"] {
                let node = format!("{home}/{node}");
                tx.mkdir(&node)?;
                tx.set_perms(&node, if node.ends_with("data") { own.clone() } else { told.clone() })?;
            }
            Ok(())
        })
        .expect("the domain's nodes");
    for (number, name, mode) in DISKS.into_iter().filter(|_| with_disks) {
        make_disk(&client, number, name, mode);
    }
    (0..VIFS).filter(|_| with_vifs).for_each(|number| make_vif(&client, number));
}

/// A device's nodes: a directory for each end, and in each what the toolstack writes there.
fn make_device(
    client: &Client,
    class: &str,
    number: u32,
    front_nodes: &[(&str, &str)],
    back_nodes: &[(&str, &str)],
) {
    let front = format!("/local/domain/{GUEST}/device/{class}/{number}");
    let back = format!("/local/domain/0/backend/{class}/{GUEST}/{number}");
    let id = GUEST.to_string();
    let front_nodes = [&[("backend", &*back), ("backend-id", "0")], front_nodes, &[("state", "1")]].concat();
    let back_nodes =
        [&[("frontend", &*front), ("frontend-id", &*id), ("online", "1")], back_nodes, &[("state", "1")]]
            .concat();
    client
        .atomically(|tx| {
            tx.mkdir(&front)?;
            tx.set_perms(&front, Perms::shared_with(GUEST, 0))?;
            tx.mkdir(&back)?;
            tx.set_perms(&back, Perms::shared_with(0, GUEST))?;
            front_nodes.iter().try_for_each(|(key, value)| tx.write(&format!("{front}/{key}"), value))?;
            back_nodes.iter().try_for_each(|(key, value)| tx.write(&format!("{back}/{key}"), value))
        })
        .expect("the device's nodes");
}

fn make_disk(client: &Client, number: u32, name: &str, mode: &str) {
    let params = format!("/dev/{name}");
    make_device(client, "vbd", number, &[], &[("params", &params), ("mode", mode)]);
}

fn make_vif(client: &Client, number: u32) {
    let (handle, mac) = (number.to_string(), format!("00:16:3e:00:05:{number:02x}"));
    let common = [("handle", &*handle), ("mac", &*mac)];
    make_device(client, "vif", number, &common, &[&common[..], &[("bridge", "xenbr0")]].concat());
}

/// A domain's xenstore connection: page, port, introduction.
fn introduced(store: &Xenstore, domain: u16) -> (SharedBytes<'static>, Port) {
    let page = Pages::zeroed(1).expect("a page");
    let port = Port::alloc_unbound(DomId::DOM0).expect("a port");
    store.client().introduce(domain, page.mfn(0).raw(), port.number().raw()).expect("introduced");
    // The page is the domain's for as long as the case runs.
    (page.leak(), port)
}

/// The case's console, served by dom0's daemon, with somebody who looks at it.
fn console() -> Console {
    let page = Pages::zeroed(1).expect("a page");
    let mfn = page.mfn(0);
    // The page is the domain's for as long as the case runs.
    let bytes = page.leak();
    for (channel, start) in [(OUT, OUT_START), (IN, IN_START)] {
        bytes.store_u32(channel.cons, start);
        bytes.store_u32(channel.prod, start);
    }
    // The entry that a domain builder writes, in the stand-in's only table.
    let mut frames = [0];
    pvrt::hypercall::grant::setup_table(&mut frames).expect("a grant table");
    let table = map_foreign(DomId::SELF, &[Mfn::new(frames[0])], true).expect("a frame");
    let at = GNTTAB_RESERVED_CONSOLE as usize * 8;
    table.bytes().store_u32(at + 4, mfn.raw() as u32);
    table.bytes().store_u32(at, u32::from(GTF_PERMIT_ACCESS));
    let port = Arc::new(Port::alloc_unbound(DomId::DOM0).expect("a port"));
    let consoles = Consoles::new(Arc::new(str::len));
    let domain = DomId::new(GUEST);
    consoles.add(domain, "conformance", port.number()).expect("a console");
    let mut screen = consoles.attach(domain, false).expect("a console");
    let shown = Arc::new(Mutex::new(Vec::new()));
    let seen = shown.clone();
    spawn(async move {
        let mut buffer = [0; 512];
        loop {
            match screen.read(&mut buffer).await {
                0 => return,
                count => seen.lock().extend_from_slice(&buffer[..count]),
            }
        }
    });
    let ring = pvrt::console::Ring { page: bytes, mfn, port };
    Console { ring, watcher: Some(Arc::new(Attached { shown, consoles })) }
}

/// The device whose backend a case is: its nodes are made anew each time.
struct Device(Dom0);

impl Device {
    fn paths(class: &str, number: u32) -> BackendDevice {
        BackendDevice {
            front: format!("/local/domain/{NEIGHBOUR}/device/{class}/{number}"),
            back: format!("/local/domain/0/backend/conformance/{NEIGHBOUR}/{number}"),
        }
    }

    fn disk() -> BackendDevice {
        Self::paths("vbd", 51712)
    }

    fn vif() -> BackendDevice {
        Self::paths("vif", 0)
    }

    /// Writes what every device has, and `own` into the frontend's directory.
    fn make(&self, device: BackendDevice, own: &[(&str, &str)]) -> BackendDevice {
        let (front, back) = (&device.front, &device.back);
        let number = NEIGHBOUR.to_string();
        let backs = [("frontend", &**front), ("frontend-id", &*number), ("online", "1"), ("state", "1")];
        let fronts = [&[("backend", &**back), ("backend-id", "0")], own, &[("state", "1")]].concat();
        for (path, nodes) in [(back, &backs[..]), (front, &fronts[..])] {
            nodes.iter().for_each(|(key, value)| self.0.write(&format!("{path}/{key}"), value.as_bytes()));
        }
        device
    }
}

impl Devices for Device {
    fn fresh(&self) -> Verdict<BackendDevice> {
        Ok(self.make(Self::disk(), &[("virtual-device", "51712"), ("device-type", "disk")]))
    }

    fn fresh_vif(&self) -> Verdict<BackendDevice> {
        Ok(self.make(Self::vif(), &[("handle", "0"), ("mac", "00:16:3e:00:06:00")]))
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.read(path)
    }

    fn write(&self, path: &str, value: &[u8]) {
        self.0.write(path, value);
    }

    fn remove(&self, path: &str) {
        self.0.remove(path);
    }
}

/// The domain whose frontends a case may try: the directories of one device of
/// each kind.
fn frontends(store: &Xenstore) -> FrontendPlace {
    let client = store.client();
    for BackendDevice { front, back } in [Device::disk(), Device::vif()] {
        client
            .atomically(|tx| {
                tx.mkdir(&front)?;
                tx.set_perms(&front, Perms::shared_with(NEIGHBOUR, 0))?;
                tx.mkdir(&back)?;
                tx.set_perms(&back, Perms::shared_with(0, NEIGHBOUR))
            })
            .expect("the device's nodes");
    }
    let (page, port) = introduced(store, NEIGHBOUR);
    let connection = frontends::xenbus::Xenstore::connect(page, port).expect("a ring");
    let devices = Arc::new(Device(Dom0(Mutex::new(store.client()))));
    FrontendPlace { dom: NEIGHBOUR, devices, frontends: Arc::new(Ours(connection)), strict: true }
}

/// Makes a world and runs `case` in it. Most of the time goes into making worlds: one has what its case needs.
pub(crate) fn run(case: &Case) -> Outcome {
    if case.needs.contains(&Need::Hypervisor) {
        return Outcome::Skip(Need::Hypervisor.missing().into());
    }
    let with_disks = case.needs.iter().any(|need| DISK_KINDS.contains(need));
    let with_vifs = case.needs.iter().any(|need| VIF_KINDS.contains(need));
    let store = control_domain();
    make_domain(&store, with_disks, with_vifs);
    let (page, port) = introduced(&store, GUEST);
    let mut env = Env {
        store: Some(Store::connect(page, port).expect("a ring")),
        console: Some(console()),
        frontend_under_test: Some(frontends(&store)),
        toolstack: Some(Arc::new(Dom0(Mutex::new(store.client())))),
        vifs_mend: true,
        ..Env::default()
    };
    block_on_test(async {
        for found in [env.find_disks().await, env.find_vifs().await] {
            if let Err(problem) = found {
                return Outcome::Error(problem.to_string());
            }
        }
        if with_disks {
            env.disks[BIG].sector_size = 4096;
        }
        run::run_case(case, &mut env).await
    })
}
