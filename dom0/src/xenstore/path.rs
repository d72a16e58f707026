//! Paths of nodes and of watches.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::ops::Bound;

use ring_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

use super::error::XsError;

/// A checked absolute path, or the name of a special watch (`@...`).
///
/// Kept with each `/` as a zero byte and the root as nothing. Cloning shares the bytes.
///
/// The order is made for maps: first by the length of the path above, then by bytes. So the children of a node are one
/// run of keys ([`children`]), in order of their names, and each node comes after the one above it.
#[derive(Clone, PartialEq, Eq)]
pub struct Path {
    bytes: Arc<[u8]>,
    /// Bytes of the path above: where the last slash is.
    above: u16,
}

/// Where the path above ends; 0 for the root, for what is right below the root, and for special names.
fn end_above(key: &[u8]) -> usize {
    key.iter().rposition(|&b| b == 0).unwrap_or(0)
}

impl Path {
    fn of(bytes: Arc<[u8]>) -> Path {
        // A checked path is no longer than 3072 bytes.
        let above = end_above(&bytes) as u16;
        Path { bytes, above }
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
        self.parent_key().map(|key| Path::of(Arc::from(key.bytes)))
    }

    /// As [`Path::parent`], for looking it up.
    pub(crate) fn parent_key(&self) -> Option<Key<'_>> {
        #[cfg(test)]
        super::looks::note();
        (!self.is_root() && !self.is_special()).then(|| Key::of(&self.bytes[..usize::from(self.above)]))
    }

    /// The last part; nothing for the root.
    pub(crate) fn name(&self) -> &[u8] {
        #[cfg(test)]
        super::looks::note();
        self.bytes.get(usize::from(self.above) + 1..).unwrap_or_default()
    }

    /// Number of parts.
    pub(crate) fn levels(&self) -> usize {
        self.bytes.iter().filter(|b| **b == 0).count()
    }

    /// The path of the first `end` bytes; a part ends there.
    pub(crate) fn until(&self, end: usize) -> Path {
        if end == self.bytes.len() { self.clone() } else { Path::of(Arc::from(&self.bytes[..end])) }
    }

    /// Where the parts end that end after `after`, this path's own end the last.
    pub(crate) fn ends_after(&self, after: usize) -> impl DoubleEndedIterator<Item = usize> {
        let bytes = &*self.bytes;
        (after + 1..=bytes.len()).filter(|&at| bytes.get(at).is_none_or(|&b| b == 0))
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
        let mut above = 0;
        let root = self.is_special().then_some(0);
        let cuts = self.bytes.iter().enumerate().filter(|(_, b)| **b == 0).map(|(at, _)| at);
        root.into_iter().chain(cuts).chain([self.bytes.len()]).map(move |at| {
            let key = Key { above, bytes: &self.bytes[..at] };
            above = if self.is_special() { 0 } else { at };
            key
        })
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    above: usize,
    /// As [`Path::key`].
    pub(crate) bytes: &'a [u8],
}

impl<'a> Key<'a> {
    fn of(bytes: &'a [u8]) -> Key<'a> {
        Key { above: end_above(bytes), bytes }
    }

    /// The path above; of the root, the root.
    pub(crate) fn above(self) -> Key<'a> {
        Key::of(&self.bytes[..self.above])
    }

    /// Is this path below `top`?
    pub(crate) fn is_below(self, top: &Path) -> bool {
        self.bytes.len() > top.bytes.len()
            && self.bytes.starts_with(&top.bytes)
            && self.bytes[top.bytes.len()] == 0
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
        Key { above: usize::from(self.above), bytes: &self.bytes }
    }
}

impl Place for Key<'_> {
    fn place(&self) -> Key<'_> {
        *self
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.above.cmp(&other.above).then_with(|| self.bytes.cmp(other.bytes))
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

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

/// What a map of paths has right below `parent`, in order of names: one search, however many there are.
pub(crate) fn children<'a, V>(
    map: &'a BTreeMap<Path, V>,
    parent: &'a Path,
) -> impl Iterator<Item = (&'a Path, &'a V)> {
    let key = parent.key();
    // A child has this length above it, and its bytes go on where this key ends.
    let start = Key { above: key.len(), bytes: key };
    map.range::<dyn Place, _>((Bound::Excluded(&start as &dyn Place), Bound::Unbounded))
        .take_while(move |(path, _)| usize::from(path.above) == key.len() && path.bytes.starts_with(key))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_characters_and_slashes() {
        for good in ["/", "/a", "/a/b-c/D_9/@x", "/local/domain/0"] {
            assert_eq!(Path::absolute(good.as_bytes()).unwrap().to_string(), good);
        }
        for bad in ["", "a", "//", "/a/", "/a//b", "/a b", "/a.b", "/a\0", "@x", "/é"] {
            assert_eq!(Path::absolute(bad.as_bytes()), Err(XsError::Inval), "{bad:?}");
        }
    }

    #[test]
    fn checks_lengths() {
        let path = |len: usize| [b"/".to_vec(), vec![b'a'; len - 1]].concat();
        assert!(Path::absolute(&path(XENSTORE_ABS_PATH_MAX)).is_ok());
        assert!(Path::absolute(&path(XENSTORE_ABS_PATH_MAX + 1)).is_err());
        assert!(Path::resolve(&vec![b'a'; XENSTORE_REL_PATH_MAX], 65535).is_ok());
        assert!(Path::resolve(&vec![b'a'; XENSTORE_REL_PATH_MAX + 1], 1).is_err());
    }

    #[test]
    fn relative_paths_start_at_home() {
        assert_eq!(Path::resolve(b"device/vbd", 7).unwrap().to_string(), "/local/domain/7/device/vbd");
        for domid in [0, 7, 9, 10, 99, 100, 12345, 65535] {
            assert_eq!(Path::home(domid).to_string(), format!("/local/domain/{domid}"));
        }
        for bad in ["a/", "a//b", "a b", "a\0b", "é"] {
            assert_eq!(Path::resolve(bad.as_bytes(), 7), Err(XsError::Inval), "{bad:?}");
        }
        assert!(Path::resolve(b"", 7).is_err());
        assert!(Path::resolve(b"@releaseDomain", 7).is_err());
        assert!(Path::resolve_watch(b"@releaseDomain", 7).unwrap().is_special());
        assert!(Path::resolve_watch(b"@", 7).is_err());
        assert!(Path::resolve_watch(b"@a/b", 7).is_err());
    }

    #[test]
    fn children_are_a_run_and_come_after_what_is_above() {
        let path = |text: &str| Path::absolute(text.as_bytes()).unwrap();
        let sorted = ["/", "/a", "/a-b", "/a0", "/b", "/a/b", "/a/b-c", "/a/c", "/b/b", "/a/b/c"].map(path);
        assert!(sorted.is_sorted());
        let map: BTreeMap<Path, ()> = sorted.iter().map(|path| (path.clone(), ())).collect();
        let names =
            |of: &str| children(&map, &path(of)).map(|(path, ())| path.to_string()).collect::<Vec<_>>();
        assert_eq!(names("/"), ["/a", "/a-b", "/a0", "/b"]);
        assert_eq!(names("/a"), ["/a/b", "/a/b-c", "/a/c"]);
        assert_eq!(names("/b"), ["/b/b"]);
        assert!(names("/a-b").is_empty() && names("/nothing").is_empty());
    }

    #[test]
    fn the_nearest_above_is_found_by_halving() {
        let deep = Path::absolute("/a".repeat(1536).as_bytes()).unwrap();
        assert_eq!((deep.levels(), deep.name()), (1536, &b"a"[..]));
        for there in [0, 2, 4, 1000, 1534, 3068, 3070] {
            let mut asked = 0;
            let found = deep.nearest_above(|key| {
                asked += 1;
                key.bytes.len() <= there
            });
            assert_eq!(found, there);
            assert!(asked <= 12, "{asked}");
        }
        let path = Path::absolute(b"/long-name/b").unwrap();
        assert_eq!(path.nearest_above(|_| true), 10);
        assert_eq!(path.nearest_above(|_| false), 0);
        assert_eq!(path.ends_after(0).collect::<Vec<_>>(), [10, 12]);
        assert_eq!(path.until(10).to_string(), "/long-name");
    }

    #[test]
    fn lists_what_is_above() {
        let path = Path::absolute(b"/a/b").unwrap();
        let keys: Vec<&[u8]> = path.keys_above().map(|key| key.bytes).collect();
        assert_eq!(keys, [&b""[..], b"\0a", b"\0a\0b"]);
        assert_eq!(Path::root().keys_above().count(), 1);
        let special = Path::special("@releaseDomain");
        assert!(path.keys_above().all(|key| key == Key::of(key.bytes)));
        assert_eq!(
            special.keys_above().map(|key| key.bytes).collect::<Vec<_>>(),
            [&b""[..], b"@releaseDomain"]
        );
        assert_eq!(path.parent().unwrap().to_string(), "/a");
        assert_eq!(path.parent().unwrap().parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
    }
}
