//! The driver of SATA disks behind an AHCI adapter: a guest's granted frames are a command's regions of memory as they are.
//!
//! Each port with a disk is a disk of its own, with its own task, so that a bad disk holds up no other. A disk that queues
//! commands (NCQ) gets as many as it takes, and else one at a time (`port.rs`). All memory is taken when the disk is opened.
//!
//! A command that the device fails stops the port, which is restarted. A port that does not end a command within half a
//! minute is restarted, too, and gets its commands again; one that does not even stop keeps the memory that it was given. (I46)
//! After a reset the device says again what it is: a disk that was put in another's place gets none of the other's requests.
//! CD drives are not used.
//!
//! Source: Serial ATA AHCI Specification 1.3.1.
#![forbid(unsafe_code)]

mod adapter;
mod commands;
mod identify;
mod port;
mod registers;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use backends::{BlockDevice, BlockOp, Client, Geometry, Segment, SubmitError};
use pvrt::executor::sync::Notify;
use pvrt::executor::{Either, select, time};

use self::adapter::Attached;
use self::commands::{MOST_REGIONS, MOST_SECTORS, REGION_BYTES};
use self::identify::About;
use self::port::{Port, PortMemory};
use self::registers::*;
use crate::blkqueue::{BlockQueue, Limits};
use crate::hw::{Dma, DmaSource, Interrupt, Registers};

/// PCI class of the adapters, with their programming interface.
pub const CLASS: u32 = 0x01_06_01;
/// The range of a function that has the registers.
pub const REGISTER_RANGE: usize = 5;
/// The least bytes of registers that the driver needs, and the most that it wants.
pub const REGISTER_BYTES: [u32; 2] = [LEAST_REGISTER_BYTES, MOST_REGISTER_BYTES];

/// Time between two looks at a port that tells nothing.
const LOOK_NS: u64 = 5_000_000_000;
/// Restarts one after the other, without a command that ended in between, before the disk is given up.
const MAX_RESTARTS: u32 = 3;

/// Why an adapter or a disk cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AhciError {
    /// The registers read as all ones.
    Gone,
    /// The adapter does not leave reset.
    ResetTimeout,
    /// A port does not stop.
    StopTimeout,
    /// The device does not become ready.
    NotReady,
    /// The device is gone.
    Unplugged,
    /// A disk of another model, serial number or size is in the disk's place.
    Changed,
    /// The adapter lacks something.
    Unsupported(&'static str),
    /// The disk is unlike those that the driver knows.
    BadDisk(&'static str),
    /// No memory for the commands.
    OutOfMemory,
    /// The device does not say what it is.
    NoAnswer,
    /// The device failed a command.
    Device {
        /// ATA status register.
        status: u8,
        /// ATA error register.
        error: u8,
    },
    /// The link or the memory failed: the causes in the port's interrupt status.
    Bus(u32),
    /// A command did not end.
    Lost(u16),
}

/// Names of the bits of the ATA error register, from bit 0 on; `None` where a bit has no name of its own.
const ERROR_BITS: [Option<&str>; 8] = [
    Some("address mark not found"),
    Some("end of media"),
    Some("aborted"),
    None,
    Some("address not found"),
    None,
    Some("uncorrectable data"),
    Some("interface CRC"),
];

impl fmt::Display for AhciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "it does not answer"),
            Self::ResetTimeout => write!(f, "it does not leave reset"),
            Self::StopTimeout => write!(f, "it does not stop"),
            Self::NotReady => write!(f, "it does not become ready"),
            Self::Unplugged => write!(f, "it is gone"),
            Self::Changed => write!(f, "another disk is in its place"),
            Self::Unsupported(what) => write!(f, "it has {what}"),
            Self::BadDisk(what) => write!(f, "it has a {what} that cannot be used"),
            Self::OutOfMemory => write!(f, "no memory for its commands"),
            Self::NoAnswer => write!(f, "it does not say what it is"),
            Self::Device { status, error } => {
                write!(f, "a command failed:")?;
                let names = ERROR_BITS.iter().enumerate().filter(|(bit, _)| error >> bit & 1 != 0);
                for name in names.filter_map(|(_, name)| *name) {
                    write!(f, " {name},")?;
                }
                write!(f, " status {status:#04x}, error {error:#04x}")
            }
            Self::Bus(causes) => write!(f, "its link or the memory failed: causes {causes:#x}"),
            Self::Lost(slot) => write!(f, "command {slot} does not end"),
        }
    }
}

/// What was found at a port, and its memory.
type Found<M> = Result<(Attached, PortMemory<M>), AhciError>;

/// An adapter that was reset.
pub struct Adapter<M: Dma> {
    registers: Arc<dyn Registers>,
    capabilities: u32,
    /// What was found at the ports, in order.
    found: Vec<(u8, Found<M>)>,
    /// What wakes a port's task, by port.
    events: Vec<(u8, Arc<Notify>)>,
}

/// A disk at a port. All users share it, and one task runs [`Service::run`].
pub struct AhciDisk<M: Dma> {
    queue: BlockQueue<Port<M>>,
    model: String,
    serial: String,
}

/// What keeps a port at work.
pub struct Service<M: Dma> {
    disk: Arc<AhciDisk<M>>,
    registers: PortRegisters,
    event: Arc<Notify>,
    restarts: u32,
    /// The port does not stop.
    stuck: bool,
}

impl<M: Dma> Adapter<M> {
    /// Resets the adapter behind `registers`, of which `register_bytes` are there, and looks what is at its ports.
    ///
    /// # Errors
    /// [`AhciError`] says what is wrong with the adapter as a whole.
    pub async fn open<S: DmaSource<Memory = M>>(
        registers: Box<dyn Registers>,
        register_bytes: u32,
        source: &S,
    ) -> Result<Self, AhciError> {
        let registers: Arc<dyn Registers> = registers.into();
        let capabilities = adapter::reset(&*registers).await?;
        let mut found = Vec::new();
        let mut started = Vec::new();
        for (number, port) in adapter::ports(&registers, register_bytes) {
            let deadline = adapter::spin_up(&port).await;
            // An adapter that wants its disks to start one after the other gets the next one's order later.
            let outcome = match deadline {
                Ok(deadline) if capabilities & CAP_STAGGERED == 0 => {
                    started.push((number, port, deadline));
                    continue;
                }
                Ok(deadline) => adapter::attach(&port, deadline, source).await,
                Err(error) => Err(error),
            };
            found.extend(outcome.transpose().map(|found| (number, found)));
        }
        for (number, port, deadline) in started {
            let outcome = adapter::attach(&port, deadline, source).await;
            found.extend(outcome.transpose().map(|found| (number, found)));
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        Ok(Self { registers, capabilities, found, events: Vec::new() })
    }

    /// Opens the disks at the adapter's ports. `name` gives the name of the next disk; what is said of ports and disks goes
    /// to the log with `place`. The result has the disks with their names and what keeps each at work.
    pub async fn disks<S: DmaSource<Memory = M>>(
        &mut self,
        place: &str,
        mut name: impl FnMut() -> String,
        source: &S,
    ) -> Vec<(String, Arc<AhciDisk<M>>, Service<M>)> {
        let mut disks = Vec::new();
        for (number, found) in core::mem::take(&mut self.found) {
            let memory = match found {
                Ok((Attached::Disk, memory)) => memory,
                Ok((Attached::Packet, memory)) => {
                    log::info!("{place}: port {number}: a CD drive, which is not used");
                    adapter::release(&PortRegisters::new(&self.registers, number), memory).await;
                    continue;
                }
                Ok((Attached::Other(signature), memory)) => {
                    log::warn!("{place}: port {number}: no disk: signature {signature:#010x}");
                    adapter::release(&PortRegisters::new(&self.registers, number), memory).await;
                    continue;
                }
                Err(error) => {
                    let name = name();
                    log::error!("{name}: {place}: port {number}: {error}");
                    continue;
                }
            };
            let name = name();
            match self.open_disk(number, memory, &name, source).await {
                Ok((disk, service)) => {
                    self.events.push((number, service.event.clone()));
                    disks.push((name, disk, service));
                }
                Err(error) => log::error!("{name}: {place}: port {number}: {error}"),
            }
        }
        disks
    }

    async fn open_disk<S: DmaSource<Memory = M>>(
        &self,
        number: u8,
        mut memory: PortMemory<M>,
        name: &str,
        source: &S,
    ) -> Result<(Arc<AhciDisk<M>>, Service<M>), AhciError> {
        let registers = PortRegisters::new(&self.registers, number);
        let slots = (self.capabilities >> 8 & 0x1f) as u16 + 1;
        let about = if memory.take_tables(source, slots) {
            registers.command(CMD_START, 0);
            memory.write_question();
            adapter::ask(&registers).await.and_then(|()| {
                memory.read_answer().read(self.capabilities & CAP_NCQ != 0).map_err(AhciError::BadDisk)
            })
        } else {
            Err(AhciError::OutOfMemory)
        };
        let About { model, serial, queue, geometry } = match about {
            Ok(about) => about,
            Err(error) => {
                if !adapter::release(&registers, memory).await {
                    log::error!("{name}: it does not stop; the memory it was given stays with it");
                }
                return Err(error);
            }
        };
        let limits = Limits {
            slots: queue.map_or(slots, |queue| queue.min(slots)),
            parts: MOST_REGIONS,
            part_bytes: REGION_BYTES,
            bytes: MOST_SECTORS * u64::from(geometry.sector_size),
        };
        let block = geometry.sector_size.into();
        let port = Port::new(name.into(), registers.clone(), memory, queue.is_some(), block);
        let queue = BlockQueue::new(geometry, limits, port);
        let disk = Arc::new(AhciDisk { queue, model, serial });
        adapter::listen(&registers);
        let event = Arc::new(Notify::default());
        let service = Service { disk: disk.clone(), registers, event, restarts: 0, stuck: false };
        Ok((disk, service))
    }

    /// Leads the adapter's interrupts to the tasks of its ports, for ever.
    pub async fn run(self, interrupt: impl Interrupt + Sync) {
        self.registers.write32(GHC, GHC_AHCI | GHC_INTERRUPTS);
        loop {
            let causes = self.registers.read32(IS);
            let mut others = causes;
            for (port, event) in &self.events {
                if causes >> port & 1 != 0 {
                    event.notify_one();
                    others &= !(1 << port);
                }
            }
            // Ports that no task serves.
            if others != 0 {
                self.registers.write32(IS, others);
            }
            interrupt.wait().await;
        }
    }
}

impl<M: Dma> AhciDisk<M> {
    /// The model and the serial number, as plain text.
    pub fn names(&self) -> (&str, &str) {
        (&self.model, &self.serial)
    }

    /// Requests that did not end yet.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Hands out all that the device has finished, and gives it what waits.
    ///
    /// # Errors
    /// [`AhciError`]: the port must be restarted.
    pub fn service(&self) -> Result<(), AhciError> {
        self.queue.service()
    }
}

impl<M: Dma> Service<M> {
    /// Handles what the port tells and restarts the port after errors, until the disk is given up; the result is the
    /// reason. From then on the disk accepts no request.
    pub async fn run(mut self) -> AhciError {
        let event = self.event.clone();
        let mut tick = core::pin::pin!(time::sleep(LOOK_NS));
        loop {
            let mut outcome = self.disk.service();
            if outcome.is_ok()
                && let Either::Right(()) = select(event.notified(), tick.as_mut()).await
            {
                // An interrupt may have been lost: what has ended is taken first.
                outcome = self.disk.service().and_then(|()| self.disk.queue.with(Port::look));
                tick.set(time::sleep(LOOK_NS));
            }
            if let Err(error) = outcome
                && let Err(error) = self.recover(error).await
            {
                if self.stuck {
                    // The port may use the memory still: nobody else gets it.
                    core::mem::forget(self.disk.clone());
                }
                return error;
            }
        }
    }

    /// Restarts the port until the device, if it was reset, has said that it is the one that it was.
    ///
    /// # Errors
    /// The port or the device is of no use, or the device is another one.
    async fn restart(&mut self, mut may_have_commands: bool) -> Result<(), AhciError> {
        loop {
            if !adapter::restart(&self.registers, may_have_commands).await? {
                return Ok(());
            }
            match self.ask_again().await {
                Err(AhciError::NoAnswer | AhciError::Device { .. }) if self.restarts <= MAX_RESTARTS => {
                    self.restarts += 1;
                    may_have_commands = true;
                }
                outcome => return outcome,
            }
        }
    }

    /// Asks the device what it is. The commands that the port has are written anew later, and so slot 0 is free for the question.
    ///
    /// # Errors
    /// The device does not answer, or is another one.
    async fn ask_again(&self) -> Result<(), AhciError> {
        let queue = &self.disk.queue;
        // The driver looks here, and no interrupt is needed.
        self.registers.write(PX_IE, 0);
        queue.with(|port| port.memory.write_question());
        let asked = adapter::ask(&self.registers).await;
        adapter::listen(&self.registers);
        asked?;
        let about = queue.with(|port| port.memory.read_answer()).read(false).map_err(AhciError::BadDisk)?;
        let (now, before) = (&about.geometry, queue.geometry());
        let size = (now.sectors, now.sector_size) == (before.sectors, before.sector_size);
        if size && about.model == self.disk.model && about.serial == self.disk.serial {
            return Ok(());
        }
        let name = queue.with(|port| port.name.clone());
        let (model, serial, sectors) = (&about.model, &about.serial, now.sectors);
        log::error!("{name}: what answers now is {model}, serial number {serial}, with {sectors} sectors");
        Err(AhciError::Changed)
    }

    /// Restarts the port and gives the device its commands again.
    ///
    /// # Errors
    /// Why the disk is out of use.
    async fn recover(&mut self, error: AhciError) -> Result<(), AhciError> {
        let name = self.disk.queue.with(|port| {
            self.restarts = if core::mem::take(&mut port.progress) { 1 } else { self.restarts + 1 };
            port.name.clone()
        });
        let may_have_commands = self.disk.queue.with(|port| port.may_have_commands(&error));
        let mut outcome = self.restart(may_have_commands).await;
        if outcome.is_ok() && self.restarts > MAX_RESTARTS {
            outcome = Err(error);
        }
        match outcome {
            Ok(()) => {
                self.disk.queue.with(|port| {
                    port.complaints.tell(&name, &error);
                    port.restarted();
                });
                self.disk.queue.replay();
                Ok(())
            }
            Err(error) => {
                self.stuck = !adapter::stop(&self.registers).await;
                if self.stuck {
                    // The memory of the commands stays lent, and so the commands never end.
                    log::error!(
                        "{name}: {error}; it is out of use, and the memory it was given stays with it"
                    );
                    self.disk.queue.close();
                } else {
                    log::error!("{name}: {error}; it is out of use");
                    self.disk.queue.fail();
                }
                Err(error)
            }
        }
    }
}

impl<M: Dma> BlockDevice for AhciDisk<M> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        self.queue.submit(client, tag, op, sector, segments)
    }

    fn kick(&self) {
        self.queue.kick();
    }
}
