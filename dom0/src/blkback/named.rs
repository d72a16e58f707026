//! Names of disks, for messages.

use alloc::format;
use alloc::string::{String, ToString};

/// The name by which a configuration has the disk; a number that no name has stays one.
///
/// ABI: `vbd-interface(7)` of Xen 4.17.
pub(super) fn disk_name(device: u32) -> String {
    let (kind, disk, partition) = match (device >> 28, device >> 8) {
        (1, _) => ("xvd", device >> 8 & 0xf_ffff, device & 0xff),
        (_, 202) => ("xvd", device >> 4 & 0xf, device & 0xf),
        (_, 8) => ("sd", device >> 4 & 0xf, device & 0xf),
        (_, 3) => ("hd", device >> 6 & 1, device & 0x3f),
        (_, 22) => ("hd", 2 + (device >> 6 & 1), device & 0x3f),
        _ => return device.to_string(),
    };
    let letters = letters(disk);
    if partition == 0 { format!("{kind}{letters}") } else { format!("{kind}{letters}{partition}") }
}

/// Disk 0 is `a`, 25 `z`, 26 `aa`.
fn letters(mut disk: u32) -> String {
    let mut letters = String::new();
    loop {
        letters.insert(0, char::from(b'a' + (disk % 26) as u8));
        match (disk / 26).checked_sub(1) {
            Some(rest) => disk = rest,
            None => return letters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_the_name_of_its_disk() {
        for (number, name) in [
            (51712, "xvda"),
            (51713, "xvda1"),
            (51967, "xvdp15"),
            (1 << 28 | 16 << 8, "xvdq"),
            (1 << 28 | 16, "xvda16"),
            (268_441_856, "xvdz"),
            (1 << 28 | 26 << 8, "xvdaa"),
            (1 << 28 | 701 << 8 | 3, "xvdzz3"),
            (1 << 28 | 702 << 8, "xvdaaa"),
            (2048, "sda"),
            (2290, "sdp2"),
            (768, "hda"),
            (833, "hdb1"),
            (5632, "hdc"),
            (5759, "hdd63"),
            (7, "7"),
            (u32::MAX, "4294967295"),
        ] {
            assert_eq!(disk_name(number), name);
        }
    }
}
