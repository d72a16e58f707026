//! Lists that take an entry where nothing may fail: room is made beforehand. (I31)

#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// Makes room in a list for so many entries in all, if `may_spend` lets it take the memory.
pub(crate) fn make_room<T>(list: &mut Vec<T>, entries: usize, may_spend: impl Fn(usize) -> bool) -> bool {
    let more = missing::<T>((list.len(), list.capacity()), entries, may_spend);
    more.is_some_and(|more| list.try_reserve_exact(more).is_ok())
}

/// How many entries a list of some length and capacity reserves to have room for `entries`: the capacity is doubled, so that this
/// is seldom. `None`: `may_spend` refuses the memory.
pub(crate) fn missing<T>(
    (len, capacity): (usize, usize),
    entries: usize,
    may_spend: impl Fn(usize) -> bool,
) -> Option<usize> {
    if capacity >= entries {
        return Some(0);
    }
    let wanted = entries.next_power_of_two();
    may_spend(wanted * size_of::<T>()).then_some(wanted - len)
}
