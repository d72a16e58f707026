//! An adapter in memory: a port with a disk behind a volatile write cache, one with a CD drive, one without anything. The
//! adapter reads lists, tables and regions by machine address, as a real one does, and checks each.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Mutex;

use super::answer::identify;
use crate::ahci::registers::*;
use crate::hw::Registers;
use crate::hw::fake::Arena;

/// Sectors of the disk.
pub(super) const SECTORS: u64 = 4096;
const SECTOR: usize = 512;

/// What the adapter and the disk are like.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) wide: bool,
    pub(super) slots: u32,
    /// Commands that the disk queues, if it queues.
    pub(super) queue: Option<u16>,
    pub(super) lba48: bool,
    pub(super) trims: bool,
    pub(super) sectors: u64,
    /// The adapter leaves reset; ports stop; the disk becomes ready; the disk says what it is.
    pub(super) resets: bool,
    pub(super) stops: bool,
    pub(super) ready: bool,
    pub(super) answers: bool,
    pub(super) staggered: bool,
    /// The bit of a command that failed goes from CI all the same, as in some adapters.
    pub(super) clears_failed: bool,
    pub(super) serial: &'static str,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wide: true,
            slots: 32,
            queue: Some(32),
            lba48: true,
            trims: true,
            sectors: SECTORS,
            resets: true,
            stops: true,
            ready: true,
            answers: true,
            staggered: false,
            clears_failed: false,
            serial: "serial two",
        }
    }
}

struct State {
    limits: Limits,
    registers: BTreeMap<usize, u32>,
    platter: Vec<u8>,
    /// What was written since the last flush, by sector.
    cache: BTreeMap<u64, Vec<u8>>,
    failing: BTreeMap<u64, u8>,
    /// After an error of a queued command the disk does nothing until its port is started anew.
    halted: bool,
    /// After an error of a queued command the disk aborts all commands until it is reset.
    aborts: bool,
    gone: bool,
    commands: Vec<u8>,
    restarts: usize,
}

/// The adapter; clones are the same one.
#[derive(Clone)]
pub(super) struct Model {
    arena: Arena,
    state: Arc<Mutex<State>>,
}

/// The port with the disk, and the one with a CD drive.
const DISK: usize = 0x100 + 2 * 0x80;
const DRIVE: usize = 0x100 + 3 * 0x80;

impl Model {
    pub(super) fn new(arena: &Arena, limits: Limits) -> Self {
        let state = State {
            limits,
            registers: BTreeMap::new(),
            platter: (0..SECTORS as usize * SECTOR).map(|i| (i / 512 + i) as u8).collect(),
            cache: BTreeMap::new(),
            failing: BTreeMap::new(),
            halted: false,
            aborts: false,
            gone: false,
            commands: Vec::new(),
            restarts: 0,
        };
        Self { arena: arena.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn registers(&self) -> Box<dyn Registers> {
        Box::new(self.clone())
    }

    pub(super) fn platter(&self, at: usize, len: usize) -> Vec<u8> {
        self.state.lock().platter[at..at + len].to_vec()
    }

    /// What a read gives: the cache before the platter.
    pub(super) fn content(&self, at: usize, len: usize) -> Vec<u8> {
        let state = self.state.lock();
        (at..at + len)
            .map(|byte| match state.cache.get(&((byte / SECTOR) as u64)) {
                Some(cached) => cached[byte % SECTOR],
                None => state.platter[byte],
            })
            .collect()
    }

    /// The codes of the commands that were executed, and the restarts of the port.
    pub(super) fn commands(&self) -> (Vec<u8>, usize) {
        let state = self.state.lock();
        (state.commands.clone(), state.restarts)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.state.lock().limits);
    }

    /// The disk is pulled out.
    pub(super) fn pull(&self) {
        self.state.lock().gone = true;
    }

    /// Commands that touch `sector` fail with `error`.
    pub(super) fn bad_sector(&self, sector: u64, error: u8) {
        self.state.lock().failing.insert(sector, error);
    }

    pub(super) fn mend(&self) {
        self.state.lock().failing.clear();
    }

    /// The link fails while commands are under way.
    pub(super) fn break_link(&self) {
        let mut state = self.state.lock();
        state.halted = true;
        *state.registers.entry(DISK + PX_IS).or_default() |= 1 << 27;
    }

    /// The disk goes, and one with other properties comes.
    pub(super) fn swap(&self, change: impl FnOnce(&mut Limits)) {
        self.change(change);
        *self.state.lock().registers.entry(DISK + PX_IS).or_default() |= 1 << 22;
    }

    /// Executes all commands that the driver gave.
    pub(super) fn run(&self) {
        self.run_some(usize::MAX);
    }

    /// Executes `count` commands at most.
    pub(super) fn run_some(&self, count: usize) {
        for _ in 0..count {
            let mut state = self.state.lock();
            let issued = state.register(DISK + PX_CI) | state.register(DISK + PX_SACT);
            if issued == 0 || state.halted || state.gone {
                return;
            }
            // Not in order.
            let slot = 31 - issued.leading_zeros();
            self.execute(&mut state, slot);
        }
    }

    fn execute(&self, state: &mut State, slot: u32) {
        let number = |at: u64, len: usize| self.arena.number(at, len);
        let list = state.wide(DISK + PX_CLB);
        let header = list + 32 * u64::from(slot);
        let flags = number(header, 4) as u32;
        let (table, regions) = (number(header + 8, 8), u64::from(flags >> 16));
        assert_eq!((flags & 0x1f, table % 128, number(header + 4, 4)), (5, 0, 0));
        let byte = |at: u64| number(table + at, 1);
        assert_eq!((byte(0), byte(1), byte(7)), (0x27, 0x80, 0x40));
        let code = byte(2) as u8;
        let sector = byte(4) | byte(5) << 8 | byte(6) << 16 | byte(8) << 24 | byte(9) << 32 | byte(10) << 40;
        let (features, count) = (byte(3) | byte(11) << 8, number(table + 12, 2));
        let memory: Vec<(u64, usize)> = (0..regions)
            .map(|region| {
                let at = table + 0x80 + 16 * region;
                let bytes = number(at + 12, 4) as usize + 1;
                assert!(bytes.is_multiple_of(2) && bytes <= 4 << 20);
                (number(at, 8), bytes)
            })
            .collect();
        let bytes: usize = memory.iter().map(|(_, len)| len).sum();
        let queued = state.register(DISK + PX_SACT) >> slot & 1 != 0;
        assert_eq!(queued, matches!(code, 0x60 | 0x61), "queued commands alone are in SACT");
        if !queued {
            assert_eq!(
                state.register(DISK + PX_CI),
                1 << slot,
                "nothing beside a command that does not queue"
            );
        }
        let sectors = match code {
            0x60 | 0x61 => {
                assert_eq!(count, u64::from(slot) << 3);
                if features == 0 { 65_536 } else { features }
            }
            0x25 | 0x35 if count == 0 => 65_536,
            0x25 | 0x35 => count,
            _ => 0,
        };
        let writes = matches!(code, 0x35 | 0x61 | 0x06);
        assert_eq!(flags & 1 << 6 != 0, writes);
        let error = match code {
            0xec if !state.limits.answers => return state.halted = true,
            0xec => {
                assert_eq!(bytes, 512);
                self.arena.write(memory[0].0, &identify(&state.limits));
                None
            }
            0xea => {
                for (sector, bytes) in core::mem::take(&mut state.cache) {
                    state.platter[sector as usize * SECTOR..][..SECTOR].copy_from_slice(&bytes);
                }
                None
            }
            0x06 => {
                assert_eq!((features, count, bytes), (1, 1, 512));
                for range in 0..64 {
                    let word = number(memory[0].0 + 8 * range, 8);
                    let first = word & 0xffff_ffff_ffff;
                    for sector in first..first + (word >> 48) {
                        state.cache.insert(sector, alloc::vec![0; SECTOR]);
                    }
                }
                None
            }
            _ => {
                assert_eq!(sectors as usize * SECTOR, bytes);
                self.transfer(state, writes, sector, sectors, &memory)
            }
        };
        state.commands.push(code);
        let error = if state.aborts { Some(0x04) } else { error };
        state.end(slot, queued, error);
    }

    fn transfer(
        &self,
        state: &mut State,
        writes: bool,
        sector: u64,
        sectors: u64,
        memory: &[(u64, usize)],
    ) -> Option<u8> {
        if sector + sectors > SECTORS {
            return Some(0x10);
        }
        if let Some((_, &error)) = state.failing.range(sector..sector + sectors).next() {
            return Some(error);
        }
        if writes {
            let all: Vec<u8> =
                memory.iter().flat_map(|(maddr, len)| self.arena.bytes(*maddr, *len)).collect();
            for (index, bytes) in all.chunks(SECTOR).enumerate() {
                state.cache.insert(sector + index as u64, bytes.to_vec());
            }
            return None;
        }
        let mut all = state.platter[sector as usize * SECTOR..][..sectors as usize * SECTOR].to_vec();
        for (cached, bytes) in state.cache.range(sector..sector + sectors) {
            all[(cached - sector) as usize * SECTOR..][..SECTOR].copy_from_slice(bytes);
        }
        let mut all = &all[..];
        for (maddr, len) in memory {
            self.arena.write(*maddr, &all[..*len]);
            all = &all[*len..];
        }
        None
    }
}

impl State {
    fn register(&self, offset: usize) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn wide(&self, offset: usize) -> u64 {
        u64::from(self.register(offset)) | u64::from(self.register(offset + 4)) << 32
    }

    fn clear(&mut self, offset: usize, bits: u32) {
        *self.registers.entry(offset).or_default() &= !bits;
    }

    /// A command ends.
    fn end(&mut self, slot: u32, queued: bool, error: Option<u8>) {
        self.clear(
            DISK + PX_CI,
            if error.is_some() && !queued && !self.limits.clears_failed { 0 } else { 1 << slot },
        );
        let status = match error {
            Some(error) => 0x41 | u32::from(error) << 8,
            None => 0x40,
        };
        self.registers.insert(DISK + PX_TFD, status);
        let mut causes = if queued { IS_DEVICE_BITS } else { IS_REGISTER_FIS };
        if error.is_some() {
            causes |= IS_TASK_FILE;
            self.halted = true;
            self.aborts |= queued;
        } else {
            self.clear(DISK + PX_SACT, 1 << slot);
        }
        *self.registers.entry(DISK + PX_IS).or_default() |= causes;
    }

    /// The port's command register is written.
    fn port_command(&mut self, port: usize, value: u32) {
        let before = self.register(port + PX_CMD);
        let mut now = value & !(CMD_RUNS | CMD_RECEIVES);
        let stops = self.limits.stops;
        let running = value & CMD_START != 0 || before & CMD_RUNS != 0 && !stops;
        let receiving = value & CMD_RECEIVE != 0 || before & CMD_RECEIVES != 0 && !stops;
        if running {
            now |= CMD_RUNS;
        }
        if receiving {
            now |= CMD_RECEIVES;
        }
        if before & CMD_RUNS != 0 && now & CMD_RUNS == 0 {
            self.restarts += 1;
            self.halted = false;
            for register in [PX_CI, PX_SACT] {
                self.registers.insert(port + register, 0);
            }
        }
        self.registers.insert(port + PX_CMD, now);
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
        let connected = match offset {
            _ if offset == DISK + PX_SSTS => !state.gone,
            _ => offset == DRIVE + PX_SSTS,
        };
        match offset {
            CAP => {
                (limits.slots - 1) << 8
                    | u32::from(limits.staggered) << 27
                    | CAP_NCQ
                    | u32::from(limits.wide) << 31
            }
            CAP2 => 0,
            PI => 1 << 2 | 1 << 3 | 1 << 5,
            _ if offset == DISK + PX_SIG => SIGNATURE_DISK,
            _ if offset == DRIVE + PX_SIG => SIGNATURE_ATAPI,
            _ if offset >= 0x100 && (offset - 0x100) % 0x80 == PX_SSTS => {
                if connected {
                    0x123
                } else {
                    0
                }
            }
            _ if offset == DISK + PX_TFD && !limits.ready => 0x80,
            _ => state.register(offset),
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
        if offset == GHC && value & GHC_RESET != 0 {
            let value = if state.limits.resets { value & !GHC_RESET } else { value };
            state.registers.insert(GHC, value);
            return;
        }
        if offset < 0x100 {
            if offset == IS {
                state.clear(IS, value);
            } else {
                state.registers.insert(offset, value);
            }
            return;
        }
        let (port, register) = (offset - (offset - 0x100) % 0x80, (offset - 0x100) % 0x80);
        match register {
            PX_CMD => state.port_command(port, value),
            PX_IS | PX_SERR => state.clear(offset, value),
            PX_SCTL => state.aborts &= value & SCTL_RESET == 0,
            PX_CI | PX_SACT => {
                assert_eq!(port, DISK);
                assert_ne!(
                    state.register(port + PX_CMD) & CMD_RUNS,
                    0,
                    "a command for a port that does not run"
                );
                assert_eq!(state.register(offset) & value, 0, "a slot has one command");
                *state.registers.entry(offset).or_default() |= value;
                // What the driver asks while the port tells nothing is answered at once.
                let opened = state.register(DISK + PX_IE) != 0;
                if register == PX_CI && !opened && !state.halted && !state.gone {
                    self.execute(&mut state, value.trailing_zeros());
                }
            }
            _ => {
                state.registers.insert(offset, value);
            }
        }
    }
}
