//! What the disk in memory says of itself.

use super::model::Limits;

/// The answer to IDENTIFY DEVICE.
pub(super) fn identify(limits: &Limits) -> [u8; 512] {
    let mut words = [0u16; 256];
    let text = |words: &mut [u16], text: &str| {
        let mut bytes = text.bytes().chain(core::iter::repeat(b' '));
        for word in words {
            *word = u16::from_be_bytes([bytes.next().unwrap(), bytes.next().unwrap()]);
        }
    };
    text(&mut words[10..20], limits.serial);
    text(&mut words[27..47], "Model of a disk");
    words[49] = 1 << 9;
    words[75] = limits.queue.unwrap_or(1) - 1;
    words[76] = u16::from(limits.queue.is_some()) << 8;
    words[83] = 1 << 14 | u16::from(limits.lba48) << 10 | 1 << 13;
    for (index, word) in words[100..104].iter_mut().enumerate() {
        *word = (limits.sectors >> (16 * index)) as u16;
    }
    words[106] = 1 << 14 | 1 << 13 | 3;
    words[169] = limits.trims.into();
    let mut bytes = [0; 512];
    for (index, word) in words.iter().enumerate() {
        bytes[2 * index..2 * index + 2].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
