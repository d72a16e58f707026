//! The FIFO layout of event channels: pages that the guest gives, words, queues, priorities.
//!
//! Each case turns the domain to the FIFO and back; a reset closes all ports, and those of the runtime are opened again.

#[cfg(freestanding)]
mod kit;

pub mod pages;
pub mod ports;
pub mod queues;
pub mod words;
