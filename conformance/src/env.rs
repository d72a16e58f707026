//! Where cases run, and what they find there.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::BootInfo;
use pvrt::event::Port;
use ring_abi::types::{Mfn, Port as PortNumber};

use crate::ends::{Console, Frontends};
use crate::store::Store;
use crate::verdict::{Need, Problem, Verdict};

/// A toolstack's rights over the whole store, where both ends run in this process. Paths are absolute.
pub trait Toolstack: Send + Sync {
    /// A node's value; `None` if there is no such node.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Sets a node.
    fn write(&self, path: &str, value: &[u8]);
    /// Removes a node and everything below it.
    fn remove(&self, path: &str);
}

/// A disk that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDisk {
    /// The frontend's directory.
    pub path: String,
    /// The disk was given for writing.
    pub writable: bool,
    /// Bytes of its sectors.
    pub sector_size: u32,
}

/// A network interface that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVif {
    /// The frontend's directory.
    pub path: String,
}

/// A kernel whose frontends a case may try.
#[derive(Clone)]
pub struct FrontendPlace {
    /// The kernel's domain.
    pub dom: u16,
    /// Where the next device comes from.
    pub devices: Arc<dyn Devices>,
    /// The kernel's frontends.
    pub frontends: Arc<dyn Frontends>,
    /// The frontends must also do what the ABI leaves open: end each operation when the connection ends.
    pub strict: bool,
}

/// The nodes of devices whose backend a case is.
pub trait Devices: Send + Sync {
    /// A block device that no case has used, both ends of which are `Initialising`, as a toolstack leaves them.
    ///
    /// # Errors
    /// Why there is no further device.
    fn fresh(&self) -> Verdict<BackendDevice>;
    /// A network device, in the same way.
    ///
    /// # Errors
    /// As [`fresh`](Self::fresh).
    fn fresh_vif(&self) -> Verdict<BackendDevice> {
        Err(Problem::Skip("no network device of another domain's".into()))
    }
    /// A node's value; `None` if there is no such node.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Sets a node of the backend's.
    fn write(&self, path: &str, value: &[u8]);
    /// Removes a node of the backend's and everything below it.
    fn remove(&self, path: &str);
}

/// A device from its backend's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendDevice {
    /// The frontend's directory.
    pub front: String,
    /// The backend's.
    pub back: String,
}

/// Where the cases run: what they may use.
#[derive(Default)]
pub struct Env {
    /// This is the control domain.
    pub privileged: bool,
    /// A hypervisor answers hypercalls. If false, a stand-in on the host answers those that rings need, and
    /// no others.
    pub hypervisor: bool,
    /// The xenstore connection.
    pub store: Option<Store>,
    /// That connection's page and port, as `start_info` names them.
    pub store_ring: Option<(Mfn, PortNumber)>,
    /// The console ring.
    pub console: Option<Console>,
    /// The toolstack, where it runs in this process.
    pub toolstack: Option<Arc<dyn Toolstack>>,
    /// Another domain, whose frontends can be tried.
    pub frontend_under_test: Option<FrontendPlace>,
    /// The disks, in order of their numbers.
    pub disks: Vec<FoundDisk>,
    /// The network interfaces, in order of their numbers: the first two are on one bridge.
    pub vifs: Vec<FoundVif>,
    /// The backend of the interfaces serves them again after a frontend ruined a ring.
    pub vifs_mend: bool,
}

impl Env {
    /// What a booted kernel finds; [`crate::blkif::front::survey`] finds the sizes of its disks' sectors.
    ///
    /// # Errors
    /// [`Problem::Error`]: xenstore does not answer.
    pub async fn of_kernel(boot: &BootInfo) -> Verdict<Self> {
        let mut env = Self { privileged: boot.initial_domain, hypervisor: true, ..Self::default() };
        env.console = pvrt::console::ring().map(|ring| Console { ring, watcher: None });
        if let Some(info) = boot.store {
            env.store_ring = Some((info.mfn, info.port));
            env.store = Some(Store::connect(info.page, Port::adopt(info.port))?);
            env.find_disks().await?;
            env.find_vifs().await?;
        }
        Ok(env)
    }

    /// The xenstore connection of a case that needs one.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is none.
    pub fn store(&mut self) -> Verdict<&mut Store> {
        self.store.as_mut().ok_or_else(|| Problem::Skip(Need::Store.missing().into()))
    }

    /// The toolstack's rights, for a case that needs them.
    ///
    /// # Errors
    /// [`Problem::Skip`]: the toolstack runs elsewhere.
    pub fn toolstack(&self) -> Verdict<Arc<dyn Toolstack>> {
        self.toolstack.clone().ok_or_else(|| Problem::Skip(Need::BothEnds.missing().into()))
    }

    /// Finds the domain's disks. Sectors count as 512 bytes until a survey reads the sizes.
    ///
    /// # Errors
    /// [`Problem::Error`]: xenstore does not answer.
    pub async fn find_disks(&mut self) -> Verdict {
        let store = self.store()?;
        let mut names: Vec<u64> = Vec::new();
        if let Ok(list) = store.directory("device/vbd").await? {
            names = list.iter().filter_map(|name| name.parse().ok()).collect();
        }
        names.sort_unstable();
        for name in names {
            let path = format!("device/vbd/{name}");
            let Ok(backend) = self.store()?.read(&format!("{path}/backend")).await? else { continue };
            let mode = self.store()?.read(&format!("{backend}/mode")).await?.unwrap_or_default();
            self.disks.push(FoundDisk { path, writable: mode.starts_with('w'), sector_size: 512 });
        }
        Ok(())
    }

    /// Looks for the domain's network interfaces.
    ///
    /// # Errors
    /// [`Problem::Error`]: xenstore does not answer.
    pub async fn find_vifs(&mut self) -> Verdict {
        let Ok(list) = self.store()?.directory("device/vif").await? else { return Ok(()) };
        let mut names: Vec<u64> = list.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort_unstable();
        self.vifs = names.iter().map(|name| FoundVif { path: format!("device/vif/{name}") }).collect();
        Ok(())
    }

    /// The two interfaces of a case that needs them.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there are no two.
    pub fn vifs(&self) -> Verdict<[&FoundVif; 2]> {
        match &self.vifs[..] {
            [first, second, ..] => Ok([first, second]),
            _ => Err(Problem::Skip(Need::Vifs.missing().into())),
        }
    }

    /// Whether `need` is met here.
    pub fn has(&self, need: Need) -> bool {
        match need {
            Need::Store => self.store.is_some(),
            Need::Disk | Need::ReadOnlyDisk | Need::BigSectorDisk => self.disk(need).is_some(),
            Need::Vifs => self.vifs.len() >= 2,
            Need::MendingVifs => self.vifs_mend && self.vifs.len() >= 2,
            Need::Console => self.console.is_some(),
            Need::Hypervisor => self.hypervisor,
            Need::Dom0 => self.privileged,
            Need::DomU => !self.privileged,
            Need::Frontend => self.frontend_under_test.is_some(),
            Need::BothEnds => self.toolstack.is_some(),
        }
    }

    /// The first disk of the kind `need`.
    pub fn disk(&self, need: Need) -> Option<&FoundDisk> {
        self.disks.iter().find(|disk| match need {
            Need::Disk => disk.writable && disk.sector_size == 512,
            Need::ReadOnlyDisk => !disk.writable,
            Need::BigSectorDisk => disk.sector_size > 512,
            _ => false,
        })
    }
}
