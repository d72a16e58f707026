//! Machine memory of tests, by page, and interrupts.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};

use spin::Mutex;

use super::{Dma, DmaSource, Interrupt};
use crate::net::wire::Wire;

const PAGE: usize = 4096;

/// Machine memory whose pages are no neighbours, unless a test asks for neighbours. The second field is the number of
/// pages that a driver may take, if a test set a limit; the third is the number of pages that came back.
#[derive(Clone, Default)]
pub(crate) struct Arena(Arc<Mutex<BTreeMap<u64, Vec<u8>>>>, Arc<Mutex<Option<usize>>>, Arc<AtomicUsize>);

impl Arena {
    pub(crate) fn pages(&self, count: usize) -> FakeDma {
        let mut memory = self.0.lock();
        let frames = (0..count)
            .map(|_| {
                let frame = 0x100 + memory.len() as u64 * 3;
                memory.insert(frame, alloc::vec![0; PAGE]);
                frame
            })
            .collect();
        FakeDma { arena: self.clone(), frames }
    }

    /// Number of pages in the arena.
    pub(crate) fn frames(&self) -> usize {
        self.0.lock().len()
    }

    /// Number of pages that were dropped.
    pub(crate) fn dropped(&self) -> usize {
        self.2.load(Ordering::Relaxed)
    }

    /// A driver gets no more than `pages` in all.
    pub(crate) fn limit(&self, pages: usize) {
        *self.1.lock() = Some(pages);
    }

    /// Makes `count` pages that are neighbours, and gives the address of the first page.
    pub(crate) fn row(&self, count: usize) -> u64 {
        let mut memory = self.0.lock();
        let first = 0x100 + memory.len() as u64 * 3;
        memory.extend((0..count as u64).map(|index| (first + index, alloc::vec![0; PAGE])));
        first * PAGE as u64
    }

    /// Calls `access` for each page of a range. The first argument is the number of the range's bytes that lie in
    /// earlier pages.
    pub(crate) fn with(&self, maddr: u64, len: usize, mut access: impl FnMut(usize, &mut [u8])) {
        let mut memory = self.0.lock();
        let mut done = 0;
        while done < len {
            let at = maddr + done as u64;
            let offset = at as usize % PAGE;
            let here = (len - done).min(PAGE - offset);
            let page = memory.get_mut(&(at / PAGE as u64)).expect("memory that nobody gave out");
            access(done, &mut page[offset..offset + here]);
            done += here;
        }
    }

    pub(crate) fn bytes(&self, maddr: u64, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.with(maddr, len, |_, bytes| all.extend_from_slice(bytes));
        all
    }

    pub(crate) fn write(&self, maddr: u64, from: &[u8]) {
        self.with(maddr, from.len(), |done, bytes| bytes.copy_from_slice(&from[done..done + bytes.len()]));
    }

    pub(crate) fn fill(&self, maddr: u64, len: usize, value: u8) {
        self.with(maddr, len, |_, bytes| bytes.fill(value));
    }

    pub(crate) fn number(&self, maddr: u64, len: usize) -> u64 {
        let mut raw = [0; 8];
        raw[..len].copy_from_slice(&self.bytes(maddr, len));
        u64::from_le_bytes(raw)
    }
}

impl DmaSource for Arena {
    type Memory = FakeDma;

    fn allocate(&self, pages: usize) -> Option<FakeDma> {
        let most = self.1.lock().unwrap_or(usize::MAX);
        (self.frames() + pages <= most).then(|| self.pages(pages))
    }
}

pub(crate) struct FakeDma {
    arena: Arena,
    frames: Vec<u64>,
}

impl Drop for FakeDma {
    fn drop(&mut self) {
        self.arena.2.fetch_add(self.frames.len(), Ordering::Relaxed);
    }
}

impl Dma for FakeDma {
    fn maddr(&self, offset: usize) -> u64 {
        self.frames[offset / PAGE] * PAGE as u64 + (offset % PAGE) as u64
    }
    fn load16(&self, offset: usize) -> u16 {
        self.arena.number(self.maddr(offset), 2) as u16
    }
    fn store16(&self, offset: usize, value: u16) {
        self.arena.write(self.maddr(offset), &value.to_le_bytes());
    }
    fn load8(&self, offset: usize) -> u8 {
        self.arena.number(self.maddr(offset), 1) as u8
    }
    fn store8(&self, offset: usize, value: u8) {
        self.arena.write(self.maddr(offset), &[value]);
    }
    fn load32(&self, offset: usize) -> u32 {
        self.arena.number(self.maddr(offset), 4) as u32
    }
    fn store32(&self, offset: usize, value: u32) {
        self.arena.write(self.maddr(offset), &value.to_le_bytes());
    }
    fn store64(&self, offset: usize, value: u64) {
        self.arena.write(self.maddr(offset), &value.to_le_bytes());
    }
    fn write(&self, offset: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.store64(offset + 8 * index, *word);
        }
    }
    fn read_bytes(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= self.frames.len() * PAGE);
        let mut done = 0;
        while done < out.len() {
            let here = (out.len() - done).min(PAGE - (offset + done) % PAGE);
            let bytes = self.arena.bytes(self.maddr(offset + done), here);
            out[done..done + here].copy_from_slice(&bytes);
            done += here;
        }
    }
    fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.frames.len() * PAGE);
        let mut done = 0;
        while done < bytes.len() {
            let here = (bytes.len() - done).min(PAGE - (offset + done) % PAGE);
            self.arena.write(self.maddr(offset + done), &bytes[done..done + here]);
            done += here;
        }
    }
}

/// An interrupt vector of a device.
pub(crate) struct FakeInterrupt(pub(crate) Arc<AtomicBool>);

impl Interrupt for FakeInterrupt {
    fn poll_next(&self, _: &mut Context<'_>) -> Poll<()> {
        if self.0.swap(false, Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Whether `wire` has something for the task that leads its packets.
pub(crate) fn ready(wire: &dyn Wire) -> bool {
    wire.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
}
