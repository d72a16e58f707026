//! Network interfaces of domains: their addresses and bridges, and how they come to a domain that runs and leave it.

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::create::CreateError;
use super::devices::{DeviceConfig, DeviceError, Kind};
use super::{Domain, Toolstack, nodes, uuid};
use crate::config::{DomainConfig, VifConfig};
use crate::net::MacAddr;
use crate::net::switch::PlaceError;
use crate::netback::MAX_VIFS;
use crate::xenstore::{Transaction, XsError};

/// An interface of a domain, as both ends describe it in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedVif {
    /// The device's number.
    pub devid: u32,
    /// The domain of its backend.
    pub backend_id: u32,
    /// The interface's address.
    pub mac: String,
    /// The frontend's xenbus state.
    pub state: Option<u32>,
    /// The frontend's event channel, if it has one yet: of several, the first queue's for sending.
    pub port: Option<u32>,
    /// The grant of the first queue's ring for sending.
    pub tx_ring: Option<u32>,
    /// The grant of the first queue's ring for receiving.
    pub rx_ring: Option<u32>,
    /// The backend's directory.
    pub backend: String,
}

impl DeviceConfig for VifConfig {
    const KIND: Kind = Kind::Vif;
    const MAX: usize = MAX_VIFS;

    /// The first, if nobody chose a number.
    fn devid(&self) -> u32 {
        self.devid.unwrap_or(0)
    }

    fn label(&self) -> String {
        format!("vif {}", self.devid())
    }

    fn whole(&self) -> String {
        format!("vif {} ({})", self.devid(), self.bridge())
    }

    fn server(&self) -> Option<&str> {
        self.backend_domain.as_deref()
    }

    fn of(config: &mut DomainConfig) -> &mut Vec<Self> {
        &mut config.vifs
    }

    fn all(config: &DomainConfig) -> &[Self] {
        &config.vifs
    }

    fn put(&self, tx: &Transaction<'_>, domain: DomId, server: DomId) -> Result<(), XsError> {
        nodes::put_vif(tx, self.device(domain), self, server)
    }
}

impl Toolstack {
    /// The bridges of `vifs` are there. What a driver domain has is its own affair.
    pub(super) fn check_bridges(&self, vifs: &[VifConfig]) -> Result<(), CreateError> {
        for vif in vifs.iter().filter(|vif| vif.backend_domain.is_none()) {
            let bridge = vif.bridge();
            self.0.network.find_place(bridge, vif.vlan.as_deref()).map_err(|error| match error {
                PlaceError::NoBridge => CreateError::NoBridge(bridge.to_string(), self.0.network.bridges()),
                error => CreateError::NoPlace(format!("bridge `{bridge}`: {error}")),
            })?;
        }
        Ok(())
    }

    /// A configuration in which each interface has an address. The domain keeps the configuration, and so the addresses,
    /// when it starts again.
    pub(super) fn with_addresses(&self, config: Arc<DomainConfig>) -> Arc<DomainConfig> {
        if config.vifs.iter().all(|vif| vif.mac.is_some()) {
            return config;
        }
        let mut config = (*config).clone();
        for at in 0..config.vifs.len() {
            if config.vifs[at].mac.is_none() {
                config.vifs[at].mac = Some(self.fresh_mac(&config.vifs));
            }
        }
        Arc::new(config)
    }

    /// An address that neither a domain nor one of `others` has.
    fn fresh_mac(&self, others: &[VifConfig]) -> MacAddr {
        let domains = self.domains();
        let used = |mac: MacAddr| {
            let theirs = domains.iter().flat_map(|domain| &domain.config.vifs);
            theirs.chain(others).any(|vif| vif.mac == Some(mac))
        };
        loop {
            let mac = random_mac();
            if !used(mac) {
                return mac;
            }
        }
    }

    /// Gives a domain another network interface. The domain keeps the interface when it starts again.
    ///
    /// # Errors
    /// See [`DeviceError`]; nothing of the interface is left.
    pub async fn attach_vif(&self, domain: &Domain, mut vif: VifConfig) -> Result<(), DeviceError> {
        // All that is checked is claimed before the first wait.
        let domain = self.alive(domain)?;
        self.check_bridges(core::slice::from_ref(&vif)).map_err(DeviceError::Attach)?;
        if vif.devid.is_none() {
            vif.devid = (0..=u32::MAX).find(|devid| self.is_free_number::<VifConfig>(&domain, *devid));
        }
        if vif.mac.is_none() {
            vif.mac = Some(self.fresh_mac(&[]));
        }
        let _claim = self.claim_number(&domain, &vif)?;
        self.attach(&domain, vif).await
    }

    /// Takes a network interface from a domain, which is asked to let go first, and then is not.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub async fn detach_vif(&self, domain: &Domain, devid: u32) -> Result<(), DeviceError> {
        let domain = self.alive(domain)?;
        match self.detach::<VifConfig>(&domain, devid, false).await {
            // As the reference toolstack does: nothing is lost when a frontend loses its interface.
            Err(DeviceError::InUse(..)) => self.detach::<VifConfig>(&domain, devid, true).await,
            result => result,
        }
    }

    /// The number of the interface that `text` names: by its number, or by its address.
    ///
    /// # Errors
    /// There is none.
    pub fn vif_number(&self, domain: &Domain, text: &str) -> Result<u32, String> {
        let vifs = &domain.config.vifs;
        let found = match (MacAddr::parse(text), text.parse::<u32>()) {
            (Some(mac), _) => vifs.iter().find(|vif| vif.mac == Some(mac)),
            (None, Ok(devid)) => vifs.iter().find(|vif| vif.devid() == devid),
            (None, Err(_)) => return Err(format!("`{text}`: no network interface's number or address")),
        };
        let none = || format!("{}: the domain has no network interface `{text}`", domain.name);
        found.map(DeviceConfig::devid).ok_or_else(none)
    }

    /// The network interfaces that a domain has now, in the order of their numbers.
    pub fn attached_vifs(&self, domain: &Domain) -> Vec<AttachedVif> {
        nodes::vifs(&self.0.store, domain.id)
    }
}

/// An address within those that Xen's guests have, as the reference toolstack chooses one.
fn random_mac() -> MacAddr {
    let random = uuid::fresh();
    MacAddr([0x00, 0x16, 0x3e, random[0] & 0x7f, random[1], random[2]])
}
