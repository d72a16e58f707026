//! Deadlines of one CPU: a binary heap whose entries name slots that their owners keep, so that setting a timer allocates
//! nothing.

use alloc::vec::Vec;

use super::state::TimerId;
use crate::growth::make_room;

const NOT_QUEUED: u32 = u32::MAX;

/// How far away a CPU's timer is set at most. The interrupt that comes early finds nothing due and sets the timer anew. So
/// deadlines further away interrupt nobody when they are set, and a guest may set those for another's CPU. (I60)
const FURTHEST_NS: u64 = 2_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Slot<K> {
    key: K,
    place: u32,
}

/// A timer that is set. The deadline is here and not in the slot, so that a comparison looks at the heap alone.
#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: u64,
    slot: u32,
}

/// Timers with keys of type `K`, the earliest first.
#[derive(Debug)]
pub(super) struct TimerQueue<K> {
    slots: Vec<Slot<K>>,
    free: Vec<u32>,
    heap: Vec<Entry>,
    /// When the CPU's own timer interrupts, never later than the earliest deadline; `u64::MAX`: not at all.
    ///
    /// This stays early when that deadline is put off: setting the CPU's timer costs more than most of what sets deadlines,
    /// and the interrupt that finds nothing due sets the CPU's timer anew.
    interrupt_ns: u64,
}

impl<K: Copy> TimerQueue<K> {
    /// A queue without timers.
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), heap: Vec::new(), interrupt_ns: u64::MAX }
    }

    /// Whether the CPU's timer would come too late for `deadline`.
    #[inline]
    pub(super) fn is_too_late_for(&self, deadline: u64) -> bool {
        deadline < self.interrupt_ns
    }

    /// The system time for which the caller sets the CPU's timer at `now`: the earliest deadline or `other`, whichever comes
    /// first, and no later than [`FURTHEST_NS`].
    pub(super) fn interrupt_at(&mut self, now: u64, other: Option<u64>) -> Option<u64> {
        let next = self.next_deadline().into_iter().chain(other).min();
        let next = next.map(|next| next.min(now.saturating_add(FURTHEST_NS)));
        self.interrupt_ns = next.unwrap_or(u64::MAX);
        next
    }

    /// Makes room for so many timers in all, so that making and setting them takes no memory. `false`: `may_spend` refuses what
    /// the room takes, or there is none.
    pub(super) fn make_room(&mut self, timers: usize, may_spend: impl Fn(usize) -> bool) -> bool {
        make_room(&mut self.slots, timers, &may_spend)
            && make_room(&mut self.free, timers, &may_spend)
            && make_room(&mut self.heap, timers, &may_spend)
    }

    /// Makes a timer, which is not set. The caller made room for the timer.
    pub(super) fn insert(&mut self, key: K) -> TimerId {
        let slot = Slot { key, place: NOT_QUEUED };
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                TimerId(index)
            }
            None => {
                self.slots.push(slot);
                TimerId(self.slots.len() as u32 - 1)
            }
        }
    }

    /// Ends a timer, and makes one that is alike in `other`. Returns the timer's deadline.
    pub(super) fn move_to(&mut self, other: &mut Self, id: &mut TimerId) -> Option<u64> {
        let Slot { key, place } = self.slots[id.0 as usize];
        let deadline = (place != NOT_QUEUED).then(|| self.heap[place as usize].deadline);
        self.remove(*id);
        *id = other.insert(key);
        other.set(*id, deadline);
        deadline
    }

    /// Ends a timer.
    pub(super) fn remove(&mut self, id: TimerId) {
        self.set(id, None);
        self.free.push(id.0);
    }

    /// Sets a timer to `deadline`, or stops it.
    #[inline(always)]
    pub(super) fn set(&mut self, id: TimerId, deadline: Option<u64>) {
        let place = self.slots[id.0 as usize].place;
        let Some(deadline) = deadline else {
            if place != NOT_QUEUED {
                self.take_out(place as usize);
            }
            return;
        };
        let entry = Entry { deadline, slot: id.0 };
        let place = if place == NOT_QUEUED {
            self.heap.push(entry);
            self.heap.len() - 1
        } else {
            place as usize
        };
        self.put(place, entry);
    }

    /// The heap and the slots name each other, and no slot that is free is set.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (place, entry) in self.heap.iter().enumerate() {
            assert_eq!(self.slots[entry.slot as usize].place, place as u32);
            assert!(!self.free.contains(&entry.slot), "timer {} is gone, and set", entry.slot);
        }
    }

    /// When the timer fires; `None` when it is not set.
    #[cfg(test)]
    pub(super) fn deadline(&self, id: TimerId) -> Option<u64> {
        let place = self.slots[id.0 as usize].place;
        (place != NOT_QUEUED).then(|| self.heap[place as usize].deadline)
    }

    /// The earliest deadline.
    #[inline]
    fn next_deadline(&self) -> Option<u64> {
        self.heap.first().map(|entry| entry.deadline)
    }

    /// The earliest timer that is set.
    pub(super) fn first(&self) -> Option<K> {
        self.heap.first().map(|first| self.slots[first.slot as usize].key)
    }

    /// Takes the earliest timer that is due at `now`.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<K> {
        let first = *self.heap.first()?;
        if first.deadline > now {
            return None;
        }
        self.take_out(0);
        Some(self.slots[first.slot as usize].key)
    }

    #[inline(never)]
    fn take_out(&mut self, place: usize) {
        let taken = self.heap.swap_remove(place);
        self.slots[taken.slot as usize].place = NOT_QUEUED;
        if let Some(moved) = self.heap.get(place) {
            self.put(place, *moved);
        }
    }

    /// Puts `entry` where the order wants it. The entry at `place` is free to be overwritten: entries between `place` and the
    /// end position move by one, and `entry` is written once.
    #[inline(always)]
    fn put(&mut self, mut place: usize, entry: Entry) {
        let Self { slots, heap, .. } = self;
        let mut set = |heap: &mut Vec<Entry>, place: usize, entry: Entry| {
            heap[place] = entry;
            slots[entry.slot as usize].place = place as u32;
        };
        let from = place;
        while place > 0 {
            let above = (place - 1) / 2;
            let parent = heap[above];
            if parent.deadline <= entry.deadline {
                break;
            }
            set(heap, place, parent);
            place = above;
        }
        // An entry that went up has only later entries below.
        if place == from {
            loop {
                let mut below = 2 * place + 1;
                let Some(mut child) = heap.get(below).copied() else { break };
                if let Some(other) = heap.get(below + 1)
                    && other.deadline < child.deadline
                {
                    (below, child) = (below + 1, *other);
                }
                if child.deadline >= entry.deadline {
                    break;
                }
                set(heap, place, child);
                place = below;
            }
        }
        set(heap, place, entry);
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use super::*;

    #[test]
    fn fires_in_order_and_once() {
        let mut queue = TimerQueue::new();
        let ids: Vec<_> = (0..5u32).map(|n| queue.insert(n)).collect();
        assert_eq!(queue.next_deadline(), None);
        for (id, at) in ids.iter().zip([50, 10, 40, 20, u64::MAX]) {
            queue.set(*id, Some(at));
        }
        queue.set(ids[3], None);
        assert_eq!(queue.deadline(ids[3]), None);
        assert_eq!(queue.pop_due(9), None);
        assert_eq!(queue.pop_due(45), Some(1));
        assert_eq!(queue.pop_due(45), Some(2));
        assert_eq!(queue.pop_due(45), None);
        queue.set(ids[4], Some(0));
        assert_eq!(queue.pop_due(0), Some(4));
        queue.remove(ids[0]);
        assert_eq!(queue.next_deadline(), None);
        assert_eq!(queue.insert(9), ids[0]);
    }

    #[test]
    fn timers_take_no_memory_where_room_was_made() {
        let mut queue = TimerQueue::new();
        assert!(!queue.make_room(1, |_| false));
        assert!(queue.make_room(5, |bytes| bytes <= 8 * 16));
        let capacities =
            |queue: &TimerQueue<u32>| [queue.slots.capacity(), queue.free.capacity(), queue.heap.capacity()];
        assert_eq!(capacities(&queue), [8; 3]);
        let ids: Vec<_> = (0..8).map(|n| queue.insert(n)).collect();
        ids.iter().for_each(|id| queue.set(*id, Some(1)));
        ids.iter().for_each(|id| queue.remove(*id));
        assert!(queue.make_room(8, |_| false), "these places are free");
        assert_eq!(capacities(&queue), [8; 3]);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_sorted_map(ops in proptest::collection::vec((0usize..12, 0u8..3, 0u64..50), 0..200)) {
            let mut queue = TimerQueue::new();
            let ids: Vec<_> = (0..12usize).map(|n| queue.insert(n)).collect();
            let mut model = BTreeMap::new();
            for (timer, what, at) in ops {
                match what {
                    0 => { queue.set(ids[timer], Some(at)); model.insert(timer, at); }
                    1 => { queue.set(ids[timer], None); model.remove(&timer); }
                    _ => while let Some(fired) = queue.pop_due(at) {
                        let deadline = model.remove(&fired).expect("was set");
                        proptest::prop_assert!(deadline <= at);
                        proptest::prop_assert!(model.values().all(|other| *other >= deadline));
                    },
                }
                if what == 2 {
                    proptest::prop_assert!(model.values().all(|other| *other > at));
                }
                proptest::prop_assert_eq!(queue.next_deadline(), model.values().min().copied());
            }
        }
    }
}
