//! Paths of nodes and of watches.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::ops::Bound;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ring_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

use super::error::XsError;

/// A checked absolute path, or the name of a special watch (`@...`).
///
/// Kept with each `/` as a zero byte and the root as nothing. Cloning shares the bytes.
///
/// The order is made for maps, and for paths that a guest has made as long and as like each other as may be: by the length
/// of the path above, by a hash of it, by the name, and last by the bytes of the path above. So a search compares numbers
/// and names on its way, and long paths only where it finds them; the children of a node are one run of keys
/// ([`children`]), in order of their names; and each node comes after the one above it. Names that begin with the same
/// [`SHORT`] bytes are in order of a hash of their own.
///
/// Paths above with the same hash are no error: they are compared by their bytes.
#[derive(Clone)]
pub struct Path {
    bytes: Arc<[u8]>,
    rank: Rank,
}

/// What is compared before any bytes. From its top bits down: the bytes of the path above, in 12 bits, which say where the
/// last slash is; a hash of the path above, in 24; the first two characters of the name, in 14; a hash of the name, if that
/// is a long one, in 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rank(u64);

/// Where the parts of a rank begin.
const ABOVE: u32 = 52;
const HASH: u32 = 28;
const BEGIN: u32 = 14;
const _: () = assert!(XENSTORE_ABS_PATH_MAX < 1 << (64 - ABOVE));

/// Bytes of names, with the slash before them, that are compared without a hash.
const SHORT: usize = 64;

/// Where each hash begins: see [`set_hash_seed`].
static SEED: AtomicU64 = AtomicU64::new(0x243f_6a88_85a3_08d3);

/// Has hashes begin with a number that guests do not know: else they could look for paths of which all have the same.
/// To be called before there is any path.
pub fn set_hash_seed(seed: u64) {
    SEED.store(seed, Relaxed);
}

fn seed() -> u64 {
    SEED.load(Relaxed)
}

/// Goes on with a hash by eight bytes.
fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// The eight bytes from `at` on; beyond the end, zeros.
fn word_at(bytes: &[u8], at: usize) -> u64 {
    let word =
        |from: usize| bytes.get(from..from + 8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
    if let Some(word) = word(at) {
        return word;
    }
    match bytes.len().checked_sub(8).and_then(word) {
        Some(last) => last >> (8 * (at + 8 - bytes.len())),
        None => bytes[at..].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

/// Are these the same? By eight bytes at a time, for long ones that are; images have a comparison of single bytes.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let ((words, rest), (other_words, other_rest)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let number = |word: &[u8; 8]| u64::from_le_bytes(*word);
    words.len() == other_words.len()
        && words.iter().zip(other_words).all(|(word, other)| number(word) == number(other))
        && rest == other_rest
}

/// The hash of the first `end` bytes.
fn hash_of(bytes: &[u8], end: usize) -> u64 {
    #[cfg(test)]
    super::looks::note_bytes(end);
    let (words, rest) = bytes[..end].as_chunks::<8>();
    let hash = words.iter().fold(seed(), |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = if rest.is_empty() { 0 } else { low(word_at(bytes, end - rest.len()), rest.len()) };
    mix(hash, last)
}

/// The first `count` bytes of a word, at most seven.
fn low(word: u64, count: usize) -> u64 {
    word & ((1 << (8 * count)) - 1)
}

/// Where the slashes are, and the hash of what is before each: all in one pass, eight bytes at a time.
struct Cuts<'a> {
    bytes: &'a [u8],
    /// Where `word` is; `hash` is of what is before.
    at: usize,
    hash: u64,
    word: u64,
    /// The top bit of each byte of `word` that is a slash and was not told yet.
    slashes: u64,
}

impl<'a> Cuts<'a> {
    fn of(bytes: &'a [u8]) -> Cuts<'a> {
        #[cfg(test)]
        super::looks::note_bytes(bytes.len());
        let mut cuts = Cuts { bytes, at: 0, hash: seed(), word: 0, slashes: 0 };
        cuts.load();
        cuts
    }

    fn load(&mut self) {
        const TOPS: u64 = u64::from_le_bytes([0x80; 8]);
        const ONES: u64 = u64::from_le_bytes([1; 8]);
        let count = self.bytes.len() - self.at;
        self.word = if count == 0 { 0 } else { word_at(self.bytes, self.at) };
        // No byte of a path has its top bit set: nothing is borrowed from the next byte.
        let zeros = !((self.word | TOPS) - ONES) & TOPS;
        self.slashes = if count < 8 { low(zeros, count) } else { zeros };
    }
}

impl Iterator for Cuts<'_> {
    type Item = (usize, u32);

    fn next(&mut self) -> Option<(usize, u32)> {
        while self.slashes == 0 {
            if self.bytes.len() - self.at <= 8 {
                return None;
            }
            self.hash = mix(self.hash, self.word);
            self.at += 8;
            self.load();
        }
        let count = self.slashes.trailing_zeros() as usize / 8;
        self.slashes &= self.slashes - 1;
        Some((self.at + count, mix(self.hash, low(self.word, count)) as u32))
    }
}

impl Rank {
    fn of(bytes: &[u8]) -> Rank {
        let above = end_above(bytes);
        Rank::new(bytes, above, hash_of(bytes, above) as u32)
    }

    /// That of a path whose path above ends at `above` and has this hash.
    fn new(bytes: &[u8], above: usize, hash: u32) -> Rank {
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

    fn above(self) -> usize {
        (self.0 >> ABOVE) as usize
    }

    /// What all children of a node have in common.
    fn of_parent(self) -> u64 {
        self.0 >> HASH
    }

    /// What paths are in order of, before their bytes.
    fn of_order(self) -> u64 {
        self.0 >> BEGIN
    }
}

/// Where the path above ends; 0 for the root, for what is right below the root, and for special names.
fn end_above(key: &[u8]) -> usize {
    key.iter().rposition(|&b| b == 0).unwrap_or(0)
}

impl Path {
    fn of(bytes: Arc<[u8]>) -> Path {
        let rank = Rank::of(&bytes);
        Path { bytes, rank }
    }

    /// The root, `/`.
    pub fn root() -> Path {
        Path::of(Arc::from(&[][..]))
    }

    /// Checks an absolute path.
    ///
    /// # Errors
    /// `EINVAL`: empty, relative, special, too long, a character other than letters, digits and
    /// `-/_@`, a doubled or a trailing slash.
    pub fn absolute(text: &[u8]) -> Result<Path, XsError> {
        match text {
            b"/" => Ok(Path::root()),
            [b'/', parts @ ..] if text.len() <= XENSTORE_ABS_PATH_MAX => Path::below(&[], parts),
            _ => Err(XsError::Inval),
        }
    }

    /// Checks the path of `parts`, separated by slashes, below the one of these bytes.
    fn below(top: &[u8], parts: &[u8]) -> Result<Path, XsError> {
        let mut bytes = Vec::with_capacity(top.len() + 1 + parts.len());
        bytes.extend_from_slice(top);
        bytes.push(0);
        let mut is_legal = true;
        let mut last = 0;
        bytes.extend(parts.iter().map(|&byte| {
            // A slash needs a part before it.
            let inner = if byte == b'/' { 0 } else { byte };
            is_legal &= INNER[usize::from(byte)] && inner | last != 0;
            last = inner;
            inner
        }));
        if is_legal && last != 0 { Ok(Path::of(Arc::from(bytes))) } else { Err(XsError::Inval) }
    }

    /// Checks a path as domain `domid` sends it: absolute, or relative to `/local/domain/<domid>`.
    ///
    /// # Errors
    /// As [`Path::absolute`]; also a relative path over [`XENSTORE_REL_PATH_MAX`].
    pub fn resolve(text: &[u8], domid: u16) -> Result<Path, XsError> {
        match text.first() {
            None | Some(b'@') => Err(XsError::Inval),
            Some(b'/') => Path::absolute(text),
            Some(_) if text.len() > XENSTORE_REL_PATH_MAX => Err(XsError::Inval),
            Some(_) => Path::below(home_key(domid, &mut HomeKey::default()), text),
        }
    }

    /// As [`Path::resolve`], but takes the name of a special watch too.
    ///
    /// # Errors
    /// As [`Path::resolve`].
    pub fn resolve_watch(text: &[u8], domid: u16) -> Result<Path, XsError> {
        if text.first() != Some(&b'@') {
            return Path::resolve(text, domid);
        }
        let legal = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@');
        if text.len() < 2 || text.len() > XENSTORE_REL_PATH_MAX || !text.iter().all(legal) {
            return Err(XsError::Inval);
        }
        Ok(Path::of(Arc::from(text)))
    }

    /// `/local/domain/<domid>`.
    pub fn home(domid: u16) -> Path {
        Path::of(Arc::from(home_key(domid, &mut HomeKey::default())))
    }

    /// A special watch by its literal name.
    pub(crate) fn special(name: &'static str) -> Path {
        debug_assert!(name.starts_with('@'));
        Path::of(Arc::from(name.as_bytes()))
    }

    /// The inner form: see the type.
    pub(crate) fn key(&self) -> &[u8] {
        #[cfg(test)]
        super::looks::note();
        &self.bytes
    }

    /// Is this a clone of the other, which takes no room of its own?
    pub(crate) fn is_clone_of(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }

    /// Is this `/`?
    pub fn is_root(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Is this the name of a special watch?
    pub fn is_special(&self) -> bool {
        self.bytes.first() == Some(&b'@')
    }

    /// The path above; `None` for the root and for special names.
    pub fn parent(&self) -> Option<Path> {
        self.parent_key().map(Path::from)
    }

    /// As [`Path::parent`], for looking it up.
    pub(crate) fn parent_key(&self) -> Option<Key<'_>> {
        #[cfg(test)]
        super::looks::note();
        (!self.is_root() && !self.is_special()).then(|| Key::of(&self.bytes[..self.rank.above()]))
    }

    /// The last part; nothing for the root.
    pub(crate) fn name(&self) -> &[u8] {
        #[cfg(test)]
        super::looks::note();
        self.bytes.get(self.rank.above() + 1..).unwrap_or_default()
    }

    /// Number of parts.
    pub(crate) fn levels(&self) -> usize {
        Cuts::of(&self.bytes).count()
    }

    /// The path of the first `end` bytes; a part ends there.
    pub(crate) fn until(&self, end: usize) -> Path {
        if end == self.bytes.len() { self.clone() } else { Path::of(Arc::from(&self.bytes[..end])) }
    }

    /// The end of the longest path above this one that is there, by halving: `is_there` is asked some 11 times for the
    /// deepest path that can be. What is above something that is there is there, and the root always is.
    pub(crate) fn nearest_above(&self, mut is_there: impl FnMut(Key<'_>) -> bool) -> usize {
        let (mut there, mut missing): (usize, usize) = (0, self.bytes.len());
        loop {
            let middle = there.midpoint(missing);
            let slash = |range: core::ops::Range<usize>, last: bool| {
                let mut at = range.filter(|&at| self.bytes[at] == 0);
                if last { at.next_back() } else { at.next() }
            };
            let after_there = (there + 1).min(missing);
            let at = slash(after_there..(middle + 1).min(missing), true)
                .or_else(|| slash(middle + 1..missing, false));
            match at {
                Some(at) if is_there(Key::of(&self.bytes[..at])) => there = at,
                Some(at) => missing = at,
                None => return there,
            }
        }
    }

    /// The path as a client writes it.
    pub fn text(&self) -> Vec<u8> {
        if self.is_root() {
            return Vec::from(&b"/"[..]);
        }
        self.bytes.iter().map(|&b| if b == 0 { b'/' } else { b }).collect()
    }

    /// Every key at or above this path, the root first. A special name is below the root, as in Xen.
    pub(crate) fn keys_above(&self) -> impl Iterator<Item = Key<'_>> {
        self.place().and_above()
    }
}

impl From<Key<'_>> for Path {
    fn from(key: Key<'_>) -> Path {
        Path { bytes: Arc::from(key.bytes), rank: key.rank }
    }
}

/// The characters of which paths are made, the slash included.
const INNER: [bool; 256] = {
    let mut legal = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        legal[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@');
        byte += 1;
    }
    legal
};

/// Where domains have their home directories, with each slash as a zero byte.
const HOMES: &[u8] = b"\0local\0domain\0";
/// Digits of the greatest number.
const DIGITS: usize = 5;
// A relative path is never too long: nobody need look.
const _: () = assert!(HOMES.len() + DIGITS + 1 + XENSTORE_REL_PATH_MAX <= XENSTORE_ABS_PATH_MAX);

/// Room for the inner form of a home directory.
type HomeKey = [u8; HOMES.len() + DIGITS];

/// The inner form of a domain's home directory. Each relative path begins with one, so that no formatting is called for.
fn home_key(domid: u16, buffer: &mut HomeKey) -> &[u8] {
    let (homes, digits) = buffer.split_at_mut(HOMES.len());
    homes.copy_from_slice(HOMES);
    let count = domid.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut rest = domid;
    for digit in digits[..count].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    &buffer[..HOMES.len() + count]
}

/// Bytes of a domain's home directory with the slash that ends it: what a relative watch's events leave out.
pub(crate) fn home_prefix_len(domid: u16) -> usize {
    home_key(domid, &mut HomeKey::default()).len() + 1
}

/// A path for looking up, which need not own its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    rank: Rank,
    /// As [`Path::key`].
    pub(crate) bytes: &'a [u8],
}

impl<'a> Key<'a> {
    fn of(bytes: &'a [u8]) -> Key<'a> {
        Key { rank: Rank::of(bytes), bytes }
    }

    /// As [`Path::keys_above`].
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
        // Whatever is below has at least that much above it.
        if self.rank.above() < end || self.bytes.get(end) != Some(&0) {
            return false;
        }
        #[cfg(test)]
        super::looks::note_bytes(end);
        is_same(&self.bytes[..end], &top.bytes)
    }

    /// What is first of all that may be below a path of this one's length.
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

    /// The order of what is above two paths of equal names and ranks.
    fn prefix_cmp(self, other: Key<'_>) -> Ordering {
        // Many are clones of each other.
        if core::ptr::eq(self.bytes, other.bytes) {
            return Ordering::Equal;
        }
        #[cfg(test)]
        super::looks::note_bytes(self.prefix().len());
        let (mine, its) = (self.prefix(), other.prefix());
        if is_same(mine, its) { Ordering::Equal } else { mine.cmp(its) }
    }

    #[cold]
    fn long_cmp(self, other: Key<'_>) -> Ordering {
        let ((mine, its), short) = ((self.rest(), other.rest()), |rest: &'_ [u8]| rest.len().min(SHORT));
        let begin = mine[..short(mine)].cmp(&its[..short(its)]);
        begin.then_with(|| self.rank.0.cmp(&other.rank.0)).then_with(|| {
            #[cfg(test)]
            super::looks::note_bytes(mine.len());
            mine.cmp(its)
        })
    }
}

/// What maps of paths may be asked for: [`Path`] or [`Key`].
pub(crate) trait Place {
    /// The path as a key.
    fn place(&self) -> Key<'_>;
}

impl Place for Path {
    fn place(&self) -> Key<'_> {
        #[cfg(test)]
        super::looks::note();
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
    /// The order of paths of which all that their ranks are in order of is the same.
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

/// Work that comparing a path above stands for, a step of [`children`] or of a search, in bytes moved.
pub(crate) fn prefix_work(len: usize) -> usize {
    len / 8
}

/// What a map of paths has right below `parent`, in order of names: one search, however many there are.
pub(crate) fn children<'a, V>(
    map: &'a BTreeMap<Path, V>,
    parent: &'a Path,
) -> impl Iterator<Item = (&'a Path, &'a V)> {
    let key = parent.key();
    children_of(map, key, hash_of(key, key.len()) as u32)
}

/// As [`children`]; of a parent of this hash.
fn children_of<'a, V>(
    map: &'a BTreeMap<Path, V>,
    key: &'a [u8],
    hash: u32,
) -> impl Iterator<Item = (&'a Path, &'a V)> {
    // A child has this above it, and goes on where this ends.
    let start = Key { rank: Rank::new(key, key.len(), hash), bytes: key };
    map.range::<dyn Place, _>((Bound::Excluded(&start as &dyn Place), Bound::Unbounded))
        .take_while(move |(path, _)| path.rank.of_parent() == start.rank.of_parent())
        .filter(move |(path, _)| {
            #[cfg(test)]
            super::looks::note_bytes(key.len());
            // Another path above may have the same hash.
            is_same(&path.bytes[..key.len()], key)
        })
}

/// Of a list in order of its paths, the parts whose path is at or above `key`.
pub(crate) fn at_or_above<'a, T>(
    list: &'a [T],
    path: impl Fn(&T) -> &Path + Copy + 'a,
    key: Key<'a>,
) -> impl Iterator<Item = &'a T> {
    let above = |at: Option<&T>| at.map(|item| path(item).rank.above());
    let (first, last) = (above(list.first()), above(list.last()));
    // The root is above all, and is never in such a list.
    let may_be = move |key: &Key<'_>| first <= Some(key.rank.above()) && Some(key.rank.above()) <= last;
    let keys = first.is_some().then(|| key.and_above()).into_iter().flatten();
    keys.filter(may_be).flat_map(move |key| {
        let start = list.partition_point(|item| path(item).place() < key);
        list[start..].iter().take_while(move |item| path(item).place() == key)
    })
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text()))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
