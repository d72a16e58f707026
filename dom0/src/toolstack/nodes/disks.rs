//! The nodes of disks.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::devices::number;
use super::{INITIALISING, put};
use crate::config::DiskConfig;
use crate::toolstack::AttachedDisk;
use crate::toolstack::devices::{Device, Kind};
use crate::xenstore::{Nodes, Perms, Transaction, Xenstore, XsError};

/// The disks that a domain has, in the order of their numbers.
pub(in crate::toolstack) fn disks(store: &Xenstore, id: DomId) -> Vec<AttachedDisk> {
    let client = store.client();
    let disk = |device: Device| {
        let server = device.server(store);
        let front = device.frontend();
        AttachedDisk {
            devid: device.devid,
            backend_id: server.raw().into(),
            frontend_id: id.raw().into(),
            state: number(&client, &front, "state").unwrap_or(0),
            port: number(&client, &front, "event-channel"),
            ring: number(&client, &front, "ring-ref").or_else(|| number(&client, &front, "ring-ref0")),
            backend: device.backend(server),
        }
    };
    Device::all(store, Kind::Disk, id).into_iter().map(disk).collect()
}

/// Each end's directory is its domain's own, and the other may read it.
pub(in crate::toolstack) fn put_disk(
    tx: &Transaction<'_>,
    device: Device,
    disk: &DiskConfig,
    server: DomId,
) -> Result<(), XsError> {
    let (front, back) = device.put_record(tx, server)?;
    let (id, server) = (device.domain.raw(), server.raw());
    let kind = if disk.cdrom { "cdrom" } else { "disk" };
    put(tx, &front, "", &Perms::shared_with(id, server))?;
    for (node, value) in [
        ("backend", back.as_str()),
        ("backend-id", &server.to_string()),
        ("state", INITIALISING),
        ("virtual-device", &disk.devid.to_string()),
        ("device-type", kind),
    ] {
        tx.write(&format!("{front}/{node}"), value)?;
    }
    // A frontend that finds no node trusts its backend.
    if !disk.trusted {
        tx.write(&format!("{front}/trusted"), "0")?;
    }
    put(tx, &back, "", &Perms::shared_with(server, id))?;
    for (node, value) in [
        ("frontend", front.as_str()),
        ("frontend-id", &id.to_string()),
        ("online", "1"),
        ("removable", if disk.cdrom { "1" } else { "0" }),
        ("bootable", "1"),
        ("params", &disk.target),
        ("type", "phy"),
        ("dev", &disk.vdev),
        ("mode", if disk.writable { "w" } else { "r" }),
        ("device-type", kind),
        ("discard-enable", if disk.discard { "1" } else { "0" }),
        ("state", INITIALISING),
    ] {
        tx.write(&format!("{back}/{node}"), value)?;
    }
    Ok(())
}
