//! A pair of queues: commands to the controller, and their ends.
//!
//! The driver keeps its own indices and knows which numbers the controller has: what the controller writes is looked up,
//! never believed. Source: NVM Express Base Specification 2.0, sections 3.3.1 and 4.6.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use super::commands::{Command, Status, numbered};
use super::registers::Capabilities;
use crate::hw::{Dma, Registers};

/// Most entries of a queue: so many commands fill a page.
pub(super) const ENTRIES: u16 = 64;
/// Pages of a pair.
pub(super) const QUEUE_PAGES: usize = 2;

const COMMAND_BYTES: usize = 64;
const COMPLETION_BYTES: usize = 16;
const COMPLETIONS: usize = 4096;

/// The controller broke a queue's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A completion names a command that the controller does not have.
    UnknownCommand(u16),
    /// A completion belongs to another queue.
    WrongQueue(u16),
    /// The controller claims to have read commands that are not there.
    BadHead(u16),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand(id) => write!(f, "it ended command {id}, which it did not have"),
            Self::WrongQueue(queue) => write!(f, "it ended a command of queue {queue}, which has none"),
            Self::BadHead(head) => write!(f, "it read commands up to {head}, which are not there"),
        }
    }
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// The command's number.
    pub(super) id: u16,
    /// Why the command failed, if it failed.
    pub(super) error: Option<Status>,
}

/// A submission queue and a completion queue of the same number and size.
pub(super) struct QueuePair<M> {
    memory: M,
    registers: Arc<dyn Registers>,
    number: u16,
    doorbells: [usize; 2],
    entries: u16,
    /// Where the next command goes, and where the doorbell says that commands end.
    tail: u16,
    told_tail: u16,
    /// Up to where the controller has read commands.
    read: u16,
    /// Where the next completion comes, and the phase bit of a new one.
    head: u16,
    told_head: u16,
    phase: bool,
    /// By number of command: the controller has it.
    has: [bool; ENTRIES as usize],
}

impl<M: Dma> QueuePair<M> {
    /// Pair `number` of queues in [`QUEUE_PAGES`] zeroed pages.
    pub(super) fn new(
        memory: M,
        registers: Arc<dyn Registers>,
        number: u16,
        capabilities: &Capabilities,
    ) -> Self {
        let entries = capabilities.entries.min(ENTRIES.into()) as u16;
        Self {
            memory,
            registers,
            number,
            doorbells: capabilities.doorbells(number),
            entries,
            tail: 0,
            told_tail: 0,
            read: 0,
            head: 0,
            told_head: 0,
            phase: true,
            has: [false; ENTRIES as usize],
        }
    }

    /// Entries of each queue. The controller has one command less at most.
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Machine addresses of the commands and of the completions.
    pub(super) fn addresses(&self) -> [u64; 2] {
        [self.memory.maddr(0), self.memory.maddr(COMPLETIONS)]
    }

    /// Makes the queues empty. The controller does not use them now.
    pub(super) fn clear(&mut self) {
        (self.tail, self.told_tail, self.read, self.head, self.told_head) = (0, 0, 0, 0, 0);
        self.phase = true;
        self.has = [false; ENTRIES as usize];
        self.memory.write(COMPLETIONS, &[0; ENTRIES as usize * COMPLETION_BYTES / 8]);
    }

    /// Whether the controller has command `id`.
    pub(super) fn has(&self, id: u16) -> bool {
        self.has.get(usize::from(id)).is_some_and(|has| *has)
    }

    /// Puts in a command under the number `id`, which is below the number of entries and free. `false`: the controller has
    /// not read enough of the earlier commands.
    #[must_use]
    pub(super) fn push(&mut self, id: u16, command: Command) -> bool {
        let next = (self.tail + 1) % self.entries;
        if next == self.read {
            return false;
        }
        debug_assert!(id < self.entries && !self.has(id));
        self.memory.write(usize::from(self.tail) * COMMAND_BYTES, &numbered(command, id));
        self.has[usize::from(id)] = true;
        self.tail = next;
        true
    }

    /// Tells the controller of new commands.
    pub(super) fn ring(&mut self) {
        if self.told_tail != self.tail {
            self.told_tail = self.tail;
            // The controller reads commands and lists that were written before this register.
            fence(Ordering::SeqCst);
            self.registers.write32(self.doorbells[0], self.tail.into());
        }
    }

    /// Takes the next completion. With the last one, the controller hears how far the driver has read.
    ///
    /// # Errors
    /// [`QueueError`]: the controller broke the queue's rules and must be reset.
    pub(super) fn pop(&mut self) -> Result<Option<Ended>, QueueError> {
        let at = COMPLETIONS + usize::from(self.head) * COMPLETION_BYTES;
        let status = self.memory.load16(at + 14);
        if (status & 1 != 0) != self.phase {
            if self.told_head != self.head {
                self.told_head = self.head;
                self.registers.write32(self.doorbells[1], self.head.into());
            }
            return Ok(None);
        }
        let (id, queue) = (self.memory.load16(at + 12), self.memory.load16(at + 10));
        let read = self.memory.load16(at + 8);
        if queue != self.number {
            return Err(QueueError::WrongQueue(queue));
        }
        let ahead = |to: u16| (to + self.entries - self.read) % self.entries;
        if read >= self.entries || ahead(read) > ahead(self.told_tail) {
            return Err(QueueError::BadHead(read));
        }
        if !self.has(id) {
            return Err(QueueError::UnknownCommand(id));
        }
        self.has[usize::from(id)] = false;
        // What has ended was read: a controller that says otherwise would have the queue full for ever.
        if read != self.told_tail && !self.has.contains(&true) {
            return Err(QueueError::BadHead(read));
        }
        self.read = read;
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Ok(Some(Ended { id, error: Status::failed(status >> 1) }))
    }
}
