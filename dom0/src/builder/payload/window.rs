//! The last output of a decompressor, to which later matches refer.

use alloc::vec::Vec;

use pvrt::{Account, spawn, yield_now};

/// The window is allocated in pieces of this size, as the output reaches them. So no single step allocates much, and
/// a small file takes little memory even in a format with a large window.
const CHUNK_BYTES: usize = 256 << 10;

/// There is no memory for the next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoMemory;

/// A ring of the bytes put out last. Bytes that were not taken yet are never overwritten, as long as no more
/// than [`Window::MAX_WAITING`] bytes wait.
pub(super) struct Window {
    chunks: Vec<Vec<u8>>,
    /// The most pieces.
    limit: usize,
    /// How far back a match may refer.
    reach: u64,
    /// The offset of the next byte.
    at: usize,
    /// Bytes put out so far.
    total: u64,
    /// Bytes put out that were not taken yet.
    waiting: usize,
}

/// Pieces that are freed in one turn: freeing a piece takes some 35,000 instructions.
const CHUNKS_AT_ONCE: usize = 8;

impl Drop for Window {
    /// Frees the pieces in turns, however the window ended.
    fn drop(&mut self) {
        // Some pieces are freed before the task is made: there may be no other memory for the task.
        if !self.release() {
            return;
        }
        let mut chunks = core::mem::take(&mut self.chunks);
        // The task belongs to dom0's own account: a task of the account that took the pieces might never run,
        // since that account may be overdrawn.
        Account::own().charge(|| {
            spawn(async move {
                while !chunks.is_empty() {
                    // `settle` would not do, since it does not yield while no task is ready, and events wait
                    // until the poll ends.
                    yield_now().await;
                    chunks.truncate(chunks.len().saturating_sub(CHUNKS_AT_ONCE));
                }
            })
        });
    }
}

impl Window {
    /// The most bytes that may wait to be taken.
    pub(super) const MAX_WAITING: usize = CHUNK_BYTES;

    /// A window in which matches refer to the last `reach` bytes.
    pub(super) fn new(reach: u64) -> Self {
        let limit = (reach as usize + Self::MAX_WAITING).div_ceil(CHUNK_BYTES);
        Self { chunks: Vec::new(), limit, reach, at: 0, total: 0, waiting: 0 }
    }

    /// Starts anew with matches that refer to the last `reach` bytes, no fewer than before. The pieces stay.
    pub(super) fn restart(&mut self, reach: u64) {
        *self = Self { chunks: core::mem::take(&mut self.chunks), ..Self::new(reach) };
    }

    /// Frees some pieces. Returns whether more are left.
    pub(super) fn release(&mut self) -> bool {
        self.chunks.truncate(self.chunks.len().saturating_sub(CHUNKS_AT_ONCE));
        !self.chunks.is_empty()
    }

    /// The most memory that a window of `reach` bytes may take.
    pub(super) const fn bytes_for(reach: u64) -> u64 {
        (reach + Self::MAX_WAITING as u64).next_multiple_of(CHUNK_BYTES as u64)
    }

    /// Bytes put out so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes put out that were not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The stretch of a piece that starts at `at` and has at most `len` bytes.
    fn piece(&self, at: usize, len: usize) -> (usize, usize, usize) {
        let (chunk, start) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
        (chunk, start, len.min(CHUNK_BYTES - start))
    }

    fn ensure(&mut self, chunk: usize) -> Result<(), NoMemory> {
        if chunk < self.chunks.len() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.chunks.try_reserve(1).map_err(|_| NoMemory)?;
        bytes.try_reserve_exact(CHUNK_BYTES).map_err(|_| NoMemory)?;
        bytes.resize(CHUNK_BYTES, 0);
        self.chunks.push(bytes);
        Ok(())
    }

    fn advance(&mut self, len: usize) {
        self.at += len;
        if self.at == self.limit * CHUNK_BYTES {
            self.at = 0;
        }
        self.total += len as u64;
        self.waiting += len;
    }

    /// Puts bytes out.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> Result<(), NoMemory> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (chunk, start, len) = self.piece(self.at, rest.len());
            self.ensure(chunk)?;
            let (now, later) = rest.split_at(len);
            self.chunks[chunk][start..start + len].copy_from_slice(now);
            self.advance(len);
            rest = later;
        }
        Ok(())
    }

    /// Puts one byte out.
    #[inline]
    pub(super) fn push(&mut self, byte: u8) -> Result<(), NoMemory> {
        let (chunk, start) = (self.at / CHUNK_BYTES, self.at % CHUNK_BYTES);
        self.ensure(chunk)?;
        self.chunks[chunk][start] = byte;
        self.advance(1);
        Ok(())
    }

    /// The byte `distance` back; 0 if there is none.
    #[inline]
    pub(super) fn byte(&self, distance: u64) -> u8 {
        if !self.has(distance) {
            return 0;
        }
        let (back, end) = (distance as usize, self.limit * CHUNK_BYTES);
        let from = if self.at >= back { self.at - back } else { self.at + end - back };
        self.chunks[from / CHUNK_BYTES][from % CHUNK_BYTES]
    }

    /// Puts one byte out `len` times.
    pub(super) fn fill(&mut self, byte: u8, len: usize) -> Result<(), NoMemory> {
        let mut left = len;
        while left > 0 {
            let (chunk, start, len) = self.piece(self.at, left);
            self.ensure(chunk)?;
            self.chunks[chunk][start..start + len].fill(byte);
            self.advance(len);
            left -= len;
        }
        Ok(())
    }

    /// Whether a match may refer `distance` bytes back.
    pub(super) fn has(&self, distance: u64) -> bool {
        distance != 0 && distance <= self.reach.min(self.total)
    }

    /// Copies `len` bytes from `distance` back to the output; [`Window::has`] must be true for `distance`.
    pub(super) fn repeat(&mut self, distance: usize, len: usize) -> Result<(), NoMemory> {
        let end = self.limit * CHUNK_BYTES;
        let (mut done, mut back) = (0, distance);
        while done < len {
            let from = if self.at >= back { self.at - back } else { self.at + end - back };
            let (source, source_start, n) = self.piece(from, (len - done).min(back));
            let (target, target_start, n) = self.piece(self.at, n);
            self.ensure(target)?;
            if source == target {
                self.chunks[source].copy_within(source_start..source_start + n, target_start);
            } else if let Ok([source, target]) = self.chunks.get_disjoint_mut([source, target]) {
                target[target_start..target_start + n]
                    .copy_from_slice(&source[source_start..source_start + n]);
            }
            self.advance(n);
            done += n;
            // The bytes just copied continue the pattern, so a short pattern can be copied in ever longer
            // pieces.
            while back * 2 <= distance + done {
                back *= 2;
            }
        }
        Ok(())
    }

    /// Takes bytes that wait.
    pub(super) fn take(&mut self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.waiting);
        let end = self.limit * CHUNK_BYTES;
        let mut done = 0;
        while done < len {
            let from =
                if self.at >= self.waiting { self.at - self.waiting } else { self.at + end - self.waiting };
            let (chunk, start, n) = self.piece(from, len - done);
            to[done..done + n].copy_from_slice(&self.chunks[chunk][start..start + n]);
            self.waiting -= n;
            done += n;
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Extend(Vec<u8>),
        Fill(u8, usize),
        Repeat(u64, usize),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Op::Extend),
            (any::<u8>(), 0usize..90_000).prop_map(|(byte, len)| Op::Fill(byte, len)),
            (prop_oneof![1u64..20, 1u64..600_000], 0usize..100_000).prop_map(|(d, len)| Op::Repeat(d, len)),
        ];
        prop::collection::vec(op, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_gives_what_a_plain_list_gives(ops in ops(), reach in prop_oneof![Just(1u64), 1u64..700_000]) {
            let (mut window, mut list, mut out) = (Window::new(reach), Vec::new(), Vec::new());
            let mut buffer = alloc::vec![0; 10_000];
            for op in ops {
                match op {
                    Op::Extend(bytes) => {
                        window.extend(&bytes).unwrap();
                        list.extend(bytes);
                    }
                    Op::Fill(byte, len) => {
                        window.fill(byte, len).unwrap();
                        list.resize(list.len() + len, byte);
                    }
                    Op::Repeat(distance, len) => {
                        assert_eq!(window.has(distance), distance <= reach && distance <= list.len() as u64);
                        if window.has(distance) {
                            window.repeat(distance as usize, len).unwrap();
                            for _ in 0..len {
                                list.push(list[list.len() - distance as usize]);
                            }
                        }
                    }
                }
                while window.waiting() > 100_000 {
                    let n = window.take(&mut buffer);
                    out.extend_from_slice(&buffer[..n]);
                }
            }
            while window.waiting() > 0 {
                let n = window.take(&mut buffer);
                out.extend_from_slice(&buffer[..n]);
            }
            prop_assert!(out == list);
            prop_assert_eq!(window.total(), list.len() as u64);
            prop_assert!(window.chunks.len() as u64 * CHUNK_BYTES as u64 <= Window::bytes_for(reach));
        }
    }
}
