//! The nodes of disks: a frontend's and a backend's directory for each, and the toolstack's own record.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::{CLOSED, INITIALISING, is_state, present, put, records};
use crate::config::DiskConfig;
use crate::toolstack::AttachedDisk;
use crate::xenstore::{Nodes, Perms, Transaction, Xenstore, XsError};

/// ABI: `XenbusStateClosing`.
const CLOSING: &str = "5";

/// The backend directory of a disk that `server` serves.
pub(in crate::toolstack) fn backend(server: DomId, id: DomId, devid: u32) -> String {
    format!("/local/domain/{server}/backend/vbd/{id}/{devid}")
}

/// The toolstack's own directory of a disk.
fn disk_record(id: DomId, devid: u32) -> String {
    format!("{}/device/vbd/{devid}", records(id))
}

/// The domain that serves a disk, as the toolstack noted when the disk was attached. The frontend's nodes name the
/// domain too, but the guest may overwrite these; and any domain may make a backend's directory in its own home.
pub(in crate::toolstack) fn server(store: &Xenstore, id: DomId, devid: u32) -> DomId {
    let path = store.client().read_str(&format!("{}/backend", disk_record(id, devid)));
    let home =
        path.ok().and_then(|path| path.strip_prefix("/local/domain/")?.split('/').next()?.parse().ok());
    home.map_or(DomId::DOM0, DomId::new)
}

fn frontend(id: DomId, devid: u32) -> String {
    format!("/local/domain/{id}/device/vbd/{devid}")
}

/// Writes the nodes of a new disk for a running domain and its backend.
pub(in crate::toolstack) fn write_disk(
    store: &Xenstore,
    id: DomId,
    disk: &DiskConfig,
    server: DomId,
) -> Result<(), XsError> {
    store.client().atomically(|tx| put_disk(tx, id, disk, server))
}

/// Asks both ends of a disk to close. With `force`, the frontend's directory is removed, so that only the backend is
/// asked. A driver domain that has removed its end, or is gone, is not asked.
pub(in crate::toolstack) fn ask_for_disk(
    store: &Xenstore,
    id: DomId,
    devid: u32,
    force: bool,
) -> Result<(), XsError> {
    let (front, back) = (frontend(id, devid), backend(server(store, id, devid), id, devid));
    store.client().atomically(|tx| {
        if let Some(state) = present(tx.read(&format!("{back}/state")))? {
            tx.write(&format!("{back}/online"), "0")?;
            // A backend that has closed by itself stays so.
            if !is_state(state, CLOSED) {
                tx.write(&format!("{back}/state"), CLOSING)?;
            }
        }
        if force { present(tx.rm(&front)).map(drop) } else { Ok(()) }
    })
}

/// Removes what is left of a disk that both ends have closed.
pub(in crate::toolstack) fn remove_disk(store: &Xenstore, id: DomId, devid: u32) {
    let back = backend(server(store, id, devid), id, devid);
    let paths = [frontend(id, devid), back, disk_record(id, devid)];
    let removed =
        store.client().atomically(|tx| paths.iter().try_for_each(|path| present(tx.rm(path)).map(drop)));
    if let Err(error) = removed {
        log::error!("d{id}: removing a disk: {}", error.name());
    }
}

/// The disks whose backends a domain has, in the order of their numbers.
pub(in crate::toolstack) fn disks(store: &Xenstore, id: DomId) -> Vec<AttachedDisk> {
    let client = store.client();
    let numbers = client.directory(&format!("{}/device/vbd", records(id))).unwrap_or_default();
    let mut disks: Vec<AttachedDisk> = numbers
        .iter()
        .filter_map(|number| number.parse().ok())
        .map(|devid| {
            let server = server(store, id, devid);
            let front = frontend(id, devid);
            let number = |name: &str| client.read_as::<u32>(&format!("{front}/{name}")).ok();
            AttachedDisk {
                devid,
                backend_id: server.raw().into(),
                frontend_id: id.raw().into(),
                state: number("state").unwrap_or(0),
                port: number("event-channel"),
                ring: number("ring-ref").or_else(|| number("ring-ref0")),
                backend: backend(server, id, devid),
            }
        })
        .collect();
    disks.sort_by_key(|disk| disk.devid);
    disks
}

/// Writes both directories of a disk. Each end's domain owns its directory, and the other domain may read it.
fn put_disk(tx: &Transaction<'_>, id: DomId, disk: &DiskConfig, server: DomId) -> Result<(), XsError> {
    let (front, back) = (frontend(id, disk.devid), backend(server, id, disk.devid));
    tx.write(&format!("{}/backend", disk_record(id, disk.devid)), &back)?;
    let (id, server) = (id.raw(), server.raw());
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
