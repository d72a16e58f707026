//! The last output of a console, bounded.

use alloc::collections::VecDeque;

/// The last bytes of a stream. Each byte has a position, and positions only grow, so that a reader sees what the reader
/// has missed.
#[derive(Debug)]
pub struct Scrollback {
    bytes: VecDeque<u8>,
    limit: usize,
    /// Position of the byte after the last.
    end: u64,
}

impl Scrollback {
    /// Keeps at most `limit` bytes. The memory grows with the bytes kept.
    pub fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit, end: 0 }
    }

    /// Adds `bytes`; the oldest are forgotten beyond the limit.
    pub fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// Position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Position after the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Copies kept bytes from `position` on into `buffer`. The result is the number of bytes and the position after
    /// them.
    ///
    /// A `position` before [`Self::start`] counts as [`Self::start`]; from a `position` past the end nothing is copied.
    pub fn read(&self, position: u64, buffer: &mut [u8]) -> (usize, u64) {
        let position = position.clamp(self.start(), self.end);
        let skip = (position - self.start()) as usize;
        let (head, tail) = self.bytes.as_slices();
        let head = head.get(skip..).unwrap_or(&[]);
        let tail = &tail[skip.saturating_sub(self.bytes.as_slices().0.len()).min(tail.len())..];
        let first = head.len().min(buffer.len());
        buffer[..first].copy_from_slice(&head[..first]);
        let second = tail.len().min(buffer.len() - first);
        buffer[first..first + second].copy_from_slice(&tail[..second]);
        (first + second, position + (first + second) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn nothing_and_no_room() {
        let mut empty = Scrollback::new(0);
        empty.push(b"lost");
        assert_eq!((empty.start(), empty.end()), (4, 4));
        assert_eq!(empty.read(0, &mut [0; 4]), (0, 4));
    }

    proptest! {
        #[test]
        fn keeps_the_tail_of_the_stream(
            limit in 0usize..40,
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..20),
            from in 0u64..700,
            room in 0usize..50,
        ) {
            let mut kept = Scrollback::new(limit);
            let mut all = Vec::new();
            for piece in &pieces {
                kept.push(piece);
                all.extend_from_slice(piece);
            }
            let start = all.len() - all.len().min(limit);
            prop_assert_eq!((kept.start(), kept.end()), (start as u64, all.len() as u64));
            let mut buffer = alloc::vec![0; room];
            let (n, next) = kept.read(from, &mut buffer);
            let begin = (from as usize).clamp(start, all.len());
            let expected = &all[begin..all.len().min(begin + room)];
            prop_assert_eq!(&buffer[..n], expected);
            prop_assert_eq!(next, (begin + n) as u64);
        }
    }
}
