//! The order of paths in maps and lists, keys to look paths up by, and what is found below and above a path.
//!
//! [`Path`] says what the order is for. A search compares [`Rank`]s, which are numbers, before any bytes.

use alloc::collections::BTreeMap;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::ops::Bound;

use ring_abi::io::xs_wire::XENSTORE_ABS_PATH_MAX;

use super::Path;
use super::hash::{Cuts, hash_of, is_same, mix, seed};

/// A number that is compared before any bytes. From the top bits down: in 12 bits the length of the path above, which
/// says where the last slash is; in 24 bits a hash of the path above; in 14 bits the first two characters of the name;
/// in 14 bits a hash of the name, if the name is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rank(u64);

/// Where the parts of a rank begin.
const ABOVE: u32 = 52;
const HASH: u32 = 28;
const BEGIN: u32 = 14;
const _: () = assert!(XENSTORE_ABS_PATH_MAX < 1 << (64 - ABOVE));

/// Length up to which names, with the slash before them, are compared without a hash.
const SHORT: usize = 64;

impl Rank {
    pub(super) fn of(bytes: &[u8]) -> Rank {
        let above = end_above(bytes);
        Rank::new(bytes, above, hash_of(bytes, above) as u32)
    }

    /// The rank of a path whose path above ends at `above` and has the hash `hash`.
    pub(super) fn new(bytes: &[u8], above: usize, hash: u32) -> Rank {
        let name = &bytes[above..];
        let hash = u64::from(hash) & ((1 << (ABOVE - HASH)) - 1);
        let begin = match name {
            [_, first, second, ..] => u64::from(*first) << 7 | u64::from(*second),
            [_, first] => u64::from(*first) << 7,
            _ => 0,
        };
        let long = if name.len() > SHORT { hash_of(name, name.len()) & ((1 << BEGIN) - 1) } else { 0 };
        Rank((above as u64) << ABOVE | hash << HASH | begin << BEGIN | long)
    }

    pub(super) fn above(self) -> usize {
        (self.0 >> ABOVE) as usize
    }

    /// The bits that the ranks of all children of a node have in common.
    fn of_parent(self) -> u64 {
        self.0 >> HASH
    }

    /// The bits by which paths are ordered before their bytes.
    fn of_order(self) -> u64 {
        self.0 >> BEGIN
    }
}

/// Where the path above ends; 0 for the root, for a path right below the root, and for a special name.
fn end_above(key: &[u8]) -> usize {
    key.iter().rposition(|&b| b == 0).unwrap_or(0)
}

/// A path to look up by, which need not own its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(super) rank: Rank,
    /// The same as [`Path::key`].
    pub(crate) bytes: &'a [u8],
}

impl<'a> Key<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Key<'a> {
        Key { rank: Rank::of(bytes), bytes }
    }

    /// The same as [`Path::keys_above`].
    pub(crate) fn and_above(self) -> impl Iterator<Item = Key<'a>> {
        let whole = Key { rank: self.rank, bytes: self.bytes };
        let is_special = self.bytes.first() == Some(&b'@');
        let root = is_special.then_some((0, 0));
        // A special name has no slash.
        let mut above = (0, mix(seed(), 0) as u32);
        let cuts = root.into_iter().chain(Cuts::of(self.bytes)).map(move |(at, hash)| {
            let bytes = &self.bytes[..at];
            let key = Key { rank: Rank::new(bytes, above.0, above.1), bytes };
            if at > 0 {
                above = (at, hash);
            }
            key
        });
        cuts.chain([whole])
    }

    /// Is this path below `top`?
    pub(crate) fn is_below(self, top: &Path) -> bool {
        let end = top.bytes.len();
        // A path below `top` has at least the length of `top` above it.
        if self.rank.above() < end || self.bytes.get(end) != Some(&0) {
            return false;
        }
        #[cfg(test)]
        super::super::looks::note_bytes(end);
        is_same(&self.bytes[..end], &top.bytes)
    }

    /// The first key of all that may be below a path with the length of this path.
    pub(crate) fn first_below(self) -> Key<'a> {
        Key { rank: Rank((self.bytes.len() as u64) << ABOVE), bytes: self.bytes }
    }

    /// The name, with the slash before it.
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.rank.above()..]
    }

    /// The path above.
    fn prefix(&self) -> &'a [u8] {
        &self.bytes[..self.rank.above()]
    }

    /// Compares the paths above two paths that have equal names and ranks.
    fn prefix_cmp(self, other: Key<'_>) -> Ordering {
        // Many paths in the maps are clones of each other.
        if core::ptr::eq(self.bytes, other.bytes) {
            return Ordering::Equal;
        }
        #[cfg(test)]
        super::super::looks::note_bytes(self.prefix().len());
        let (mine, its) = (self.prefix(), other.prefix());
        if is_same(mine, its) { Ordering::Equal } else { mine.cmp(its) }
    }

    #[cold]
    fn long_cmp(self, other: Key<'_>) -> Ordering {
        let ((mine, its), short) = ((self.rest(), other.rest()), |rest: &'_ [u8]| rest.len().min(SHORT));
        let begin = mine[..short(mine)].cmp(&its[..short(its)]);
        begin.then_with(|| self.rank.0.cmp(&other.rank.0)).then_with(|| {
            #[cfg(test)]
            super::super::looks::note_bytes(mine.len());
            mine.cmp(its)
        })
    }
}

/// What a search in a map of paths may be given: a [`Path`] or a [`Key`].
pub(crate) trait Place {
    /// The path as a key.
    fn place(&self) -> Key<'_>;
}

impl Place for Path {
    fn place(&self) -> Key<'_> {
        #[cfg(test)]
        super::super::looks::note();
        Key { rank: self.rank, bytes: &self.bytes }
    }
}

impl Place for Key<'_> {
    fn place(&self) -> Key<'_> {
        *self
    }
}

impl Ord for Key<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let ranks = self.rank.of_order().cmp(&other.rank.of_order());
        if ranks.is_ne() { ranks } else { self.bytes_cmp(other) }
    }
}

impl Key<'_> {
    /// The order of two paths whose ranks say nothing about their order.
    fn bytes_cmp(&self, other: &Key<'_>) -> Ordering {
        let (name, other_name) = (self.rest(), other.rest());
        let names = if name.len().max(other_name.len()) <= SHORT {
            name.cmp(other_name)
        } else {
            self.long_cmp(*other)
        };
        names.then_with(|| self.prefix_cmp(*other))
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank && self.cmp(other).is_eq()
    }
}

impl Eq for Key<'_> {}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Path {}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'a> Borrow<dyn Place + 'a> for Path {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

/// Work, in bytes moved, for comparing a path above of `len` bytes; for a step of [`children`] or of a search.
pub(crate) fn prefix_work(len: usize) -> usize {
    len / 8
}

/// The entries of a map of paths right below `parent`, in the order of names. This takes one search, however many
/// entries there are.
pub(crate) fn children<'a, V>(
    map: &'a BTreeMap<Path, V>,
    parent: &'a Path,
) -> impl Iterator<Item = (&'a Path, &'a V)> {
    let key = parent.key();
    children_of(map, key, hash_of(key, key.len()) as u32)
}

/// The same as [`children`], for a parent with this hash.
pub(super) fn children_of<'a, V>(
    map: &'a BTreeMap<Path, V>,
    key: &'a [u8],
    hash: u32,
) -> impl Iterator<Item = (&'a Path, &'a V)> {
    // The path above a child is `key`, and the child's name follows where `key` ends.
    let start = Key { rank: Rank::new(key, key.len(), hash), bytes: key };
    map.range::<dyn Place, _>((Bound::Excluded(&start as &dyn Place), Bound::Unbounded))
        .take_while(move |(path, _)| path.rank.of_parent() == start.rank.of_parent())
        .filter(move |(path, _)| {
            #[cfg(test)]
            super::super::looks::note_bytes(key.len());
            // Another path above may have the same hash.
            is_same(&path.bytes[..key.len()], key)
        })
}

/// The items of a list, which is in the order of its paths, whose path is at or above `key`.
pub(crate) fn at_or_above<'a, T>(
    list: &'a [T],
    path: impl Fn(&T) -> &Path + Copy + 'a,
    key: Key<'a>,
) -> impl Iterator<Item = &'a T> {
    let above = |at: Option<&T>| at.map(|item| path(item).rank.above());
    let (first, last) = (above(list.first()), above(list.last()));
    // The root is above everything, and is never in such a list.
    let may_be = move |key: &Key<'_>| first <= Some(key.rank.above()) && Some(key.rank.above()) <= last;
    let keys = first.is_some().then(|| key.and_above()).into_iter().flatten();
    keys.filter(may_be).flat_map(move |key| {
        let start = list.partition_point(|item| path(item).place() < key);
        list[start..].iter().take_while(move |item| path(item).place() == key)
    })
}
