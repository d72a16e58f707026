//! The nodes that devices of all kinds have: a frontend's and a backend's directory for each device, and the toolstack's
//! own record.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::{CLOSED, home, is_state, present, records};
use crate::toolstack::devices::{Device, DeviceConfig, Kind};
use crate::xenstore::{Client, Nodes, Transaction, Xenstore, XsError};

/// ABI: `XenbusStateClosing`.
const CLOSING: &str = "5";

/// Writes what a running domain and its backend find of a new device.
pub(in crate::toolstack) fn write_device<D: DeviceConfig>(
    store: &Xenstore,
    id: DomId,
    config: &D,
    server: DomId,
) -> Result<(), XsError> {
    store.client().atomically(|tx| config.put(tx, id, server))
}

/// The number in a node of `directory`, if there is one.
pub(super) fn number(client: &Client, directory: &str, node: &str) -> Option<u32> {
    client.read_as(&format!("{directory}/{node}")).ok()
}

impl Device {
    /// The devices of a kind that a domain was given, in the order of their numbers.
    pub(super) fn all(store: &Xenstore, kind: Kind, domain: DomId) -> Vec<Device> {
        let path = format!("{}/device/{}", records(domain), kind.directory());
        let numbers = store.client().directory(&path).unwrap_or_default();
        let devids = numbers.iter().filter_map(|number| number.parse().ok());
        let mut devices: Vec<Device> = devids.map(|devid| Device { kind, domain, devid }).collect();
        devices.sort_by_key(|device| device.devid);
        devices
    }

    /// The backend's directory, if `server` serves the device.
    pub(in crate::toolstack) fn backend(self, server: DomId) -> String {
        let Self { kind, domain, devid } = self;
        format!("/local/domain/{server}/backend/{}/{domain}/{devid}", kind.directory())
    }

    /// The frontend's directory.
    pub(super) fn frontend(self) -> String {
        format!("{}/device/{}/{}", home(self.domain), self.kind.directory(), self.devid)
    }

    /// The toolstack's own directory.
    pub(super) fn record(self) -> String {
        format!("{}/device/{}/{}", records(self.domain), self.kind.directory(), self.devid)
    }

    /// The domain that serves the device, as the toolstack noted when the device was given. The frontend's nodes say so
    /// too, but they are its domain's to write; and any domain may make a backend's directory in its own home.
    pub(in crate::toolstack) fn server(self, store: &Xenstore) -> DomId {
        let path = store.client().read_str(&format!("{}/backend", self.record()));
        let home =
            path.ok().and_then(|path| path.strip_prefix("/local/domain/")?.split('/').next()?.parse().ok());
        home.map_or(DomId::DOM0, DomId::new)
    }

    /// Notes who serves the device; gives the frontend's and the backend's directory.
    pub(super) fn put_record(self, tx: &Transaction<'_>, server: DomId) -> Result<(String, String), XsError> {
        let back = self.backend(server);
        tx.write(&format!("{}/backend", self.record()), &back)?;
        Ok((self.frontend(), back))
    }

    /// Asks both ends to close: by `force` the frontend's directory goes, so that only the backend is asked. A driver domain
    /// may have removed its end, or be gone: then there is nobody to ask.
    pub(in crate::toolstack) fn ask_to_close(self, store: &Xenstore, force: bool) -> Result<(), XsError> {
        let back = self.backend(self.server(store));
        store.client().atomically(|tx| {
            if let Some(state) = present(tx.read(&format!("{back}/state")))? {
                tx.write(&format!("{back}/online"), "0")?;
                // A backend that has closed by itself stays so.
                if !is_state(state, CLOSED) {
                    tx.write(&format!("{back}/state"), CLOSING)?;
                }
            }
            if force { present(tx.rm(&self.frontend())).map(drop) } else { Ok(()) }
        })
    }

    /// Removes what is left of the device when both ends have closed.
    pub(in crate::toolstack) fn remove(self, store: &Xenstore) {
        let paths = [self.frontend(), self.backend(self.server(store)), self.record()];
        let removed =
            store.client().atomically(|tx| paths.iter().try_for_each(|path| present(tx.rm(path)).map(drop)));
        if let Err(error) = removed {
            log::error!("d{}: removing a {}: {}", self.domain, self.kind, error.name());
        }
    }
}
