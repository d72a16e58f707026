//! The hypervisor's own messages, kept for `xl dmesg`. What domains write is not among them.

/// Bytes that are kept, the newest. A power of two.
pub const MESSAGES_BYTES: usize = 16384;

/// The messages.
#[derive(Debug)]
pub struct Messages {
    log: [u8; MESSAGES_BYTES],
    /// Bytes ever written: the next goes to this modulo the size.
    written: u64,
    /// What was written before this was forgotten.
    cleared: u64,
}

impl Messages {
    #[allow(clippy::new_without_default, reason = "a part of a static")]
    pub(super) const fn new() -> Self {
        Self { log: [0; MESSAGES_BYTES], written: 0, cleared: 0 }
    }

    /// Keeps `bytes`; the oldest go.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.log[(self.written % MESSAGES_BYTES as u64) as usize] = byte;
            self.written += 1;
        }
    }

    /// Messages from byte `from` on: where the copy really starts, and its length.
    pub fn kept(&self, from: u64, to: &mut [u8]) -> (u64, usize) {
        let oldest = self.written.saturating_sub(MESSAGES_BYTES as u64);
        let first = from.max(self.cleared).max(oldest).min(self.written);
        let kept = (first..self.written).map(|place| self.log[(place % MESSAGES_BYTES as u64) as usize]);
        let count = to.iter_mut().zip(kept).map(|(to, byte)| *to = byte).count();
        (first, count)
    }

    /// Forgets them.
    pub const fn clear(&mut self) {
        self.cleared = self.written;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_until_they_are_forgotten() {
        let mut messages = Messages::new();
        messages.push(b"before");
        messages.clear();
        messages.push(b"after");
        let mut kept = [0; 16];
        assert_eq!((messages.kept(0, &mut kept), &kept[..5]), ((6, 5), &b"after"[..]));
        assert_eq!(messages.kept(9, &mut kept), (9, 2));
        assert_eq!(messages.kept(100, &mut kept), (11, 0));
        messages.push(&[b'x'; MESSAGES_BYTES - 1]);
        assert_eq!((messages.kept(0, &mut kept), kept[0], kept[1]), ((10, 16), b'r', b'x'));
    }
}
