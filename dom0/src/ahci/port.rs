//! A port behind the requests: turns a run into a command in a slot of the port's list.
//!
//! A device that queues commands (NCQ) has as many reads and writes at once as it has slots; all other commands, and those
//! of a device that does not queue, are alone. After an error the device has forgotten its queue, and does not say here
//! which command it was: the commands that were under way are done again one by one, and the one that fails alone fails.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use backends::BlockOp;

use super::AhciError;
use super::commands::{
    Command, MOST_REGIONS, MOST_SECTORS, TABLE_BYTES, TRIM, TRIM_BYTES, TRIM_MOST, ranges, region, region_at,
};
use super::identify::{ANSWER_BYTES, Answer};
use super::registers::*;
use crate::blkqueue::{Complaints, Hardware, Part, Run, SECTOR, Start};
use crate::hw::{Dma, DmaSource};

/// Looks at the port after which a command counts as lost.
const LOST_AFTER: u8 = 6;
const SLOTS: u16 = 32;
const PAGE: usize = 4096;
const TABLES_PER_PAGE: usize = PAGE / TABLE_BYTES;
/// Where the frames from the device go, behind the list of commands.
const FRAMES: usize = 1024;

/// The memory of a port: a page with the list and the received frames, a table for each slot, and a page for what the device
/// says of itself.
pub(super) struct PortMemory<M> {
    list: M,
    tables: Vec<M>,
    answer: Option<M>,
}

impl<M: Dma> PortMemory<M> {
    pub(super) fn new<S: DmaSource<Memory = M>>(source: &S) -> Option<Self> {
        let list = source.allocate(1)?;
        Some(Self { list, tables: Vec::new(), answer: None })
    }

    /// Takes the tables of `slots` slots, and the page for the answer.
    #[must_use]
    pub(super) fn take_tables<S: DmaSource<Memory = M>>(&mut self, source: &S, slots: u16) -> bool {
        let pages = usize::from(slots).div_ceil(TABLES_PER_PAGE);
        while self.tables.len() < pages {
            let Some(page) = source.allocate(1) else { return false };
            self.tables.push(page);
        }
        self.answer = source.allocate(1);
        self.answer.is_some()
    }

    /// Writes the command of slot 0 that asks the device what it is like.
    pub(super) fn write_question(&self) {
        if let Some(page) = &self.answer {
            let part = Part { maddr: page.maddr(0), len: ANSWER_BYTES as u32 };
            self.write(0, &Command::identify(), &[part]);
        }
    }

    /// What the device said of itself.
    pub(super) fn read_answer(&self) -> Answer {
        let mut answer = Answer(alloc::vec![0; ANSWER_BYTES].into_boxed_slice());
        if let Some(page) = &self.answer {
            page.read_bytes(0, &mut answer.0);
        }
        answer
    }

    /// Machine addresses of the list and of the received frames.
    pub(super) fn addresses(&self) -> [u64; 2] {
        [self.list.maddr(0), self.list.maddr(FRAMES)]
    }

    /// The page and the offset of a slot's table.
    fn table(&self, slot: u16) -> (&M, usize) {
        let slot = usize::from(slot);
        (&self.tables[slot / TABLES_PER_PAGE], slot % TABLES_PER_PAGE * TABLE_BYTES)
    }

    /// Writes a command with its regions.
    pub(super) fn write(&self, slot: u16, command: &Command, parts: &[Part]) {
        let (memory, at) = self.table(slot);
        memory.write(at, &command.frame());
        for (index, part) in parts.iter().enumerate() {
            memory.write(at + region_at(index), &region(part));
        }
        let header = command.header(parts.len(), memory.maddr(at));
        self.list.write(32 * usize::from(slot), &header);
    }

    /// Writes the ranges of a TRIM into a slot's table, and gives the memory that they are in.
    fn write_ranges(&self, slot: u16, sector: u64, sectors: u64) -> Part {
        let (memory, at) = self.table(slot);
        memory.write(at + TRIM, &ranges(sector, sectors));
        Part { maddr: memory.maddr(at + TRIM), len: TRIM_BYTES }
    }
}

/// A port with a disk.
pub(super) struct Port<M> {
    pub(super) name: String,
    pub(super) registers: PortRegisters,
    pub(super) memory: PortMemory<M>,
    /// The device queues commands.
    queues: bool,
    /// Bytes of a block.
    block: u64,
    /// By slot, a bit each: the device has a command, and that command is queued.
    has: u32,
    queued: u32,
    /// Commands that the device was not told of.
    fresh: u32,
    /// Commands that have ended, well or not, and were not handed out.
    good: u32,
    bad: u32,
    /// Commands that are to be done alone.
    alone: u32,
    /// Causes of interrupts since a command last ended.
    causes: u32,
    error: Option<AhciError>,
    /// The port takes no commands: it is being restarted.
    down: bool,
    /// By slot: how often the driver has looked since the device got the command.
    age: [u8; SLOTS as usize],
    /// Commands ended since the port was last restarted without being asked by one.
    pub(super) progress: bool,
    pub(super) complaints: Complaints,
}

impl<M: Dma> Port<M> {
    pub(super) fn new(
        name: String,
        registers: PortRegisters,
        memory: PortMemory<M>,
        queues: bool,
        block: u64,
    ) -> Self {
        Self {
            name,
            registers,
            memory,
            queues,
            block,
            has: 0,
            queued: 0,
            fresh: 0,
            good: 0,
            bad: 0,
            alone: 0,
            causes: 0,
            error: None,
            down: false,
            age: [0; SLOTS as usize],
            progress: false,
            complaints: Complaints::default(),
        }
    }

    /// Notes that the port was restarted: what the device had it has no more, and gets it again one by one.
    pub(super) fn restarted(&mut self) {
        self.alone |= self.has;
        (self.has, self.queued, self.fresh) = (0, 0, 0);
        self.causes = 0;
        self.error = None;
        self.down = false;
    }

    /// Whether the device may go on with commands after `error`, until the device is reset. One that fails in a queue does nothing
    /// else before that.
    pub(super) fn may_have_commands(&self, error: &AhciError) -> bool {
        self.queued != 0 || !matches!(error, AhciError::Device { .. })
    }

    /// Notes that time has passed.
    ///
    /// # Errors
    /// [`AhciError::Lost`]: a command has not ended for too long. [`AhciError::Unplugged`]: the device is gone.
    pub(super) fn look(&mut self) -> Result<(), AhciError> {
        if !self.registers.is_connected() {
            self.down = true;
            return Err(AhciError::Unplugged);
        }
        for slot in (0..SLOTS).filter(|slot| self.has >> slot & 1 != 0) {
            let age = &mut self.age[usize::from(slot)];
            *age += 1;
            if *age > LOST_AFTER {
                self.down = true;
                return Err(AhciError::Lost(slot));
            }
        }
        Ok(())
    }

    /// Looks which commands have ended.
    fn collect(&mut self) {
        // The causes are cleared before the commands are looked at: what ends later interrupts again.
        self.causes |= self.registers.acknowledge();
        let given = self.has & !self.fresh;
        if given == 0 {
            let fatal = core::mem::take(&mut self.causes) & IS_FATAL;
            if fatal != 0 {
                // The port has stopped by itself, and would not begin what comes next.
                self.down = true;
                self.error = Some(AhciError::Bus(fatal));
            }
            return;
        }
        // A queued command stays in SACT, any other in CI, until it has ended.
        let active = self.registers.read(PX_SACT) | self.registers.read(PX_CI);
        let ended = given & !active;
        if self.causes == 0 && ended == 0 {
            return;
        }
        let causes = core::mem::take(&mut self.causes);
        let status = self.registers.read(PX_TFD);
        if causes & (IS_TASK_FILE | IS_FATAL) == 0 && status & TFD_ERROR == 0 {
            self.good |= ended;
            self.has &= !ended;
            self.queued &= self.has;
            return;
        }
        self.down = true;
        self.error = Some(match causes & IS_FATAL {
            0 => AhciError::Device { status: status as u8, error: (status >> 8) as u8 },
            causes => AhciError::Bus(causes),
        });
        if self.queued != 0 {
            // Those that left the queue before the error went well.
            self.good |= ended;
            self.has &= !ended;
        } else if causes & IS_FATAL == 0 {
            // The one command that the device had, whether CI says so or not.
            self.bad |= self.has;
            self.has = 0;
        }
    }
}

/// Takes the lowest bit of a mask.
fn take_lowest(mask: &mut u32) -> Option<u16> {
    let slot = mask.trailing_zeros();
    (*mask != 0).then(|| {
        *mask &= *mask - 1;
        slot as u16
    })
}

impl<M: Dma> Hardware for Port<M> {
    type Error = AhciError;

    fn continues(&self, _: &Part, _: &Part) -> bool {
        true
    }

    fn start(&mut self, slot: u16, run: Run<'_>) -> Start {
        if self.down {
            return Start::Busy;
        }
        let is_transfer = matches!(run.op, BlockOp::Read | BlockOp::Write);
        let queued = self.queues && is_transfer && self.alone == 0;
        if self.has != 0 && !(queued && self.queued == self.has) {
            return Start::Busy;
        }
        let mut taken = 0;
        match run.op {
            BlockOp::Flush => self.memory.write(slot, &Command::flush(), &[]),
            BlockOp::Discard { sectors } => {
                if sectors > TRIM_MOST || self.block != SECTOR {
                    return Start::Unfit;
                }
                let part = self.memory.write_ranges(slot, run.sector, sectors);
                self.memory.write(slot, &Command::trim(), &[part]);
            }
            BlockOp::Read | BlockOp::Write => {
                let Some((parts, bytes)) = fit(run.parts, self.block) else { return Start::Unfit };
                let tag = queued.then_some(slot);
                let (block, blocks) = (run.sector * SECTOR / self.block, bytes / self.block);
                let command = Command::transfer(run.op == BlockOp::Write, tag, block, blocks);
                self.memory.write(slot, &command, &run.parts[..parts]);
                taken = parts;
            }
        }
        let bit = 1 << slot;
        self.has |= bit;
        self.fresh |= bit;
        if queued {
            self.queued |= bit;
        }
        self.age[usize::from(slot)] = 0;
        Start::Taken(taken)
    }

    fn ring(&mut self) {
        if self.fresh == 0 || self.down {
            return;
        }
        // The adapter reads headers and tables that were written before these registers.
        fence(Ordering::SeqCst);
        if self.queued & self.fresh != 0 {
            self.registers.write(PX_SACT, self.fresh);
        }
        self.registers.write(PX_CI, self.fresh);
        self.fresh = 0;
    }

    fn finished(&mut self) -> Result<Option<(u16, bool)>, AhciError> {
        if self.good | self.bad == 0 && !self.down {
            self.collect();
        }
        if let Some(slot) = take_lowest(&mut self.good) {
            self.alone &= !(1 << slot);
            self.progress = true;
            return Ok(Some((slot, true)));
        }
        if let Some(slot) = take_lowest(&mut self.bad) {
            self.alone &= !(1 << slot);
            self.progress = true;
            return Ok(Some((slot, false)));
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }
}

/// As many of `parts` as one command does, and their bytes: whole blocks of `block` bytes.
fn fit(parts: &[Part], block: u64) -> Option<(usize, u64)> {
    let mut bytes = 0;
    let mut whole = None;
    for (index, part) in parts.iter().take(MOST_REGIONS).enumerate() {
        bytes += u64::from(part.len);
        if bytes > MOST_SECTORS * block {
            break;
        }
        if bytes.is_multiple_of(block) {
            whole = Some((index + 1, bytes));
        }
    }
    whole
}
