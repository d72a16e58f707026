//! A card in memory: it does what the test says, and lies when the test says so.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use crate::e1000e::registers::*;
use crate::hw::Registers;
use crate::hw::fake::{Arena, FakeInterrupt};

/// A packet that the card has sent.
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    /// Where the checksum begins, and where it goes.
    pub(super) checksum: Option<(u8, u8)>,
}

struct State {
    registers: BTreeMap<usize, u32>,
    resets: bool,
    raised: Vec<Arc<AtomicBool>>,
    /// The context that holds.
    context: u64,
}

#[derive(Clone)]
pub(super) struct FakeCard {
    arena: Arena,
    state: Arc<Mutex<State>>,
}

impl FakeCard {
    pub(super) fn new(arena: &Arena, mac: [u8; 6]) -> Self {
        let low = u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]);
        let high = u32::from_le_bytes([mac[4], mac[5], 0, 0x80]);
        let registers = [(RAL0, low), (RAH0, high), (STATUS, STATUS_LU)].into_iter().collect();
        let raised = (0..5).map(|_| Arc::default()).collect();
        let state = State { registers, resets: true, raised, context: 0 };
        Self { arena: arena.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn registers(&self) -> Box<dyn Registers> {
        Box::new(self.clone())
    }

    pub(super) fn interrupt(&self, vector: u16) -> FakeInterrupt {
        FakeInterrupt(self.state.lock().raised[usize::from(vector)].clone())
    }

    pub(super) fn interrupts(&self) -> bool {
        self.state.lock().raised.iter().any(|raised| raised.load(Ordering::Relaxed))
    }

    pub(super) fn register(&self, offset: usize) -> u32 {
        self.state.lock().registers.get(&offset).copied().unwrap_or(0)
    }

    pub(super) fn refuse_resets(&self) {
        self.state.lock().resets = false;
    }

    pub(super) fn set_link(&self, up: bool) {
        self.state.lock().registers.insert(STATUS, if up { STATUS_LU } else { 0 });
        self.cause(CAUSE_OTHER | CAUSE_LSC, 16);
    }

    /// A cause comes: the card sends the message, if it may, and may not again until the driver says so.
    fn cause(&self, cause: u32, shift: u32) {
        let mut state = self.state.lock();
        let allowed = state.registers.get(&IMS).copied().unwrap_or(0);
        let route = state.registers.get(&IVAR).copied().unwrap_or(0) >> shift;
        if allowed & cause != 0 && route & IVAR_VALID != 0 {
            state.raised[(route & 7) as usize].store(true, Ordering::Relaxed);
            state.registers.insert(IMS, allowed & !cause);
        }
    }

    /// Descriptor `index` of a ring.
    fn descriptor(&self, ring: usize, index: u32) -> u64 {
        assert_eq!(self.register(ring + RING_BYTES), 4096);
        let base = u64::from(self.register(ring)) | u64::from(self.register(ring + 4)) << 32;
        base + 16 * u64::from(index)
    }

    /// The next descriptor that the card has.
    fn next(&self, ring: usize) -> Option<u64> {
        let (head, tail) = (self.register(ring + RING_HEAD), self.register(ring + RING_TAIL));
        assert!(head < 256 && tail < 256);
        if head == tail {
            return None;
        }
        self.state.lock().registers.insert(ring + RING_HEAD, (head + 1) % 256);
        Some(self.descriptor(ring, head))
    }

    /// Puts a packet into the next buffer, with what the card says of it. `false`: there is no buffer.
    pub(super) fn fill(&self, bytes: &[u8], claimed: usize, status: u8, errors: u8) -> bool {
        assert_eq!(self.register(RCTL) & (RCTL_EN | RCTL_BSIZE_4096), RCTL_EN | RCTL_BSIZE_4096);
        let Some(at) = self.next(RECEIVE_RING) else { return false };
        self.arena.write(self.arena.number(at, 8), bytes);
        self.arena.write(at + 8, &(claimed as u16).to_le_bytes());
        self.arena.write(at + 12, &[status, errors]);
        self.cause(CAUSE_RXQ0, 0);
        true
    }

    pub(super) fn deliver(&self, bytes: &[u8]) -> bool {
        self.fill(bytes, bytes.len(), 3, 0)
    }

    /// Sends at most `count` packets of those that the card was told of.
    pub(super) fn send(&self, count: usize) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut bytes = Vec::new();
        while sent.len() < count {
            let Some(at) = self.next(TRANSMIT_RING) else { break };
            let (first, second) = (self.arena.number(at, 8), self.arena.number(at + 8, 8));
            assert_ne!(second & 1 << 29, 0, "no legacy descriptors");
            if second >> 20 & 0xf == 0 {
                assert!(bytes.is_empty(), "a context amid a packet");
                self.state.lock().context = first;
                continue;
            }
            assert_eq!(second >> 20 & 0xf, 1);
            assert_ne!(second & 1 << 25, 0, "no checksum of the frame");
            bytes.extend(self.arena.bytes(first, (second & 0xf_ffff) as usize));
            if second & 1 << 24 != 0 {
                assert_ne!(second & 1 << 27, 0, "nobody hears of the packet's end");
                let context = self.state.lock().context.to_le_bytes();
                let checksum = (second & 1 << 41 != 0).then_some((context[4], context[5]));
                sent.push(Sent { bytes: core::mem::take(&mut bytes), checksum });
                self.arena.write(at + 12, &[1]);
                self.cause(CAUSE_TXQ0, 8);
            }
        }
        assert!(bytes.is_empty(), "a packet without an end");
        sent
    }
}

impl Registers for FakeCard {
    fn read8(&self, _: usize) -> u8 {
        panic!("registers are double words");
    }
    fn read16(&self, _: usize) -> u16 {
        panic!("registers are double words");
    }
    fn read32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= LENGTH);
        self.register(offset)
    }
    fn write8(&self, _: usize, _: u8) {
        panic!("registers are double words");
    }
    fn write16(&self, _: usize, _: u16) {
        panic!("registers are double words");
    }
    fn write32(&self, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= LENGTH);
        let mut state = self.state.lock();
        match offset {
            CTRL if value & CTRL_RST != 0 && state.resets => {
                // All is as at the start, but for what the card always knows.
                state.registers.retain(|register, _| [RAL0, RAH0, STATUS].contains(register));
            }
            IMS => *state.registers.entry(IMS).or_default() |= value,
            IMC => *state.registers.entry(IMS).or_default() &= !value,
            _ => {
                state.registers.insert(offset, value);
            }
        }
    }
}
