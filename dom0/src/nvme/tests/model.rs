//! A controller in memory, with one namespace behind a volatile write cache. The controller reads commands and lists by
//! machine address, as a real one does, and checks each; and it can be told to lie, to fail, to hang.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::limits::{Lie, Limits};
use crate::hw::Registers;
use crate::hw::fake::Arena;

/// Blocks of the namespace.
pub(super) const BLOCKS: u64 = 2048;

#[derive(Clone, Copy)]
struct Rings {
    commands: u64,
    completions: u64,
    entries: u16,
    head: u16,
    tail: u16,
    next: u16,
    phase: bool,
}

struct State {
    limits: Limits,
    registers: BTreeMap<usize, u32>,
    ready: bool,
    fatal: bool,
    gone: bool,
    rings: [Option<Rings>; 2],
    completion_queue: Option<(u64, u16)>,
    platter: Vec<u8>,
    /// What was written since the last flush, by block.
    cache: BTreeMap<u64, Vec<u8>>,
    failing: BTreeMap<u64, u16>,
    lie: Option<Lie>,
    last: u16,
    resets: usize,
    commands: usize,
}

/// The controller; clones are the same one.
#[derive(Clone)]
pub(super) struct Model {
    arena: Arena,
    state: Arc<Mutex<State>>,
}

impl Model {
    pub(super) fn new(arena: &Arena, limits: Limits) -> Self {
        let bytes = (BLOCKS as usize) << limits.shift;
        let state = State {
            limits,
            registers: BTreeMap::new(),
            ready: false,
            fatal: false,
            gone: false,
            rings: [None; 2],
            completion_queue: None,
            platter: (0..bytes).map(|i| (i / 512 + i) as u8).collect(),
            cache: BTreeMap::new(),
            failing: BTreeMap::new(),
            lie: None,
            last: 0,
            resets: 0,
            commands: 0,
        };
        Self { arena: arena.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn registers(&self) -> Box<dyn Registers> {
        Box::new(self.clone())
    }

    /// What lies on the platter, and survives a loss of power.
    pub(super) fn platter(&self, at: usize, len: usize) -> Vec<u8> {
        self.state.lock().platter[at..at + len].to_vec()
    }

    /// What a read gives: the cache before the platter.
    pub(super) fn content(&self, at: usize, len: usize) -> Vec<u8> {
        let state = self.state.lock();
        let block = 1usize << state.limits.shift;
        (at..at + len)
            .map(|byte| match state.cache.get(&((byte / block) as u64)) {
                Some(cached) => cached[byte % block],
                None => state.platter[byte],
            })
            .collect()
    }

    /// I/O commands that were executed, and resets.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.commands, state.resets)
    }

    /// Changes what the controller is like from now on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.state.lock().limits);
    }

    pub(super) fn lie(&self, lie: Lie) {
        self.state.lock().lie = Some(lie);
    }

    /// The controller fails, and does nothing until it is reset.
    pub(super) fn fail(&self) {
        self.state.lock().fatal = true;
    }

    /// The controller is pulled out.
    pub(super) fn pull(&self) {
        self.state.lock().gone = true;
    }

    /// Commands that touch `block` end with `status`.
    pub(super) fn bad_block(&self, block: u64, status: u16) {
        self.state.lock().failing.insert(block, status);
    }

    /// Executes all I/O commands that the driver told of.
    pub(super) fn run(&self) {
        self.run_some(usize::MAX);
    }

    /// Executes `count` I/O commands at most.
    pub(super) fn run_some(&self, count: usize) {
        for _ in 0..count {
            let mut state = self.state.lock();
            let Some(command) = self.fetch(&mut state, 1) else { return };
            let status = self.execute(&mut state, &command);
            state.commands += 1;
            self.end(&mut state, 1, (command[0] >> 16) as u16, status);
        }
    }

    fn fetch(&self, state: &mut State, queue: usize) -> Option<[u64; 8]> {
        if !state.ready || state.fatal || state.gone {
            return None;
        }
        let rings = state.rings[queue].as_mut().filter(|rings| rings.head != rings.tail)?;
        let at = rings.commands + 64 * u64::from(rings.head);
        rings.head = (rings.head + 1) % rings.entries;
        Some(core::array::from_fn(|word| self.arena.number(at + 8 * word as u64, 8)))
    }

    fn end(&self, state: &mut State, queue: usize, id: u16, status: u16) {
        let last = core::mem::replace(&mut state.last, id);
        let lie = if queue == 1 { state.lie.take() } else { None };
        let rings = state.rings[queue].as_mut().unwrap();
        let at = rings.completions + 16 * u64::from(rings.next);
        let (mut said_id, mut said_queue, mut said_head) = (id, queue as u16, rings.head);
        match lie {
            Some(Lie::Command(id)) => said_id = id,
            Some(Lie::Again) => said_id = last,
            Some(Lie::Queue(queue)) => said_queue = queue,
            Some(Lie::Head(head)) => said_head = head,
            None => {}
        }
        self.arena.write(at + 8, &said_head.to_le_bytes());
        self.arena.write(at + 10, &said_queue.to_le_bytes());
        self.arena.write(at + 12, &said_id.to_le_bytes());
        self.arena.write(at + 14, &(status << 1 | u16::from(rings.phase)).to_le_bytes());
        rings.next += 1;
        if rings.next == rings.entries {
            rings.next = 0;
            rings.phase = !rings.phase;
        }
    }

    /// The pieces of memory that a command names, by the rules of PRP entries.
    pub(super) fn pieces(&self, first: u64, second: u64, bytes: usize) -> Vec<(u64, usize)> {
        assert_eq!(first % 4, 0);
        let here = bytes.min(4096 - first as usize % 4096);
        let mut pieces = alloc::vec![(first, here)];
        let mut left = bytes - here;
        if left > 0 && left <= 4096 {
            assert_eq!(second % 4096, 0);
            pieces.push((second, left));
            return pieces;
        }
        let mut entry = second;
        while left > 0 {
            assert!(
                entry.is_multiple_of(8) && (entry + 8 - second) as usize <= 4096 - second as usize % 4096
            );
            let page = self.arena.number(entry, 8);
            assert_eq!(page % 4096, 0, "a page of a list begins amid a page");
            pieces.push((page, left.min(4096)));
            left -= left.min(4096);
            entry += 8;
        }
        pieces
    }

    fn execute(&self, state: &mut State, command: &[u64; 8]) -> u16 {
        assert_eq!((command[0] >> 32, command[1], command[2]), (1, 0, 0));
        let block_bytes = 1usize << state.limits.shift;
        let (block, blocks) = (command[5], (command[6] & 0xffff) as usize + 1);
        let opcode = command[0] as u8;
        match opcode {
            0 => {
                for (block, bytes) in core::mem::take(&mut state.cache) {
                    let at = block as usize * block_bytes;
                    state.platter[at..at + block_bytes].copy_from_slice(&bytes);
                }
                0
            }
            1 | 2 => {
                if block + blocks as u64 > BLOCKS {
                    return 0x80;
                }
                if let Some((_, &status)) = state.failing.range(block..block + blocks as u64).next() {
                    return status;
                }
                let bytes = blocks * block_bytes;
                assert!(bytes <= 4096 << state.limits.most);
                let pieces = self.pieces(command[3], command[4], bytes);
                if opcode == 1 {
                    let all: Vec<u8> =
                        pieces.iter().flat_map(|(maddr, len)| self.arena.bytes(*maddr, *len)).collect();
                    for (index, bytes) in all.chunks(block_bytes).enumerate() {
                        state.cache.insert(block + index as u64, bytes.to_vec());
                    }
                    return 0;
                }
                let at = block as usize * block_bytes;
                let mut all = state.platter[at..at + bytes].to_vec();
                for (cached, content) in state.cache.range(block..block + blocks as u64) {
                    let at = (cached - block) as usize * block_bytes;
                    all[at..at + block_bytes].copy_from_slice(content);
                }
                let mut all = &all[..];
                for (maddr, len) in pieces {
                    self.arena.write(maddr, &all[..len]);
                    all = &all[len..];
                }
                0
            }
            9 => {
                assert_eq!((command[5] as u8, command[5] >> 32), (0, 4), "one range, to be given up");
                let count = self.arena.number(command[3] + 4, 4);
                let first = self.arena.number(command[3] + 8, 8);
                assert!(count <= u64::from(state.limits.range.unwrap_or(u32::MAX)));
                if first + count > BLOCKS {
                    return 0x80;
                }
                for block in first..first + count {
                    state.cache.insert(block, alloc::vec![0; block_bytes]);
                }
                0
            }
            _ => panic!("opcode {opcode}"),
        }
    }

    /// Does the administrative commands that the driver told of.
    fn administrate(&self, state: &mut State) {
        while let Some(command) = self.fetch(state, 0) {
            if !state.limits.answers {
                return;
            }
            let opcode = command[0] as u8;
            let refused = state.limits.refuses.filter(|(refused, _)| *refused == opcode);
            let status = match refused {
                Some((_, status)) => status,
                None => self.administer(state, opcode, &command),
            };
            self.end(state, 0, (command[0] >> 16) as u16, status);
        }
    }

    fn administer(&self, state: &mut State, opcode: u8, command: &[u64; 8]) -> u16 {
        let (ten, eleven) = (command[5] as u32, (command[5] >> 32) as u32);
        let entries = (ten >> 16) as u16 + 1;
        match opcode {
            6 => return self.identify(state, ten, (command[0] >> 32) as u32, command[3]),
            9 => assert_eq!((ten, eleven), (7, 0)),
            5 => {
                assert_eq!((ten as u16, eleven), (1, 3), "queue 1 in one piece with interrupts of vector 0");
                state.completion_queue = Some((command[3], entries));
            }
            1 => {
                assert_eq!((ten as u16, eleven), (1, 1 | 1 << 16));
                let (completions, same) = state.completion_queue.take().unwrap();
                assert_eq!(entries, same);
                let rings = Rings {
                    commands: command[3],
                    completions,
                    entries,
                    head: 0,
                    tail: 0,
                    next: 0,
                    phase: true,
                };
                state.rings[1] = Some(rings);
            }
            _ => panic!("administrative opcode {opcode}"),
        }
        0
    }

    fn identify(&self, state: &State, what: u32, namespace: u32, page: u64) -> u16 {
        let limits = &state.limits;
        let mut answer = [0u8; 4096];
        match what {
            0 => {
                assert_eq!(namespace, 1);
                answer[0..8].copy_from_slice(&BLOCKS.to_le_bytes());
                answer[26] = 1;
                answer[132..134].copy_from_slice(&limits.metadata.to_le_bytes());
                answer[134] = limits.shift;
            }
            1 => {
                answer[4..24].copy_from_slice(b"serial one          ");
                answer[24..64].copy_from_slice(b"Model of a controller                   ");
                answer[77] = limits.most;
                answer[520] = u8::from(limits.deallocates) << 2;
                answer[525] = limits.cache.into();
            }
            2 => {
                for number in 1..=limits.namespaces {
                    let at = 4 * (number as usize - 1);
                    answer[at..at + 4].copy_from_slice(&number.to_le_bytes());
                }
            }
            6 => match limits.range {
                Some(blocks) => answer[4..8].copy_from_slice(&blocks.to_le_bytes()),
                None => return 0x002,
            },
            _ => panic!("identify {what}"),
        }
        self.arena.write(page, &answer);
        0
    }

    fn control(&self, state: &mut State, value: u32) {
        if value & 1 == 0 {
            if state.ready && state.limits.stops {
                state.resets += 1;
                (state.ready, state.fatal, state.rings) = (false, false, [None; 2]);
            }
            return;
        }
        assert_eq!(value & !1, 6 << 16 | 4 << 20);
        if state.limits.starts {
            let entries = state.registers[&0x24];
            assert_eq!(entries as u16, (entries >> 16) as u16);
            let address =
                |at: usize| u64::from(state.registers[&at]) | u64::from(state.registers[&(at + 4)]) << 32;
            let (commands, completions) = (address(0x28), address(0x30));
            let entries = entries as u16 + 1;
            let rings = Rings { commands, completions, entries, head: 0, tail: 0, next: 0, phase: true };
            state.rings[0] = Some(rings);
            state.ready = true;
        }
    }
}

impl Registers for Model {
    fn read8(&self, _: usize) -> u8 {
        panic!("registers are double words");
    }
    fn read16(&self, _: usize) -> u16 {
        panic!("registers are double words");
    }
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state.lock();
        let limits = &state.limits;
        match offset {
            _ if state.gone => u32::MAX,
            // Two units of 500 ms to become ready.
            0x00 => (limits.entries - 1) | 2 << 24,
            0x04 => limits.stride | u32::from(limits.nvm) << 5 | limits.smallest_page << 16,
            0x08 => 0x1_0400,
            0x14 => state.registers.get(&0x14).copied().unwrap_or(0),
            0x1c => u32::from(state.ready) | u32::from(state.fatal) << 1,
            _ => panic!("a read of register {offset:#x}"),
        }
    }
    fn write8(&self, _: usize, _: u8) {
        panic!("registers are double words");
    }
    fn write16(&self, _: usize, _: u16) {
        panic!("registers are double words");
    }
    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state.lock();
        if state.gone {
            return;
        }
        if offset < 0x1000 {
            state.registers.insert(offset, value);
            if offset == 0x14 {
                self.control(&mut state, value);
            }
            return;
        }
        let number = (offset - 0x1000) / (4 << state.limits.stride);
        let Some(rings) = &mut state.rings[number / 2] else { return };
        assert!(value < u32::from(rings.entries));
        if number.is_multiple_of(2) {
            rings.tail = value as u16;
            if number == 0 {
                self.administrate(&mut state);
            }
        }
    }
}
