//! The report of a panic, kept in memory across a warm reset, for the next start to tell.
//!
//! Shape: [`MAGIC`], the report's length and the CRC-32 of the report, four bytes each, then the report. Any other program may have
//! used the memory meanwhile, and power may have been off: only what has the right sum is a report.
#![forbid(unsafe_code)]

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};

/// What the memory begins with that holds a report.
const MAGIC: [u8; 8] = *b"microhv!";
/// Bytes ahead of the report.
const HEAD_BYTES: usize = 16;
/// A sum without a table: it is taken once in a start.
const SUM: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// Makes what `write` puts into the memory, and whose length it returns, a report.
pub fn keep(memory: &mut [u8], write: impl FnOnce(&mut [u8]) -> usize) {
    let Some((head, body)) = memory.split_at_mut_checked(HEAD_BYTES) else { return };
    let count = write(body).min(body.len());
    let sum = SUM.checksum(&body[..count]);
    head[..8].copy_from_slice(&MAGIC);
    head[8..].copy_from_slice([(count as u32).to_le_bytes(), sum.to_le_bytes()].as_flattened());
}

/// The report in the memory, if there is one.
pub fn report(memory: &[u8]) -> Option<&[u8]> {
    let (count, rest) = memory.strip_prefix(&MAGIC)?.split_first_chunk()?;
    let (sum, body) = rest.split_first_chunk()?;
    let report = body.get(..u32::from_le_bytes(*count) as usize)?;
    (SUM.checksum(report) == u32::from_le_bytes(*sum)).then_some(report)
}

/// Forgets the report, so that it is told once.
pub fn forget(memory: &mut [u8]) {
    memory[..MAGIC.len()].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &[u8]) -> [u8; 64] {
        let mut memory = [0xa5; 64];
        keep(&mut memory, |body| {
            body[..text.len()].copy_from_slice(text);
            text.len()
        });
        memory
    }

    #[test]
    fn a_report_is_found_until_it_is_forgotten() {
        let mut memory = written(b"PANIC: why");
        assert_eq!(report(&memory), Some(&b"PANIC: why"[..]));
        forget(&mut memory);
        assert_eq!(report(&memory), None);
        assert_eq!(report(&written(b"")), Some(&b""[..]));
        assert_eq!(report(&written(&[b'x'; 48])), Some(&[b'x'; 48][..]));
    }

    #[test]
    fn whatever_changed_is_no_report() {
        let memory = written(b"PANIC: why");
        for bit in 0..(HEAD_BYTES + 10) * 8 {
            let mut changed = memory;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(report(&changed), None, "bit {bit}");
        }
        for len in 0..HEAD_BYTES + 10 {
            assert_eq!(report(&memory[..len]), None, "{len} bytes");
        }
        assert_eq!(report(&[0; 64]), None);
    }

    #[test]
    fn memory_too_small_for_a_head_is_left_alone() {
        let mut memory = [7; HEAD_BYTES - 1];
        keep(&mut memory, |_| unreachable!("there is no room"));
        assert_eq!(memory, [7; HEAD_BYTES - 1]);
    }
}
