use alloc::sync::Arc;

use super::*;
use crate::blkdev::tests::Silent;
use crate::blkdev::{Disk, Disks};
use crate::bundle::Bundle;
use crate::config::{Action, Config, DomainConfig};
use crate::netback::Network;
use crate::shell::Terminal;
use crate::toolstack::{End, Fate};
use crate::xenstore::{Access, Client, Nodes, Perms, Quotas, Xenstore};
use pvrt::executor::{block_on_test, spawn, spawn_join, time};
use ring_abi::sched::SHUTDOWN_CRASH;
use spin::Mutex;

/// A toolstack with two disks and two domains: `one`, number 1, which has the first, and `two`.
pub(crate) fn start() -> (Toolstack, Client) {
    start_with(&[])
}

/// Does the same as [`start`], with these files.
pub(in crate::toolstack) fn start_with(files: &[(&'static str, &'static [u8])]) -> (Toolstack, Client) {
    let store = Xenstore::new(Quotas::XEN);
    let disks = Arc::new(Disks::new());
    for name in ["vda", "vdb"] {
        disks.add(Disk { name: name.into(), id: None, device: Arc::new(Silent) });
    }
    spawn(crate::blkback::run(store.clone(), disks.clone()));
    let network = Arc::new(Network::new());
    let toolstack = Toolstack::new(store.clone(), disks, network, Bundle::of(files), Terminal::new());
    for (id, name, disk) in [(1, "one", "'phy:/dev/vda,xvda,w'"), (2, "two", "")] {
        let text = format!("name='{name}'\nkernel='/boot/k'\nmemory=8\ndisk=[{disk}]\n");
        let config = Config::parse("t.cfg", text.as_bytes()).unwrap();
        store.client().write(&nodes::home(DomId::new(id)), "").unwrap();
        let id = DomId::new(id);
        let domain = Domain {
            id,
            name: name.into(),
            config: Arc::new(DomainConfig::from_config(&config).unwrap().0),
            uuid: [0; 16],
            started_ns: 0,
            fate: Arc::new(Mutex::new(Fate::default())),
            replaced: false,
            handled: false,
        };
        for disk in &domain.config.disks {
            nodes::write_device(&store, id, disk, DomId::DOM0).unwrap();
        }
        toolstack.0.domains.lock().insert(id, domain);
    }
    let client = store.client();
    (toolstack, client)
}

pub(in crate::toolstack) fn disk(text: &str) -> DiskConfig {
    DiskConfig::parse(text).unwrap()
}

fn numbers(toolstack: &Toolstack, name: &str) -> Vec<u32> {
    let domain = toolstack.find(name).unwrap();
    let attached: Vec<u32> = toolstack.attached_disks(&domain).iter().map(|disk| disk.devid).collect();
    let mut configured: Vec<u32> = domain.config.disks.iter().map(|disk| disk.devid).collect();
    configured.sort_unstable();
    assert_eq!(attached, configured, "the store and the configuration agree");
    attached
}

#[test]
fn a_disk_comes_and_goes() {
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [51712, 51728]);
        let state = client.read_str("/local/domain/0/backend/vbd/1/51728/state");
        assert_eq!(state.as_deref(), Ok("2"), "the backend waits for the frontend");
        // The frontend closes, as asked.
        client.write("/local/domain/1/device/vbd/51728/state", "6").unwrap();
        toolstack.detach_disk(&one, 51728, false).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [51712]);
        assert_eq!(
            toolstack.detach_disk(&one, 51728, false).await,
            Err(DeviceError::None(Kind::Disk, "51728".into()))
        );
        for path in ["/local/domain/0/backend/vbd/1/51728", "/local/domain/1/device/vbd/51728"] {
            assert!(!client.exists(path), "{path}");
        }
    });
}

#[test]
fn a_driver_domain_serves_what_dom0_has_not() {
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        let absent = Err(DeviceError::Attach(CreateError::NoServer("three".into())));
        assert_eq!(toolstack.attach_disk(&one, disk("phy:/d,xvdb,w,backend=three")).await, absent);
        // dom0 has a disk of that name, which another domain writes; the driver domain's is another.
        toolstack.attach_disk(&one, disk("phy:/dev/vda,xvdb,w,backend=two")).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [51712, 51728]);
        let backend = "/local/domain/2/backend/vbd/1/51728";
        assert_eq!(client.read_str(&format!("{backend}/state")).as_deref(), Ok("1"));
        client.write(&format!("{backend}/state"), "6").unwrap();
        toolstack.detach_disk(&one, 51728, false).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [51712]);
        assert!(!client.exists(backend));
    });
}

#[test]
fn a_driver_domain_gets_no_more_backends_than_it_may_have_nodes() {
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        client.write("/local/domain/2", "").unwrap();
        client.set_perms("/local/domain/2", Perms::owned_by(2, Access::None)).unwrap();
        let mut filled = 0;
        let text = |at: usize| format!("phy:/d,xvd{},w,backend=two", (b'b' + at as u8) as char);
        while filled < 2 * Quotas::XEN.nodes
            && let Ok(()) = toolstack.attach_disk(&one, disk(&text(0))).await
        {
            toolstack.detach_disk(&one, 51728, true).await.unwrap();
            (0..50).for_each(|at| client.write(&format!("/local/domain/2/{filled}-{at}"), "").unwrap());
            filled += 50;
        }
        assert!((900..=1000).contains(&filled), "{filled}");
        let full = Err(DeviceError::Attach(CreateError::ServerFull("two".into())));
        assert_eq!(toolstack.attach_disk(&one, disk(&text(0))).await, full);
        assert_eq!(numbers(&toolstack, "one"), [51712]);
        assert!(!client.exists("/local/domain/2/backend/vbd/1/51728"));
        // Disks of one configuration count together.
        client.rm("/local/domain/2/0-0").unwrap();
        (0..50).for_each(|at| client.rm(&format!("/local/domain/2/50-{at}")).unwrap());
        let servers = |disks: &[DiskConfig]| toolstack.servers(disks.iter().map(DeviceConfig::server));
        let disks: Vec<DiskConfig> = (0..8).map(|at| disk(&text(at))).collect();
        assert!(servers(&disks[..1]).is_ok());
        assert_eq!(servers(&disks), Err(CreateError::ServerFull("two".into())));
    });
}

/// A driver domain that writes any text to its backend's state and does nothing that the toolstack asks for.
#[test]
fn force_takes_a_disk_from_a_driver_domain_that_does_not_answer() {
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        toolstack.attach_disk(&one, disk("phy:/d,xvdb,w,backend=two")).await.unwrap();
        client.write("/local/domain/2/backend/vbd/1/51728/state", b"\xff\xfe").unwrap();
        let kept = Err(DeviceError::InUse(Kind::Disk, "xvdb".into()));
        assert_eq!(toolstack.detach_disk(&one, 51728, false).await, kept);
        client.write("/local/domain/2/backend/vbd/1/51728/state", b"\xff\xfe").unwrap();
        toolstack.detach_disk(&one, 51728, true).await.unwrap();
        assert_eq!(numbers(&toolstack, "one"), [51712]);
    });
}

/// A driver domain that removes its own nodes, or is gone.
#[test]
fn force_takes_a_disk_from_a_driver_domain_that_has_removed_its_end() {
    let directory = "/local/domain/2/backend/vbd/1/51728";
    for gone in [directory, &format!("{directory}/state"), "/local/domain/2"] {
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            toolstack.attach_disk(&one, disk("phy:/d,xvdb,w,backend=two")).await.unwrap();
            client.rm(gone).unwrap();
            assert_eq!(toolstack.detach_disk(&one, 51728, true).await, Ok(()), "{gone}");
            assert_eq!(numbers(&toolstack, "one"), [51712]);
            assert!(!client.exists("/local/domain/0/backend/vbd/1/51728"), "{gone}");
        });
    }
}

#[test]
fn no_other_domain_says_that_it_serves_a_disk() {
    let (toolstack, client) = start();
    block_on_test(async {
        let two = toolstack.find("two").unwrap();
        toolstack.attach_disk(&two, disk("phy:/d,xvdb,w,backend=one")).await.unwrap();
        let server = toolstack.find("one").unwrap().id;
        // In the homes of others, as if they served disks; and the domain's own word.
        client.write(&format!("/local/domain/9/backend/vbd/{}/51728/state", two.id), "6").unwrap();
        client.write(&format!("/local/domain/3/backend/vbd/{}/51744/state", two.id), "4").unwrap();
        let front = format!("/local/domain/{}/device/vbd/51728/backend", two.id);
        client.write(&front, "/local/domain/9/backend/vbd/2/51728").unwrap();
        let listed = toolstack.attached_disks(&two);
        let of = |disk: &AttachedDisk| (disk.devid, disk.backend_id);
        assert!(listed.iter().map(of).eq([(51728, u32::from(server.raw()))]), "{listed:?}");
        let device = disk("phy:/d,xvdb,w").device(two.id);
        assert_eq!(device.server(&toolstack.0.store), server);
    });
}

#[test]
fn one_writer_has_a_disk() {
    let (toolstack, _) = start();
    block_on_test(async {
        let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
        let in_use = |user: &str| {
            let target = "/dev/vda".to_string();
            Err(DeviceError::Attach(CreateError::DiskInUse(target, user.into())))
        };
        assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vda,xvdb,r")).await, in_use("one"));
        assert_eq!(toolstack.attach_disk(&two, disk("phy:/dev/vda,xvdb,r")).await, in_use("one"));
        let taken = Err(DeviceError::Taken(Kind::Disk, "xvda".into()));
        assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvda,w")).await, taken);
        let absent = Err(DeviceError::Attach(CreateError::NoDisk("/dev/vdc".into())));
        assert_eq!(toolstack.attach_disk(&two, disk("phy:/dev/vdc,xvda,w")).await, absent);
        // An attached disk is the domain's until it is detached.
        toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,w")).await.unwrap();
        let other = toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await;
        assert!(matches!(other, Err(DeviceError::Attach(CreateError::DiskInUse(..)))), "{other:?}");
        toolstack.detach_disk(&two, 51712, true).await.unwrap();
        toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await.unwrap();
        assert_eq!((numbers(&toolstack, "one").len(), numbers(&toolstack, "two").len()), (2, 0));
    });
}

#[test]
fn one_that_does_not_let_go_keeps_its_disk_unless_forced() {
    let (toolstack, client) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
        // A frontend that says it is connected, and stays so.
        client.write("/local/domain/1/device/vbd/51712/state", "4").unwrap();
        let kept = Err(DeviceError::InUse(Kind::Disk, "xvda".into()));
        assert_eq!(toolstack.detach_disk(&one, 51712, false).await, kept);
        assert_eq!(numbers(&toolstack, "one"), [51712]);
        toolstack.detach_disk(&one, 51712, true).await.unwrap();
        assert!(numbers(&toolstack, "one").is_empty());
    });
}

#[test]
fn one_that_does_not_let_go_keeps_nobody_else_waiting() {
    let (toolstack, client) = start();
    block_on_test(async {
        let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
        toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
        client.write("/local/domain/1/device/vbd/51712/state", "4").unwrap();
        let begun = time::now_ns();
        let (stubborn, domain) = (toolstack.clone(), one.clone());
        let waiting = spawn_join(async move { stubborn.detach_disk(&domain, 51712, false).await });
        time::sleep(1_000_000).await;
        toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,w")).await.unwrap();
        let other = toolstack.attach_disk(&two, disk("phy:/dev/vda,xvdb,w")).await;
        assert!(matches!(other, Err(DeviceError::Attach(CreateError::DiskInUse(..)))), "{other:?}");
        // The other caller forces, and both have what they wanted.
        toolstack.detach_disk(&one, 51712, true).await.unwrap();
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert!(time::now_ns() - begun < 1_000_000_000, "{} ns", time::now_ns() - begun);
        assert!(numbers(&toolstack, "one").is_empty());
    });
}

/// A backend that serves a dead domain may have writes under way, so the backend decides when the disk is
/// free.
#[test]
fn a_dead_domain_has_its_disk_until_its_backend_has_let_go() {
    let (toolstack, client) = start();
    block_on_test(async {
        let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
        toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
        one.fate.lock().over = true;
        let in_use = Err(DeviceError::Attach(CreateError::DiskInUse("/dev/vda".into(), "one".into())));
        assert_eq!(toolstack.attach_disk(&two, disk("phy:/dev/vda,xvda,w")).await, in_use);
        client.rm("/local/domain/1/device").unwrap();
        time::sleep(1_000_000).await;
        toolstack.attach_disk(&two, disk("phy:/dev/vda,xvda,w")).await.unwrap();
    });
}

#[test]
fn a_domain_that_is_kept_lets_go_of_its_disks_first() {
    for action in [Action::Preserve, Action::RenameRestart] {
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
            let mut config = (*one.config).clone();
            config.on_crash = action;
            let kept = Domain { config: Arc::new(config), ..one };
            toolstack.finish(kept.clone(), End::ShutDown(SHUTDOWN_CRASH)).await;
            assert!(kept.fate.lock().over, "{action:?}");
            let state = client.read_str("/local/domain/0/backend/vbd/1/51712/state");
            assert_eq!(state.as_deref(), Ok(nodes::CLOSED), "{action:?}");
            assert_eq!(toolstack.0.disks.users(), [], "{action:?}");
            let two = toolstack.find("two").unwrap();
            toolstack.attach_disk(&two, disk("phy:/dev/vda,xvda,w")).await.unwrap();
        });
    }
}

#[test]
fn a_domain_that_ends_gets_nothing() {
    let (toolstack, _) = start();
    block_on_test(async {
        let one = toolstack.find("one").unwrap();
        assert!(toolstack.claim(one.id));
        let dead = Err(DeviceError::Dead("one".into()));
        assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await, dead);
        assert_eq!(toolstack.detach_disk(&one, 51712, false).await, dead);
    });
}
