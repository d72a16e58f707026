//! Kinds of disks and network cards of the machines: tests name virtio disks, and `cargo xtask test --disks` may give the
//! machines others in their place. Names in what dom0's shell gets change with them, here and nowhere else.

use anyhow::{Result, ensure};
use xtask::machine::{Card, Machine, Way};
use xtask::test;

/// The directory of the disks.
const DIRECTORY: &str = "/dev/";
const BY_ID: &str = "disk/by-id/virtio-";

/// How machines reach the disks whose kind a test does not choose.
pub fn disks() -> Way {
    let asked = std::env::var(test::DISKS).unwrap_or_default();
    Way::ALL.into_iter().find(|(_, name)| *name == asked).map_or(Way::Virtio, |(way, _)| way)
}

/// Gives `machine` disks and a network card that are no virtio devices, unless `way` is virtio; and their names in the script.
pub(crate) fn choose(machine: &mut Machine, way: Way) {
    if way == Way::Virtio {
        return;
    }
    for disk in machine.disks.iter_mut().filter(|disk| disk.way == Way::Virtio) {
        disk.way = way;
    }
    machine.card = Card::E1000e;
    for line in machine.script.iter_mut().flatten() {
        *line = renamed(line, way);
    }
}

/// Checks that a machine that is to have no virtio device has none.
///
/// # Errors
/// The machine has one, which the test gave to it by hand.
pub(crate) fn check(machine: &Machine, way: Way) -> Result<()> {
    let virtio = machine.qemu_arguments.iter().find(|argument| argument.starts_with("virtio-"));
    ensure!(
        way == Way::Virtio || virtio.is_none(),
        "--disks {}: the test gives its machine the device {}",
        way.name(),
        virtio.map_or("", String::as_str)
    );
    Ok(())
}

/// `text` with the names of virtio disks replaced by those that the disks have when they are reached by `way`.
pub fn renamed(text: &str, way: Way) -> String {
    let mut parts = text.split(DIRECTORY);
    let mut renamed = parts.next().unwrap_or_default().to_string();
    for part in parts {
        renamed += DIRECTORY;
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && !"/-_".contains(c)).unwrap_or(part.len());
        let (name, rest) = part.split_at(end);
        if way == Way::Virtio {
            renamed += name;
        } else if let Some(id) = name.strip_prefix(BY_ID) {
            renamed += "disk/by-id/";
            renamed += &way.id_name(id);
        } else if let Some(&[letter @ b'a'..=b'z']) = name.strip_prefix("vd").map(str::as_bytes) {
            renamed += &way.disk_name(letter - b'a');
        } else {
            renamed += name;
        }
        renamed += rest;
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use xtask::machine::Disk;

    #[test]
    fn names_of_disks_follow_their_kind() {
        let line = "xl create x disk=['phy:/dev/vda,xvda,w','/dev/disk/by-id/virtio-big,raw,xvdb,r'] run=\"cat /dev/xvda\"";
        assert_eq!(renamed(line, Way::Virtio), line);
        assert_eq!(
            renamed(line, Way::Nvme),
            "xl create x disk=['phy:/dev/nvme0n1,xvda,w','/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_big,raw,xvdb,r'] \
             run=\"cat /dev/xvda\""
        );
        assert_eq!(renamed("phy:/dev/vdc", Way::Ahci), "phy:/dev/sdc");
        for other in ["/dev/vdaa", "/dev/", "vda", "/dev/vd", "/dev/disk/by-id/nvme-x"] {
            assert_eq!(renamed(other, Way::Ahci), other);
        }
    }

    #[test]
    fn a_machine_that_is_to_have_no_virtio_device_has_none() {
        let mut machine = Machine {
            disks: vec![Disk::file(Path::new("a")), Disk { way: Way::Nvme, ..Disk::file(Path::new("b")) }],
            script: Some(vec!["ls /dev/vda".into()]),
            ..Machine::default()
        };
        choose(&mut machine, Way::Virtio);
        assert_eq!((machine.disks[0].way, machine.card), (Way::Virtio, Card::Virtio));
        choose(&mut machine, Way::Ahci);
        assert_eq!((machine.disks[0].way, machine.disks[1].way), (Way::Ahci, Way::Nvme));
        assert_eq!(
            (machine.card, machine.script.as_deref()),
            (Card::E1000e, Some(&["ls /dev/sda".to_string()][..]))
        );
        check(&machine, Way::Ahci).expect("none");
        machine.qemu_arguments = vec!["-device".into(), "virtio-rng-pci".into()];
        check(&machine, Way::Virtio).expect("it may have one");
        let error = check(&machine, Way::Ahci).expect_err("it has one").to_string();
        assert!(error.contains("virtio-rng-pci"), "{error}");
    }
}
