//! The block driver: scatter lists of machine addresses in, completions out.
//!
//! Each request has a slot of 256 bytes in the driver's own pages. The slot holds the header, the status byte, and a
//! descriptor table that is long enough for a direct blkif request. A longer request takes a whole page for its table.
//! So, with indirect descriptors, every request costs the queue one descriptor. On a device without indirect
//! descriptors, which is unusual, the parts of a request go into the queue itself.
//!
//! Source: VIRTIO 1.2, section 5.2.

mod geometry;
mod requests;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use backends::{BlockDevice, BlockOp, Client, Geometry, Segment, SubmitError};
use pvrt::Account;
use spin::Mutex;

pub use self::requests::client_bytes;
use self::requests::{Inner, Request, RequestPages, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT};
use super::queue::{MAX_QUEUE_SIZE, Part, QUEUE_PAGES, Queue, QueueError};
use super::transport::{Doorbell, F_EVENT_IDX, F_INDIRECT_DESC, Transport, TransportError};
use crate::hw::{Dma, DmaSource, Interrupt};

/// Bytes of the answer to `VIRTIO_BLK_T_GET_ID`.
const ID_BYTES: u32 = 20;

/// Why a disk cannot be used, or ceased to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkError {
    /// The transport's reason.
    Transport(TransportError),
    /// No memory for the queue.
    OutOfMemory,
    /// The device's registers say what no disk can be.
    BadGeometry(&'static str),
    /// The device broke the queue's rules.
    Queue(QueueError),
    /// The device asked to be reset.
    NeedsReset,
}

impl From<TransportError> for BlkError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl fmt::Display for BlkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::OutOfMemory => write!(f, "no memory for its queue"),
            Self::BadGeometry(what) => write!(f, "its registers give a bad {what}"),
            Self::Queue(error) => write!(f, "it broke its queue: {error}"),
            Self::NeedsReset => write!(f, "it asked to be reset"),
        }
    }
}

/// A virtio disk. All users share the disk, and one task runs [`Self::serve`].
///
/// The lock is held while a request is put into the queue or taken from the queue, and never while a client is
/// called. The lock comes before the lock of a [`Client`].
pub struct VirtioBlk<S: DmaSource> {
    name: String,
    transport: Transport,
    doorbell: Doorbell,
    geometry: Geometry,
    inner: Mutex<Inner<S>>,
}

/// A device that was brought up.
struct Running<S: DmaSource> {
    queue: Queue<S::Memory>,
    pages: RequestPages<S::Memory>,
    doorbell: Doorbell,
    geometry: Geometry,
    indirect: bool,
    part_max: u32,
}

impl<S: DmaSource> VirtioBlk<S> {
    /// Brings the device up with its queue's interrupt at MSI-X vector `vector`. `name` is for the log.
    ///
    /// # Errors
    /// [`BlkError`] says what is wrong with the device, or that memory is missing. The driver has reset the device, or
    /// at least enabled no queue: the device uses no memory of this kernel.
    pub fn new(name: String, transport: Transport, source: S, vector: u16) -> Result<Self, BlkError> {
        Self::bring_up(&transport, &source, vector)
            .inspect_err(|_| {
                transport.fail();
                // A device that does not even reset has no queue from this driver. A queue from the firmware may be
                // enabled still, in memory that no kernel reuses.
                let _ = transport.reset();
            })
            .map(|running| {
                let (doorbell, geometry) = (running.doorbell, running.geometry);
                let inner = Mutex::new(Inner::new(source, running));
                Self { name, transport, doorbell, geometry, inner }
            })
    }

    fn bring_up(transport: &Transport, source: &S, vector: u16) -> Result<Running<S>, BlkError> {
        let wanted = geometry::FEATURES | F_INDIRECT_DESC | F_EVENT_IDX;
        let features = transport.negotiate(wanted)?;
        let most = transport.queue_size(0)?.min(MAX_QUEUE_SIZE);
        let size = 1 << most.ilog2();
        let (geometry, part_max) = geometry::read(transport, features, size)?;
        let indirect = features & F_INDIRECT_DESC != 0;
        let memory = source.allocate(QUEUE_PAGES).ok_or(BlkError::OutOfMemory)?;
        let pages = RequestPages::new(source, size, indirect)?;
        let queue = Queue::new(memory, size, features & F_EVENT_IDX != 0);
        let doorbell = transport.enable_queue(0, size, queue.addresses(), vector)?;
        transport.start();
        Ok(Running { queue, pages, doorbell, geometry, indirect, part_max })
    }

    /// The disk's name in the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> usize {
        self.inner.lock().in_flight()
    }

    /// Asks the device for its serial number; `None` if the device has none. [`Self::serve`] must be running.
    pub async fn serial(&self) -> Option<String> {
        let memory = {
            let inner = self.inner.lock();
            inner.source.allocate(1)?
        };
        let client = Client::new(1);
        loop {
            let part = [Part { maddr: memory.maddr(0), len: ID_BYTES, device_writes: true }];
            let request = Request { kind: T_GET_ID, sector: 0, range: None };
            let submitted = self.inner.lock().submit_alone(&client, 0, request, &part);
            match submitted {
                Ok(()) => break,
                Err(SubmitError::Full) => {
                    client.ready().await;
                    client.take(&mut Vec::new());
                }
                Err(SubmitError::Failed) => return None,
            }
        }
        self.kick();
        client.ready().await;
        let mut done = Vec::new();
        client.take(&mut done);
        if !done.first()?.ok {
            return None;
        }
        let bytes: Vec<u8> =
            (0..ID_BYTES as usize).map(|at| memory.load8(at)).take_while(|byte| *byte != 0).collect();
        let text = String::from_utf8_lossy(&bytes).trim().into();
        Some(text).filter(|text: &String| !text.is_empty())
    }

    /// Handles the device's interrupts until the device breaks, and gives the reason. From then on the disk accepts no
    /// request.
    pub async fn serve(&self, interrupt: impl Interrupt + Sync) -> BlkError {
        loop {
            match self.service() {
                Ok(()) => interrupt.wait().await,
                Err(error) => {
                    log::error!("{}: {error}; it is out of use", self.name);
                    return error;
                }
            }
        }
    }

    /// Hands out all that the device has finished and asks for the next interrupt.
    ///
    /// # Errors
    /// [`BlkError`]: the device broke its queue's rules or asked for a reset. The disk is out of use; `give_up`
    /// has failed the disk's requests.
    pub fn service(&self) -> Result<(), BlkError> {
        let mut inner = self.inner.lock();
        if let Some(error) = inner.broken {
            return Err(error);
        }
        // The open request's slot is the slot of the queue's next free descriptor, and the end of another request
        // changes which descriptor is the next. So the open request goes into the queue first.
        inner.close_open();
        let mut outcome = Ok(());
        loop {
            match inner.take_finished() {
                Ok(true) => {}
                Ok(false) if inner.queue.arm() => {}
                Ok(false) => break,
                Err(error) => {
                    outcome = Err(BlkError::Queue(error));
                    break;
                }
            }
        }
        if outcome.is_ok() && inner.ended.is_empty() && self.transport.needs_reset() {
            outcome = Err(BlkError::NeedsReset);
        }
        if let Err(error) = outcome {
            self.give_up(&mut inner, error);
        }
        let kick = inner.submit_again() && inner.queue.publish();
        inner.rest();
        let mut waiting = inner.owed_a_call();
        let mut ended = core::mem::take(&mut inner.ended);
        inner.told(ended.len());
        drop(inner);
        if kick {
            self.transport.notify(&self.doorbell);
        }
        for (client, tag, ok) in ended.drain(..) {
            client.complete(tag, ok);
        }
        for client in waiting.drain(..) {
            client.room();
        }
        let mut inner = self.inner.lock();
        inner.ended = ended;
        if waiting.capacity() > 0 {
            inner.called = waiting;
        }
        drop(inner);
        outcome
    }

    /// Resets the device and fails the requests that the device had. If the reset fails, these requests never end and
    /// their memory stays lent: the device may still write to the memory.
    fn give_up(&self, inner: &mut Inner<S>, error: BlkError) {
        inner.broken = Some(error);
        inner.fail_again();
        if self.transport.reset().is_err() {
            log::error!("{}: it does not reset; the memory it was given stays with it", self.name);
            return;
        }
        inner.fail_sent();
    }
}

impl<S: DmaSource> BlockDevice for VirtioBlk<S> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let mut inner = self.inner.lock();
        // Memory that grows is charged to the disk, whichever client makes the memory grow: what a client adds
        // ([`client_bytes`]) is part of what a vbd claims.
        Account::own().charge(|| match op {
            BlockOp::Read => inner.submit_transfer(client, tag, T_IN, sector, segments),
            BlockOp::Write => inner.submit_transfer(client, tag, T_OUT, sector, segments),
            BlockOp::Flush => {
                inner.submit_alone(client, tag, Request { kind: T_FLUSH, sector: 0, range: None }, &[])
            }
            BlockOp::Discard { sectors } => {
                let sectors = u32::try_from(sectors).map_err(|_| SubmitError::Failed)?;
                let request = Request { kind: T_DISCARD, sector: 0, range: Some((sector, sectors)) };
                inner.submit_alone(client, tag, request, &[])
            }
        })
    }

    fn kick(&self) {
        let kick = {
            let mut inner = self.inner.lock();
            Account::own().charge(|| inner.close_open());
            inner.queue.publish()
        };
        if kick {
            self.transport.notify(&self.doorbell);
        }
    }
}
