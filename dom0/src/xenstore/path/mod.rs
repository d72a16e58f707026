//! Paths of nodes and of watches.

mod hash;
mod order;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use ring_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

use super::error::XsError;
use hash::Cuts;
pub use hash::set_hash_seed;
use order::Rank;
pub(crate) use order::{Key, Place, at_or_above, children, prefix_work};

/// A checked absolute path, or the name of a special watch (`@...`).
///
/// The bytes have a zero in place of each `/`, and the root has no bytes. Cloning shares the bytes.
///
/// The order of paths serves maps, also where a guest has made paths as long and as like each other as possible. Two
/// paths are compared by the length of the path above, by a hash of the path above, by the name, and last by the bytes
/// of the path above. So a search compares numbers and names on its way, and long paths only where the search finds
/// them. The children of a node are one run of keys ([`children`]), in the order of their names, and each node comes
/// after the node above it. Names that begin with the same [`SHORT`] bytes are in the order of a hash of the name.
///
/// Two paths above with the same hash are no error: the comparison goes on to their bytes.
#[derive(Clone)]
pub struct Path {
    bytes: Arc<[u8]>,
    rank: Rank,
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
    /// `EINVAL`: the path is empty, relative, special or too long; has a character other than letters, digits and
    /// `-/_@`; or has a doubled or a trailing slash.
    pub fn absolute(text: &[u8]) -> Result<Path, XsError> {
        match text {
            b"/" => Ok(Path::root()),
            [b'/', parts @ ..] if text.len() <= XENSTORE_ABS_PATH_MAX => Path::below(&[], parts),
            _ => Err(XsError::Inval),
        }
    }

    /// Checks the path of `parts`, separated by slashes, below the path with the bytes `top`.
    fn below(top: &[u8], parts: &[u8]) -> Result<Path, XsError> {
        let len = top.len() + 1 + parts.len();
        // Most paths are short, and are made without an allocation beside the one for their shared bytes.
        let mut short = [0; SHORT_PATH];
        let mut long = Vec::new();
        let bytes = match short.get_mut(..len) {
            Some(bytes) => bytes,
            None => {
                long.resize(len, 0);
                &mut long[..]
            }
        };
        let (start, inners) = bytes.split_at_mut(top.len() + 1);
        start[..top.len()].copy_from_slice(top);
        let mut is_legal = true;
        let mut last = 0;
        for (to, &byte) in inners.iter_mut().zip(parts) {
            // A slash needs a part before the slash.
            let inner = if byte == b'/' { 0 } else { byte };
            is_legal &= INNER[usize::from(byte)] && inner | last != 0;
            last = inner;
            *to = inner;
        }
        if is_legal && last != 0 { Ok(Path::of(Arc::from(&*bytes))) } else { Err(XsError::Inval) }
    }

    /// Checks a path as domain `domid` sends the path: absolute, or relative to `/local/domain/<domid>`.
    ///
    /// # Errors
    /// The errors of [`Path::absolute`]; and `EINVAL` for a relative path over [`XENSTORE_REL_PATH_MAX`].
    pub fn resolve(text: &[u8], domid: u16) -> Result<Path, XsError> {
        match text.first() {
            None | Some(b'@') => Err(XsError::Inval),
            Some(b'/') => Path::absolute(text),
            Some(_) if text.len() > XENSTORE_REL_PATH_MAX => Err(XsError::Inval),
            Some(_) => Path::below(home_key(domid, &mut HomeKey::default()), text),
        }
    }

    /// Like [`Path::resolve`], but takes the name of a special watch, too.
    ///
    /// # Errors
    /// The errors of [`Path::resolve`].
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

    /// The path of a special watch, by the watch's literal name.
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

    /// Whether this path is a clone of `other`, so that it takes no room of its own.
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

    /// Like [`Path::parent`], as a key to look the parent up.
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

    /// The end of the longest path above this path that is there. The search halves the path: it asks `is_there` some
    /// 11 times for the deepest path that can be. The search relies on this: whatever is above something that is there
    /// is there, too, and the root always is.
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

    /// The path as a client writes the path.
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

/// Length up to which a path is put together on the stack.
const SHORT_PATH: usize = 96;

/// Where domains have their home directories, with each slash as a zero byte.
const HOMES: &[u8] = b"\0local\0domain\0";
/// Digits of the greatest number.
const DIGITS: usize = 5;
// A relative path is never too long: nobody need look.
const _: () = assert!(HOMES.len() + DIGITS + 1 + XENSTORE_REL_PATH_MAX <= XENSTORE_ABS_PATH_MAX);

/// Room for the inner form of a home directory.
type HomeKey = [u8; HOMES.len() + DIGITS];

/// The inner form of a domain's home directory. Every relative path begins with a home directory, so this function
/// makes the digits without the machinery of formatting.
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

/// Length of a domain's home directory with the slash that ends the directory: events of a relative watch leave out so
/// many bytes.
pub(crate) fn home_prefix_len(domid: u16) -> usize {
    home_key(domid, &mut HomeKey::default()).len() + 1
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
