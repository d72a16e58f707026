//! The x86 filter: the targets of calls and jumps, which the encoder made absolute, are made relative again.

/// Bytes of an instruction behind its first.
const OPERAND_BYTES: usize = 4;

/// The filter, between two stretches of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct X86 {
    position: u32,
    /// Which of the last bytes may have begun an instruction.
    mask: u32,
}

fn is_sign(byte: u8) -> bool {
    matches!(byte, 0 | 0xff)
}

impl X86 {
    pub(super) fn new(position: u32) -> Self {
        Self { position, mask: 0 }
    }

    /// Filters `bytes` from the start on, and returns how many are done. The last four must wait for further
    /// bytes.
    pub(super) fn filter(&mut self, bytes: &mut [u8]) -> usize {
        const ALLOWED: [bool; 8] = [true, true, true, false, true, false, false, false];
        const BIT_NUMBER: [u32; 8] = [0, 1, 2, 2, 3, 3, 3, 3];
        let Some(end) = bytes.len().checked_sub(OPERAND_BYTES).filter(|&end| end > 0) else { return 0 };
        let (mut at, mut last, mut mask) = (0, usize::MAX, self.mask);
        while at < end {
            if bytes[at] & 0xfe != 0xe8 {
                at += 1;
                continue;
            }
            let since = at.wrapping_sub(last);
            last = at;
            if since > 3 {
                mask = 0;
            } else {
                mask = mask << (since - 1) & 7;
                if mask != 0 {
                    let byte = bytes[at + OPERAND_BYTES - BIT_NUMBER[mask as usize] as usize];
                    if !ALLOWED[mask as usize] || is_sign(byte) {
                        mask = mask << 1 | 1;
                        at += 1;
                        continue;
                    }
                }
            }
            if !is_sign(bytes[at + OPERAND_BYTES]) {
                mask = mask << 1 | 1;
                at += 1;
                continue;
            }
            let operand = [bytes[at + 1], bytes[at + 2], bytes[at + 3], bytes[at + 4]];
            let next = self.position.wrapping_add(at as u32 + 5);
            let mut source = u32::from_le_bytes(operand);
            let target = loop {
                let target = source.wrapping_sub(next);
                if mask == 0 {
                    break target;
                }
                let shift = BIT_NUMBER[(mask & 7) as usize] * 8;
                if !is_sign((target >> (24 - shift)) as u8) {
                    break target;
                }
                source = target ^ ((1u32 << (32 - shift)) - 1);
            };
            let target = target & 0x01ff_ffff;
            let target = target | 0u32.wrapping_sub(target & 0x0100_0000);
            bytes[at + 1..at + 5].copy_from_slice(&target.to_le_bytes());
            at += 1 + OPERAND_BYTES;
        }
        let since = at.wrapping_sub(last);
        self.mask = if since > 3 { 0 } else { mask << (since - 1) };
        self.position = self.position.wrapping_add(at as u32);
        at
    }
}
