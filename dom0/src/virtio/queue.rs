//! The split virtqueue: descriptor table, available ring and used ring in two pages.
//!
//! The driver keeps its own state (free list, chain lengths, indices) apart from the shared memory and never reads that
//! state back from shared memory, so that a device that scribbles there cannot confuse the driver.
//!
//! Source: VIRTIO 1.2, section 2.7.

use core::fmt;
use core::sync::atomic::{Ordering, fence};

use crate::hw::Dma;

/// Largest queue: its descriptor table fills a page.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// Pages of a queue's memory.
pub const QUEUE_PAGES: usize = 2;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: usize = 16;
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 4096;
const USED: usize = 4096 + 1024;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// A run of bytes for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Machine address.
    pub maddr: u64,
    /// Length in bytes, at least 1.
    pub len: u32,
    /// Whether the device writes the bytes.
    pub device_writes: bool,
}

/// The device broke the queue's rules: the driver must reset the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// More entries used than were available.
    UsedOverrun {
        /// The device's index.
        used: u16,
        /// The driver's.
        seen: u16,
    },
    /// A used entry names a chain that the device does not have.
    UnknownChain(u32),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UsedOverrun { used, seen } => {
                write!(f, "it used entries up to {used}, and had {seen} from the driver")
            }
            Self::UnknownChain(chain) => write!(f, "it used chain {chain}, which it did not have"),
        }
    }
}

/// The two words of a descriptor. `next` is the index of the chain's next descriptor.
#[inline]
pub(super) fn descriptor(part: &Part, next: Option<u16>) -> [u64; DESCRIPTOR / 8] {
    let flags = if part.device_writes { F_WRITE } else { 0 } | if next.is_some() { F_NEXT } else { 0 };
    let word = u64::from(part.len) | u64::from(flags) << 32 | u64::from(next.unwrap_or(0)) << 48;
    [part.maddr, word]
}

/// One split queue, the driver's side.
pub struct Queue<M> {
    memory: M,
    size: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    event_idx: bool,
    /// Free descriptors, chained.
    next: [u16; MAX_QUEUE_SIZE as usize],
    free_head: u16,
    free: u16,
    /// For each descriptor: the length of the chain that begins with this descriptor, if the device has the chain; else
    /// 0.
    chain: [u16; MAX_QUEUE_SIZE as usize],
    in_flight: u16,
    /// Index of the next available entry.
    available: u16,
    /// The value of `available` that the device was last told.
    published: u16,
    /// Index of the next used entry.
    used: u16,
}

impl<M: Dma> Queue<M> {
    /// A queue of `size` descriptors, a power of two up to [`MAX_QUEUE_SIZE`], in [`QUEUE_PAGES`] zeroed pages.
    pub fn new(memory: M, size: u16, event_idx: bool) -> Self {
        assert!(size.is_power_of_two() && size <= MAX_QUEUE_SIZE);
        let mut next = [0; MAX_QUEUE_SIZE as usize];
        for (index, slot) in next.iter_mut().enumerate() {
            *slot = (index as u16).wrapping_add(1);
        }
        Self {
            memory,
            size,
            event_idx,
            next,
            free_head: 0,
            free: size,
            chain: [0; MAX_QUEUE_SIZE as usize],
            in_flight: 0,
            available: 0,
            published: 0,
            used: 0,
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Machine addresses of the descriptor table, the available ring and the used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.memory.maddr(DESCRIPTORS), self.memory.maddr(AVAILABLE), self.memory.maddr(USED)]
    }

    /// Free descriptors.
    pub fn free(&self) -> usize {
        self.free.into()
    }

    /// Number of chains that the device has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.into()
    }

    /// The descriptor with which the next chain begins. The caller makes sure that a descriptor is free.
    pub fn next_head(&self) -> u16 {
        self.free_head
    }

    /// Makes a chain of `parts` available from the next [`Self::publish`] on; `None` if the queue has no room for the
    /// chain.
    ///
    /// Parts that the device reads come before parts that the device writes. The result is the chain's head, by which
    /// the queue names the chain.
    pub fn push(&mut self, parts: &[Part]) -> Option<u16> {
        if parts.is_empty() || parts.len() > self.free() {
            return None;
        }
        let head = self.free_head;
        let mut index = head;
        for (position, part) in parts.iter().enumerate() {
            let next = self.next[usize::from(index)];
            let chained = (position + 1 < parts.len()).then_some(next);
            self.memory.write(DESCRIPTORS + usize::from(index) * DESCRIPTOR, &descriptor(part, chained));
            if chained.is_some() {
                index = next;
            } else {
                self.free_head = next;
            }
        }
        self.offer(head, parts.len() as u16);
        Some(head)
    }

    /// Makes the `entries` descriptors of the table at machine address `table` available, which takes one descriptor of
    /// this queue.
    pub fn push_indirect(&mut self, table: u64, entries: usize) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let head = self.free_head;
        let offset = DESCRIPTORS + usize::from(head) * DESCRIPTOR;
        self.memory.store64(offset, table);
        self.memory.store64(offset + 8, (entries * DESCRIPTOR) as u64 | u64::from(F_INDIRECT) << 32);
        self.free_head = self.next[usize::from(head)];
        self.offer(head, 1);
        Some(head)
    }

    fn offer(&mut self, head: u16, descriptors: u16) {
        self.free -= descriptors;
        self.chain[usize::from(head)] = descriptors;
        self.in_flight += 1;
        let slot = usize::from(self.available & (self.size - 1));
        self.memory.store16(AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was pushed. `true`: the driver must notify the device.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.available);
        if old == new {
            return false;
        }
        self.memory.store16(AVAILABLE + 2, new);
        self.published = new;
        // The index must be written before the device's wish is read. Otherwise the device could go to sleep without
        // the index, and the driver could see no wish for a notification.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.memory.load16(USED + 4 + 8 * usize::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load16(USED) & 1 == 0
        }
    }

    /// Takes a chain that the device has finished. The result is the chain's head, and the number of bytes that the
    /// device claims to have written.
    ///
    /// # Errors
    /// [`QueueError`] says which rule the device broke: the driver must reset the device, and the queue is unusable.
    pub fn pop(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        let used = self.memory.load16(USED + 2);
        let ready = used.wrapping_sub(self.used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.in_flight {
            return Err(QueueError::UsedOverrun { used, seen: self.used });
        }
        let entry = USED + 4 + 8 * usize::from(self.used & (self.size - 1));
        let id = self.memory.load32(entry);
        let written = self.memory.load32(entry + 4);
        let head = u16::try_from(id).ok().filter(|head| *head < self.size);
        let head = head.ok_or(QueueError::UnknownChain(id))?;
        let descriptors = core::mem::take(&mut self.chain[usize::from(head)]);
        if descriptors == 0 {
            return Err(QueueError::UnknownChain(id));
        }
        self.used = self.used.wrapping_add(1);
        self.in_flight -= 1;
        self.give_back(head, descriptors);
        Ok(Some((head, written)))
    }

    fn give_back(&mut self, head: u16, descriptors: u16) {
        let mut tail = head;
        for _ in 1..descriptors {
            tail = self.next[usize::from(tail)];
        }
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = head;
        self.free += descriptors;
    }

    /// Asks for an interrupt with the next finished chain. `true`: a chain is finished already, and the caller looks
    /// again.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.arm_behind(0)
    }

    /// Asks for an interrupt when most of the chains that the device has are finished, if the device can do so; else with
    /// the next. `true`: so many are finished already, and the caller looks again.
    #[must_use]
    pub fn arm_for_most(&mut self) -> bool {
        let most = if self.event_idx { self.in_flight - self.in_flight / 4 } else { 0 };
        self.arm_behind(most.saturating_sub(1))
    }

    /// Asks for an interrupt with the next finished chain behind `passed` others.
    fn arm_behind(&mut self, passed: u16) -> bool {
        if self.event_idx {
            let event = self.used.wrapping_add(passed);
            self.memory.store16(AVAILABLE + 4 + 2 * usize::from(self.size), event);
        }
        fence(Ordering::SeqCst);
        self.memory.load16(USED + 2).wrapping_sub(self.used) > passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::fake::Arena;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn part(len: u32) -> Part {
        Part { maddr: 0x1000, len, device_writes: false }
    }

    /// The device's side of the rings, by hand.
    fn finish(queue: &Queue<crate::hw::fake::FakeDma>, index: u16, id: u32) {
        let entry = USED + 4 + 8 * usize::from(index & (queue.size - 1));
        queue.memory.store32(entry, id);
        queue.memory.store32(entry + 4, 1);
        queue.memory.store16(USED + 2, index.wrapping_add(1));
    }

    #[test]
    fn fills_to_the_last_descriptor_and_not_beyond() {
        let arena = Arena::default();
        let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 4, false);
        assert_eq!(queue.push(&[]), None);
        assert_eq!(queue.push(&[part(1); 5]), None);
        let first = queue.push(&[part(1); 3]).unwrap();
        assert_eq!(queue.push(&[part(1); 2]), None);
        let second = queue.push_indirect(0x5000, 2).unwrap();
        assert_eq!((queue.push_indirect(0x5000, 2), queue.free()), (None, 0));
        assert!(queue.publish());
        assert!(!queue.publish(), "nothing new");
        finish(&queue, 0, second.into());
        assert_eq!(queue.pop(), Ok(Some((second, 1))));
        assert_eq!((queue.free(), queue.in_flight()), (1, 1));
        finish(&queue, 1, first.into());
        assert_eq!(queue.pop(), Ok(Some((first, 1))));
        assert_eq!(queue.pop(), Ok(None));
        assert_eq!(queue.push(&[part(1); 4]).map(|_| queue.free()), Some(0));
    }

    #[test]
    fn lying_devices_are_found_out() {
        let arena = Arena::default();
        let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 4, false);
        let head = queue.push(&[part(1), part(2)]).unwrap();
        queue.memory.store16(USED + 2, 2);
        assert_eq!(queue.pop(), Err(QueueError::UsedOverrun { used: 2, seen: 0 }));
        for bad in [u32::from(head) + 1, 4, 0x1_0000, u32::MAX] {
            finish(&queue, 0, bad);
            assert_eq!(queue.pop(), Err(QueueError::UnknownChain(bad)));
        }
        finish(&queue, 0, head.into());
        assert!(queue.pop().is_ok());
        // The same chain again.
        queue.push(&[part(1)]).unwrap();
        let third = queue.push(&[part(1)]).unwrap();
        finish(&queue, 1, third.into());
        assert!(queue.pop().is_ok());
        finish(&queue, 2, third.into());
        assert_eq!(queue.pop(), Err(QueueError::UnknownChain(third.into())));
    }

    #[test]
    fn notifies_as_the_device_wishes() {
        let arena = Arena::default();
        let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 8, false);
        queue.memory.store16(USED, 1);
        queue.push(&[part(1)]);
        assert!(!queue.publish());

        let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 8, true);
        let event = USED + 4 + 8 * 8;
        queue.push(&[part(1)]);
        assert!(queue.publish(), "event 0: the first entry");
        queue.push(&[part(1)]);
        assert!(!queue.publish(), "event 0 is past");
        queue.memory.store16(event, 3);
        queue.push(&[part(1)]);
        assert!(!queue.publish());
        queue.push(&[part(1)]);
        queue.push(&[part(1)]);
        assert!(queue.publish(), "event 3 lies within");
    }

    #[test]
    fn an_interrupt_for_most_chains_comes_before_the_last() {
        for (event_idx, chains, passed) in
            [(true, 0u16, 0), (true, 1, 0), (true, 2, 1), (true, 8, 5), (false, 8, 0)]
        {
            let arena = Arena::default();
            let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 8, event_idx);
            let heads: Vec<_> = (0..chains).map(|_| queue.push(&[part(1)]).unwrap()).collect();
            let _ = queue.publish();
            for (index, head) in (0..).zip(heads) {
                assert_eq!(queue.arm_for_most(), index > passed, "{index} of {chains} are finished");
                if event_idx {
                    assert_eq!(queue.memory.load16(AVAILABLE + 4 + 2 * 8), passed);
                }
                finish(&queue, index, head.into());
            }
            assert_eq!(queue.arm_for_most(), chains > 0);
            assert_eq!(queue.arm(), chains > 0);
        }
    }

    proptest! {
        /// Random pushes and completions, with indices that wrap: no chain is lost, and no chain comes back twice.
        #[test]
        fn chains_come_back_once(
            start in any::<u16>(),
            steps in proptest::collection::vec((0usize..4, 1usize..5), 1..400),
        ) {
            let arena = Arena::default();
            let mut queue = Queue::new(arena.pages(QUEUE_PAGES), 16, true);
            (queue.available, queue.published, queue.used) = (start, start, start);
            let mut device: Vec<u16> = Vec::new();
            let mut done = start;
            for (kind, amount) in steps {
                if kind < 2 {
                    let free = queue.free();
                    match queue.push(&alloc::vec![part(1); amount]) {
                        Some(head) => {
                            prop_assert!(!device.contains(&head));
                            device.push(head);
                            prop_assert_eq!(queue.free(), free - amount);
                        }
                        None => prop_assert!(free < amount),
                    }
                    let _ = queue.publish();
                } else if !device.is_empty() {
                    let head = device.remove(amount % device.len());
                    finish(&queue, done, head.into());
                    done = done.wrapping_add(1);
                    prop_assert!(queue.arm());
                    prop_assert_eq!(queue.pop(), Ok(Some((head, 1))));
                    prop_assert!(!queue.arm());
                }
                prop_assert_eq!(queue.in_flight(), device.len());
            }
        }
    }
}
