//! What an engine needs from the world: grants, a notification, a block device.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::{GrantRef, Maddr};

use crate::client::Client;

/// Bytes of one sector in every protocol unit here, whatever the disk's own sector size.
pub(crate) const SECTOR_SIZE: u32 = 512;

/// One frame whose first bytes are wanted in private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRead {
    /// The frontend's grant reference.
    pub gref: GrantRef,
    /// Bytes from the start of the frame, at most a page.
    pub len: u16,
}

/// Is shown what [`Grants::read`] has copied: the read's index and its bytes, `None` if the grant was refused.
pub type ReadSink<'a> = dyn FnMut(usize, Option<&[u8]>) + 'a;

/// The grants of one frontend domain. Every method is one hypercall for the whole batch.
pub trait Grants {
    /// A frame held for device access. Dropping it gives it back, too.
    type Grant;
    /// Why a grant could not be used: the frontend's fault, or its domain's death.
    type Error;

    /// Takes device access (no host mapping) to each of `requests`: a reference, and whether the device will only
    /// read the frame (a disk write). Appends one result each to `out`, in order.
    fn map_device(&mut self, requests: &[(GrantRef, bool)], out: &mut Vec<Result<Self::Grant, Self::Error>>);

    /// Machine address of the frame's first byte.
    fn maddr(grant: &Self::Grant) -> Maddr;

    /// Gives all of `held` back and leaves it empty. The caller knows that no device uses the frames any more.
    fn unmap_device(&mut self, held: &mut Vec<Self::Grant>);

    /// Copies each frame's head into private memory and shows it to `sink` with its index.
    ///
    /// The bytes shown cannot change: the copy is not reachable by the frontend.
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

/// What a block device is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make every write that has completed durable. No segments, sector 0.
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
    /// Logical block size in bytes: 512 or a larger power of two. Transfers are multiples of it.
    pub sector_size: u32,
    /// Physical block size in bytes.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// There is a volatile cache and [`BlockOp::Flush`] empties it.
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

    /// Queues one operation for the device; `client` hears of its end by `tag`.
    ///
    /// The machine memory of `segments` must stay valid until then: after `Ok`, exactly one completion with `tag`
    /// follows, and only after it does the device no longer touch the memory.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was queued and no completion follows.
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
