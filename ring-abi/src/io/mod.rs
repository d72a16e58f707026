//! Protocols of the split devices and of xenstore.

pub mod blkif;
pub mod console;
pub mod mac;
pub mod netif;
pub mod offload;
pub mod protocols;
pub mod xenbus;
pub mod xs_wire;
