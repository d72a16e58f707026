//! Disks of domains: which domain has which, and attaching and detaching disks of a running domain.

#[cfg(test)]
pub(super) mod tests;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::create::CreateError;
use super::devices::{DeviceConfig, DeviceError, Kind};
use super::{Domain, Toolstack, nodes};
use crate::blkback::MAX_VBDS;
use crate::config::{DiskConfig, DomainConfig};
use crate::xenstore::{Transaction, XsError};

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

impl DeviceConfig for DiskConfig {
    const KIND: Kind = Kind::Disk;
    const MAX: usize = MAX_VBDS;

    fn devid(&self) -> u32 {
        self.devid
    }

    fn label(&self) -> String {
        self.vdev.clone()
    }

    fn whole(&self) -> String {
        format!("{} ({})", self.target, self.vdev)
    }

    fn server(&self) -> Option<&str> {
        self.backend_domain.as_deref()
    }

    fn of(config: &mut DomainConfig) -> &mut Vec<Self> {
        &mut config.disks
    }

    fn all(config: &DomainConfig) -> &[Self] {
        &config.disks
    }

    fn put(&self, tx: &Transaction<'_>, domain: DomId, server: DomId) -> Result<(), XsError> {
        nodes::put_disk(tx, self.device(domain), self, server)
    }
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

    /// Gives a domain another disk. The domain keeps the disk when it starts again.
    ///
    /// # Errors
    /// See [`DeviceError`]; nothing of the disk is left.
    pub async fn attach_disk(&self, domain: &Domain, disk: DiskConfig) -> Result<(), DeviceError> {
        // All that is checked is claimed before the first wait.
        let domain = self.alive(domain)?;
        let _claim = self.claim_disk(&domain, &disk)?;
        self.attach(&domain, disk).await
    }

    /// Takes a disk from a domain: see [`Toolstack::detach`].
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn detach_disk(&self, domain: &Domain, devid: u32, force: bool) -> Result<(), DeviceError> {
        let domain = self.alive(domain)?;
        self.detach::<DiskConfig>(&domain, devid, force).await
    }

    /// The disks that a domain has now, in the order of their numbers.
    pub fn attached_disks(&self, domain: &Domain) -> Vec<AttachedDisk> {
        nodes::disks(&self.0.store, domain.id)
    }
}
