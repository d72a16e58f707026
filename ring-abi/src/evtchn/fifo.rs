//! The guest's end of the FIFO layout: the words of its ports, and the queues of a vCPU.
//!
//! The guest may set and clear MASKED, clear PENDING, and clear LINKED with the link; all else is the hypervisor's.

use alloc::vec::Vec;
use core::mem::offset_of;

use super::*;
use crate::shared::SharedBytes;
use crate::types::PAGE_SIZE;

/// An event of the port waits.
pub const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
/// The port is not put on a queue.
pub const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
/// The port is on a queue.
pub const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
/// The hypervisor changes the link: the guest does not unmask the port meanwhile.
pub const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;
/// Ports whose words are in a page.
pub const PAGE_PORTS: usize = PAGE_SIZE / 4;
/// Offset of the ready bits in a control block.
pub const READY_OFFSET: usize = offset_of!(EvtchnFifoControlBlock, ready);
/// Offset of the heads.
pub const HEAD_OFFSET: usize = offset_of!(EvtchnFifoControlBlock, head);

/// The words of a domain's ports.
#[derive(Clone, Debug, Default)]
pub struct EventArray<'a> {
    pages: Vec<SharedBytes<'a>>,
}

impl<'a> EventArray<'a> {
    /// Adds the page that the hypervisor is about to get by `EVTCHNOP_expand_array`.
    pub fn add(&mut self, page: SharedBytes<'a>) {
        self.pages.push(page);
    }

    fn place(&self, port: u32) -> Option<(SharedBytes<'a>, usize)> {
        let page = self.pages.get(port as usize / PAGE_PORTS)?;
        Some((*page, port as usize % PAGE_PORTS * 4))
    }

    /// The word of a port; 0 if there is no page for it.
    #[must_use]
    pub fn word(&self, port: u32) -> u32 {
        self.place(port).map_or(0, |(page, offset)| page.load_u32(offset))
    }

    /// Writes a word, as only a guest does that does not keep to the rules.
    pub fn set_word(&self, port: u32, word: u32) {
        if let Some((page, offset)) = self.place(port) {
            page.store_u32(offset, word);
        }
    }

    /// Masks a port.
    pub fn mask(&self, port: u32) {
        if let Some((page, offset)) = self.place(port) {
            page.or_u32(offset, MASKED);
        }
    }

    /// Unmasks a port unless an event waits: then (`false`) `EVTCHNOP_unmask` does it.
    #[must_use = "the port may still be masked"]
    pub fn unmask(&self, port: u32) -> bool {
        let Some((page, offset)) = self.place(port) else { return true };
        loop {
            let word = page.load_u32(offset);
            if word & PENDING != 0 {
                return false;
            }
            let is_free = word & BUSY == 0;
            if is_free && page.compare_exchange_u32(offset, word, word & !MASKED).is_ok() {
                return true;
            }
            core::hint::spin_loop();
        }
    }

    /// Takes the event of a port. Returns whether there was one.
    pub fn take_pending(&self, port: u32) -> bool {
        self.place(port).is_some_and(|(page, offset)| page.and_u32(offset, !PENDING) & PENDING != 0)
    }

    /// Takes a port off its queue: the next one, and whether the port has an event that is not masked.
    fn unlink(&self, port: u32) -> (u32, bool) {
        let Some((page, offset)) = self.place(port) else { return (0, false) };
        let mut word = page.load_u32(offset);
        while let Err(found) =
            page.compare_exchange_u32(offset, word, word & !(LINKED | EVTCHN_FIFO_LINK_MASK))
        {
            word = found;
        }
        (word & EVTCHN_FIFO_LINK_MASK, word & (PENDING | MASKED) == PENDING)
    }
}

/// The queues of a vCPU.
#[derive(Debug)]
pub struct EventQueues<'a> {
    control: SharedBytes<'a>,
    ready: u32,
    heads: [u32; EVTCHN_FIFO_MAX_QUEUES],
}

impl<'a> EventQueues<'a> {
    /// Those of the control block `control`, none of which has a port.
    #[must_use]
    pub const fn new(control: SharedBytes<'a>) -> Self {
        Self { control, ready: 0, heads: [0; EVTCHN_FIFO_MAX_QUEUES] }
    }

    /// The queues that have ports which were not looked at, a bit each.
    #[must_use]
    pub fn ready(&self) -> u32 {
        self.ready | self.control.load_u32(READY_OFFSET)
    }

    /// Takes the event that comes next: the first of the queue with the lowest number. The upcall was cleared before.
    pub fn next(&mut self, array: &EventArray<'a>) -> Option<u32> {
        loop {
            self.ready |= self.control.swap_u32(READY_OFFSET, 0);
            if self.ready == 0 {
                return None;
            }
            let queue = self.ready.trailing_zeros() as usize;
            let Some(head) = self.heads.get_mut(queue) else {
                self.ready = 0; // no bit of a queue
                continue;
            };
            if *head == 0 {
                *head = self.control.load_u32(HEAD_OFFSET + queue * 4);
            }
            let port = *head;
            let (next, has_event) = array.unlink(port);
            *head = next;
            if next == 0 {
                self.ready &= !(1 << queue);
            }
            if has_event && array.take_pending(port) {
                return Some(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::leaked_pages;

    fn scene() -> (EventArray<'static>, SharedBytes<'static>, EventQueues<'static>) {
        let mut array = EventArray::default();
        array.add(leaked_pages(1));
        array.add(leaked_pages(1));
        let control = leaked_pages(1);
        (array, control, EventQueues::new(control))
    }

    #[test]
    fn events_come_in_the_order_of_queues_and_links() {
        let (array, control, mut queues) = scene();
        array.set_word(5, PENDING | LINKED | 1500);
        array.set_word(1500, PENDING | LINKED);
        array.set_word(9, PENDING | LINKED);
        control.store_u32(HEAD_OFFSET + 7 * 4, 5);
        control.store_u32(HEAD_OFFSET + 2 * 4, 9);
        control.store_u32(READY_OFFSET, 1 << 7 | 1 << 2);
        assert_eq!(queues.ready(), 1 << 7 | 1 << 2);
        let order: Vec<u32> = core::iter::from_fn(|| queues.next(&array)).collect();
        assert_eq!(order, [9, 5, 1500]);
        assert_eq!((array.word(5), array.word(1500), queues.ready()), (0, 0, 0));
    }

    #[test]
    fn masked_ports_leave_their_queue_and_stay_pending() {
        let (array, control, mut queues) = scene();
        array.set_word(5, PENDING | LINKED | MASKED | 6);
        array.set_word(6, LINKED);
        control.store_u32(HEAD_OFFSET, 5);
        control.store_u32(READY_OFFSET, 1);
        assert_eq!(queues.next(&array), None);
        assert_eq!((array.word(5), array.word(6)), (PENDING | MASKED, 0));
        assert!(!array.unmask(5), "its event waits");
        array.set_word(5, MASKED);
        assert!(array.unmask(5));
        assert_eq!(array.word(5), 0);
    }

    #[test]
    fn ports_and_queues_that_are_not_end_it() {
        let (array, control, mut queues) = scene();
        control.store_u32(READY_OFFSET, u32::MAX);
        control.store_u32(HEAD_OFFSET, 1 << 20);
        assert_eq!(queues.next(&array), None);
        assert_eq!((array.word(1 << 20), array.take_pending(1 << 20)), (0, false));
    }
}
