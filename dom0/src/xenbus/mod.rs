//! What all backends of dom0 have in common: an instance for each device that the toolstack makes in xenstore.
//!
//! [`serve`] watches `backend/KIND` and starts a task for every new directory `DOMID/DEVICE`. The task lives until the
//! toolstack removes the device, or until the device's domain is gone. [`run`] moves an instance from state to state;
//! a [`Backend`] has what is particular to a kind of device.
//!
//! What the toolstack finds: when the backend found what is behind the device, `hotplug-status` = `connected` and state
//! `InitWait`; else `hotplug-status` = `error`, `hotplug-error` = the reason, and state `Closed`. After `online` = 0, or
//! after the removal of the frontend's directory, the backend's last state is `Closed`; then the toolstack may remove the
//! directory.
#![forbid(unsafe_code)]

mod bell;
mod device;
mod run;

pub use bell::Bell;
pub use device::Device;
pub use run::{Backend, Connection, Ended, RECONNECT_NS, run};

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::DomId;
use spin::Mutex;

use crate::xenstore::{Client, Nodes, Xenstore};

/// One device of one domain, among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The domain that has the frontend.
    pub domain: DomId,
    /// The device's number, such as 51712 for xvda.
    pub device: u32,
}

/// Where the toolstack makes backends of a kind.
fn root(kind: &str) -> String {
    format!("/local/domain/0/backend/{kind}")
}

impl Id {
    /// The backend's directory.
    fn path(self, kind: &str) -> String {
        format!("{}/{}/{}", root(kind), self.domain, self.device)
    }

    /// The instance's id, from the path of any node below the instance's directory.
    fn parse(kind: &str, path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix(&root(kind))?.strip_prefix('/')?.split('/');
        let domain = DomId::new(parts.next()?.parse().ok()?);
        let device = parts.next()?.parse().ok()?;
        Some(Self { domain, device })
    }
}

/// Starts an instance for each device of a kind, as a task of the account of the device's domain. For ever.
pub async fn serve<F>(store: &Xenstore, kind: &'static str, start: impl Fn(Id) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (client, root) = (store.client(), root(kind));
    if let Err(error) = client.watch(&root, kind) {
        log::error!("{root}: watching it: {}", error.name());
        return;
    }
    let running: Arc<Mutex<BTreeSet<Id>>> = Arc::default();
    loop {
        let event = client.next_event().await;
        // The first event is for the root: there may be devices already.
        let ids = Id::parse(kind, &event.path).map_or_else(|| existing(&client, kind), |id| alloc::vec![id]);
        for id in ids {
            if !is_new(&client, kind, id) || !running.lock().insert(id) {
                continue;
            }
            let (running, instance) = (running.clone(), start(id));
            pvrt::spawn_for(&pvrt::Account::of(id.domain), async move {
                instance.await;
                running.lock().remove(&id);
            });
        }
    }
}

/// The ids of all devices that xenstore has now.
fn existing(client: &Client, kind: &str) -> Vec<Id> {
    let root = root(kind);
    let mut ids = Vec::new();
    for domain in client.directory(&root).unwrap_or_default() {
        let devices = client.directory(&format!("{root}/{domain}")).unwrap_or_default();
        ids.extend(devices.iter().filter_map(|device| Id::parse(kind, &format!("{root}/{domain}/{device}"))));
    }
    ids
}

/// Whether the directory of `id` has the state that the toolstack gives a new directory. What an old instance left
/// behind has another state, and begins no new instance.
fn is_new(client: &Client, kind: &str, id: Id) -> bool {
    client
        .read_str(&format!("{}/state", id.path(kind)))
        .is_ok_and(|state| XenbusState::parse(&state) == XenbusState::Initialising)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_from_paths() {
        let id = |domain, device| Some(Id { domain: DomId::new(domain), device });
        let parse = |path: &str| Id::parse("vbd", path);
        assert_eq!(parse("/local/domain/0/backend/vbd/1/51712"), id(1, 51712));
        assert_eq!(parse("/local/domain/0/backend/vbd/32751/4294967295/a/b"), id(32751, u32::MAX));
        for bad in ["", "x/1/2", "/1", "/x/1", "/1/x", "/65536/1", "/1/4294967296", "d/1/2"] {
            let path = format!("/local/domain/0/backend/vbd{bad}");
            assert_eq!(parse(&path), None, "{path}");
        }
        assert_eq!(Id::parse("vif", "/local/domain/0/backend/vbd/1/51712"), None);
    }
}
