//! Making a domain and starting it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use migration::Reader;
use pvrt::account::{Account, Shortage};
use pvrt::executor::{run_for, time};
use pvrt::hypercall::domctl;
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::types::DomId;
use spin::Mutex;

use super::devices::DeviceConfig;
use super::making::Making;
use super::saving::SavedSource;
use super::{Domain, End, Fate, Toolstack, budget, nodes, uuid};
use crate::builder::{self, BuildError, Built};
use crate::bundle::File;
use crate::config::{CpuSet, DomainConfig, USUAL_WEIGHT};
use crate::xenstore::XsError;

/// Why a domain was not made. Nothing of it is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// Another domain has that name.
    NameTaken(String),
    /// A file that the configuration names does not exist.
    NoFile(String),
    /// A disk that the configuration names does not exist.
    NoDisk(String),
    /// A bridge that the configuration names is not there: the bridge, and those that are.
    NoBridge(String, Vec<String>),
    /// What stands behind a bridge's name means nothing, or stands elsewhere too: in words.
    NoPlace(String),
    /// A disk is another domain's already, and one of the two would write: the disk, the domain.
    DiskInUse(String, String),
    /// dom0 lacks the memory to serve the domain.
    Budget(Shortage),
    /// Building failed.
    Build(BuildError),
    /// The store refused: what the toolstack was doing.
    Store(&'static str, XsError),
    /// The domain that is to serve a device is not there.
    NoServer(String),
    /// The domain that is to serve a device has too much in the store to serve another.
    ServerFull(String),
    /// A device's backend gave up: which, and why.
    Device(String, String),
    /// The domain was given up while it was being made: its name.
    GivenUp(String),
    /// The hypervisor refused, or the console cannot be served.
    Refused(String),
}

impl CreateError {
    /// Whether only memory is missing, which may be free later.
    pub(super) fn is_shortage(&self) -> bool {
        match self {
            Self::Budget(_) => true,
            Self::Build(error) => error.is_shortage(),
            _ => false,
        }
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken(name) => write!(f, "{name}: a domain of that name exists"),
            Self::NoFile(path) => write!(f, "{path}: no such file"),
            Self::NoDisk(path) => write!(f, "{path}: no such disk"),
            Self::NoBridge(name, known) => {
                write!(f, "bridge `{name}`: no such bridge (there are {})", known.join(", "))
            }
            Self::NoPlace(text) => f.write_str(text),
            Self::DiskInUse(path, name) => {
                write!(f, "{path}: {name} has this disk; only readers can share one")
            }
            Self::Budget(shortage) => write!(f, "not enough memory in dom0: {shortage}"),
            Self::Build(error) => write!(f, "{error}"),
            Self::Store(what, error) => write!(f, "xenstore: {what}: {}", error.name()),
            Self::NoServer(name) => write!(f, "backend `{name}`: no such domain"),
            Self::ServerFull(name) => {
                write!(
                    f,
                    "backend `{name}`: the domain has too many nodes in xenstore to serve another device"
                )
            }
            Self::Device(device, why) => write!(f, "{device}: {why}"),
            Self::GivenUp(name) => write!(f, "{name}: given up before the domain was made"),
            Self::Refused(why) => write!(f, "{why}"),
        }
    }
}

/// What a domain begins as.
pub(super) enum Image {
    /// The kernel that its configuration names.
    Kernel,
    /// A stream into which it was saved, behind its configuration.
    Saved(Box<Reader<SavedSource>>),
}

/// The same, found.
enum Contents {
    Files(File, Option<File>),
    Stream(Box<Reader<SavedSource>>),
}

impl Toolstack {
    /// Makes a domain, paused.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub async fn create(&self, config: Arc<DomainConfig>) -> Result<Domain, CreateError> {
        self.create_as(config, Image::Kernel, &Making::default()).await
    }

    /// Does the same as [`Toolstack::create`] for a caller that may give the domain up by `making`.
    pub(super) async fn create_as(
        &self,
        config: Arc<DomainConfig>,
        image: Image,
        making: &Making,
    ) -> Result<Domain, CreateError> {
        let name = config.name.clone();
        // The records of domains are charged to dom0, whatever task makes one.
        let made = Account::own().charge_future(self.make(config, image, making)).await;
        // The domain may have been given up while the remains of a failed build went. A caller that tries again after a
        // failure must not do so then.
        made.map_err(|error| if making.is_given_up() { CreateError::GivenUp(name) } else { error })
    }

    async fn make(
        &self,
        config: Arc<DomainConfig>,
        image: Image,
        making: &Making,
    ) -> Result<Domain, CreateError> {
        let claim = self.claim_domain(&config, making)?;
        let config = self.with_addresses(config);
        let image = self.files_of(image, &config)?;
        let servers = self.servers(servers_of(&config))?;
        let uuid = config.uuid.unwrap_or_else(uuid::fresh);
        let (pool, scheduler) = self.pool_for(&config)?;
        let account = budget::claim(&config).map_err(CreateError::Budget)?;
        let built = match self.build(&config, (uuid, pool), image, &account, making).await {
            Ok(built) => built,
            Err(error) => {
                self.stopped(making, &config.name).await;
                return Err(error);
            }
        };
        let id = built.domain.id();
        account.allow(0);
        if let Err(error) =
            self.set_affinity(id, pool, &config).and_then(|()| set_share(id, &config, scheduler))
        {
            built.domain.discard().await;
            self.stopped(making, &config.name).await;
            return Err(error);
        }

        // From here on there is state outside the hypervisor too, so a failure undoes everything as at a
        // domain's end.
        let Built { domain: owned, rings } = built;
        let (store, console) = ((rings.store_mfn, rings.store_port), (rings.console_mfn, rings.console_port));
        owned.keep();
        // The account is not assigned earlier: an assigned account lasts until its domain is torn down.
        account.assign(id);
        let domain = Domain {
            id,
            name: config.name.clone(),
            config,
            uuid,
            started_ns: time::now_ns(),
            fate: Arc::new(Mutex::new(Fate::default())),
            replaced: false,
            handled: false,
        };
        self.0.domains.lock().insert(id, domain.clone());
        drop(claim);
        let uuid = uuid::text(&domain.uuid);
        let facts =
            nodes::Facts { id, uuid: &uuid, config: &domain.config, servers: &servers, store, console };
        let connected = self.unless_given_up(making, || false, self.connect(&domain, &facts)).await;
        match connected.unwrap_or_else(|| Err(CreateError::GivenUp(domain.name.clone()))) {
            Ok(()) => Ok(domain),
            Err(error) => Err(self.not_made(&domain, error).await),
        }
    }

    /// Takes a domain down that could not be made whole; why it was not made: `error`, unless somebody else takes it down,
    /// whose doing the error is then.
    pub(super) async fn not_made(&self, domain: &Domain, error: CreateError) -> CreateError {
        if !self.claim(domain.id) {
            return CreateError::GivenUp(domain.name.clone());
        }
        self.undo(domain).await;
        error
    }

    /// Takes down a domain that is not made after all. For who has claimed its end.
    pub(super) async fn undo(&self, domain: &Domain) {
        self.tear_down(domain).await;
        // Somebody may wait for it.
        self.set_fate(domain, |fate| {
            fate.end = Some(End::Destroyed);
            fate.over = true;
        });
    }

    /// Builds the domain as a task of its account, until that is overdrawn or the domain is given up.
    async fn build(
        &self,
        config: &Arc<DomainConfig>,
        (uuid, pool): ([u8; 16], u32),
        image: Contents,
        account: &Account,
        making: &Making,
    ) -> Result<Built, CreateError> {
        let (wanted, toolstack, noted) = (config.clone(), self.clone(), making.clone());
        let building = run_for(account, async move {
            let populating = &toolstack.0.populating;
            let begun = |id| noted.has(id);
            match image {
                Contents::Files(kernel, ramdisk) => {
                    let config = &wanted;
                    let request =
                        builder::Request { config, uuid, pool, kernel, ramdisk, populating, begun: &begun };
                    builder::build(&request).await
                }
                Contents::Stream(reader) => {
                    let request =
                        builder::Restored { config: &wanted, uuid, pool, reader: *reader, begun: &begun };
                    builder::restore(request).await
                }
            }
        });
        match self.unless_given_up(making, || account.is_overdrawn(), building).await {
            Some(built) => built.map_err(CreateError::Build),
            None if making.is_given_up() => Err(CreateError::GivenUp(config.name.clone())),
            None => Err(CreateError::Refused("building it takes too much memory".into())),
        }
    }

    /// The number and the scheduler of the CPU pool in which a domain is to begin.
    fn pool_for(&self, config: &DomainConfig) -> Result<(u32, u32), CreateError> {
        let Some(name) = &config.pool else { return Ok((0, XEN_SCHEDULER_CREDIT2)) };
        let pool = self.find_pool(name).map_err(|why| CreateError::Refused(format!("pool: {why}")))?;
        if pool.cpus == 0 {
            return Err(CreateError::Refused(format!("pool: {name}: the CPU pool has no CPU")));
        }
        Ok((pool.id, pool.scheduler))
    }

    fn files_of(&self, image: Image, config: &DomainConfig) -> Result<Contents, CreateError> {
        Ok(match image {
            Image::Kernel => {
                let ramdisk = config.ramdisk.as_deref().map(|path| self.file(path)).transpose()?;
                Contents::Files(self.file(&config.kernel)?, ramdisk)
            }
            Image::Saved(reader) => Contents::Stream(reader),
        })
    }

    fn file(&self, path: &str) -> Result<File, CreateError> {
        self.0.bundle.find(path).ok_or_else(|| CreateError::NoFile(path.to_string()))
    }

    /// Writes the domain's nodes, and serves its rings and devices.
    pub(super) async fn connect(&self, domain: &Domain, facts: &nodes::Facts<'_>) -> Result<(), CreateError> {
        let store = &self.0.store;
        let client = store.client();
        nodes::write(store, facts, || self.is_wanted(domain))
            .await
            .map_err(|error| CreateError::Store("writing the domain's nodes", error))?;
        client
            .introduce(domain.id.raw(), facts.store.0.raw(), facts.store.1.raw())
            .map_err(|error| CreateError::Store("introducing the domain", error))?;
        // The domain can be renamed since it is on record.
        let name = self.as_it_is(domain).name;
        self.0
            .consoles
            .add(domain.id, &name, facts.console.1)
            .map_err(|error| CreateError::Refused(format!("{error}")))?;
        let mut servers = facts.servers.iter();
        for (disk, server) in domain.config.disks.iter().zip(&mut servers) {
            self.backend_ready(domain.id, disk, *server).await?;
        }
        for (vif, server) in domain.config.vifs.iter().zip(servers) {
            self.backend_ready(domain.id, vif, *server).await?;
        }
        Ok(())
    }

    /// Ties vCPUs to CPUs as the configuration says; the domain is in `pool`.
    fn set_affinity(&self, id: DomId, pool: u32, config: &DomainConfig) -> Result<(), CreateError> {
        let cpus_of = |sets: &[CpuSet], vcpu: u32| match sets.get(vcpu as usize).or(sets.last()) {
            Some(CpuSet::Some(cpus)) => Some(cpus.bytes()),
            _ => None,
        };
        for vcpu in 0..config.maxvcpus {
            for (key, sets) in [("cpus", &config.cpus), ("cpus_soft", &config.cpus_soft)] {
                let Some(map) = cpus_of(sets, vcpu) else { continue };
                let (hard, soft) =
                    if key == "cpus" { (Some(&map[..]), None) } else { (None, Some(&map[..])) };
                domctl::set_vcpu_affinity(id, vcpu, hard, soft).map_err(|errno| {
                    let why = self.affinity_refused(pool, errno);
                    CreateError::Refused(format!("{key}: vCPU {vcpu}: {why}"))
                })?;
            }
        }
        Ok(())
    }

    /// Unpauses a domain, new or not.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn unpause(&self, domain: &Domain) -> Result<(), String> {
        domctl::unpause(domain.id).map_err(|errno| format!("{}: {errno}", domain.name))
    }
}

/// The domain that is to serve each of the devices: of the disks, then of the network interfaces.
fn servers_of(config: &DomainConfig) -> impl Iterator<Item = Option<&str>> {
    let disks = config.disks.iter().map(DeviceConfig::server);
    disks.chain(config.vifs.iter().map(DeviceConfig::server))
}

/// Sets the domain's scheduler weight and cap, if the configuration names others than the default.
fn set_share(id: DomId, config: &DomainConfig, scheduler: u32) -> Result<(), CreateError> {
    // As with libxl, the null scheduler has nothing to be set.
    if config.cpu_weight == USUAL_WEIGHT && config.cap == 0 || scheduler == XEN_SCHEDULER_NULL {
        return Ok(());
    }
    domctl::set_share(id, scheduler, config.cpu_weight, config.cap)
        .map_err(|errno| CreateError::Refused(format!("cpu_weight and cap: {errno}")))
}
