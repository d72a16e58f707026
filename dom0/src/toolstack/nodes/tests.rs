use core::cell::Cell;

use pvrt::executor::block_on_test;

use super::*;
use crate::config::Config;
use crate::toolstack::devices::{Device, Kind};
use crate::xenstore::Quotas;

fn facts_of(config: &DomainConfig) -> Facts<'_> {
    let page = |n| (Mfn::new(n), Port::new(n as u32));
    let servers = &[DomId::DOM0];
    Facts { id: DomId::new(7), uuid: "u-u", config, servers, store: page(3), console: page(4) }
}

fn write(store: &Xenstore, facts: &Facts<'_>) -> Result<(), XsError> {
    block_on_test(super::write(store, facts, || true))
}

fn config() -> DomainConfig {
    let text = b"name='g'\nkernel='/boot/k'\nmemory=8\nvcpus=1\nmaxvcpus=2\ndisk=['phy:/dev/vdb,xvda,r']\n";
    DomainConfig::from_config(&Config::parse("g.cfg", text).unwrap()).unwrap().0
}

/// A command may find a domain whose end has removed the nodes already: nobody would remove what the command wrote then.
#[test]
fn nothing_is_written_for_a_domain_that_has_no_nodes_any_more() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let config = config();
    write(&store, &facts_of(&config)).unwrap();
    let id = DomId::new(7);
    let commands = || {
        [
            write_control(&store, id, "shutdown", "poweroff"),
            write_memory(&store, id, "target", 4096),
            block_on_test(write_vcpus(&store, id, 2, 1, || true)),
        ]
    };
    assert_eq!(commands(), [Ok(()); 3]);
    remove(&store, id, "u-u");
    let before = store.figures().nodes;
    assert_eq!(commands(), [Err(XsError::NoEnt); 3]);
    assert_eq!(rename(&store, id, "u-u", "other"), Ok(()));
    assert_eq!(store.figures().nodes, before);
}

#[test]
fn a_domain_finds_what_its_frontends_read() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let config = config();
    write(&store, &facts_of(&config)).unwrap();
    let client = store.client();
    for (path, value) in [
        ("/local/domain/7/name", "g"),
        ("/local/domain/7/domid", "7"),
        ("/local/domain/7/memory/target", "8192"),
        ("/local/domain/7/cpu/0/availability", "online"),
        ("/local/domain/7/cpu/1/availability", "offline"),
        ("/local/domain/7/store/port", "3"),
        ("/local/domain/7/console/ring-ref", "4"),
        ("/local/domain/7/device/vbd/51712/backend", "/local/domain/0/backend/vbd/7/51712"),
        ("/local/domain/7/device/vbd/51712/state", "1"),
        ("/local/domain/0/backend/vbd/7/51712/params", "/dev/vdb"),
        ("/local/domain/0/backend/vbd/7/51712/mode", "r"),
        ("/local/domain/0/backend/vbd/7/51712/state", "1"),
    ] {
        assert_eq!(client.read_str(path).as_deref(), Ok(value), "{path}");
    }
    let owner = |path: &str| client.perms(path).unwrap().owner();
    assert_eq!(owner("/local/domain/7/name"), 0);
    assert_eq!(owner("/local/domain/7/device/vbd/51712/state"), 7);
    assert_eq!(owner("/local/domain/7/control/shutdown"), 7);
    assert_eq!(owner("/local/domain/0/backend/vbd/7/51712/mode"), 0);
}

/// Nodes are written in pieces however many vCPUs and disks there are, and no node is written of a domain
/// that is ended meanwhile.
#[test]
fn others_run_while_nodes_are_written() {
    let disks =
        (b'a'..=b'p').fold(String::new(), |all, disk| all + &format!("'phy:/d,xvd{},w',", disk as char));
    let text = format!("name='g'\nkernel='/boot/k'\nmemory=8\nvcpus=128\ndisk=[{disks}]\n");
    let config = DomainConfig::from_config(&Config::parse("g.cfg", text.as_bytes()).unwrap()).unwrap().0;
    let servers = [DomId::DOM0; 16];
    let facts = Facts { servers: &servers, ..facts_of(&config) };
    for steps in [1, 5, usize::MAX] {
        let store = Xenstore::new(Quotas::XEN);
        write_own(&store);
        let (nodes, most, asked) = (Cell::new(store.figures().nodes), Cell::new(0), Cell::new(0));
        let wanted = || {
            let now = store.figures().nodes;
            most.set(most.get().max(now - nodes.replace(now)));
            asked.set(asked.get() + 1);
            asked.get() < steps
        };
        let written = block_on_test(super::write(&store, &facts, wanted));
        assert_eq!(written, if steps == usize::MAX { Ok(()) } else { Err(XsError::NoEnt) });
        // A disk is 26 nodes with those above, as its backend finds all of it at once.
        assert!(most.get() <= 26, "{} at a time", most.get());
        assert!(asked.get() == steps || asked.get() > 30, "{}", asked.get());
        if steps < usize::MAX {
            assert_eq!(store.figures().nodes, nodes.get(), "nothing more came");
        }
    }
}

#[test]
fn a_driver_domain_has_the_backend() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let config = config();
    let (driver, client) = (DomId::new(3), store.client());
    client.write("/local/domain/3", "").unwrap();
    let before = store.figures();
    write(&store, &Facts { servers: &[driver], ..facts_of(&config) }).unwrap();
    let (front, back) = ("/local/domain/7/device/vbd/51712", "/local/domain/3/backend/vbd/7/51712");
    let read = |path: &str| client.read_str(path).unwrap();
    assert_eq!(read(&format!("{front}/backend")), back);
    assert_eq!(read(&format!("{front}/backend-id")), "3");
    for path in [front, &format!("{front}/state")] {
        assert_eq!(client.perms(path), Ok(Perms::shared_with(7, 3)), "{path}");
    }
    for path in [back, &format!("{back}/state")] {
        assert_eq!(client.perms(path), Ok(Perms::shared_with(3, 7)), "{path}");
    }
    // The driver domain may write to this directory and to no other beside it.
    assert_eq!(client.perms("/local/domain/3/backend/vbd/7").unwrap().owner(), 0);
    let device = Device { kind: Kind::Disk, domain: DomId::new(7), devid: 51712 };
    assert_eq!(device.server(&store), driver);
    assert_eq!(disks(&store, DomId::new(7))[0].backend_id, 3);
    // A dead frontend's domain does not wait for a driver domain.
    assert!(backends(&store, DomId::new(7)).is_empty());
    remove(&store, DomId::new(7), "u-u");
    assert!(!client.exists("/local/domain/3/backend/vbd/7"));
    // The parent directories stay with the driver domain.
    block_on_test(store.settled());
    assert_eq!(store.figures().nodes, before.nodes + 2);
}

#[test]
fn a_domain_is_asked_through_its_nodes() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let config = config();
    write(&store, &facts_of(&config)).unwrap();
    let (id, client) = (DomId::new(7), store.client());
    write_control(&store, id, "sysrq", "c").unwrap();
    assert_eq!(client.read_str("/local/domain/7/control/sysrq").as_deref(), Ok("c"));
    // The domain's kernel removes the key when it has seen it.
    assert_eq!(client.perms("/local/domain/7/control/sysrq").unwrap().owner(), 7);
    assert_eq!(memory(&store, id), Ok((8192, 8192)));
    write_memory(&store, id, "static-max", 16384).unwrap();
    write_memory(&store, id, "target", 4096).unwrap();
    assert_eq!(memory(&store, id), Ok((4096, 16384)));
    assert_eq!(memory(&store, DomId::new(8)), Err(XsError::NoEnt));
    block_on_test(write_vcpus(&store, id, 2, 2, || true)).unwrap();
    assert_eq!(client.read_str("/local/domain/7/cpu/1/availability").as_deref(), Ok("online"));
    block_on_test(write_vcpus(&store, id, 2, 1, || true)).unwrap();
    assert_eq!(client.read_str("/local/domain/7/cpu/0/availability").as_deref(), Ok("online"));
    assert_eq!(client.read_str("/local/domain/7/cpu/1/availability").as_deref(), Ok("offline"));
    rename(&store, id, "u-u", "h").unwrap();
    assert_eq!(client.read_str("/local/domain/7/name").as_deref(), Ok("h"));
    assert_eq!(client.read_str("/vm/u-u/name").as_deref(), Ok("h"));
}

#[test]
fn one_that_is_kept_leaves_its_uuid_to_its_successor() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let before = store.figures();
    let config = config();
    write(&store, &facts_of(&config)).unwrap();
    move_away(&store, DomId::new(7), "u-u", "v-v", "g-1").unwrap();
    write(&store, &Facts { id: DomId::new(8), ..facts_of(&config) }).unwrap();
    remove(&store, DomId::new(7), "v-v");
    let client = store.client();
    assert_eq!(client.read_str("/vm/u-u/name").as_deref(), Ok("g"));
    assert_eq!(client.read_str("/local/domain/8/vm").as_deref(), Ok("/vm/u-u"));
    remove(&store, DomId::new(8), "u-u");
    block_on_test(store.settled());
    assert_eq!(store.figures().nodes, before.nodes);
}

#[test]
fn nothing_of_a_dead_domain_stays() {
    let store = Xenstore::new(Quotas::XEN);
    write_own(&store);
    let before = store.figures();
    let config = config();
    write(&store, &facts_of(&config)).unwrap();
    assert_eq!(backends(&store, DomId::new(7)), ["/local/domain/0/backend/vbd/7/51712"]);
    remove(&store, DomId::new(7), "u-u");
    block_on_test(store.settled());
    assert_eq!(store.figures().nodes, before.nodes);
    // A second removal is no error.
    remove(&store, DomId::new(7), "u-u");
}
