//! What things take of the heap at the most: the prices that the store charges for what it keeps. (I29)
//!
//! Nothing here is a guess: each price follows from the size of a type and from how the standard library's containers
//! grow. So the price changes with the type.

use super::path::Path;

/// Bytes that the heap takes for an object of `bytes` bytes, with the account's tail and the heap's word, in units of
/// 32.
pub(super) const fn object(bytes: usize) -> usize {
    (bytes + 2 * size_of::<usize>()).next_multiple_of(32)
}

/// Bytes of an `Arc<[u8]>` of so many.
pub(super) const fn shared(bytes: usize) -> usize {
    object(2 * size_of::<usize>() + bytes)
}

/// Bytes for one entry of a `Vec` or `VecDeque` that has room for at most twice its entries.
pub(super) const fn listed<T>() -> usize {
    object(2 * size_of::<T>())
}

/// The same as [`listed`], for a list with many entries.
pub(super) const fn listed_among_many<T>() -> usize {
    2 * size_of::<T>()
}

/// Number of entries that fit a node of a `BTreeMap`, and the least number in a node when the map has several nodes.
const FULL: usize = 11;
const LEAST: usize = 5;

/// Bytes of a leaf of a `BTreeMap`: a map with anything in it has at least one.
pub(super) const fn leaf<K, V>() -> usize {
    object(FULL * (size_of::<K>() + size_of::<V>()) + 2 * size_of::<usize>())
}

/// Bytes for one entry of a large `BTreeMap`, however empty the map's nodes are. A leaf has at least [`LEAST`] entries,
/// and one more entry above the leaf belongs to the leaf; the same holds for the nodes above.
pub(super) const fn mapped<K, V>() -> usize {
    let inner = leaf::<K, V>() + (FULL + 1) * size_of::<usize>();
    let above = LEAST + 1;
    leaf::<K, V>().div_ceil(above) + inner.div_ceil(above * above) + inner.div_ceil(above * above * above)
}

/// Bytes of the text of a path.
pub(super) fn text(path: &Path) -> usize {
    shared(path.key().len())
}
