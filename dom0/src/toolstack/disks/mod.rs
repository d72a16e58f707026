//! Disks of domains: which domain has which, and attaching and detaching disks of a running domain.

#[cfg(test)]
pub(super) mod tests;

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
/// How many nodes a backend has, with those that a driver domain adds; and the bytes that they take in the
/// store.
const BACKEND_NODES: usize = 24;
const BACKEND_BYTES: usize = 12 << 10;
/// How long a domain may take to let go of a disk.
const DETACH_NS: u64 = 10_000_000_000;

/// Why a disk was not attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The domain already has a disk of that number: the domain's name.
    Taken(String),
    /// The domain has no such disk: the domain's name.
    None(String),
    /// The domain is dead: its name.
    Dead(String),
    /// The domain goes on using the disk: the domain's name.
    InUse(String),
    /// The disk could not be attached, as at a domain's creation.
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
    /// Checks that each of `disks`, for the domain called `name`, exists, and that no disk which one of two users
    /// writes to is used twice: neither by another domain nor, under a second name, by this one. A domain that is
    /// over still counts as a user until its backends have let go of the disk, since its requests may be under way.
    pub(super) fn check_disks(&self, name: &str, disks: &[DiskConfig]) -> Result<(), CreateError> {
        // dom0 does not check the disks of a driver domain.
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

    /// The name of the domain that has a disk open, or its number if there is no name any more.
    fn user_name(&self, id: DomId) -> String {
        self.domain(id).map_or_else(|| format!("domain {id}"), |domain| domain.name)
    }

    /// The domains that are to serve these disks. A backend's nodes count for the quota of its driver domain, so a
    /// driver domain with too many is refused: it could write no node of its own, and might go over its budget.
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

    /// Waits until a new disk's backend has opened its device. The function does not wait for a driver domain,
    /// which may take as long as it likes, nor for the frontend.
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

    /// Gives a domain another disk. The domain keeps the disk when it starts again.
    ///
    /// # Errors
    /// See [`DiskError`]; nothing of the disk is left.
    pub async fn attach_disk(&self, domain: &Domain, disk: DiskConfig) -> Result<(), DiskError> {
        // The disk is checked and claimed before the first await.
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

    /// Detaches a disk from a domain: asks the domain to let go, unless `force`. The disk also leaves the
    /// domain's configuration.
    ///
    /// No lock is held during the wait for the domain: the disk counts as that domain's until it is released. A
    /// caller that no longer waits drops the future, and the request to the domain stays. While one caller waits,
    /// another may force.
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
            // A backend that found no disk, or whose domain is gone, counts as closed.
            Ok(Ok(()) | Err(XsError::NoEnt)) => {}
            Ok(Err(error)) => return Err(DiskError::Store(error)),
            // `force` need not wait for a driver domain, but must wait for dom0's backend, which may have
            // requests under way.
            Err(_) if force && server != DomId::DOM0 => {}
            Err(_) => return Err(DiskError::InUse(vdev)),
        }
        // There is no await from here to the end. Another caller that waited too may have done the rest.
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
