//! Huffman codes of literals (RFC 8878, 4.2).

use alloc::vec::Vec;

use super::super::window::NoMemory;
use super::bits::Bits;
use super::fse::{Distribution, Table};

const MAX_BITS: u32 = 11;
const MAX_WEIGHTS: usize = 255;
const MAX_WEIGHT_LOG: u32 = 6;

/// A Huffman code as a table: for the next bits, the symbol and the length of its code.
pub(super) struct Code {
    entries: Vec<(u8, u8)>,
    bits: u32,
    weights: Table,
}

impl Code {
    /// No code yet.
    pub(super) fn empty() -> Result<Self, NoMemory> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(1 << MAX_BITS).map_err(|_| NoMemory)?;
        Ok(Self { entries, bits: 0, weights: Table::empty()? })
    }

    /// Whether there is a code.
    pub(super) fn is_some(&self) -> bool {
        self.bits > 0
    }

    /// Reads a code from the start of `bytes`, and returns how many bytes it took. `None`: the description is
    /// invalid.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut weights = [0u8; MAX_WEIGHTS + 1];
        let (count, used) = read_weights(bytes, &mut weights, &mut self.weights)?;
        self.build(&mut weights, count)?;
        Some(used)
    }

    /// Makes the table of the code with `count` stated weights. The last symbol's weight follows from the
    /// others.
    fn build(&mut self, weights: &mut [u8; MAX_WEIGHTS + 1], count: usize) -> Option<()> {
        self.bits = 0;
        let sum: u32 = weights[..count].iter().filter(|&&w| w > 0).map(|&w| 1 << (w - 1)).sum();
        let bits = sum.checked_ilog2()? + 1;
        let rest = (1 << bits) - sum;
        if bits > MAX_BITS || !rest.is_power_of_two() {
            return None;
        }
        weights[count] = rest.ilog2() as u8 + 1;
        self.entries.clear();
        for weight in 1..=bits as u8 {
            for (symbol, _) in weights[..=count].iter().enumerate().filter(|(_, w)| **w == weight) {
                let end = self.entries.len() + (1 << (weight - 1));
                self.entries.resize(end, (symbol as u8, bits as u8 + 1 - weight));
            }
        }
        if self.entries.len() != 1 << bits {
            return None;
        }
        self.bits = bits;
        Some(())
    }

    /// Decodes one literal.
    #[inline]
    pub(super) fn decode(&self, bits: &mut Bits<'_>) -> u8 {
        let (symbol, count) = self.entries[bits.peek(self.bits) as usize];
        bits.skip(count.into());
        symbol
    }
}

/// Reads the stated weights, and returns how many bytes they took.
fn read_weights(
    bytes: &[u8],
    weights: &mut [u8; MAX_WEIGHTS + 1],
    table: &mut Table,
) -> Option<(usize, usize)> {
    const DIRECT: u8 = 128;
    let (&first, rest) = bytes.split_first()?;
    if let Some(count) = first.checked_sub(DIRECT - 1).filter(|_| first >= DIRECT) {
        let count = usize::from(count);
        let packed = rest.get(..count.div_ceil(2))?;
        for (n, weight) in weights[..count].iter_mut().enumerate() {
            *weight = if n % 2 == 0 { packed[n / 2] >> 4 } else { packed[n / 2] & 15 };
        }
        return Some((count, 1 + packed.len()))
            .filter(|_| weights[..count].iter().all(|&w| u32::from(w) <= MAX_BITS));
    }
    let packed = rest.get(..usize::from(first))?;
    let (distribution, used) = Distribution::read(packed, MAX_BITS as usize + 2, MAX_WEIGHT_LOG)?;
    if !table.set(&distribution) {
        return None;
    }
    let mut bits = Bits::new(&packed[used..])?;
    // Two states take turns; the stream ends when one finds too few bits, and the other is the last.
    let mut states = [table.start(&mut bits), 0];
    states[1] = table.start(&mut bits);
    if bits.left() < 0 {
        return None;
    }
    let mut count = 0;
    for turn in 0.. {
        let state = &mut states[turn % 2];
        *weights.get_mut(count).filter(|_| count < MAX_WEIGHTS)? = table.symbol(*state);
        count += 1;
        *state = table.next(*state, &mut bits);
        if bits.left() < 0 {
            *weights.get_mut(count).filter(|_| count < MAX_WEIGHTS)? = table.symbol(states[(turn + 1) % 2]);
            count += 1;
            break;
        }
    }
    Some((count, 1 + packed.len())).filter(|_| weights[..count].iter().all(|&w| u32::from(w) <= MAX_BITS))
}
