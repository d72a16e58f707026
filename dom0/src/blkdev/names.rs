//! Names of disks, as Linux gives them: in order, vda to vdz, vdaa and so on; and below `/dev/disk/by-id`.

use alloc::format;
use alloc::string::String;

/// The name of disk number `index` of a kind: with `vd`, 0 is `vda`, 25 `vdz`, 26 `vdaa`.
pub fn disk_name(prefix: &str, index: usize) -> String {
    let mut letters = [0u8; 16];
    let (mut left, mut used) = (index, 0);
    loop {
        letters[used] = b'a' + (left % 26) as u8;
        used += 1;
        match (left / 26).checked_sub(1) {
            Some(next) => left = next,
            None => break,
        }
    }
    let mut name = String::from(prefix);
    name.extend(letters[..used].iter().rev().map(|&letter| char::from(letter)));
    name
}

/// The name of a disk below `/dev/disk/by-id`: the way to the disk, the model, the serial number. What is no plain letter,
/// digit or mark becomes `_`, and spaces become one.
pub fn id_name(way: &str, model: &str, serial: &str) -> String {
    let mut name = format!("{way}-");
    let plain = |c: char| if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) { c } else { '_' };
    for (index, word) in model.split_whitespace().chain(serial.split_whitespace()).enumerate() {
        if index > 0 {
            name.push('_');
        }
        name.extend(word.chars().map(plain));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_carry() {
        let expected = [(0, "vda"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (701, "vdzz"), (702, "vdaaa")];
        for (index, name) in expected {
            assert_eq!(disk_name("vd", index), name);
        }
        assert_eq!(disk_name("sd", 1), "sdb");
        assert!(disk_name("vd", usize::MAX).len() < 18);
    }

    #[test]
    fn ids_are_as_in_linux() {
        for (way, model, serial, name) in [
            ("nvme", "QEMU NVMe Ctrl", "root", "nvme-QEMU_NVMe_Ctrl_root"),
            ("ata", "QEMU HARDDISK", "QM00001", "ata-QEMU_HARDDISK_QM00001"),
            ("virtio", "", "debian", "virtio-debian"),
            ("ata", "  A/B   C", "x\u{e4}", "ata-A_B_C_x_"),
        ] {
            assert_eq!(id_name(way, model, serial), name);
        }
    }
}
