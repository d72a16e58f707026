//! Sets of u64 as sorted ranges: which ports, frames and interrupts a domain may use.

use alloc::vec::Vec;

use crate::nospec::At;

/// Ranges of a set at most: each change walks and copies them.
const MAX_RANGES: usize = 1024;

/// A set of numbers, kept as sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Adds `first..=last`; nothing when `last < first`. `false`: the set would have too many ranges, and stays as it is.
    pub fn add(&mut self, first: u64, last: u64) -> bool {
        if last < first {
            return true;
        }
        if self.ranges.len() >= MAX_RANGES {
            return false;
        }
        let (mut first, mut last) = (first, last);
        self.ranges.retain(|&(a, b)| {
            let apart = b.saturating_add(1) < first || last.saturating_add(1) < a;
            if !apart {
                first = first.min(a);
                last = last.max(b);
            }
            apart
        });
        let at = self.ranges.partition_point(|&(a, _)| a < first);
        self.ranges.insert(at, (first, last));
        true
    }

    /// Removes `first..=last`. `false`: the set would have too many ranges, and stays as it is.
    pub fn remove(&mut self, first: u64, last: u64) -> bool {
        if last < first {
            return true;
        }
        let mut kept = Vec::with_capacity(self.ranges.len() + 1);
        for &(a, b) in &self.ranges {
            if b < first || last < a {
                kept.push((a, b));
                continue;
            }
            if a < first {
                kept.push((a, first - 1));
            }
            if b > last {
                kept.push((last + 1, b));
            }
        }
        let fits = kept.len() <= MAX_RANGES;
        if fits {
            self.ranges = kept;
        }
        fits
    }

    /// Whether all of `first..=last` is in the set.
    pub fn contains_range(&self, first: u64, last: u64) -> bool {
        let at = self.ranges.partition_point(|&(_, b)| b < first);
        self.ranges.at(at).is_some_and(|&(a, b)| a <= first && last <= b && first <= last)
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: u64) -> bool {
        self.contains_range(value, value)
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_split() {
        let mut set = RangeSet::new();
        set.add(10, 19);
        set.add(30, 39);
        set.add(20, 29);
        assert!(set.contains_range(10, 39));
        assert!(!set.contains_range(9, 10) && !set.contains(40));
        set.remove(15, 34);
        assert!(set.contains_range(10, 14) && set.contains_range(35, 39));
        assert!(!set.contains(15) && !set.contains(34) && !set.contains_range(14, 35));
        set.add(5, 4);
        set.remove(5, 4);
        assert!(!set.contains(5));
    }

    #[test]
    fn extremes() {
        let mut set = RangeSet::new();
        set.add(0, u64::MAX);
        assert!(set.contains_range(0, u64::MAX));
        set.add(u64::MAX, u64::MAX);
        set.remove(u64::MAX, u64::MAX);
        assert!(!set.contains(u64::MAX) && set.contains(u64::MAX - 1) && set.contains(0));
        set.remove(0, u64::MAX);
        assert!(set.is_empty());
    }

    #[test]
    fn ranges_are_limited() {
        let mut set = RangeSet::new();
        assert!((0..MAX_RANGES as u64).all(|n| set.add(10 * n, 10 * n + 5)));
        assert!(!set.add(7, 7) && !set.contains(7));
        assert!(!set.remove(2, 3) && set.contains(2));
        assert!(set.remove(0, 5) && set.add(7, 7));
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_bit_set(ops in proptest::collection::vec((proptest::bool::ANY, 0u64..64, 0u64..64), 0..40)) {
            let mut set = RangeSet::new();
            let mut bits = 0u64;
            for (add, first, last) in ops {
                for n in first..=last {
                    if add { bits |= 1 << n } else { bits &= !(1 << n) }
                }
                let fits = if add { set.add(first, last) } else { set.remove(first, last) };
                proptest::prop_assert!(fits);
            }
            for n in 0..64 {
                proptest::prop_assert_eq!(set.contains(n), bits & 1 << n != 0);
            }
        }
    }
}
