//! The FIFO layout of event channels: pages of the guest, event words, queues, priorities.
//!
//! Each case switches the domain to the FIFO and back. The way back is a reset, which closes all ports; then the
//! runtime's ports are opened again.

#[cfg(freestanding)]
mod kit;

pub mod pages;
pub mod ports;
pub mod queues;
pub mod words;
