//! Between a network of guests and the world: addresses, names, and translation.
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod dns;
pub mod flows;
mod random;

pub use random::Random;

/// A port of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(pub u16);
