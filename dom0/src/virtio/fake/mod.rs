//! A virtio disk and a virtio network card for tests. A device walks descriptors by machine address and checks each descriptor.

mod card;
mod chain;
mod group;

use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::transport::Transport;
use crate::hw::fake::Arena;
pub(super) use card::{CardLimits, FakeCard, Held};
use chain::{Descriptor, chain};
use group::{COMMON, CONFIG, Groups, NOTIFY};

/// What the device offers, and in which ways the device is odd.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) version_1: bool,
    pub(super) indirect: bool,
    pub(super) event_idx: bool,
    /// Features without which the device refuses to work.
    pub(super) insists: u64,
    pub(super) queue: u16,
    pub(super) vectors: u16,
    pub(super) resets: bool,
    pub(super) blk_size: u32,
    pub(super) seg_max: u32,
    pub(super) size_max: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            version_1: true,
            indirect: true,
            event_idx: true,
            insists: 0,
            queue: 256,
            vectors: 2,
            resets: true,
            blk_size: 512,
            seg_max: 254,
            size_max: None,
        }
    }
}

struct State {
    limits: Limits,
    /// The three groups' bytes.
    common: [u8; 64],
    config: [u8; 64],
    driver_features: u64,
    disk: Vec<u8>,
    available: u16,
    used: u16,
    notified: bool,
    flushes: usize,
    requests: usize,
    parts: usize,
    resets: usize,
}

impl State {
    fn offered(&self) -> u64 {
        let limits = &self.limits;
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        bit(limits.version_1, 32)
            | bit(limits.indirect, 28)
            | bit(limits.event_idx, 29)
            | bit(limits.size_max.is_some(), 1)
            | limits.insists
            | 1 << 2
            | 1 << 6
            | 1 << 9
            | 1 << 10
            | 1 << 13
    }

    fn common64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.common[offset..offset + 8].try_into().unwrap())
    }
}

/// A disk of 1 MiB behind the virtio registers.
#[derive(Clone)]
pub(super) struct FakeDevice {
    arena: Arena,
    state: Arc<Mutex<State>>,
}

impl FakeDevice {
    pub(super) fn new(arena: &Arena, limits: Limits) -> Self {
        let disk = (0..2048 * 512).map(|i: usize| (i / 512 + i) as u8).collect();
        let mut state = State {
            limits,
            common: [0; 64],
            config: [0; 64],
            driver_features: 0,
            disk,
            available: 0,
            used: 0,
            notified: false,
            flushes: 0,
            requests: 0,
            parts: 0,
            resets: 0,
        };
        state.common[18] = 1;
        state.common[24..26].copy_from_slice(&limits.queue.to_le_bytes());
        state.config[0..8].copy_from_slice(&2048u64.to_le_bytes());
        state.config[8..12].copy_from_slice(&limits.size_max.unwrap_or(0).to_le_bytes());
        state.config[12..16].copy_from_slice(&limits.seg_max.to_le_bytes());
        state.config[20..24].copy_from_slice(&limits.blk_size.to_le_bytes());
        state.config[24] = 3;
        state.config[36..40].copy_from_slice(&64u32.to_le_bytes());
        state.config[44..48].copy_from_slice(&1u32.to_le_bytes());
        Self { arena: arena.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn transport(&self) -> Transport {
        group::transport(self)
    }

    pub(super) fn disk(&self, offset: usize, len: usize) -> Vec<u8> {
        self.state.lock().disk[offset..offset + len].to_vec()
    }

    /// Number of data parts of the requests that the device has executed.
    pub(super) fn parts(&self) -> usize {
        self.state.lock().parts
    }

    /// Number of requests that the device has executed.
    pub(super) fn requests(&self) -> usize {
        self.state.lock().requests
    }

    pub(super) fn flushes(&self) -> usize {
        self.state.lock().flushes
    }

    pub(super) fn was_reset(&self) -> bool {
        self.state.lock().resets > 1
    }

    /// Claims to have done far more work than the driver gave the device.
    pub(super) fn lie(&self) {
        let used = self.state.lock().common64(48);
        self.arena.write(used + 2, &0x7fffu16.to_le_bytes());
    }

    /// Collects a chain, checking that no part is too long.
    fn chain(&self, table: u64, head: u16, limits: &Limits) -> Vec<Descriptor> {
        let out = chain(&self.arena, table, head, limits.queue, limits.indirect);
        if let Some(max) = limits.size_max {
            let parts = out.iter().skip(1).filter(|part| part.len != 1);
            assert!(parts.map(|part| part.len).all(|len| len <= max as usize));
        }
        out
    }

    /// Executes all available requests, if the driver notified the device.
    pub(super) fn run(&self) {
        self.run_some(usize::MAX);
    }

    /// Serves `count` requests at most.
    pub(super) fn run_some(&self, count: usize) {
        for _ in 0..count {
            let mut state = self.state.lock();
            let (table, available, used) = (state.common64(32), state.common64(40), state.common64(48));
            let produced = self.arena.number(available + 2, 2) as u16;
            if !state.notified || produced == state.available {
                assert_eq!(produced, state.available, "work without a notification");
                return;
            }
            let size = state.limits.queue;
            let slot = u64::from(state.available % size);
            let head = self.arena.number(available + 4 + 2 * slot, 2) as u16;
            let chain = self.chain(table, head, &state.limits);
            state.requests += 1;
            state.parts += chain.len() - 2;
            self.execute(&mut state, &chain);
            let entry = used + 4 + 8 * u64::from(state.used % size);
            self.arena.write(entry, &u32::from(head).to_le_bytes());
            state.available = state.available.wrapping_add(1);
            state.used = state.used.wrapping_add(1);
            self.arena.write(used + 2, &state.used.to_le_bytes());
            // Asks for an interrupt at the next entry.
            self.arena.write(used + 4 + 8 * u64::from(size), &state.available.to_le_bytes());
            if produced == state.available {
                state.notified = false;
            }
        }
    }

    fn execute(&self, state: &mut State, chain: &[Descriptor]) {
        let (header, status) = (&chain[0], chain.last().unwrap());
        assert_eq!((header.len, header.flags & 2), (16, 0));
        assert_eq!((status.len, status.flags & 2), (1, 2));
        let kind = self.arena.number(header.maddr, 4);
        let sector = self.arena.number(header.maddr + 8, 8);
        let data = &chain[1..chain.len() - 1];
        let mut at = sector as usize * 512;
        let mut result = 0;
        for part in data {
            let end = at + part.len;
            match kind {
                0 | 1 if end > state.disk.len() => result = 1,
                0 => {
                    assert_ne!(part.flags & 2, 0);
                    self.arena.write(part.maddr, &state.disk[at..end]);
                }
                1 => {
                    assert_eq!(part.flags & 2, 0);
                    state.disk[at..end].copy_from_slice(&self.arena.bytes(part.maddr, part.len));
                }
                8 => {
                    assert_eq!(part.len, 20);
                    self.arena.write(part.maddr, b"scratch\0\0\0\0\0\0\0\0\0\0\0\0\0");
                }
                11 => {
                    let first = self.arena.number(part.maddr, 8) as usize * 512;
                    let sectors = self.arena.number(part.maddr + 8, 4) as usize;
                    assert_eq!(self.arena.number(part.maddr + 12, 4), 0);
                    state.disk[first..first + sectors * 512].fill(0);
                }
                _ => panic!("data in a request of type {kind}"),
            }
            at = end;
        }
        if kind == 4 {
            state.flushes += 1;
        }
        self.arena.write(status.maddr, &[result]);
    }
}

impl Groups for FakeDevice {
    const NOTIFY_MULTIPLIER: u32 = 4;

    fn read(&self, which: u64, offset: usize, len: usize) -> u64 {
        let state = self.state.lock();
        let bytes = match which {
            COMMON if offset == 4 => {
                let half = state.common[0];
                return u64::from((state.offered() >> (32 * u32::from(half))) as u32);
            }
            COMMON => &state.common,
            CONFIG => &state.config,
            _ => panic!("doorbells are not read"),
        };
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(&bytes[offset..offset + len]);
        u64::from_le_bytes(raw)
    }

    fn write(&self, which: u64, offset: usize, len: usize, value: u64) {
        let mut state = self.state.lock();
        match (which, offset) {
            (NOTIFY, 0) => {
                assert_eq!((len, value), (2, 0));
                state.notified = true;
            }
            (COMMON, 20) if value == 0 => {
                state.resets += 1;
                if state.limits.resets {
                    state.common[20] = 0;
                } else {
                    state.common[20] = 0x40;
                }
            }
            (COMMON, 20) => {
                let refused = state.limits.insists & !state.driver_features != 0;
                let mask = if refused { !8 } else { !0 };
                state.common[20] = value as u8 & mask;
            }
            (COMMON, 12) => {
                let half = 32 * u32::from(state.common[8]);
                state.driver_features = state.driver_features & !(0xffff_ffff << half) | value << half;
                assert_eq!(state.driver_features & !state.offered(), 0, "features that were not offered");
            }
            (COMMON, 26) => {
                let vector = if value < u64::from(state.limits.vectors) { value as u16 } else { 0xffff };
                state.common[26..28].copy_from_slice(&vector.to_le_bytes());
            }
            (COMMON, _) => state.common[offset..offset + len].copy_from_slice(&value.to_le_bytes()[..len]),
            _ => panic!("a write to group {which} at {offset}"),
        }
    }
}
