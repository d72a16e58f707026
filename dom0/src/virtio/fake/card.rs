//! A virtio network card for tests: it does what the test says, in any order, and lies when the test says so.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::group::{COMMON, CONFIG, Groups, NOTIFY};
use super::{Arena, Descriptor, chain};
use crate::hw::fake::FakeInterrupt;
use crate::virtio::transport::Transport;

const F_EVENT_IDX: u64 = 1 << 29;
const F_INDIRECT: u64 = 1 << 28;

/// What the card offers, and in which ways the card is odd.
#[derive(Clone, Copy)]
pub(in crate::virtio) struct CardLimits {
    /// Features that the card offers.
    pub(in crate::virtio) offered: u64,
    pub(in crate::virtio) mac: [u8; 6],
    pub(in crate::virtio) mtu: u16,
    pub(in crate::virtio) pairs: u16,
    pub(in crate::virtio) queue: u16,
    pub(in crate::virtio) vectors: u16,
    pub(in crate::virtio) resets: bool,
    /// The registers never hold still.
    pub(in crate::virtio) restless: bool,
}

impl Default for CardLimits {
    fn default() -> Self {
        Self {
            offered: u64::MAX,
            mac: [2, 1, 2, 3, 4, 5],
            mtu: 9000,
            pairs: 1,
            queue: 256,
            vectors: 3,
            resets: true,
            restless: false,
        }
    }
}

#[derive(Clone, Default)]
struct CardQueue {
    /// As the registers of a queue are laid out, from the size on.
    registers: [u8; 32],
    available: u16,
    used: u16,
    notified: bool,
}

impl CardQueue {
    fn number(&self, offset: usize, len: usize) -> u64 {
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(&self.registers[offset - 24..offset - 24 + len]);
        u64::from_le_bytes(raw)
    }
    fn size(&self) -> u16 {
        self.number(24, 2) as u16
    }
    fn enabled(&self) -> bool {
        self.number(28, 2) == 1
    }
}

/// A packet to send that the card has taken and not finished.
pub(in crate::virtio) struct Held {
    pub(in crate::virtio) queue: usize,
    head: u16,
    pub(in crate::virtio) header: Vec<u8>,
    pub(in crate::virtio) bytes: Vec<u8>,
}

struct State {
    limits: CardLimits,
    common: [u8; 24],
    config: [u8; 12],
    queues: Vec<CardQueue>,
    features: u64,
    config_vector: u16,
    /// By vector.
    raised: Vec<Arc<AtomicBool>>,
    resets: usize,
    /// The card claimed what is not so: its count of what there is may be wrong.
    lied: bool,
}

/// The card.
#[derive(Clone)]
pub(in crate::virtio) struct FakeCard {
    arena: Arena,
    state: Arc<Mutex<State>>,
}

impl FakeCard {
    pub(in crate::virtio) fn new(arena: &Arena, limits: CardLimits) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&limits.mac);
        config[6] = 1;
        config[8..10].copy_from_slice(&limits.pairs.to_le_bytes());
        config[10..12].copy_from_slice(&limits.mtu.to_le_bytes());
        let queues = (0..2 * limits.pairs.min(8) + 1).map(|index| {
            let mut queue = CardQueue::default();
            queue.registers[..2].copy_from_slice(&limits.queue.to_le_bytes());
            queue.registers[6..8].copy_from_slice(&index.to_le_bytes());
            queue
        });
        let state = State {
            limits,
            common: [0; 24],
            config,
            queues: queues.collect(),
            features: 0,
            config_vector: u16::MAX,
            raised: (0..limits.vectors).map(|_| Arc::default()).collect(),
            resets: 0,
            lied: false,
        };
        Self { arena: arena.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(in crate::virtio) fn transport(&self) -> Transport {
        super::group::transport(self)
    }

    /// The interrupt of a vector, if the card has such a vector.
    pub(in crate::virtio) fn interrupt(&self, vector: u16) -> Option<FakeInterrupt> {
        let raised = self.state.lock().raised.get(usize::from(vector)).cloned();
        raised.map(FakeInterrupt)
    }

    /// Whether any interrupt waits to be taken.
    pub(in crate::virtio) fn interrupts(&self) -> bool {
        self.state.lock().raised.iter().any(|raised| raised.load(Ordering::Relaxed))
    }

    /// The vectors of the queues, in the order of their numbers; of those enabled.
    pub(in crate::virtio) fn vectors(&self) -> Vec<u16> {
        let state = self.state.lock();
        let enabled = state.queues.iter().filter(|queue| queue.enabled());
        enabled.map(|queue| queue.number(26, 2) as u16).collect()
    }

    pub(in crate::virtio) fn resets(&self) -> usize {
        self.state.lock().resets
    }

    /// The features that the driver agreed to.
    pub(in crate::virtio) fn features(&self) -> u64 {
        self.state.lock().features
    }

    /// The card no more does as it is told.
    pub(in crate::virtio) fn refuse_resets(&self) {
        self.state.lock().limits.resets = false;
    }

    pub(in crate::virtio) fn set_link(&self, up: bool) {
        let mut state = self.state.lock();
        state.config[6] = up.into();
        state.raise(state.config_vector);
    }

    pub(in crate::virtio) fn need_reset(&self) {
        let mut state = self.state.lock();
        state.common[20] |= 64;
        state.raise(state.config_vector);
    }

    /// Takes the next chain of a queue.
    fn next(&self, state: &mut State, index: usize) -> Option<(u16, Vec<Descriptor>)> {
        let indirect = state.features & F_INDIRECT != 0;
        let queue = &mut state.queues[index];
        assert!(queue.enabled(), "queue {index} is not enabled");
        let (table, available, used) = (queue.number(32, 8), queue.number(40, 8), queue.number(48, 8));
        let produced = self.arena.number(available + 2, 2) as u16;
        if produced == queue.available {
            return None;
        }
        let size = queue.size();
        assert!(state.lied || produced.wrapping_sub(queue.available) <= size, "more than the queue holds");
        let slot = u64::from(queue.available % size);
        let head = self.arena.number(available + 4 + 2 * slot, 2) as u16;
        queue.available = queue.available.wrapping_add(1);
        // Asks for the next entry.
        self.arena.write(used + 4 + 8 * u64::from(size), &queue.available.to_le_bytes());
        Some((head, chain(&self.arena, table, head, size, indirect)))
    }

    /// Writes used entries and shows them to the driver, with an interrupt if the driver wishes one.
    fn use_up(&self, state: &mut State, index: usize, entries: &[(u32, u32)]) {
        let event_idx = state.features & F_EVENT_IDX != 0;
        let queue = &mut state.queues[index];
        let (available, used, size) = (queue.number(40, 8), queue.number(48, 8), queue.size());
        let old = queue.used;
        for (id, written) in entries {
            let entry = used + 4 + 8 * u64::from(queue.used % size);
            self.arena.write(entry, &id.to_le_bytes());
            self.arena.write(entry + 4, &written.to_le_bytes());
            queue.used = queue.used.wrapping_add(1);
        }
        let new = queue.used;
        self.arena.write(used + 2, &new.to_le_bytes());
        let event = self.arena.number(available + 4 + 2 * u64::from(size), 2) as u16;
        let vector = queue.number(26, 2) as u16;
        if !event_idx || new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            state.raise(vector);
        }
    }

    /// Takes all packets that the driver has notified the card of.
    pub(in crate::virtio) fn fetch(&self) -> Vec<Held> {
        let mut held = Vec::new();
        let mut state = self.state.lock();
        let enabled = state.queues.iter().map(CardQueue::enabled).collect::<Vec<_>>();
        for queue in (1..enabled.len()).step_by(2).filter(|queue| enabled[*queue]) {
            let notified = core::mem::take(&mut state.queues[queue].notified);
            while let Some((head, parts)) = self.next(&mut state, queue) {
                assert!(notified, "work without a notification");
                assert!(parts.iter().all(|part| part.flags & 2 == 0), "a packet to send is read");
                assert_eq!(parts[0].len, 12);
                let header = self.arena.bytes(parts[0].maddr, 12);
                let bytes = parts[1..].iter().flat_map(|part| self.arena.bytes(part.maddr, part.len));
                held.push(Held { queue, head, header, bytes: bytes.collect() });
            }
        }
        held
    }

    /// Finishes a packet.
    pub(in crate::virtio) fn finish(&self, held: Held) {
        self.use_up(&mut self.state.lock(), held.queue, &[(held.head.into(), 0)]);
    }

    /// Claims on queue `queue` to have used `chains`, each with a number of bytes written.
    pub(in crate::virtio) fn claim(&self, queue: usize, chains: &[(u32, u32)]) {
        let mut state = self.state.lock();
        state.lied = true;
        self.use_up(&mut state, queue, chains);
    }

    /// Puts bytes into the next receive buffers of a pair, a buffer for each of `fill`, and claims to have written the
    /// stated numbers. `false`: there are not so many buffers, and the card took none.
    pub(in crate::virtio) fn fill(&self, pair: usize, fill: &[(&[u8], usize)]) -> bool {
        let mut state = self.state.lock();
        let queue = 2 * pair;
        let before = state.queues[queue].available;
        let mut entries = Vec::new();
        for (bytes, claimed) in fill {
            let Some((head, parts)) = self.next(&mut state, queue) else {
                state.queues[queue].available = before;
                return false;
            };
            assert_eq!((parts.len(), parts[0].len, parts[0].flags), (1, 4096, 2));
            self.arena.write(parts[0].maddr, bytes);
            entries.push((head.into(), *claimed as u32));
        }
        self.use_up(&mut state, queue, &entries);
        true
    }

    /// Delivers a packet with the header's first ten bytes, as a card does that keeps the rules.
    pub(in crate::virtio) fn deliver(&self, pair: usize, header: [u8; 10], packet: &[u8]) -> bool {
        let count = (12 + packet.len()).div_ceil(4096);
        let bytes = [&header[..], &(count as u16).to_le_bytes(), packet].concat();
        let parts: Vec<_> = bytes.chunks(4096).map(|part| (part, part.len())).collect();
        self.fill(pair, &parts)
    }

    /// Answers the command that waits in the control queue, and gives the command's bytes.
    pub(in crate::virtio) fn answer(&self, ack: u8) -> Vec<u8> {
        let mut state = self.state.lock();
        let queue = 2 * usize::from(state.limits.pairs);
        assert!(core::mem::take(&mut state.queues[queue].notified), "no notification");
        let (head, parts) = self.next(&mut state, queue).expect("a command");
        assert_eq!((parts.len(), parts[1].len, parts[1].flags & 2), (2, 1, 2));
        self.arena.write(parts[1].maddr, &[ack]);
        self.use_up(&mut state, queue, &[(head.into(), 1)]);
        self.arena.bytes(parts[0].maddr, parts[0].len)
    }
}

impl State {
    fn raise(&self, vector: u16) {
        if let Some(raised) = self.raised.get(usize::from(vector)) {
            raised.store(true, Ordering::Relaxed);
        }
    }

    fn reset(&mut self) {
        self.resets += 1;
        if !self.limits.resets {
            self.common[20] |= 1;
            return;
        }
        self.common[20] = 0;
        for queue in &mut self.queues {
            queue.registers[4..6].fill(0);
            (queue.available, queue.used, queue.notified) = (0, 0, false);
        }
    }
}

impl Groups for FakeCard {
    const NOTIFY_MULTIPLIER: u32 = 2;

    fn read(&self, which: u64, offset: usize, len: usize) -> u64 {
        let mut state = self.state.lock();
        let selected = usize::from(u16::from_le_bytes([state.common[22], state.common[23]]));
        let number = |bytes: &[u8]| {
            let mut raw = [0; 8];
            raw[..len].copy_from_slice(&bytes[offset..offset + len]);
            u64::from_le_bytes(raw)
        };
        match (which, offset) {
            (COMMON, 4) => u64::from((state.limits.offered >> (32 * u32::from(state.common[0]))) as u32),
            (COMMON, 16) => state.config_vector.into(),
            (COMMON, 18) => state.queues.len() as u64,
            (COMMON, 21) => {
                state.common[21] = state.common[21].wrapping_add(state.limits.restless.into());
                state.common[21].into()
            }
            (COMMON, 24..) => state.queues.get(selected).map_or(0, |queue| queue.number(offset, len)),
            (COMMON, _) => number(&state.common),
            (CONFIG, _) => number(&state.config),
            _ => panic!("doorbells are not read"),
        }
    }

    fn write(&self, which: u64, offset: usize, len: usize, value: u64) {
        let mut state = self.state.lock();
        let selected = usize::from(u16::from_le_bytes([state.common[22], state.common[23]]));
        let known = if value < u64::from(state.limits.vectors) { value } else { 0xffff };
        let mut value = value;
        match (which, offset) {
            (NOTIFY, _) => {
                assert_eq!((offset, len), (2 * value as usize, 2));
                let queue = &mut state.queues[value as usize];
                assert!(queue.enabled(), "a notification of a queue that is not enabled");
                queue.notified = true;
                return;
            }
            (COMMON, 20) if value == 0 => return state.reset(),
            (COMMON, 12) => {
                let half = 32 * u32::from(state.common[8]);
                state.features = state.features & !(0xffff_ffff << half) | value << half;
                return;
            }
            (COMMON, 16) => {
                state.config_vector = known as u16;
                return;
            }
            (COMMON, 26) => value = known,
            _ => {}
        }
        let bytes = &value.to_le_bytes()[..len];
        match (which, offset) {
            (COMMON, ..24) => state.common[offset..offset + len].copy_from_slice(bytes),
            (COMMON, _) => state.queues[selected].registers[offset - 24..][..len].copy_from_slice(bytes),
            _ => panic!("a write to group {which} at {offset}"),
        }
    }
}
