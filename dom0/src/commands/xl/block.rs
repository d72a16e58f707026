//! `xl`: the sub-commands for disks of running domains.

use alloc::format;
use alloc::string::{String, ToString};

use pvrt::executor::{spawn_join, yield_now};

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::config::{DiskConfig, vdev_number};
use crate::shell::print::Printer;
use crate::toolstack::AttachedDisk;

impl Shell {
    /// `xl block-attach DOMAIN DISK...`: the words are one disk, as in `disk=[...]`.
    pub(super) async fn xl_block_attach(&self, line: &Line<'_>) -> Outcome {
        let [name, words @ ..] = &line.operands[..] else { return Err(line.command.usage()) };
        let domain = self.toolstack.find(name)?;
        let disk = DiskConfig::parse(&words.join(","))?;
        if line.dry_run {
            return super::json::print(&super::json::disk(&disk)).await;
        }
        let toolstack = self.toolstack.clone();
        let attached = spawn_join(async move { toolstack.attach_disk(&domain, disk).await }).await;
        attached.map_err(|_| "xl block-attach: given up")?.map_err(|error| error.to_string())
    }

    /// `xl block-detach DOMAIN DEVICE [--force]`.
    pub(super) async fn xl_block_detach(&self, line: &Line<'_>) -> Outcome {
        let ((name, device), force) = (line.two()?, line.has("f"));
        let domain = self.toolstack.find(name)?;
        let devid = vdev_number(device).ok_or_else(|| format!("`{device}`: no disk's name or number"))?;
        let toolstack = self.toolstack.clone();
        let detached = spawn_join(async move { toolstack.detach_disk(&domain, devid, force).await }).await;
        detached.map_err(|_| "xl block-detach: given up")?.map_err(|error| error.to_string())
    }

    /// `xl block-list DOMAIN...`.
    pub(super) async fn xl_block_list(&self, list: &Line<'_>) -> Outcome {
        let mut printer = Printer::default();
        printer.line(HEADER).await;
        for name in &list.operands {
            yield_now().await;
            for disk in self.toolstack.attached_disks(&self.toolstack.find(name)?) {
                printer.line(&line(&disk)).await;
            }
        }
        printer.end().await;
        Ok(())
    }
}

const HEADER: &str = "Vdev  BE  handle state evt-ch ring-ref BE-path";

/// The columns of [`HEADER`]; -1 stands for a missing value, as in Xen's `xl`.
fn line(disk: &AttachedDisk) -> String {
    let known = |number: Option<u32>| number.map_or(-1, i64::from);
    format!(
        "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {}",
        disk.devid,
        disk.backend_id,
        disk.frontend_id,
        disk.state,
        known(disk.port),
        known(disk.ring),
        disk.backend,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_heads() {
        let disk = AttachedDisk {
            devid: 51712,
            backend_id: 0,
            frontend_id: 7,
            state: 4,
            port: Some(17),
            ring: None,
            backend: "/local/domain/0/backend/vbd/7/51712".to_string(),
        };
        let line = line(&disk);
        assert_eq!(line, "51712 0   7      4     17     -1       /local/domain/0/backend/vbd/7/51712");
        assert_eq!(HEADER.find("BE-path"), line.find('/'));
        assert_eq!(HEADER.find("evt-ch"), line.find("17 "));
    }
}
