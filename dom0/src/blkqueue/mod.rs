//! What the drivers of NVMe and AHCI disks have in common: requests on their way from clients to a device and back.
//!
//! A device takes commands under numbers, the *slots*. Each request has a slot from its submission to its end, and all
//! memory for the requests of a disk is taken when the disk is opened. A driver implements [`Hardware`], which turns a
//! [`Run`] into a command; this module does the rest:
//!
//! - A read or write stays *open* until the next kick: a request of the same client that begins where the open request
//!   ends on the disk joins the open request.
//! - A device that cannot do a request in one command does the request as several commands, one after the other, all in
//!   one slot.
//! - When a joined request fails, each of its members is done again alone: so only a member that fails by itself fails.
//! - A device that was reset gets again what it had not finished, a few times.
//! - Where slots are few, clients share them (`sharing.rs`).
//!
//! virtio's disks have a queue of their own (`virtio/blk/requests`): there a chain of descriptors does any request.
#![forbid(unsafe_code)]

mod complaints;
mod requests;
mod sharing;
#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use core::fmt;

use backends::{BlockDevice, BlockOp, Client, Geometry, Segment, SubmitError};
use pvrt::Account;
use spin::{Mutex, MutexGuard};

pub use self::complaints::Complaints;
use self::requests::Inner;
pub use self::requests::client_bytes;

/// Bytes of a sector, as requests count.
pub const SECTOR: u64 = 512;

/// A run of bytes in machine memory, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Machine address.
    pub maddr: u64,
    /// Length in bytes, a multiple of 512.
    pub len: u32,
}

/// What the device is to do next for the request in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The operation.
    pub op: BlockOp,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// The memory of a read or write. The device may take only the first parts; the rest is a later run.
    pub parts: &'a [Part],
}

/// What a device did with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The device has a command for so many parts of the run.
    Taken(usize),
    /// The device takes nothing now. The driver asks again after the next end of a command.
    Busy,
    /// No command of the device can do this run.
    Unfit,
}

/// How many requests a device takes, and how large ones.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Slots.
    pub slots: u16,
    /// Most parts of a request.
    pub parts: usize,
    /// Longest part in bytes, a multiple of 512.
    pub part_bytes: u32,
    /// Most bytes of a request to which others join.
    pub bytes: u64,
}

/// A device that takes commands by slots.
pub trait Hardware: Send {
    /// Why the device needs a reset.
    type Error: Copy + fmt::Display;

    /// Whether one command may go on from `last` to `next`.
    fn continues(&self, last: &Part, next: &Part) -> bool;

    /// Prepares a command for `run` under the number `slot`, which has no command now.
    fn start(&mut self, slot: u16, run: Run<'_>) -> Start;

    /// Tells the device of all commands since the last call.
    fn ring(&mut self);

    /// Takes a command that the device has ended: its slot, and whether it went well.
    ///
    /// # Errors
    /// The device broke its rules or stopped. From then on [`Self::start`] gives [`Start::Busy`], until the driver has
    /// reset the device.
    fn finished(&mut self) -> Result<Option<(u16, bool)>, Self::Error>;
}

/// A disk's requests and its device. All users share it.
///
/// The lock is held while requests move, and never while a client is called. The lock comes before the lock of a
/// [`Client`].
pub struct BlockQueue<H> {
    geometry: Geometry,
    inner: Mutex<Inner<H>>,
}

impl<H: Hardware> BlockQueue<H> {
    /// A disk of `geometry`, whose `seg_max` is at most the parts that `limits` allows.
    pub fn new(geometry: Geometry, limits: Limits, hardware: H) -> Self {
        Self { geometry, inner: Mutex::new(Inner::new(limits, hardware)) }
    }

    /// The disk's fixed properties.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Requests that did not end yet.
    pub fn in_flight(&self) -> usize {
        self.inner.lock().in_flight()
    }

    /// Calls `act` with the device.
    pub fn with<R>(&self, act: impl FnOnce(&mut H) -> R) -> R {
        act(&mut self.inner.lock().hardware)
    }

    /// Hands out all that the device has finished, and gives the device what waits.
    ///
    /// # Errors
    /// The device's: the driver resets the device, and calls [`Self::replay`] or [`Self::fail`].
    pub fn service(&self) -> Result<(), H::Error> {
        let mut inner = self.inner.lock();
        let outcome = loop {
            match inner.hardware.finished() {
                Ok(Some((slot, ok))) => inner.ended_command(slot, ok),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        inner.pump();
        self.tell(inner);
        outcome
    }

    /// Gives the device, which was reset and is up again, what it had not finished. A request that had the device reset
    /// too often fails.
    pub fn replay(&self) {
        let mut inner = self.inner.lock();
        inner.send_again();
        inner.pump();
        self.tell(inner);
    }

    /// Takes no further request. The requests that the device has stay: the device may still use their memory.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let turned_away = core::mem::take(&mut inner.claims);
        drop(inner);
        // These clients ask again, and are refused.
        turned_away.iter().for_each(|claim| claim.client.room());
    }

    /// Takes no further request, and fails all requests: the device is reset and uses no memory any more.
    pub fn fail(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.fail_all();
        self.tell(inner);
    }

    /// Tells the clients of the ends so far, without the lock.
    fn tell(&self, mut inner: MutexGuard<'_, Inner<H>>) {
        let mut waiting = inner.owed_a_call();
        let mut ended = core::mem::take(&mut inner.ended);
        inner.told(ended.len());
        drop(inner);
        for (client, tag, ok) in ended.drain(..) {
            client.complete(tag, ok);
        }
        for client in waiting.drain(..) {
            client.room();
        }
        // The vectors keep their room for the next ends.
        let mut inner = self.inner.lock();
        inner.give_back(ended, waiting);
    }
}

impl<H: Hardware> BlockDevice for BlockQueue<H> {
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
        Account::own().charge(|| inner.submit(client, tag, op, sector, segments))
    }

    fn kick(&self) {
        let mut inner = self.inner.lock();
        Account::own().charge(|| inner.pump());
        let unfit = !inner.ended.is_empty();
        if unfit {
            self.tell(inner);
        }
    }
}
