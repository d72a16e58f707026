//! What the devices of a domain have in common, disks and others: who serves a device, how a device comes to a domain
//! that runs and leaves that domain.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use pvrt::executor::time;
use ring_abi::types::DomId;

use super::create::CreateError;
use super::{Domain, Toolstack, budget, nodes};
use crate::config::DomainConfig;
use crate::xenstore::{Client, Nodes, Quotas, Transaction, XsError};

/// How long a backend may take to find what is behind a device.
const BACKEND_NS: u64 = 10_000_000_000;
/// Nodes of a backend, with what a driver domain adds of its own; and what they take in the store.
const BACKEND_NODES: usize = 24;
const BACKEND_BYTES: usize = 12 << 10;
/// How long a domain may take to let go of a device.
const DETACH_NS: u64 = 10_000_000_000;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk: a `vbd` of the store.
    Disk,
    /// A network interface: a `vif`.
    Vif,
}

impl Kind {
    /// The name of such devices' directories in the store.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Disk => "vbd",
            Self::Vif => "vif",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Vif => "network interface",
        })
    }
}

/// A device of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) kind: Kind,
    pub(super) domain: DomId,
    /// The device's number among those of its kind.
    pub(super) devid: u32,
}

/// What a configuration says of a device.
pub(super) trait DeviceConfig: Clone {
    const KIND: Kind;
    /// As many as a domain may have of the kind.
    const MAX: usize;

    /// The device's number.
    fn devid(&self) -> u32;
    /// The device, as the configuration calls it.
    fn label(&self) -> String;
    /// The device and what is behind it, for messages of its backend.
    fn whole(&self) -> String;
    /// The domain that is to serve the device; `None`: dom0.
    fn server(&self) -> Option<&str>;
    /// The devices of this kind in a domain's configuration.
    fn of(config: &mut DomainConfig) -> &mut Vec<Self>;
    /// As [`DeviceConfig::of`], to be read.
    fn all(config: &DomainConfig) -> &[Self];
    /// Writes the nodes of both ends, and the toolstack's record.
    fn put(&self, tx: &Transaction<'_>, domain: DomId, server: DomId) -> Result<(), XsError>;

    /// The device, as `domain` has it.
    fn device(&self, domain: DomId) -> Device {
        Device { kind: Self::KIND, domain, devid: self.devid() }
    }
}

/// Why a device was not attached or detached. A device is named as its configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The domain has a device of that number.
    Taken(Kind, String),
    /// The domain has no such device.
    None(Kind, String),
    /// The domain has as many devices of the kind as it may have.
    Full(Kind, String, usize),
    /// The domain is dead.
    Dead(String),
    /// The domain goes on using the device.
    InUse(Kind, String),
    /// The device could not be attached, as at a domain's creation.
    Attach(CreateError),
    /// The store refused.
    Store(XsError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(kind, name) => write!(f, "{name}: the domain has a {kind} there"),
            Self::None(kind, name) => write!(f, "{name}: the domain has no such {kind}"),
            Self::Full(kind, name, most) => {
                write!(f, "{name}: the domain has {most} {kind}s, and no more can be")
            }
            Self::Dead(name) => write!(f, "{name}: the domain is over"),
            Self::InUse(Kind::Disk, name) => {
                write!(f, "{name}: the domain does not let go of it; --force takes it away")
            }
            Self::InUse(Kind::Vif, name) => write!(f, "{name}: its backend does not let go of it"),
            Self::Attach(error) => write!(f, "{error}"),
            Self::Store(error) => write!(f, "xenstore: {}", error.name()),
        }
    }
}

impl Toolstack {
    /// The domains that are to serve devices, each by its name; `None`: dom0. A backend's nodes count as its driver
    /// domain's: with more than it may have, a driver domain could write none of its own, and would be over its budget at
    /// last.
    pub(super) fn servers<'a>(
        &self,
        names: impl Iterator<Item = Option<&'a str>>,
    ) -> Result<Vec<DomId>, CreateError> {
        let mut servers = Vec::new();
        let mut figures = None;
        for name in names {
            let Some(name) = name else {
                servers.push(DomId::DOM0);
                continue;
            };
            let domain = self.find(name).ok().filter(|domain| !domain.fate.lock().over);
            let id = domain.ok_or_else(|| CreateError::NoServer(name.to_string()))?.id;
            servers.push(id);
            let backends = servers.iter().filter(|server| **server == id).count();
            let figures = figures.get_or_insert_with(|| self.0.store.figures());
            let has = figures.domains.iter().find(|domain| domain.domid == id.raw());
            let (nodes, bytes) = has.map_or((0, 0), |has| (has.nodes, has.bytes));
            let most = Quotas::XEN;
            if nodes + backends * BACKEND_NODES > most.nodes
                || bytes + backends * BACKEND_BYTES > most.memory_bytes
            {
                return Err(CreateError::ServerFull(name.to_string()));
            }
        }
        Ok(servers)
    }

    /// Waits until a new device's backend has found what is behind it. A driver domain is not waited for: it may take
    /// as long as it likes, and so may the frontend.
    pub(super) async fn backend_ready<D: DeviceConfig>(
        &self,
        id: DomId,
        config: &D,
        server: DomId,
    ) -> Result<(), CreateError> {
        if server != DomId::DOM0 {
            return Ok(());
        }
        let client = self.0.store.client();
        let backend = config.device(id).backend(server);
        let begun = |client: &Client| {
            Ok(!nodes::is_state(client.read(&format!("{backend}/state"))?, nodes::INITIALISING))
        };
        let refused = |why: String| CreateError::Device(config.whole(), why);
        match time::timeout(BACKEND_NS, nodes::until(&client, &format!("{backend}/state"), begun)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(CreateError::Store("waiting for a backend", error)),
            Err(_) => return Err(refused("its backend does not answer".into())),
        }
        match client.read_str(&format!("{backend}/hotplug-error")) {
            Ok(why) => Err(refused(why)),
            Err(_) => Ok(()),
        }
    }

    /// Gives a domain another device that the caller has claimed for it. The domain keeps the device when it starts again.
    ///
    /// # Errors
    /// See [`DeviceError`]; nothing of the device is left.
    pub(super) async fn attach<D: DeviceConfig>(
        &self,
        domain: &Domain,
        config: D,
    ) -> Result<(), DeviceError> {
        let server = self.servers([config.server()].into_iter()).map_err(DeviceError::Attach)?[0];
        let raised = budget::raise(domain.id, D::KIND)
            .map_err(|shortage| DeviceError::Attach(CreateError::Budget(shortage)))?;
        let store = &self.0.store;
        nodes::write_device(store, domain.id, &config, server).map_err(DeviceError::Store)?;
        let device = config.device(domain.id);
        if let Err(error) = self.backend_ready(domain.id, &config, server).await {
            device.remove(store);
            return Err(DeviceError::Attach(error));
        }
        if let Err(dead) = self.alive(domain) {
            device.remove(store);
            return Err(dead);
        }
        self.change_config(domain.id, |now| D::of(now).push(config));
        raised.keep();
        Ok(())
    }

    /// Takes a device from a domain: asks the domain to let go, or, if `force`, does not. The device leaves its
    /// configuration too.
    ///
    /// Nothing is kept from others while the domain is waited for: until then the device is that domain's, and counts as
    /// such. A caller that no longer waits drops the future; the domain stays asked. While one caller waits, another
    /// may force.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub(super) async fn detach<D: DeviceConfig>(
        &self,
        domain: &Domain,
        devid: u32,
        force: bool,
    ) -> Result<(), DeviceError> {
        let found = D::all(&domain.config).iter().find(|config| config.devid() == devid);
        let found = found.ok_or_else(|| DeviceError::None(D::KIND, devid.to_string()))?;
        let (store, device) = (&self.0.store, found.device(domain.id));
        let server = device.server(store);
        let backend = device.backend(server);
        let client = store.client();
        device.ask_to_close(store, force).map_err(DeviceError::Store)?;
        let closed =
            |client: &Client| Ok(nodes::is_state(client.read(&format!("{backend}/state"))?, nodes::CLOSED));
        match time::timeout(DETACH_NS, nodes::until(&client, &format!("{backend}/state"), closed)).await {
            // A backend that found nothing behind the device, or whose domain went, is closed too.
            Ok(Ok(()) | Err(XsError::NoEnt)) => {}
            Ok(Err(error)) => return Err(DeviceError::Store(error)),
            // What a driver domain does with its own is its affair; dom0's backend may have requests under way.
            Err(_) if force && server != DomId::DOM0 => {}
            Err(_) => return Err(DeviceError::InUse(D::KIND, found.label())),
        }
        // From here to the end nobody else runs. Another who waited, too, may have done the rest.
        let has = |config: &DomainConfig| D::all(config).iter().any(|config| config.devid() == devid);
        if self.domain(domain.id).is_some_and(|now| has(&now.config)) {
            device.remove(store);
            self.change_config(domain.id, |now| D::of(now).retain(|config| config.devid() != devid));
            budget::lower(domain.id, D::KIND);
        }
        Ok(())
    }

    /// The domain as it is now, unless it is over or about to be.
    pub(super) fn alive(&self, domain: &Domain) -> Result<Domain, DeviceError> {
        let now = self.domain(domain.id).filter(|now| !now.handled);
        now.ok_or_else(|| DeviceError::Dead(domain.name.clone()))
    }

    /// Changes a domain's configuration.
    fn change_config(&self, id: DomId, change: impl FnOnce(&mut DomainConfig)) {
        if let Some(domain) = self.0.domains.lock().get_mut(&id) {
            let mut config = (*domain.config).clone();
            change(&mut config);
            domain.config = Arc::new(config);
        }
    }
}
