//! The block backend: an instance for each vbd that the toolstack makes in xenstore.
//!
//! [`run`] watches `backend/vbd` and starts a task for every new directory `DOMID/DEVICE`. The task lives until the
//! toolstack removes the device, or until the device's domain is gone. The `backends` crate decides everything; this
//! module has the nodes, the grants and the waiting.
//!
//! What the toolstack finds: when the disk was found, `hotplug-status` = `connected` and state `InitWait`; else
//! `hotplug-status` = `error`, `hotplug-error` = the reason, and state `Closed`. After `online` = 0, or after the
//! removal of the frontend's directory, the backend's last state is `Closed`; then the toolstack may remove the
//! directory.

mod connection;
mod grants;
mod instance;
mod named;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::blk::max_bytes;
use pvrt::grant::DeviceGrant;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::DomId;
use spin::Mutex;

use self::grants::SharedStage;
use crate::blkdev::Disks;
use crate::xenstore::{Client, Nodes, Xenstore};

/// Most disks that a domain can have from this backend.
pub const MAX_VBDS: usize = 16;

/// Most bytes of heap that a frontend can make one vbd keep, whatever the frontend does: [`max_bytes`], and what an
/// instance has in any case (its task, its watches, its paths).
pub const BYTES_PER_VBD: usize = max_bytes(size_of::<DeviceGrant>()) + 4096;
const _: () = assert!(BYTES_PER_VBD <= 224 << 10);

/// Where the toolstack makes block backends.
const ROOT: &str = "/local/domain/0/backend/vbd";

/// One block device of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    domain: DomId,
    /// The virtual device number, such as 51712 for xvda.
    device: u32,
}

impl Id {
    /// The backend's directory.
    fn path(self) -> alloc::string::String {
        format!("{ROOT}/{}/{}", self.domain, self.device)
    }
}

/// The instance's id, from the path of any node below the instance's directory.
fn parse(path: &str) -> Option<Id> {
    let mut parts = path.strip_prefix(ROOT)?.strip_prefix('/')?.split('/');
    let domain = DomId::new(parts.next()?.parse().ok()?);
    let device = parts.next()?.parse().ok()?;
    Some(Id { domain, device })
}

/// Serves block backends for ever.
pub async fn run(store: Xenstore, disks: Arc<Disks>) {
    let client = store.client();
    if let Err(error) = client.watch(ROOT, "vbd") {
        log::error!("blkback: watching {ROOT}: {}", error.name());
        return;
    }
    let running: Arc<Mutex<BTreeSet<Id>>> = Arc::default();
    let stage = SharedStage::default();
    loop {
        let event = client.next_event().await;
        // The first event is for the root: there may be devices already.
        let ids = parse(&event.path).map_or_else(|| existing(&client), |id| alloc::vec![id]);
        for id in ids {
            if !is_new(&client, id) || !running.lock().insert(id) {
                continue;
            }
            let (store, disks, stage, running) =
                (store.clone(), disks.clone(), stage.clone(), running.clone());
            pvrt::spawn_for(&pvrt::Account::of(id.domain), async move {
                instance::run(&store, &disks, &stage, id).await;
                running.lock().remove(&id);
            });
        }
    }
}

/// The ids of all devices that xenstore has now.
fn existing(client: &Client) -> Vec<Id> {
    let mut ids = Vec::new();
    for domain in client.directory(ROOT).unwrap_or_default() {
        let devices = client.directory(&format!("{ROOT}/{domain}")).unwrap_or_default();
        ids.extend(devices.iter().filter_map(|device| parse(&format!("{ROOT}/{domain}/{device}"))));
    }
    ids
}

/// Whether the directory of `id` has the state that the toolstack gives a new directory. What an old instance left
/// behind has another state, and begins no new instance.
fn is_new(client: &Client, id: Id) -> bool {
    client
        .read_str(&format!("{}/state", id.path()))
        .is_ok_and(|state| XenbusState::parse(&state) == XenbusState::Initialising)
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn ids_from_paths() {
        let id = |domain, device| Some(Id { domain: DomId::new(domain), device });
        assert_eq!(parse("/local/domain/0/backend/vbd/1/51712"), id(1, 51712));
        assert_eq!(parse("/local/domain/0/backend/vbd/32751/4294967295/a/b"), id(32751, u32::MAX));
        for bad in ["", "/1/2", "/1", "/x/1", "/1/x", "/65536/1", "/1/4294967296", "d/1/2"] {
            let path = if bad == "/1/2" { format!("{ROOT}x{bad}") } else { format!("{ROOT}{bad}") };
            assert_eq!(parse(&path), None, "{path}");
        }
    }
}
