//! Names of virtual block devices.

/// The first disk or partition number that the old encoding cannot express, for `xvd` and `sd`.
const OLD_MAX: u64 = 16;

/// The device number of a name: `xvda` is 51712.
///
/// Names: `xvd<letters>[<partition>]`, `d<disk>[p<partition>]`, `sd<letter>[...]`, `hd<letter>[...]`, or the
/// number itself. `xvd` and `d` with disk and partition under 16: `202 << 8 | disk << 4 | partition`; beyond,
/// `1 << 28 | disk << 8 | partition`, with 20 bits of disk and 8 of partition.
///
/// ABI: `vbd-interface(7)` of Xen 4.17.
pub fn vdev_number(name: &str) -> Option<u32> {
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return match name.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => name.parse().ok(),
        };
    }
    let (kind, disk, partition) = if let Some(rest) = name.strip_prefix("xvd") {
        let (disk, partition) = letters(rest)?;
        ("xvd", disk, partition)
    } else if let Some(rest) = name.strip_prefix("sd") {
        let (disk, partition) = letters(rest)?;
        ("sd", disk, partition)
    } else if let Some(rest) = name.strip_prefix("hd") {
        let (disk, partition) = letters(rest)?;
        ("hd", disk, partition)
    } else {
        let rest = name.strip_prefix('d')?;
        let (disk, partition) = match rest.split_once('p') {
            Some((disk, partition)) => (number(disk)?, number(partition)?),
            None => (number(rest)?, 0),
        };
        ("xvd", disk, partition)
    };
    let code = match kind {
        "xvd" if disk < OLD_MAX && partition < OLD_MAX => 202 << 8 | disk << 4 | partition,
        "xvd" if disk < 1 << 20 && partition < 1 << 8 => 1 << 28 | disk << 8 | partition,
        "sd" if disk < OLD_MAX && partition < OLD_MAX => 8 << 8 | disk << 4 | partition,
        "hd" if disk < 2 && partition < 64 => 3 << 8 | disk << 6 | partition,
        "hd" if disk < 4 && partition < 64 => 22 << 8 | (disk - 2) << 6 | partition,
        _ => return None,
    };
    u32::try_from(code).ok()
}

/// `a` is disk 0, `z` 25, `aa` 26; then nothing, or a partition from 1.
fn letters(text: &str) -> Option<(u64, u64)> {
    let end = text.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(text.len());
    if end == 0 || end > 5 {
        return None;
    }
    let disk = text.bytes().take(end).fold(0, |disk, letter| disk * 26 + u64::from(letter - b'a') + 1) - 1;
    match &text[end..] {
        "" => Some((disk, 0)),
        digits => number(digits).filter(|partition| *partition > 0).map(|partition| (disk, partition)),
    }
}

/// A decimal number without zeros before it, of at most 31 bits.
fn number(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|value| plain && *value < 1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names() {
        for (name, want) in [
            ("xvda", 51712),
            ("xvda1", 51713),
            ("xvda15", 51727),
            ("xvdb", 51728),
            ("xvdp", 51952),
            ("xvdp15", 51967),
            ("xvda16", 1 << 28 | 16),
            ("xvdq", 1 << 28 | 16 << 8),
            ("xvdq1", 1 << 28 | 16 << 8 | 1),
            ("xvdz", 1 << 28 | 25 << 8),
            ("xvdaa", 1 << 28 | 26 << 8),
            ("xvda255", 1 << 28 | 255),
            ("d0", 51712),
            ("d0p0", 51712),
            ("d0p1", 51713),
            ("d5p2", 202 << 8 | 5 << 4 | 2),
            ("d16p1", 1 << 28 | 16 << 8 | 1),
            ("d536p37", 1 << 28 | 536 << 8 | 37),
            ("d1048575p255", 1 << 28 | 1048575 << 8 | 255),
            ("xvdbgqcv", 1 << 28 | 1048575 << 8),
            ("hda", 768),
            ("hda63", 768 + 63),
            ("hdb", 832),
            ("hdc", 5632),
            ("hdd1", 5632 + 64 + 1),
            ("sda", 2048),
            ("sdb3", 2048 + 16 + 3),
            ("sdp15", 2048 + 255),
            ("51712", 51712),
            ("0xca00", 51712),
        ] {
            assert_eq!(vdev_number(name), Some(want), "{name}");
        }
    }

    #[test]
    fn wrong_names() {
        for name in [
            "",
            "x",
            "xvd",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvdA",
            "xvda-1",
            "xvda+1",
            "xvdaaaaaa",
            "xvdbgqcw",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "d",
            "dp1",
            "d0p",
            "d0p256",
            "d1048576",
            "d01",
            "d99999999999999999999",
            "vda",
            "/dev/xvda",
            "4294967296",
            "0x",
            "1x",
        ] {
            assert_eq!(vdev_number(name), None, "{name}");
        }
    }
}
