//! What dom0's network decides: pure logic on the first bytes of each packet, without rings, grants or devices.
//!
//! - [`headers`]: the headers at the front of a frame, read and rewritten in place;
//! - [`switch`]: bridges, and which port a frame goes to;
//! - [`router`]: between a bridge of guests and the world, and all that dom0 itself is on a network;
//! - [`segment`]: checksums and segments that a sender left to others;
//! - [`capture`]: the latest packets as a pcap file;
//! - [`wire`]: what a network card is to those that lead packets;
//! - [`prefix`]: ranges of IP addresses.
//!
//! What carries a frame from port to port allocates nothing for the frame, and nothing trusts one: each length comes from
//! bytes that a guest or the wire wrote, and is checked when the frame is parsed, once. dom0 sees only a packet's **head**,
//! its first bytes; a frame may be longer, and what a rule needs to know beyond the head counts as unknown.
#![forbid(unsafe_code)]

pub mod capture;
pub mod headers;
pub mod prefix;
pub mod router;
pub mod segment;
pub mod switch;
pub mod wire;

pub use headers::Head;
pub use prefix::Prefix;
pub use ring_abi::io::mac::{self, MacAddr};
