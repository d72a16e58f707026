//! Which frames a domain owns, as counts for each region of frames: what teardown walks.
//!
//! A count is found by two indices and no search, since it changes with each page that a domain gets or gives.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::nospec::{At, Wrapped};

/// Number of frames in one region: 2 MiB.
pub(crate) const REGION_FRAMES: u64 = 512;
/// Regions whose counts lie together: 512 MiB.
const GROUP: usize = 256;

/// Counts of frames by region.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    /// Groups up to the last in which the domain owned frames. An earlier group without such frames has no counts yet.
    groups: Vec<Option<Box<[u16; GROUP]>>>,
}

const fn place(region: u32) -> (usize, usize) {
    (region as usize / GROUP, region as usize % GROUP)
}

impl Regions {
    /// Counts `frames` more in a region.
    pub(crate) fn add(&mut self, region: u32, frames: u16) {
        let (group, slot) = place(region);
        if group >= self.groups.len() {
            self.groups.resize_with(group + 1, || None);
        }
        *self
            .groups
            .at_mut(group)
            .expect("made just now")
            .get_or_insert_with(|| Box::new([0; GROUP]))
            .wrapped_mut(slot) += frames;
    }

    /// Counts a frame less in a region; `false`: there was none.
    pub(crate) fn remove(&mut self, region: u32) -> bool {
        let (group, slot) = place(region);
        let Some(Some(counts)) = self.groups.at_mut(group) else { return false };
        let count = counts.wrapped_mut(slot);
        let is_counted = *count > 0;
        *count -= u16::from(is_counted);
        is_counted
    }

    /// The first region from `from` on with frames.
    pub(crate) fn first_from(&self, from: u32) -> Option<u32> {
        let (first, begin) = place(from);
        let counts =
            self.groups.iter().enumerate().skip(first).filter_map(|(n, group)| Some((n, group.as_ref()?)));
        counts
            .flat_map(|(n, counts)| {
                let slots = counts.iter().enumerate().skip(begin * usize::from(n == first));
                slots.map(move |(slot, &count)| (n * GROUP + slot, count))
            })
            .find(|&(_, count)| count > 0)
            .map(|(region, _)| region as u32)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0u32..2000, 0u16..4, 0u32..2100), 1..200)) {
            let (mut regions, mut map) = (Regions::default(), BTreeMap::<u32, u16>::new());
            for (region, frames, from) in steps {
                if frames > 0 {
                    regions.add(region, frames);
                    *map.entry(region).or_default() += frames;
                } else {
                    let count = map.get_mut(&region).filter(|count| **count > 0);
                    proptest::prop_assert_eq!(regions.remove(region), count.is_some());
                    if let Some(count) = count {
                        *count -= 1;
                    }
                }
                let first = map.range(from..).find(|(_, count)| **count > 0).map(|(region, _)| *region);
                proptest::prop_assert_eq!(regions.first_from(from), first);
            }
        }
    }
}
