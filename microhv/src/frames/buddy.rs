//! The allocator of machine frames: binary buddies, linked through the frame table's own entries.

use core::sync::atomic::Ordering;

use super::info::{FrameInfo, TypeWord, UseWord};

/// Largest block: 2^18 frames, 1 GiB.
pub(crate) const MAX_ORDER: u8 = 18;
const NONE: u32 = u32::MAX;

/// The free blocks of one zone. The entry of a block's first frame holds the links; the other entries of a free
/// block are zero or stale, and never marked free.
#[derive(Debug)]
pub(crate) struct Zone {
    heads: [u32; MAX_ORDER as usize + 1],
    free: u64,
}

impl Default for Zone {
    fn default() -> Self {
        Self { heads: [NONE; MAX_ORDER as usize + 1], free: 0 }
    }
}

impl Zone {
    /// Free frames.
    pub(crate) const fn free(&self) -> u64 {
        self.free
    }

    fn push(&mut self, infos: &[FrameInfo], at: u32, order: u8) {
        let next = self.heads[order as usize];
        let info = &infos[at as usize];
        info.kind.store(u64::from(next) | u64::from(order) << 32, Ordering::Relaxed);
        info.using.store(UseWord::FREE | u64::from(NONE), Ordering::Release);
        if let Some(next) = infos.get(next as usize) {
            next.using.store(UseWord::FREE | u64::from(at), Ordering::Release);
        }
        self.heads[order as usize] = at;
    }

    /// Takes the block at `at` off its list. The entry of the block's first frame then names no owner.
    fn unlink(&mut self, infos: &[FrameInfo], at: u32, order: u8) {
        let info = &infos[at as usize];
        let (prev, next) = (info.load_use().count(), info.load_kind().count());
        match infos.get(prev as usize) {
            Some(prev) => prev.kind.store(u64::from(next) | u64::from(order) << 32, Ordering::Relaxed),
            None => self.heads[order as usize] = next,
        }
        if let Some(next) = infos.get(next as usize) {
            next.using.store(UseWord::FREE | u64::from(prev), Ordering::Release);
        }
        info.using.store(0, Ordering::Release);
        info.set_kind(TypeWord(0));
    }

    /// A block of 2^`order` frames.
    pub(crate) fn alloc(&mut self, infos: &[FrameInfo], order: u8) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|&o| self.heads[o as usize] != NONE)?;
        let at = self.heads[found as usize];
        self.unlink(infos, at, found);
        for half in (order..found).rev() {
            self.push(infos, at + (1 << half), half);
        }
        for info in &infos[at as usize..at as usize + (1 << order)] {
            info.using.store(0, Ordering::Release);
            info.set_kind(TypeWord(0));
        }
        self.free -= 1 << order;
        Some(at)
    }

    /// Gives back a block of 2^`order` frames without an owner.
    pub(crate) fn release(&mut self, infos: &[FrameInfo], at: u32, order: u8) {
        self.free += 1 << order;
        let (mut at, mut order) = (at, order);
        while order < MAX_ORDER {
            let buddy = at ^ 1 << order;
            let mergeable = infos.get(buddy as usize).is_some_and(|info| {
                info.load_use().has(UseWord::FREE) && (info.load_kind().0 >> 32) as u8 == order
            });
            if !mergeable {
                break;
            }
            self.unlink(infos, buddy, order);
            infos[at as usize].using.store(0, Ordering::Release);
            at = at.min(buddy);
            order += 1;
        }
        self.push(infos, at, order);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn infos(n: usize) -> Vec<FrameInfo> {
        (0..n).map(|_| FrameInfo::default()).collect()
    }

    #[test]
    fn blocks_split_and_merge() {
        let infos = infos(64);
        let mut zone = Zone::default();
        zone.release(&infos, 0, 5);
        zone.release(&infos, 32, 5);
        assert_eq!(zone.alloc(&infos, 6), Some(0), "two halves merged");
        assert_eq!(zone.alloc(&infos, 0), None);
        zone.release(&infos, 0, 6);
        let mut all: Vec<u32> = (0..64).map(|_| zone.alloc(&infos, 0).expect("64 frames")).collect();
        assert_eq!(zone.alloc(&infos, 0), None);
        assert_eq!(zone.free(), 0);
        all.sort_unstable();
        assert_eq!(all, (0..64).collect::<Vec<u32>>());
        for &at in all.iter().step_by(2).chain(all.iter().skip(1).step_by(2)) {
            zone.release(&infos, at, 0);
        }
        assert_eq!(zone.free(), 64);
        assert_eq!(zone.alloc(&infos, 6), Some(0));
    }

    #[test]
    fn a_frame_in_use_is_never_merged() {
        let infos = infos(4);
        let mut zone = Zone::default();
        zone.release(&infos, 0, 2);
        let a = zone.alloc(&infos, 0).expect("a frame");
        infos[a as usize].using.store(UseWord::owned(ring_abi::types::DomId::new(1), 0).0, Ordering::Relaxed);
        assert_eq!(zone.alloc(&infos, 1), Some(2));
        zone.release(&infos, 2, 1);
        assert_eq!(zone.alloc(&infos, 2), None);
        assert_eq!(zone.free(), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_frame_is_given_twice(ops in proptest::collection::vec((0u8..4, 0usize..64), 1..200)) {
            let infos = infos(128);
            let mut zone = Zone::default();
            zone.release(&infos, 0, 7);
            let mut held: Vec<(u32, u8)> = Vec::new();
            let mut used = [false; 128];
            for (order, pick) in ops {
                if pick % 2 == 0 {
                    if let Some(at) = zone.alloc(&infos, order) {
                        for f in at..at + (1 << order) {
                            proptest::prop_assert!(!core::mem::replace(&mut used[f as usize], true));
                        }
                        held.push((at, order));
                    }
                } else if !held.is_empty() {
                    let (at, order) = held.swap_remove(pick % held.len());
                    used[at as usize..at as usize + (1 << order)].fill(false);
                    zone.release(&infos, at, order);
                }
                proptest::prop_assert_eq!(zone.free() as usize, used.iter().filter(|u| !**u).count());
            }
            for (at, order) in held {
                zone.release(&infos, at, order);
            }
            proptest::prop_assert_eq!(zone.alloc(&infos, 7), Some(0));
        }
    }
}
