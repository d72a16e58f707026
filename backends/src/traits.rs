//! What an engine needs from the world: grants, a notification, a block device.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::{GrantRef, Maddr};

use crate::client::Client;

/// Bytes of one sector in every unit of the protocol, whatever the disk's own sector size.
pub(crate) const SECTOR_SIZE: u32 = 512;

/// A request for the first bytes of one frame, to be copied into private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRead {
    /// The frontend's grant reference.
    pub gref: GrantRef,
    /// Bytes from the start of the frame, at most a page.
    pub len: u16,
}

/// The function that [`Grants::read`] shows its copies: the index of the read, and the bytes, or `None` if the grant
/// was refused.
pub type ReadSink<'a> = dyn FnMut(usize, Option<&[u8]>) + 'a;

/// The grants of one frontend domain. Every method is one hypercall for the whole batch.
pub trait Grants {
    /// A frame held for device access. Dropping the value gives the frame back, too.
    type Grant;
    /// Why a grant could not be used: the frontend's fault, or the death of the frontend's domain.
    type Error;

    /// Takes device access (no host mapping) to each of `requests`. A request is a reference, and whether the device
    /// will only read the frame, as for a disk write. The call appends one result for each request to `out`, in order.
    fn map_device(&mut self, requests: &[(GrantRef, bool)], out: &mut Vec<Result<Self::Grant, Self::Error>>);

    /// Machine address of the frame's first byte.
    fn maddr(grant: &Self::Grant) -> Maddr;

    /// Gives all of `held` back and leaves it empty. The caller knows that no device uses the frames any more.
    fn unmap_device(&mut self, held: &mut Vec<Self::Grant>);

    /// Copies the head of each frame into private memory, and shows `sink` the copy with the read's index.
    ///
    /// The bytes shown cannot change: the frontend does not reach the copy.
    fn read(&mut self, reads: &[GrantRead], sink: &mut ReadSink<'_>);
}

/// Raises the peer's event channel.
pub trait Notifier {
    /// Sends one event.
    fn notify(&mut self);
}

/// A run of bytes in machine memory that lies within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Machine address of the first byte.
    pub maddr: Maddr,
    /// Length in bytes, a multiple of 512.
    pub len: u32,
}

/// What the caller asks of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make every completed write durable. This operation has no segments, and its sector is 0.
    Flush,
    /// The sectors' contents are no longer needed. No segments.
    Discard {
        /// Number of 512-byte sectors.
        sectors: u64,
    },
}

/// What a device says of discards, in 512-byte sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Smallest extent worth discarding.
    pub granularity: u32,
    /// First discardable extent's offset.
    pub alignment: u32,
    /// Most sectors of one operation.
    pub max_sectors: u32,
}

/// The fixed properties of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    /// Logical block size in bytes: 512 or a larger power of two. A transfer is a multiple of this size.
    pub sector_size: u32,
    /// Physical block size in bytes.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The device has a volatile cache, and [`BlockOp::Flush`] empties the cache.
    pub flush: bool,
    /// Discards are understood.
    pub discard: Option<DiscardLimits>,
    /// Most segments of one operation, at least 1.
    pub seg_max: usize,
}

/// Why a device did not take an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// No room now; the client's [`Client::room`] will be called.
    Full,
    /// The device is broken or gone; nothing was started.
    Failed,
}

/// A block device shared by any number of clients.
pub trait BlockDevice {
    /// The fixed properties.
    fn geometry(&self) -> Geometry;

    /// Queues one operation for the device; `client` learns of the operation's end by `tag`.
    ///
    /// The caller keeps the machine memory of `segments` valid until then: after `Ok`, exactly one completion with
    /// `tag` follows, and until the completion the device may touch the memory.
    ///
    /// # Errors
    /// [`SubmitError`] says why the device took nothing: no operation was queued, and no completion follows.
    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError>;

    /// Tells the device of everything queued since the last kick.
    fn kick(&self);
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        (**self).submit(client, tag, op, sector, segments)
    }

    fn kick(&self) {
        (**self).kick();
    }
}
