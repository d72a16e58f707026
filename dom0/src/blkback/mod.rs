//! The block backend: an instance for each vbd that the toolstack makes in xenstore.
//!
//! The `backends` crate decides everything, and [`xenbus`] knows what all backends have in common; this module has the
//! disks, the grants and the waiting.

mod connection;
mod grants;
mod instance;
mod named;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::sync::Arc;

use backends::blk::max_bytes;
use pvrt::grant::DeviceGrant;

use self::grants::SharedStage;
use self::instance::Instance;
use self::named::disk_name;
use crate::blkdev::Disks;
use crate::xenbus::{self, Device, Id};
use crate::xenstore::Xenstore;

/// Most disks that a domain can have from this backend.
pub const MAX_VBDS: usize = 16;

/// Most bytes of heap that a frontend can make one vbd keep, whatever the frontend does: [`max_bytes`], and what an
/// instance has in any case (its task, its watches, its paths).
pub const BYTES_PER_VBD: usize = max_bytes(size_of::<DeviceGrant>()) + 4096;
const _: () = assert!(BYTES_PER_VBD <= 224 << 10);

/// Serves block backends for ever.
pub async fn run(store: Xenstore, disks: Arc<Disks>) {
    let stage = SharedStage::default();
    let start = |id: Id| {
        let (store, instance) = (store.clone(), Instance::new(disks.clone(), stage.clone()));
        async move {
            let name = format!("disk {}", disk_name(id.device));
            if let Some(device) = Device::open(&store, "vbd", id, name) {
                xenbus::run(device, instance).await;
            }
        }
    };
    xenbus::serve(&store, "vbd", start).await;
}
