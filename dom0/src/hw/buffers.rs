//! Receive buffers: a page of dom0's each.
//!
//! Each buffer is with the card, with a packet ([`Received`](crate::net::wire::Received)), or free; a packet that is
//! dropped makes its buffers free, and the card's driver gives the free ones to the card.

use alloc::vec::Vec;

use ring_abi::types::{Maddr, Mfn};
use spin::Mutex;

use super::{Dma, DmaSource};
use crate::net::wire::{ReceiveBuffers, ReceivedPart};

/// All receive buffers of a card, whatever the number of its queues.
pub struct Buffers<M> {
    pages: Vec<M>,
    frames: Vec<Mfn>,
    /// Those that came back from packets. The list has room for all.
    free: Mutex<Vec<u16>>,
}

impl<M: Dma> Buffers<M> {
    /// Takes `count` pages; all are free.
    pub(crate) fn new<S: DmaSource<Memory = M>>(source: &S, count: usize) -> Option<Self> {
        let pages = (0..count).map(|_| source.allocate(1)).collect::<Option<Vec<M>>>()?;
        let frames = pages.iter().map(|page| Maddr::new(page.maddr(0)).mfn()).collect();
        Some(Self { pages, frames, free: Mutex::new((0..count as u16).collect()) })
    }

    /// Number of buffers.
    pub(crate) fn count(&self) -> usize {
        self.pages.len()
    }

    /// The page that is buffer `buffer`.
    pub(crate) fn frame(&self, buffer: u16) -> Mfn {
        self.frames[usize::from(buffer)]
    }

    /// Takes the list of free buffers and leaves `empty` in its place.
    pub(crate) fn take_free(&self, empty: Vec<u16>) -> Vec<u16> {
        core::mem::replace(&mut *self.free.lock(), empty)
    }

    /// Notes that nobody has these buffers.
    pub(crate) fn free(&self, buffers: impl Iterator<Item = u16>) {
        self.free.lock().extend(buffers);
    }
}

impl<M: Dma> ReceiveBuffers for Buffers<M> {
    fn read(&self, buffer: u16, offset: usize, out: &mut [u8]) {
        self.pages[usize::from(buffer)].read_bytes(offset, out);
    }

    fn write(&self, buffer: u16, offset: usize, bytes: &[u8]) {
        self.pages[usize::from(buffer)].write_bytes(offset, bytes);
    }

    fn give_back(&self, parts: &[ReceivedPart]) {
        self.free(parts.iter().map(|part| part.buffer));
    }
}
