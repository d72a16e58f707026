//! Claims: names and disks of domains that are being made, and disks on their way to a domain.
//!
//! A kernel file can make the building of a domain long, and a backend may be slow; no other command waits for
//! either. So a name or a disk, which only one domain may have, is claimed in the same step that checks it, without
//! an await between. The claim counts as that domain's until the domain or the disk is on record, or the claim is
//! dropped.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::DomId;
use spin::Mutex;

use super::create::CreateError;
use super::devices::{Device, DeviceConfig, DeviceError};
use super::making::Making;
use super::{Domain, Fate, Toolstack, domain_number, nodes};
use crate::config::{DiskConfig, DomainConfig};

/// All claims.
#[derive(Default)]
pub(super) struct Claims {
    next: u64,
    open: Vec<Open>,
}

#[derive(Default)]
struct Open {
    number: u64,
    /// The domain's name.
    name: String,
    /// The domain's number; `None` before the domain is made.
    id: Option<DomId>,
    disks: Vec<DiskConfig>,
    /// The device that is on its way to the domain, which has its number there; none for a domain's claim.
    device: Option<Device>,
    /// The domain that is being made; none for a device's claim.
    making: Option<Making>,
    /// The fate of the domain's former life, if the domain waits to start again.
    former: Option<Arc<Mutex<Fate>>>,
}

/// A claim of a domain that is being made, or waits to start again.
pub(super) struct OpenMaking {
    /// The claim's number.
    pub(super) number: u64,
    /// The domain's state while it is being made.
    pub(super) making: Making,
    /// The fate of the domain's former life, if the domain waits to start again.
    pub(super) former: Option<Arc<Mutex<Fate>>>,
}

/// One claim. Drop gives back what was claimed.
#[must_use]
pub(super) struct Claim {
    toolstack: Toolstack,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.toolstack.0.claims.lock().open.retain(|open| open.number != self.number);
        self.toolstack.0.changed.notify_all();
    }
}

impl Toolstack {
    /// Claims the name and the disks of a domain that is to be made.
    pub(super) fn claim_domain(&self, config: &DomainConfig, making: &Making) -> Result<Claim, CreateError> {
        if !self.is_free_name(&config.name) {
            return Err(CreateError::NameTaken(config.name.clone()));
        }
        self.check_disks(&config.name, &config.disks)?;
        self.check_bridges(&config.vifs)?;
        Ok(self.open_claim(Open {
            name: config.name.clone(),
            disks: config.disks.clone(),
            making: Some(making.clone()),
            ..Open::default()
        }))
    }

    /// Claims the name and the disks of a domain that waits to start again.
    pub(super) fn claim_again(&self, config: &DomainConfig, former: &Domain) -> Result<Claim, CreateError> {
        let claim = self.claim_domain(config, &Making::default())?;
        let mut claims = self.0.claims.lock();
        if let Some(open) = claims.open.iter_mut().find(|open| open.number == claim.number) {
            open.former = Some(former.fate.clone());
        }
        drop(claims);
        Ok(claim)
    }

    /// The claim of a domain that is being made, or waits to start again, by the domain's name or number.
    pub(super) fn open_making(&self, text: &str) -> Option<OpenMaking> {
        let number = domain_number(text);
        let claims = self.0.claims.lock();
        claims.open.iter().find_map(|open| {
            let making = open.making.as_ref()?;
            let is_meant = open.name == text || (number.is_some() && making.id() == number);
            is_meant.then(|| OpenMaking {
                number: open.number,
                making: making.clone(),
                former: open.former.clone(),
            })
        })
    }

    /// The domain of this name that is being made.
    pub(super) fn making_of_name(&self, name: &str) -> Option<Making> {
        let claims = self.0.claims.lock();
        claims.open.iter().filter(|open| open.name == name).find_map(|open| open.making.clone())
    }

    /// Is the claim of this number still open?
    pub(super) fn is_open(&self, number: u64) -> bool {
        self.0.claims.lock().open.iter().any(|open| open.number == number)
    }

    /// The name of the domain that is being made and has this number.
    pub(super) fn name_in_making(&self, id: DomId) -> Option<String> {
        let claims = self.0.claims.lock();
        let has_number = |open: &&Open| open.making.as_ref().is_some_and(|making| making.id() == Some(id));
        claims.open.iter().find(has_number).map(|open| open.name.clone())
    }

    /// Is anything claimed?
    #[cfg(test)]
    pub(super) fn has_claims(&self) -> bool {
        !self.0.claims.lock().open.is_empty()
    }

    /// Has a domain, or a device on its way to it, no such number?
    pub(super) fn is_free_number<D: DeviceConfig>(&self, domain: &Domain, devid: u32) -> bool {
        let is_taken = |device: Device| device == Device { kind: D::KIND, domain: domain.id, devid };
        let on_its_way = |open: &Open| open.device.is_some_and(is_taken);
        !D::all(&domain.config).iter().any(|config| is_taken(config.device(domain.id)))
            && !self.0.claims.lock().open.iter().any(on_its_way)
    }

    /// Devices of the kind that a domain has, and that are on their way to it.
    fn count<D: DeviceConfig>(&self, domain: &Domain) -> usize {
        let there = D::all(&domain.config);
        let has = |devid| there.iter().any(|config| config.devid() == devid);
        // A claim outlives the moment in which its device is on record.
        let is_new =
            |device: Device| device.kind == D::KIND && device.domain == domain.id && !has(device.devid);
        let claims = self.0.claims.lock();
        there.len() + claims.open.iter().filter(|open| open.device.is_some_and(is_new)).count()
    }

    /// Claims a disk for a domain, and its number there.
    pub(super) fn claim_disk(&self, domain: &Domain, disk: &DiskConfig) -> Result<Claim, DeviceError> {
        let claim = self.claim_number(domain, disk)?;
        self.check_disks(&domain.name, core::slice::from_ref(disk)).map_err(DeviceError::Attach)?;
        let mut claims = self.0.claims.lock();
        let open = claims.open.iter_mut().find(|open| open.number == claim.number);
        open.into_iter().for_each(|open| open.disks.push(disk.clone()));
        drop(claims);
        Ok(claim)
    }

    /// Claims the disk at `path` for a stream that `user` writes, or reads.
    pub(super) fn claim_stream(&self, user: &str, path: &str, writable: bool) -> Result<Claim, String> {
        let way = if writable { 'w' } else { 'r' };
        let disk =
            DiskConfig::parse(&format!("{path},raw,xvda,{way}")).map_err(|why| format!("{path}: {why}"))?;
        self.check_disks(user, core::slice::from_ref(&disk)).map_err(|error| format!("{error}"))?;
        Ok(self.open_claim(Open {
            name: user.into(),
            id: Some(DomId::DOM0),
            disks: alloc::vec![disk],
            ..Open::default()
        }))
    }

    /// Claims a device's number for a domain.
    pub(super) fn claim_number<D: DeviceConfig>(
        &self,
        domain: &Domain,
        config: &D,
    ) -> Result<Claim, DeviceError> {
        if !self.is_free_number::<D>(domain, config.devid()) {
            return Err(DeviceError::Taken(D::KIND, config.label()));
        }
        if self.count::<D>(domain) >= D::MAX {
            return Err(DeviceError::Full(D::KIND, domain.name.clone(), D::MAX));
        }
        let device = Some(config.device(domain.id));
        Ok(self.open_claim(Open {
            name: domain.name.clone(),
            id: Some(domain.id),
            device,
            ..Open::default()
        }))
    }

    fn open_claim(&self, open: Open) -> Claim {
        let mut claims = self.0.claims.lock();
        claims.next += 1;
        let number = claims.next;
        claims.open.push(Open { number, ..open });
        Claim { toolstack: self.clone(), number }
    }

    /// Whether no domain has this name, not even one that is being made.
    pub(super) fn is_free_name(&self, name: &str) -> bool {
        let is_claimed = |open: &Open| open.id.is_none() && open.name == name;
        name != nodes::OWN_NAME
            && !self.0.claims.lock().open.iter().any(is_claimed)
            && !self.0.domains.lock().values().any(|domain| domain.name == name)
    }

    /// Calls `each` with every disk that is claimed, and the name of the domain that it is for.
    pub(super) fn claimed_disks(&self, mut each: impl FnMut(&DiskConfig, &str)) {
        for open in &self.0.claims.lock().open {
            open.disks.iter().for_each(|disk| each(disk, &open.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use pvrt::Account;
    use pvrt::executor::{block_on_test, time};
    use ring_abi::types::DomId;

    use super::super::budget::{self, DISK_BYTES, DOMAIN_BYTES};
    use super::super::devices::Kind;
    use super::super::disks::tests::{disk, start};
    use super::*;
    use crate::config::Config;

    fn config(name: &str, disks: &str) -> DomainConfig {
        let text = alloc::format!("name='{name}'\nkernel='/boot/k'\nmemory=8\ndisk=[{disks}]\n");
        DomainConfig::from_config(&Config::parse("t.cfg", text.as_bytes()).unwrap()).unwrap().0
    }

    #[test]
    fn one_that_is_being_made_has_its_name_and_its_disks() {
        let (toolstack, _) = start();
        block_on_test(async {
            let (one, two) = (toolstack.find("one").unwrap(), toolstack.find("two").unwrap());
            let slow =
                toolstack.claim_domain(&config("new", "'phy:/dev/vdb,xvda,w'"), &Making::default()).unwrap();
            let again = toolstack.create(alloc::sync::Arc::new(config("new", ""))).await;
            assert_eq!(again.err(), Some(CreateError::NameTaken("new".into())));
            assert!(toolstack.rename(&two, "new").unwrap_err().contains("exists"));
            let in_use = CreateError::DiskInUse("/dev/vdb".into(), "new".into());
            let attached = toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,r")).await;
            assert_eq!(attached, Err(DeviceError::Attach(in_use.clone())));
            assert_eq!(
                toolstack.claim_domain(&config("other", "'phy:/dev/vdb,xvda,w'"), &Making::default()).err(),
                Some(in_use)
            );
            // Commands that do not need the claimed name or disk do not wait.
            let begun = time::now_ns();
            toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
            toolstack.detach_disk(&one, 51712, true).await.unwrap();
            toolstack.attach_disk(&two, disk("phy:/dev/vda,xvda,w")).await.unwrap();
            let other = toolstack.claim_domain(&config("other", ""), &Making::default()).unwrap();
            assert!(time::now_ns() - begun < 100_000_000);
            // The claims of domains that were never made are gone.
            drop((slow, other));
            toolstack.rename(&two, "new").unwrap();
            toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await.unwrap();
        });
    }

    #[test]
    fn a_number_is_one_disks_from_the_first_step_on() {
        let (toolstack, _) = start();
        block_on_test(async {
            let two = toolstack.find("two").unwrap();
            let claim = toolstack.claim_disk(&two, &disk("phy:/dev/vdb,xvda,w")).unwrap();
            let taken = toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,w")).await;
            assert_eq!(taken, Err(DeviceError::Taken(Kind::Disk, "xvda".to_string())));
            drop(claim);
            toolstack.attach_disk(&two, disk("phy:/dev/vdb,xvda,w")).await.unwrap();
        });
    }

    /// One disk is detached while another is being attached: the second disk's budget stays claimed.
    #[test]
    fn a_disk_that_leaves_takes_its_own_budget_alone() {
        let (toolstack, _) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            let account = Account::claim(budget::of(&one.config)).unwrap();
            account.assign(one.id);
            let promised = || account.figures().unwrap().budget;
            let on_its_way = budget::raise(one.id, Kind::Disk).unwrap();
            toolstack.backend_ready(one.id, &one.config.disks[0], DomId::DOM0).await.unwrap();
            toolstack.detach_disk(&one, 51712, true).await.unwrap();
            assert_eq!(promised(), DOMAIN_BYTES + DISK_BYTES);
            drop(on_its_way);
            assert_eq!(promised(), DOMAIN_BYTES);
            toolstack.attach_disk(&one, disk("phy:/dev/vdb,xvdb,w")).await.unwrap();
            assert_eq!(promised(), DOMAIN_BYTES + DISK_BYTES);
            let absent = toolstack.attach_disk(&one, disk("phy:/dev/vdc,xvdc,w")).await;
            assert!(absent.is_err());
            assert_eq!((promised(), one.id), (DOMAIN_BYTES + DISK_BYTES, DomId::new(1)));
        });
    }
}
