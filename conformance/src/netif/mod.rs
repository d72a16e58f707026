//! Network: what a frontend may expect of a backend.
//!
//! A case has both interfaces of [`front::Net`], which are on one bridge: what the first sends, the second receives. So the
//! cases need nobody else on the network, and see both directions.
//!
//! ABI: `xen/include/public/io/netif.h`.

pub mod again;
pub mod connect;
pub mod control;
pub mod control_hostile;
pub mod extras;
pub mod flows;
pub mod front;
pub mod hashes;
pub mod hostile;
pub mod lent;
pub mod multicast;
pub mod nodes;
pub mod offload;
pub mod pieces;
pub mod receive;
pub mod ring;
pub mod staging;
pub mod steering;
pub mod transmit;

/// How long a backend that turns a frontend away has for a change of mind.
const REFUSAL_NS: u64 = 150_000_000;
