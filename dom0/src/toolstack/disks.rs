//! Disks of domains: whose they are, and how they come to a domain that runs and leave it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use pvrt::executor::time;
use ring_abi::types::DomId;

use super::create::CreateError;
use super::{Domain, Toolstack, budget, nodes};
use crate::config::DiskConfig;
use crate::xenstore::{Client, Nodes, Quotas, XsError};

/// How long a backend may take to find its device.
const BACKEND_NS: u64 = 10_000_000_000;
/// Nodes of a backend, with what a driver domain adds of its own; and what they take in the store.
const BACKEND_NODES: usize = 24;
const BACKEND_BYTES: usize = 12 << 10;
/// How long a domain may take to let go of a disk.
const DETACH_NS: u64 = 10_000_000_000;

/// Why a disk was not attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The domain has a disk of that number: its name.
    Taken(String),
    /// The domain has no such disk: its name.
    None(String),
    /// The domain is dead.
    Dead(String),
    /// The domain goes on using the disk: its name.
    InUse(String),
    /// It could not be attached, as at a domain's creation.
    Attach(CreateError),
    /// The store refused.
    Store(XsError),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(vdev) => write!(f, "{vdev}: the domain has a disk there"),
            Self::None(vdev) => write!(f, "{vdev}: the domain has no such disk"),
            Self::Dead(name) => write!(f, "{name}: the domain is over"),
            Self::InUse(vdev) => {
                write!(f, "{vdev}: the domain does not let go of it; --force takes it away")
            }
            Self::Attach(error) => write!(f, "{error}"),
            Self::Store(error) => write!(f, "xenstore: {}", error.name()),
        }
    }
}

/// A disk of a domain, as both ends describe it in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedDisk {
    /// The device's number.
    pub devid: u32,
    /// The domain of its backend.
    pub backend_id: u32,
    /// The domain of its frontend.
    pub frontend_id: u32,
    /// The frontend's xenbus state.
    pub state: u32,
    /// The frontend's event channel, if it has one yet.
    pub port: Option<u32>,
    /// The grant of the ring's first page, if there is one yet.
    pub ring: Option<u32>,
    /// The backend's directory.
    pub backend: String,
}

impl Toolstack {
    /// Each of `disks`, for the domain called `name`, is there, and nobody writes to one that another uses: neither
    /// another domain nor, under a second name, this one. A domain that is over keeps its disks from nobody, once its
    /// backends have let go of them: what it asked for may be under way until then.
    pub(super) fn check_disks(&self, name: &str, disks: &[DiskConfig]) -> Result<(), CreateError> {
        // What a driver domain has is its own affair.
        let own = |disk: &&DiskConfig| disk.backend_domain.is_none();
        let find = |disk: &DiskConfig| self.0.disks.find(&disk.target).map(|found| found.name);
        let mut used: Vec<(String, bool, String)> = Vec::new();
        let domains = self.domains().into_iter().filter(|domain| !domain.replaced);
        for domain in domains.filter(|domain| !domain.fate.lock().over) {
            let disks = domain.config.disks.iter().filter(own);
            let found = disks.filter_map(|disk| Some((find(disk)?, disk.writable)));
            used.extend(found.map(|(disk, written)| (disk, written, domain.name.clone())));
        }
        self.claimed_disks(|disk, name| {
            let found = Some(disk).filter(own).and_then(find);
            used.extend(found.map(|found| (found, disk.writable, name.to_string())));
        });
        let open = self.0.disks.users().into_iter();
        used.extend(open.map(|user| (user.disk, user.writable, self.user_name(user.domain))));
        for disk in disks.iter().filter(own).filter(|disk| !disk.target.is_empty()) {
            let found = find(disk).ok_or_else(|| CreateError::NoDisk(disk.target.clone()))?;
            let clash =
                used.iter().find(|(other, written, _)| *other == found && (*written || disk.writable));
            if let Some((_, _, user)) = clash {
                return Err(CreateError::DiskInUse(disk.target.clone(), user.clone()));
            }
            used.push((found, disk.writable, name.to_string()));
        }
        Ok(())
    }

    /// What the domain that has a disk open is called, if only by its number: its name may be gone.
    fn user_name(&self, id: DomId) -> String {
        self.domain(id).map_or_else(|| format!("domain {id}"), |domain| domain.name)
    }

    /// The domains that are to serve these disks. A backend's nodes count as its driver domain's: with more than it may have,
    /// a driver domain could write none of its own, and would be over its budget at last.
    pub(super) fn servers(&self, disks: &[DiskConfig]) -> Result<Vec<DomId>, CreateError> {
        let mut servers = Vec::new();
        let mut figures = None;
        for disk in disks {
            let Some(name) = &disk.backend_domain else {
                servers.push(DomId::DOM0);
                continue;
            };
            let domain = self.find(name).ok().filter(|domain| !domain.fate.lock().over);
            let id = domain.ok_or_else(|| CreateError::NoServer(name.clone()))?.id;
            servers.push(id);
            let backends = servers.iter().filter(|server| **server == id).count();
            let figures = figures.get_or_insert_with(|| self.0.store.figures());
            let has = figures.domains.iter().find(|domain| domain.domid == id.raw());
            let (nodes, bytes) = has.map_or((0, 0), |has| (has.nodes, has.bytes));
            let most = Quotas::XEN;
            if nodes + backends * BACKEND_NODES > most.nodes
                || bytes + backends * BACKEND_BYTES > most.memory_bytes
            {
                return Err(CreateError::ServerFull(name.clone()));
            }
        }
        Ok(servers)
    }

    /// Waits until a new disk's backend has found what is behind it. A driver domain is not waited for: it may take
    /// as long as it likes, and so may the frontend.
    pub(super) async fn backend_ready(
        &self,
        id: DomId,
        disk: &DiskConfig,
        server: DomId,
    ) -> Result<(), CreateError> {
        if server != DomId::DOM0 {
            return Ok(());
        }
        let client = self.0.store.client();
        let device = format!("{} ({})", disk.target, disk.vdev);
        let backend = nodes::backend(server, id, disk.devid);
        let begun = |client: &Client| {
            Ok(!nodes::is_state(client.read(&format!("{backend}/state"))?, nodes::INITIALISING))
        };
        match time::timeout(BACKEND_NS, nodes::until(&client, &format!("{backend}/state"), begun)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(CreateError::Store("waiting for a backend", error)),
            Err(_) => return Err(CreateError::Device(device, "its backend does not answer".into())),
        }
        match client.read_str(&format!("{backend}/hotplug-error")) {
            Ok(why) => Err(CreateError::Device(device, why)),
            Err(_) => Ok(()),
        }
    }

    /// Gives a domain another disk. It keeps it when it starts again.
    ///
    /// # Errors
    /// See [`DiskError`]; nothing of the disk is left.
    pub async fn attach_disk(&self, domain: &Domain, disk: DiskConfig) -> Result<(), DiskError> {
        // All that is checked is claimed before the first wait.
        let domain = self.alive(domain)?;
        let _claim = self.claim_disk(&domain, &disk)?;
        let server = self.servers(core::slice::from_ref(&disk)).map_err(DiskError::Attach)?[0];
        let raised =
            budget::raise(domain.id).map_err(|shortage| DiskError::Attach(CreateError::Budget(shortage)))?;
        nodes::write_disk(&self.0.store, domain.id, &disk, server).map_err(DiskError::Store)?;
        if let Err(error) = self.backend_ready(domain.id, &disk, server).await {
            nodes::remove_disk(&self.0.store, domain.id, disk.devid);
            return Err(DiskError::Attach(error));
        }
        if let Err(dead) = self.alive(&domain) {
            nodes::remove_disk(&self.0.store, domain.id, disk.devid);
            return Err(dead);
        }
        self.set_disks(domain.id, |disks| disks.push(disk));
        raised.keep();
        Ok(())
    }

    /// Takes a disk from a domain: asks it to let go, or, if `force`, does not. It is gone from its configuration too.
    ///
    /// Nothing is kept from others while the domain is waited for: until then the disk is that domain's, and counts as
    /// such. Who no longer waits drops the future; the domain stays asked. While one waits, another may force.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub async fn detach_disk(&self, domain: &Domain, devid: u32, force: bool) -> Result<(), DiskError> {
        let domain = self.alive(domain)?;
        let disk = domain.config.disks.iter().find(|disk| disk.devid == devid);
        let vdev = disk.ok_or_else(|| DiskError::None(devid.to_string()))?.vdev.clone();
        let server = nodes::server(&self.0.store, domain.id, devid);
        let backend = nodes::backend(server, domain.id, devid);
        let client = self.0.store.client();
        nodes::ask_for_disk(&self.0.store, domain.id, devid, force).map_err(DiskError::Store)?;
        let closed =
            |client: &Client| Ok(nodes::is_state(client.read(&format!("{backend}/state"))?, nodes::CLOSED));
        match time::timeout(DETACH_NS, nodes::until(&client, &format!("{backend}/state"), closed)).await {
            // A backend that found no disk, or whose domain went, is closed too.
            Ok(Ok(()) | Err(XsError::NoEnt)) => {}
            Ok(Err(error)) => return Err(DiskError::Store(error)),
            // What a driver domain does with its own is its affair; dom0's backend may have requests under way.
            Err(_) if force && server != DomId::DOM0 => {}
            Err(_) => return Err(DiskError::InUse(vdev)),
        }
        // From here to the end nobody else runs. Another who waited, too, may have done the rest.
        let now = self.domain(domain.id);
        if now.is_some_and(|now| now.config.disks.iter().any(|disk| disk.devid == devid)) {
            nodes::remove_disk(&self.0.store, domain.id, devid);
            self.set_disks(domain.id, |disks| disks.retain(|disk| disk.devid != devid));
            budget::lower(domain.id);
        }
        Ok(())
    }

    /// The disks that a domain has now, in the order of their numbers.
    pub fn attached_disks(&self, domain: &Domain) -> Vec<AttachedDisk> {
        nodes::disks(&self.0.store, domain.id)
    }

    /// The domain as it is now, unless it is over or about to be.
    fn alive(&self, domain: &Domain) -> Result<Domain, DiskError> {
        let now = self.domain(domain.id).filter(|now| !now.handled);
        now.ok_or_else(|| DiskError::Dead(domain.name.clone()))
    }

    /// Changes the disks of a domain's configuration.
    fn set_disks(&self, id: DomId, change: impl FnOnce(&mut Vec<DiskConfig>)) {
        if let Some(domain) = self.0.domains.lock().get_mut(&id) {
            let mut config = (*domain.config).clone();
            change(&mut config.disks);
            domain.config = Arc::new(config);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::blkdev::tests::Silent;
    use crate::blkdev::{Disk, Disks};
    use crate::bundle::Bundle;
    use crate::config::{Action, Config, DomainConfig};
    use crate::shell::Terminal;
    use crate::toolstack::{End, Fate};
    use crate::xenstore::{Access, Perms, Xenstore};
    use pvrt::executor::{block_on_test, spawn, spawn_join};
    use ring_abi::sched::SHUTDOWN_CRASH;
    use spin::Mutex;

    /// A toolstack with two disks and two domains: `one`, number 1, which has the first, and `two`.
    pub(crate) fn start() -> (Toolstack, Client) {
        start_with(&[])
    }

    /// As [`start`], with these files.
    pub(in crate::toolstack) fn start_with(files: &[(&'static str, &'static [u8])]) -> (Toolstack, Client) {
        let store = Xenstore::new(Quotas::XEN);
        let disks = Arc::new(Disks::new());
        for name in ["vda", "vdb"] {
            disks.add(Disk { name: name.into(), serial: None, device: Arc::new(Silent) });
        }
        spawn(crate::blkback::run(store.clone(), disks.clone()));
        let toolstack = Toolstack::new(store.clone(), disks, Bundle::of(files), Terminal::new());
        for (id, name, disk) in [(1, "one", "'phy:/dev/vda,xvda,w'"), (2, "two", "")] {
            let text = format!("name='{name}'\nkernel='/boot/k'\nmemory=8\ndisk=[{disk}]\n");
            let config = Config::parse("t.cfg", text.as_bytes()).unwrap();
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
                nodes::write_disk(&store, id, disk, DomId::DOM0).unwrap();
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
            // Its frontend has closed, as one does that is asked to.
            client.write("/local/domain/1/device/vbd/51728/state", "6").unwrap();
            toolstack.detach_disk(&one, 51728, false).await.unwrap();
            assert_eq!(numbers(&toolstack, "one"), [51712]);
            assert_eq!(toolstack.detach_disk(&one, 51728, false).await, Err(DiskError::None("51728".into())));
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
            let absent = Err(DiskError::Attach(CreateError::NoServer("three".into())));
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
            let full = Err(DiskError::Attach(CreateError::ServerFull("two".into())));
            assert_eq!(toolstack.attach_disk(&one, disk(&text(0))).await, full);
            assert_eq!(numbers(&toolstack, "one"), [51712]);
            assert!(!client.exists("/local/domain/2/backend/vbd/1/51728"));
            // Disks of one configuration count together.
            client.rm("/local/domain/2/0-0").unwrap();
            (0..50).for_each(|at| client.rm(&format!("/local/domain/2/50-{at}")).unwrap());
            let disks: Vec<DiskConfig> = (0..8).map(|at| disk(&text(at))).collect();
            assert!(toolstack.servers(&disks[..1]).is_ok());
            assert_eq!(toolstack.servers(&disks), Err(CreateError::ServerFull("two".into())));
        });
    }

    /// A driver domain that writes anything into its backend's state and does nothing that it is asked for.
    #[test]
    fn force_takes_a_disk_from_a_driver_domain_that_does_not_answer() {
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            toolstack.attach_disk(&one, disk("phy:/d,xvdb,w,backend=two")).await.unwrap();
            client.write("/local/domain/2/backend/vbd/1/51728/state", b"\xff\xfe").unwrap();
            let kept = Err(DiskError::InUse("xvdb".into()));
            assert_eq!(toolstack.detach_disk(&one, 51728, false).await, kept);
            client.write("/local/domain/2/backend/vbd/1/51728/state", b"\xff\xfe").unwrap();
            toolstack.detach_disk(&one, 51728, true).await.unwrap();
            assert_eq!(numbers(&toolstack, "one"), [51712]);
        });
    }

    /// A driver domain that takes its own nodes away, or is gone.
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
            assert_eq!(nodes::server(&toolstack.0.store, two.id, 51728), server);
        });
    }

    #[test]
    fn one_writer_has_a_disk() {
        let (toolstack, _) = start();
        block_on_test(async {
            let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
            let in_use = |user: &str| {
                let target = "/dev/vda".to_string();
                Err(DiskError::Attach(CreateError::DiskInUse(target, user.into())))
            };
            assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vda,xvdb,r")).await, in_use("one"));
            assert_eq!(toolstack.attach_disk(&two, disk("phy:/dev/vda,xvdb,r")).await, in_use("one"));
            let taken = Err(DiskError::Taken("xvda".into()));
            assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvda,w")).await, taken);
            let absent = Err(DiskError::Attach(CreateError::NoDisk("/dev/vdc".into())));
            assert_eq!(toolstack.attach_disk(&two, disk("phy:/dev/vdc,xvda,w")).await, absent);
            // What was attached is the domain's, until it is detached.
            toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,w")).await.unwrap();
            let other = toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await;
            assert!(matches!(other, Err(DiskError::Attach(CreateError::DiskInUse(..)))), "{other:?}");
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
            let kept = Err(DiskError::InUse("xvda".into()));
            assert_eq!(toolstack.detach_disk(&one, 51712, false).await, kept);
            assert_eq!(numbers(&toolstack, "one"), [51712]);
            toolstack.detach_disk(&one, 51712, true).await.unwrap();
            assert_eq!(numbers(&toolstack, "one"), []);
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
            assert!(matches!(other, Err(DiskError::Attach(CreateError::DiskInUse(..)))), "{other:?}");
            // Whoever waits no longer forces, and both have what they wanted.
            toolstack.detach_disk(&one, 51712, true).await.unwrap();
            assert_eq!(waiting.await.unwrap(), Ok(()));
            assert!(time::now_ns() - begun < 1_000_000_000, "{} ns", time::now_ns() - begun);
            assert_eq!(numbers(&toolstack, "one"), []);
        });
    }

    /// A backend that serves a dead domain may have its writes under way: whose disk it is, the backend says.
    #[test]
    fn a_dead_domain_has_its_disk_until_its_backend_has_let_go() {
        let (toolstack, client) = start();
        block_on_test(async {
            let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
            toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
            one.fate.lock().over = true;
            let in_use = Err(DiskError::Attach(CreateError::DiskInUse("/dev/vda".into(), "one".into())));
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
            let dead = Err(DiskError::Dead("one".into()));
            assert_eq!(toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await, dead);
            assert_eq!(toolstack.detach_disk(&one, 51712, false).await, dead);
        });
    }
}
