//! The driver of NVMe disks: a guest's granted frames go into the commands' lists of pages as they are.
//!
//! A controller's first namespace is the disk. There is a queue pair for each vCPU of dom0, which has one; its 64 entries
//! have a list of pages each, all taken when the disk is opened. A transfer whose pieces do not fit one list of pages
//! (a piece that ends amid a page, before one that is elsewhere) is done as several commands, one after the other.
//!
//! A controller that stops, or does not end a command within half a minute, is reset and gets its commands again, as long
//! as some of them end between resets. A controller that breaks a rule of its queues is reset and out of use, and one that
//! does not even reset keeps the memory that it was given. (I46)
//!
//! Source: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0.
#![forbid(unsafe_code)]

mod commands;
mod controller;
mod device;
mod identify;
mod prp;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use backends::{BlockDevice, Client, Geometry, Segment, SubmitError};
use pvrt::executor::{Either, select, time};

use self::commands::Identify;
pub use self::commands::Status;
use self::controller::Controller;
use self::device::{Device, Lists};
pub use self::queue::QueueError;
use self::queue::{QUEUE_PAGES, QueuePair};
use crate::blkqueue::{BlockQueue, Limits};
use crate::hw::{Dma, DmaSource, Interrupt, Registers};

/// PCI class of the controllers, with their programming interface.
pub const CLASS: u32 = 0x01_08_02;
/// Most bytes of registers that the driver wants, and the least that it needs.
pub const REGISTER_BYTES: [u32; 2] = [registers::LEAST_REGISTER_BYTES, registers::MOST_REGISTER_BYTES];

/// Longest part of a request: a segment.
const PART_BYTES: u32 = 4096;
/// Time between two looks at a controller that tells nothing.
const LOOK_NS: u64 = 5_000_000_000;
/// Resets one after the other, without a command that went well in between, before the controller is given up.
const MAX_RESETS: u32 = 3;

/// Why a controller cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeError {
    /// The registers read as all ones.
    Gone,
    /// The controller does not stop.
    ResetTimeout,
    /// The controller does not become ready.
    NotReady,
    /// The controller says that it failed for good.
    Fatal,
    /// The controller lacks something.
    Unsupported(&'static str),
    /// The namespace is unlike those that the driver knows.
    BadNamespace(&'static str),
    /// No memory for the queues.
    OutOfMemory,
    /// An administrative command failed.
    Refused(&'static str, Status),
    /// An administrative command did not end.
    NoAnswer(&'static str),
    /// A command did not end.
    Lost(u16),
    /// The controller broke a queue's rules.
    Queue(QueueError),
    /// After a reset the disk was another.
    Changed,
}

impl fmt::Display for NvmeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "it does not answer"),
            Self::ResetTimeout => write!(f, "it does not stop"),
            Self::NotReady => write!(f, "it does not become ready"),
            Self::Fatal => write!(f, "it says that it failed"),
            Self::Unsupported(what) => write!(f, "it has {what}"),
            Self::BadNamespace(what) => write!(f, "its namespace has a {what} that cannot be used"),
            Self::OutOfMemory => write!(f, "no memory for its queues"),
            Self::Refused(what, status) => write!(f, "{what}: {status}"),
            Self::NoAnswer(what) => write!(f, "{what}: no answer"),
            Self::Lost(id) => write!(f, "command {id} does not end"),
            Self::Queue(error) => write!(f, "it broke its queue: {error}"),
            Self::Changed => write!(f, "it is another disk after a reset"),
        }
    }
}

/// A disk behind an NVMe controller. All users share it, and one task runs [`Service::run`].
pub struct Nvme<M: Dma> {
    queue: BlockQueue<Device<M>>,
    model: String,
    serial: String,
}

/// What keeps a disk's controller at work.
pub struct Service<M: Dma> {
    disk: Arc<Nvme<M>>,
    controller: Controller<M>,
    most_bytes: u64,
    /// Resets since a command last went well.
    resets: u32,
    /// The controller does not stop.
    stuck: bool,
}

/// What a controller says of its disk.
struct Found {
    about: identify::Controller,
    namespace: u32,
    geometry: Geometry,
}

impl<M: Dma> Nvme<M> {
    /// Brings the controller behind `registers`, of which `register_bytes` are there, up. `name` is for the log; the
    /// interrupt of MSI-X vector 0 goes to [`Service::run`].
    ///
    /// # Errors
    /// [`NvmeError`] says what is wrong with the controller, or that memory is missing. The controller is stopped.
    pub async fn open<S: DmaSource<Memory = M>>(
        name: String,
        registers: Box<dyn Registers>,
        register_bytes: u32,
        source: &S,
    ) -> Result<(Arc<Self>, Service<M>), NvmeError> {
        let registers: Arc<dyn Registers> = registers.into();
        let mut controller = Controller::new(registers.clone(), register_bytes, source)?;
        let memory = source.allocate(QUEUE_PAGES).ok_or(NvmeError::OutOfMemory)?;
        let lists = Lists::new(source).ok_or(NvmeError::OutOfMemory)?;
        controller.disable().await?;
        let pair = QueuePair::new(memory, registers, controller::IO_QUEUE, &controller.capabilities);
        let found = match Self::bring_up(&mut controller, &pair, &name).await {
            Ok(found) => found,
            Err(error) => {
                if controller.disable().await.is_err() {
                    log::error!("{name}: it does not stop; the memory it was given stays with it");
                    core::mem::forget((controller, pair));
                }
                return Err(error);
            }
        };
        let Found { about, namespace, geometry } = found;
        let limits = Limits {
            slots: pair.entries() - 1,
            parts: geometry.seg_max,
            part_bytes: PART_BYTES,
            bytes: about.most_bytes,
        };
        let device = Device::new(name, pair, lists, namespace, about.most_bytes, &geometry);
        let queue = BlockQueue::new(geometry, limits, device);
        let disk = Arc::new(Self { queue, model: about.model, serial: about.serial });
        let most_bytes = about.most_bytes;
        let service = Service { disk: disk.clone(), controller, most_bytes, resets: 0, stuck: false };
        Ok((disk, service))
    }

    /// Enables a controller that is stopped, asks what it is, and gives it `pair`.
    async fn bring_up(
        controller: &mut Controller<M>,
        pair: &QueuePair<M>,
        name: &str,
    ) -> Result<Found, NvmeError> {
        controller.enable().await?;
        let about = identify::Controller::read(&controller.identify(Identify::Controller).await?);
        let listed = identify::namespaces(&controller.identify(Identify::Namespaces).await?);
        let (namespace, more) = listed.ok_or(NvmeError::Unsupported("no namespace"))?;
        if more > 0 {
            log::warn!("{name}: namespaces other than {namespace} are not used ({more} more)");
        }
        // Controllers older than the question refuse it, and have no limit.
        let blocks = match controller.identify(Identify::NvmController).await {
            Ok(answer) => identify::most_deallocated(&answer),
            Err(NvmeError::Refused(..)) => u32::MAX,
            Err(error) => return Err(error),
        };
        let answer = controller.identify(Identify::Namespace(namespace)).await?;
        let geometry = identify::geometry(&about, &answer, blocks).map_err(NvmeError::BadNamespace)?;
        controller.create(pair.addresses(), pair.entries()).await?;
        Ok(Found { about, namespace, geometry })
    }

    /// The model and the serial number, as plain text.
    pub fn names(&self) -> (&str, &str) {
        (&self.model, &self.serial)
    }

    /// Requests that did not end yet.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Hands out all that the controller has finished, and gives it what waits.
    ///
    /// # Errors
    /// [`NvmeError`]: the controller must be reset.
    pub fn service(&self) -> Result<(), NvmeError> {
        self.queue.service()
    }
}

impl<M: Dma> Service<M> {
    /// Handles the controller's interrupts and resets a controller that stops, until the controller is given up; the
    /// result is the reason. From then on the disk accepts no request.
    pub async fn run(mut self, interrupt: impl Interrupt + Sync) -> NvmeError {
        let mut tick = core::pin::pin!(time::sleep(LOOK_NS));
        loop {
            let mut outcome = self.disk.service();
            if outcome.is_ok()
                && let Either::Right(()) = select(interrupt.wait(), tick.as_mut()).await
            {
                // An interrupt may have been lost: what has ended is taken first.
                outcome = self.disk.service().and_then(|()| self.look());
                tick.set(time::sleep(LOOK_NS));
            }
            if let Err(error) = outcome
                && let Err(error) = self.recover(error).await
            {
                if self.stuck {
                    // The controller may use the memory still: nobody else gets it.
                    core::mem::forget((self.disk.clone(), self.controller));
                }
                return error;
            }
        }
    }

    /// Looks whether the controller still works and whether its commands end.
    fn look(&self) -> Result<(), NvmeError> {
        let checked = self.controller.check();
        self.disk.queue.with(|device| {
            device.down |= checked.is_err();
            checked.and_then(|()| device.look())
        })
    }

    /// Resets the controller and gives it its commands again.
    ///
    /// # Errors
    /// Why the controller is out of use.
    async fn recover(&mut self, error: NvmeError) -> Result<(), NvmeError> {
        let queue = &self.disk.queue;
        let name = queue.with(|device| {
            self.resets = if core::mem::take(&mut device.progress) { 1 } else { self.resets + 1 };
            device.name.clone()
        });
        if let Err(error) = self.controller.disable().await {
            // The memory of the commands stays lent, and so the commands never end.
            self.stuck = true;
            queue.close();
            log::error!("{name}: {error}; it is out of use, and the memory it was given stays with it");
            return Err(error);
        }
        let lies = matches!(error, NvmeError::Queue(_));
        let outcome = if lies || self.resets > MAX_RESETS { Err(error) } else { self.again().await };
        match outcome {
            Ok(()) => {
                log::warn!("{name}: {error}; it was reset, and gets its commands again");
                self.disk.queue.replay();
                Ok(())
            }
            Err(error) => {
                log::error!("{name}: {error}; it is out of use");
                if self.controller.disable().await.is_ok() {
                    self.disk.queue.fail();
                } else {
                    self.stuck = true;
                    self.disk.queue.close();
                }
                Err(error)
            }
        }
    }

    /// Brings the controller, which is stopped, up again.
    async fn again(&mut self) -> Result<(), NvmeError> {
        let queue = &self.disk.queue;
        let (addresses, entries) = queue.with(|device| {
            device.pair.clear();
            (device.pair.addresses(), device.pair.entries())
        });
        self.controller.enable().await?;
        let about = identify::Controller::read(&self.controller.identify(Identify::Controller).await?);
        let namespace = queue.with(|device| device.namespace);
        let answer = self.controller.identify(Identify::Namespace(namespace)).await?;
        let geometry = identify::geometry(&about, &answer, u32::MAX).map_err(NvmeError::BadNamespace)?;
        let known = queue.geometry();
        let same = geometry.sectors == known.sectors && geometry.sector_size == known.sector_size;
        if !same || about.serial != self.disk.serial || about.most_bytes != self.most_bytes {
            return Err(NvmeError::Changed);
        }
        self.controller.create(addresses, entries).await?;
        self.disk.queue.with(|device| device.down = false);
        Ok(())
    }
}

impl<M: Dma> BlockDevice for Nvme<M> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: backends::BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        self.queue.submit(client, tag, op, sector, segments)
    }

    fn kick(&self) {
        self.queue.kick();
    }
}
