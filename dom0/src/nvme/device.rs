//! The device behind the requests: turns a run into a command of the I/O queue pair.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use backends::{BlockOp, Geometry};

use super::NvmeError;
use super::commands::{self, Status};
use super::prp::{self, LIST_BYTES, Pages};
use super::queue::{ENTRIES, QueuePair};
use crate::blkqueue::{Complaints, Hardware, Part, Run, SECTOR, Start};
use crate::hw::{Dma, DmaSource};

/// Looks at the controller after which a command counts as lost.
const LOST_AFTER: u8 = 6;

const PAGE: usize = 4096;
const LISTS_PER_PAGE: usize = PAGE / LIST_BYTES;

/// A failed command, for the log.
struct Failed(Status);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command failed: {}", self.0)
    }
}

/// The memory of the commands: a list for each.
pub(super) struct Lists<M>(Vec<M>);

impl<M: Dma> Lists<M> {
    /// Takes the pages for all commands.
    pub(super) fn new<S: DmaSource<Memory = M>>(source: &S) -> Option<Self> {
        let count = usize::from(ENTRIES).div_ceil(LISTS_PER_PAGE);
        (0..count).map(|_| source.allocate(1)).collect::<Option<_>>().map(Self)
    }

    /// Where the list of command `id` is: a page, and the offset in the page.
    fn place(&self, id: u16) -> (&M, usize) {
        let id = usize::from(id);
        (&self.0[id / LISTS_PER_PAGE], id % LISTS_PER_PAGE * LIST_BYTES)
    }
}

/// A namespace, and the queue pair that leads to it.
pub(super) struct Device<M> {
    pub(super) name: String,
    pub(super) pair: QueuePair<M>,
    lists: Lists<M>,
    pages: Pages,
    pub(super) namespace: u32,
    most_bytes: u64,
    /// Bytes of a block.
    block: u64,
    /// The controller takes no commands: it is being reset.
    pub(super) down: bool,
    /// By command: how often the driver has looked since the controller got it.
    age: [u8; ENTRIES as usize],
    /// Commands that went well since the controller was last reset.
    pub(super) progress: bool,
    complaints: Complaints,
}

impl<M: Dma> Device<M> {
    pub(super) fn new(
        name: String,
        pair: QueuePair<M>,
        lists: Lists<M>,
        namespace: u32,
        most_bytes: u64,
        geometry: &Geometry,
    ) -> Self {
        Self {
            name,
            pair,
            lists,
            pages: Pages::new(),
            namespace,
            most_bytes,
            block: geometry.sector_size.into(),
            down: false,
            age: [0; ENTRIES as usize],
            progress: false,
            complaints: Complaints::default(),
        }
    }

    /// Notes that time has passed.
    ///
    /// # Errors
    /// [`NvmeError::Lost`]: a command has not ended for too long.
    pub(super) fn look(&mut self) -> Result<(), NvmeError> {
        for id in (0..ENTRIES).filter(|id| self.pair.has(*id)) {
            let age = &mut self.age[usize::from(id)];
            *age += 1;
            if *age > LOST_AFTER {
                self.down = true;
                return Err(NvmeError::Lost(id));
            }
        }
        Ok(())
    }
}

impl<M: Dma> Hardware for Device<M> {
    type Error = NvmeError;

    fn continues(&self, last: &Part, next: &Part) -> bool {
        prp::continues(last, next)
    }

    fn start(&mut self, slot: u16, run: Run<'_>) -> Start {
        if self.down {
            return Start::Busy;
        }
        let blocks = |sectors: u64| sectors * SECTOR / self.block;
        let (memory, offset) = self.lists.place(slot);
        let mut taken = 0;
        let command = match run.op {
            BlockOp::Flush => commands::flush(self.namespace),
            BlockOp::Discard { sectors } => {
                let Ok(count) = u32::try_from(blocks(sectors)) else { return Start::Unfit };
                memory.write(offset, &commands::range(blocks(run.sector), count));
                commands::deallocate(self.namespace, memory.maddr(offset))
            }
            BlockOp::Read | BlockOp::Write => {
                let Some(extent) = self.pages.fill(run.parts, self.most_bytes, self.block) else {
                    return Start::Unfit;
                };
                memory.write(offset, self.pages.list());
                taken = extent.parts;
                let prp = self.pages.entries(memory.maddr(offset));
                let count = (extent.bytes / self.block) as u32;
                let is_write = run.op == BlockOp::Write;
                commands::transfer(is_write, self.namespace, prp, blocks(run.sector), count)
            }
        };
        if !self.pair.push(slot, command) {
            return Start::Busy;
        }
        self.age[usize::from(slot)] = 0;
        Start::Taken(taken)
    }

    fn ring(&mut self) {
        self.pair.ring();
    }

    fn finished(&mut self) -> Result<Option<(u16, bool)>, NvmeError> {
        if self.down {
            return Ok(None);
        }
        let ended = self.pair.pop().inspect_err(|_| self.down = true).map_err(NvmeError::Queue)?;
        Ok(ended.map(|ended| {
            self.progress |= ended.error.is_none();
            if let Some(status) = ended.error {
                self.complaints.tell(&self.name, &Failed(status));
            }
            (ended.id, ended.error.is_none())
        }))
    }
}
