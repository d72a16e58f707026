//! One vbd: finds the disk, and connects frontends to the disk.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use backends::BlockDevice;
use backends::vbd;

use super::MAX_VBDS;
use super::connection::Connection;
use super::grants::SharedStage;
use crate::blkdev::{Disks, NoDiscard, OpenDisk, Quiet, ReadOnly, SharedDevice, User};
use crate::xenbus::{Backend, Device, Id};

/// A block backend.
pub(super) struct Instance {
    disks: Arc<Disks>,
    stage: SharedStage,
    disk: Option<(SharedDevice, OpenDisk)>,
    quiet: Arc<Quiet>,
}

impl Instance {
    pub(super) fn new(disks: Arc<Disks>, stage: SharedStage) -> Self {
        Self { disks, stage, disk: None, quiet: Arc::default() }
    }

    fn find_disk(&self, device: &Device) -> Result<(SharedDevice, OpenDisk), String> {
        let path = device.read("params").unwrap_or_default();
        let disk = self.disks.find(&path).ok_or_else(|| {
            let known = self.disks.paths();
            if known.is_empty() {
                format!("{path}: no such disk (there are none)")
            } else {
                format!("{path}: no such disk (there are {})", known.join(", "))
            }
        })?;
        let mode = device.read("mode").unwrap_or_default();
        let Id { domain, device: number } = device.id;
        if self.disks.users().iter().filter(|user| user.domain == domain).count() >= MAX_VBDS {
            return Err(format!("{path}: a domain has {MAX_VBDS} disks at most"));
        }
        let writable = mode.starts_with('w');
        let shared: SharedDevice = match (writable, disk.device.geometry().read_only) {
            (true, true) => return Err(format!("{path}: the disk is read-only")),
            (true, false) if device.number("discard-enable") == Some(0) => Arc::new(NoDiscard(disk.device)),
            (true, false) => disk.device,
            (false, _) => Arc::new(ReadOnly(disk.device)),
        };
        let open =
            self.disks.open(User { disk: disk.name, domain, device: number, writable }, self.quiet.clone());
        Ok((shared, open))
    }
}

impl Backend for Instance {
    type Connection = Connection;

    /// Finds the disk and tells the frontend what the disk can do.
    fn announce(&mut self, device: &Device) -> Result<(), String> {
        if self.disk.is_none() {
            self.disk = Some(self.find_disk(device)?);
        }
        if let Some((disk, _)) = &self.disk {
            for (name, value) in vbd::features(&disk.geometry()) {
                device.write(name, &value);
            }
        }
        Ok(())
    }

    fn connect(&mut self, device: &Device) -> Result<Connection, String> {
        let disk = self.disk.as_ref().map(|(disk, _)| disk.clone()).ok_or("no disk")?;
        let parameters =
            vbd::Connection::read(|name| device.read_front(name)).map_err(|error| error.to_string())?;
        let geometry = disk.geometry();
        let connection =
            Connection::open(device.id.domain, &parameters, disk, self.stage.clone(), self.quiet.clone())?;
        let cdrom = device.read("device-type").is_some_and(|kind| kind == "cdrom");
        for (name, value) in vbd::properties(&geometry, cdrom) {
            device.write(name, &value);
        }
        log::debug!("{}: connected, {} ring pages", device.named(), parameters.ring.len());
        Ok(connection)
    }
}
