//! A controller's life: reset, enabled, asked what it is, given its queues. Every wait has an end.

use alloc::sync::Arc;

use pvrt::executor::time;

use super::NvmeError;
use super::commands::{self, Command, Identify};
use super::identify::{ANSWER_BYTES, Answer};
use super::queue::{QUEUE_PAGES, QueuePair};
use super::registers::*;
use crate::hw::{Dma, DmaSource, Registers};

/// Number of the pair of queues for I/O: dom0 has one vCPU, and so one pair.
pub(super) const IO_QUEUE: u16 = 1;
/// The MSI-X vector of all queues.
pub(super) const VECTOR: u16 = 0;

/// Time between two looks at a register or at a queue.
const STEP_NS: u64 = 1_000_000;
/// Longest time that an administrative command takes.
const COMMAND_NS: u64 = 10_000_000_000;

/// A controller, and its queues for administrative commands.
pub(super) struct Controller<M> {
    registers: Arc<dyn Registers>,
    pub(super) capabilities: Capabilities,
    admin: QueuePair<M>,
    /// Where the controller writes its answers.
    page: M,
}

impl<M: Dma> Controller<M> {
    /// Looks at the controller's registers. The controller is not touched yet.
    ///
    /// # Errors
    /// Nothing answers, the controller cannot do what the driver needs, or memory is missing.
    pub(super) fn new<S: DmaSource<Memory = M>>(
        registers: Arc<dyn Registers>,
        register_bytes: u32,
        source: &S,
    ) -> Result<Self, NvmeError> {
        let capabilities = Capabilities::read(&*registers).ok_or(NvmeError::Gone)?;
        if !capabilities.nvm {
            return Err(NvmeError::Unsupported("no NVM command set"));
        }
        if !capabilities.small_pages {
            return Err(NvmeError::Unsupported("no pages of 4 KiB"));
        }
        if capabilities.entries < 2 {
            return Err(NvmeError::Unsupported("queues of one entry"));
        }
        if capabilities.doorbells(IO_QUEUE)[1] + 4 > register_bytes as usize {
            return Err(NvmeError::Unsupported("doorbells too far from each other"));
        }
        let page = source.allocate(1).ok_or(NvmeError::OutOfMemory)?;
        let memory = source.allocate(QUEUE_PAGES).ok_or(NvmeError::OutOfMemory)?;
        let admin = QueuePair::new(memory, registers.clone(), 0, &capabilities);
        Ok(Self { registers, capabilities, admin, page })
    }

    /// Waits until the controller is ready, or has stopped.
    async fn wait(&self, ready: bool) -> Result<(), NvmeError> {
        let end = time::now_ns() + self.capabilities.ready_ns;
        loop {
            let status = self.registers.read32(CSTS);
            if status == u32::MAX {
                return Err(NvmeError::Gone);
            }
            if (status & CSTS_READY != 0) == ready {
                return Ok(());
            }
            if ready && status & CSTS_FATAL != 0 {
                return Err(NvmeError::Fatal);
            }
            if time::now_ns() >= end {
                return Err(if ready { NvmeError::NotReady } else { NvmeError::ResetTimeout });
            }
            time::sleep(STEP_NS).await;
        }
    }

    /// Whether the controller says that it works.
    pub(super) fn check(&self) -> Result<(), NvmeError> {
        match self.registers.read32(CSTS) {
            u32::MAX => Err(NvmeError::Gone),
            status if status & CSTS_FATAL != 0 => Err(NvmeError::Fatal),
            _ => Ok(()),
        }
    }

    /// Stops the controller. After `Ok` the controller touches no memory and has forgotten all commands.
    ///
    /// # Errors
    /// [`NvmeError::ResetTimeout`] or [`NvmeError::Gone`]: the controller may still use memory that it was given.
    pub(super) async fn disable(&mut self) -> Result<(), NvmeError> {
        let value = self.registers.read32(CC);
        if value & CC_ENABLE != 0 {
            self.registers.write32(CC, value & !CC_ENABLE);
        }
        self.wait(false).await?;
        self.admin.clear();
        Ok(())
    }

    /// Enables the controller, which is stopped.
    pub(super) async fn enable(&mut self) -> Result<(), NvmeError> {
        let last = u32::from(self.admin.entries() - 1);
        let [submissions, completions] = self.admin.addresses();
        self.registers.write32(AQA, last << 16 | last);
        write64(&*self.registers, ASQ, submissions);
        write64(&*self.registers, ACQ, completions);
        self.registers.write32(CC, CC_VALUE);
        self.registers.write32(CC, CC_VALUE | CC_ENABLE);
        self.wait(true).await
    }

    /// Does an administrative command.
    async fn command(&mut self, what: &'static str, command: Command) -> Result<(), NvmeError> {
        if !self.admin.push(0, command) {
            return Err(NvmeError::NoAnswer(what));
        }
        self.admin.ring();
        let end = time::now_ns() + COMMAND_NS;
        loop {
            if let Some(ended) = self.admin.pop().map_err(NvmeError::Queue)? {
                // Tells the controller that the end was read.
                let _ = self.admin.pop().map_err(NvmeError::Queue)?;
                return ended.error.map_or(Ok(()), |status| Err(NvmeError::Refused(what, status)));
            }
            self.check()?;
            if time::now_ns() >= end {
                return Err(NvmeError::NoAnswer(what));
            }
            time::sleep(STEP_NS).await;
        }
    }

    /// Asks the controller what something is like.
    pub(super) async fn identify(&mut self, what: Identify) -> Result<Answer, NvmeError> {
        let name = match what {
            Identify::Namespace(_) => "identify namespace",
            Identify::Controller => "identify controller",
            Identify::Namespaces => "list namespaces",
            Identify::NvmController => "identify command set",
        };
        self.command(name, commands::identify(what, self.page.maddr(0))).await?;
        let mut answer = Answer(alloc::vec![0; ANSWER_BYTES].into_boxed_slice());
        self.page.read_bytes(0, &mut answer.0);
        Ok(answer)
    }

    /// Gives the controller `pair`, which is empty, for I/O.
    pub(super) async fn create(&mut self, addresses: [u64; 2], entries: u16) -> Result<(), NvmeError> {
        self.command("set number of queues", commands::one_queue_pair()).await?;
        let [submissions, completions] = addresses;
        let command = commands::create_completion_queue(IO_QUEUE, entries, completions, VECTOR);
        self.command("create completion queue", command).await?;
        let command = commands::create_submission_queue(IO_QUEUE, entries, submissions);
        self.command("create submission queue", command).await
    }
}
