//! Names of devices in order: vda to vdz, vdaa and so on.

use alloc::string::String;

/// The name of disk number `index`: 0 is `vda`, 25 `vdz`, 26 `vdaa`.
pub fn disk_name(index: usize) -> String {
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
    let mut name = String::from("vd");
    name.extend(letters[..used].iter().rev().map(|&letter| char::from(letter)));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_carry() {
        let expected = [(0, "vda"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (701, "vdzz"), (702, "vdaaa")];
        for (index, name) in expected {
            assert_eq!(disk_name(index), name);
        }
        assert!(disk_name(usize::MAX).len() < 18);
    }
}
