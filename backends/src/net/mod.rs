//! The network's back end (netback): from a guest's transmit ring to packets, and from packets to a guest's receive
//! ring. Bytes never pass through here: the engine lists copies, and one hypercall does the list.
//!
//! The way of a batch:
//!
//! 1. [`TxQueue::take`] reads requests; [`TxQueue::read_heads`] has the packets' heads copied to the owner's memory;
//! 2. the owner reads a head, decides where the packet goes, and rewrites the head;
//! 3. [`RxQueue::plan`] lists the copies from the sender's pages to the receiver's, for the whole batch in one list;
//! 4. the owner has the list done, and gives each packet to [`RxQueue::finish`] and [`TxQueue::respond`];
//! 5. [`RxQueue::publish`] and [`TxQueue::publish`] show both frontends the batch, with one event each at most.
//!
//! ABI: `xen/include/public/io/netif.h`.

mod control;
mod entry;
mod error;
mod extras;
mod hash;
mod heads;
mod multicast;
mod packet;
mod rate;
mod rx;
mod stage;
#[cfg(test)]
mod tests;
mod tx;
pub mod vif;

pub use control::{Control, ControlGrants, Controlled};
pub use error::Disconnect;
pub use hash::{Flow, Hashing, MAX_HASH_KEY, MAX_HASH_MAPPING};
pub use heads::{HEADS_PER_PAGE, MAX_HEADS};
pub use multicast::{MAX_MULTICAST, MacAddress, MulticastFilter};
pub use packet::{
    Checksum, Copier, CopyOp, Gso, GsoKind, HEAD_BYTES, MAX_PACKET, MAX_PARTS, MAX_SLOTS, MIN_PACKET,
    Offload, Packet, PacketHash, Part, Place,
};
pub use rate::Credit;
pub use rx::{AtOnce, CopyIn, Planned, Refused, RxQueue, RxStats};
pub use stage::{MAX_STAGED, Stage, copy_rest};
pub use tx::{HeadCopy, HeadsNow, Intake, TX_QUEUE_BYTES, Taken, TxBatch, TxId, TxQueue, TxStats};

/// There is no memory for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Most bytes of heap that one vif makes the engines' owner keep, with the pages for the heads, where a mapped page of
/// the frontend's takes `mapped` bytes. What lies behind a mapping, the rings' own pages, and what the owner keeps for
/// packets comes on top. A [`TxBatch`] is the owner's: one serves all vifs.
#[must_use]
pub const fn max_bytes(mapped: usize) -> usize {
    // A vector that grows as items are pushed may have twice the room that the items need.
    MAX_HEADS * HEAD_BYTES
        + TX_QUEUE_BYTES
        + 2 * MAX_MULTICAST * size_of::<MacAddress>()
        + size_of::<Hashing>()
        + MAX_STAGED * stage::staged_bytes(mapped)
        + control::poll_bytes(mapped)
}

const _: () = assert!(max_bytes(64) <= 128 << 10);
