//! Finite-state entropy: tables of states (RFC 8878, 4.1).

use alloc::vec::Vec;

use super::super::window::NoMemory;
use super::bits::Bits;

/// States at most: 2^9.
const MAX_STATES: usize = 512;
/// Symbols at most, of any table: match lengths have 53.
const MAX_SYMBOLS: usize = 64;

/// One state: its symbol, and how to find the next state.
#[derive(Clone, Copy, Default)]
struct State {
    symbol: u8,
    bits: u8,
    base: u16,
}

/// A table of states; none at first.
pub(super) struct Table {
    states: Vec<State>,
    log: u32,
}

/// How probable each symbol is, in states of a table of 2^`log`; -1: less than one.
pub(super) struct Distribution {
    probabilities: [i16; MAX_SYMBOLS],
    count: usize,
    log: u32,
}

impl Distribution {
    /// A distribution that the format defines.
    pub(super) fn known(probabilities: &[i16], log: u32) -> Self {
        let mut all = [0; MAX_SYMBOLS];
        all[..probabilities.len()].copy_from_slice(probabilities);
        Self { probabilities: all, count: probabilities.len(), log }
    }

    /// Reads a distribution from the start of `bytes`, of at most `symbols` symbols and 2^`max_log` states; also
    /// returns how many bytes it took.
    pub(super) fn read(bytes: &[u8], symbols: usize, max_log: u32) -> Option<(Self, usize)> {
        let mut at = 0;
        let mut take = |count: usize| {
            let word = bytes
                .get(at / 8..)?
                .iter()
                .take(4)
                .rev()
                .fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            let value = (word >> (at % 8)) as i32 & ((1 << count) - 1);
            at += count;
            Some((value, at))
        };
        let log = take(4)?.0 as u32 + 5;
        if log > max_log {
            return None;
        }
        let mut all = [0; MAX_SYMBOLS];
        let (mut count, mut left, mut end) = (0, 1i32 << log, 4);
        while left > 0 {
            if count == symbols {
                return None;
            }
            let bits = (left + 1).ilog2() as usize + 1;
            // Small values have one bit less.
            let (low, after) = take(bits - 1)?;
            let threshold = (1 << bits) - 1 - (left + 1);
            end = after;
            let value = if low < threshold {
                low
            } else {
                let (high, after) = take(1)?;
                end = after;
                let value = low | high << (bits - 1);
                if high != 0 { value - threshold } else { value }
            };
            let probability = value - 1;
            left -= probability.abs();
            all[count] = probability as i16;
            count += 1;
            if probability == 0 {
                loop {
                    let (zeros, after) = take(2)?;
                    end = after;
                    count += zeros as usize;
                    if count > symbols {
                        return None;
                    }
                    if zeros != 3 {
                        break;
                    }
                }
            }
        }
        let used = end.div_ceil(8);
        (left == 0 && used <= bytes.len()).then_some((Self { probabilities: all, count, log }, used))
    }
}

impl Table {
    /// Allocates an empty table.
    pub(super) fn empty() -> Result<Self, NoMemory> {
        let mut states = Vec::new();
        states.try_reserve_exact(MAX_STATES).map_err(|_| NoMemory)?;
        Ok(Self { states, log: 0 })
    }

    /// Whether there is a table.
    pub(super) fn is_some(&self) -> bool {
        !self.states.is_empty()
    }

    /// Makes the table for one single symbol.
    pub(super) fn set_single(&mut self, symbol: u8) {
        self.states.clear();
        self.states.push(State { symbol, bits: 0, base: 0 });
        self.log = 0;
    }

    /// Makes the table of a distribution; false: the probabilities do not add up.
    pub(super) fn set(&mut self, distribution: &Distribution) -> bool {
        let log = distribution.log;
        let size = 1usize << log;
        let symbols = &distribution.probabilities[..distribution.count];
        self.states.clear();
        if size > MAX_STATES || symbols.iter().map(|p| usize::from(p.unsigned_abs())).sum::<usize>() != size {
            return false;
        }
        self.states.resize(size, State::default());
        self.log = log;
        let states = &mut self.states;
        let mut next = [0u16; MAX_SYMBOLS];
        let mut high = size;
        for (symbol, &probability) in symbols.iter().enumerate() {
            next[symbol] = probability.unsigned_abs();
            if probability < 0 {
                high -= 1;
                states[high].symbol = symbol as u8;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, &probability) in symbols.iter().enumerate() {
            for _ in 0..probability.max(0) {
                states[at].symbol = symbol as u8;
                loop {
                    at = (at + step) & (size - 1);
                    if at < high || high == 0 {
                        break;
                    }
                }
            }
        }
        for state in states {
            let number = &mut next[usize::from(state.symbol)];
            let bits = log - number.ilog2();
            state.bits = bits as u8;
            state.base = ((u32::from(*number) << bits) - (1 << log)) as u16;
            *number += 1;
        }
        true
    }

    /// The state that a stream begins in.
    pub(super) fn start(&self, bits: &mut Bits<'_>) -> usize {
        bits.read(self.log) as usize
    }

    /// The symbol of a state.
    #[inline]
    pub(super) fn symbol(&self, state: usize) -> u8 {
        self.states[state].symbol
    }

    /// The state behind another.
    #[inline]
    pub(super) fn next(&self, state: usize, bits: &mut Bits<'_>) -> usize {
        let State { bits: count, base, .. } = self.states[state];
        usize::from(base) + bits.read(count.into()) as usize
    }
}
