//! UUIDs.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::executor::time;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A new UUID of version 4, unique on this machine: made of the clocks and a count.
pub(super) fn fresh() -> [u8; 16] {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let high = mix(time::wall_ns() ^ count.rotate_left(48));
    let low = mix(high ^ time::tsc());
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&high.to_be_bytes());
    uuid[8..].copy_from_slice(&low.to_be_bytes());
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Spreads the bits of a number over all of it.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// `8-4-4-4-12` hexadecimal digits.
pub fn text(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_five_groups() {
        let uuid = core::array::from_fn(|index| index as u8 * 0x11);
        assert_eq!(text(&uuid), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn fresh_ones_differ() {
        assert_ne!(fresh(), fresh());
        assert_eq!(fresh()[6] >> 4, 4);
    }
}
