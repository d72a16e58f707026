//! The network's back end (netback): from a guest's transmit ring to packets, and from packets to a guest's receive
//! ring. Bytes never pass through here: the engine lists copies, and one hypercall does the list.
//!
//! ABI: `xen/include/public/io/netif.h`.

mod packet;

pub use packet::{
    Checksum, Copier, CopyOp, Gso, GsoKind, HEAD_BYTES, MAX_PACKET, MAX_PARTS, MAX_SLOTS, MIN_PACKET,
    Offload, Packet, PacketHash, Part, Place,
};
