//! The network backend.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

/// Most network interfaces that a domain can have from this backend.
pub const MAX_VIFS: usize = 16;
/// Most bytes of heap that a frontend can make one vif keep, whatever the frontend does.
pub const BYTES_PER_VIF: usize = 96 << 10;

/// The networks that dom0's backend knows: bridges, and the interfaces on them.
#[derive(Debug, Default)]
pub struct Network {}

impl Network {
    /// A network with the one bridge that configurations mean if they name none.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names of all bridges.
    pub fn bridges(&self) -> Vec<String> {
        alloc::vec!["xenbr0".into()]
    }
}
