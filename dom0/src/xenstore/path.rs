//! Paths of nodes and of watches.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::fmt;

use ring_abi::io::xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

use super::error::XsError;

/// A checked absolute path, or the name of a special watch (`@...`).
///
/// Kept with each `/` as a zero byte and the root as nothing, so that a node sorts right before all
/// that is below it and a subtree is one run of keys. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Arc<[u8]>);

impl Path {
    /// The root, `/`.
    pub fn root() -> Path {
        Path(Arc::from(&[][..]))
    }

    /// Checks an absolute path.
    ///
    /// # Errors
    /// `EINVAL`: empty, relative, special, too long, a character other than letters, digits and
    /// `-/_@`, a doubled or a trailing slash.
    pub fn absolute(text: &[u8]) -> Result<Path, XsError> {
        if text == b"/" {
            return Ok(Path::root());
        }
        let legal = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b'@');
        if text.first() != Some(&b'/')
            || text.last() == Some(&b'/')
            || text.len() > XENSTORE_ABS_PATH_MAX
            || !text.iter().all(legal)
            || text.windows(2).any(|pair| pair == b"//")
        {
            return Err(XsError::Inval);
        }
        Ok(Path(text.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()))
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
            Some(_) => {
                let mut full = Vec::from(home_text(domid).as_bytes());
                full.push(b'/');
                full.extend_from_slice(text);
                Path::absolute(&full)
            }
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
        Ok(Path(Arc::from(text)))
    }

    /// `/local/domain/<domid>`.
    pub fn home(domid: u16) -> Path {
        Path(home_text(domid).bytes().map(|b| if b == b'/' { 0 } else { b }).collect())
    }

    /// A special watch by its literal name.
    pub(crate) fn special(name: &'static str) -> Path {
        debug_assert!(name.starts_with('@'));
        Path(Arc::from(name.as_bytes()))
    }

    /// The inner form: see the type.
    pub(crate) fn key(&self) -> &[u8] {
        &self.0
    }

    /// Is this `/`?
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Is this the name of a special watch?
    pub fn is_special(&self) -> bool {
        self.0.first() == Some(&b'@')
    }

    /// The path above; `None` for the root and for special names.
    pub fn parent(&self) -> Option<Path> {
        let slash = self.0.iter().rposition(|&b| b == 0)?;
        Some(Path(Arc::from(&self.0[..slash])))
    }

    /// The path as a client writes it.
    pub fn text(&self) -> Vec<u8> {
        if self.is_root() {
            return Vec::from(&b"/"[..]);
        }
        self.0.iter().map(|&b| if b == 0 { b'/' } else { b }).collect()
    }

    /// Every key at or above this path, the root first. A special name is below the root, as in Xen.
    pub(crate) fn keys_above(&self) -> impl Iterator<Item = &[u8]> {
        let cuts = self.0.iter().enumerate().filter(|(_, b)| **b == 0).map(|(at, _)| at);
        let root = self.is_special().then_some(0);
        root.into_iter().chain(cuts).chain([self.0.len()]).map(|at| &self.0[..at])
    }
}

/// The text of a domain's home directory.
fn home_text(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// Bytes of a domain's home directory with the slash that ends it: what a relative watch's events leave out.
pub(crate) fn home_prefix_len(domid: u16) -> usize {
    home_text(domid).len() + 1
}

impl Borrow<[u8]> for Path {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
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
        assert_eq!(Path::home(7).to_string(), "/local/domain/7");
        assert!(Path::resolve(b"", 7).is_err());
        assert!(Path::resolve(b"@releaseDomain", 7).is_err());
        assert!(Path::resolve_watch(b"@releaseDomain", 7).unwrap().is_special());
        assert!(Path::resolve_watch(b"@", 7).is_err());
        assert!(Path::resolve_watch(b"@a/b", 7).is_err());
    }

    #[test]
    fn a_node_sorts_before_its_subtree_and_siblings_after() {
        let path = |text: &str| Path::absolute(text.as_bytes()).unwrap();
        let sorted = ["/", "/a", "/a/b", "/a/b/c", "/a-b", "/a0"].map(path);
        assert!(sorted.is_sorted());
    }

    #[test]
    fn lists_what_is_above() {
        let path = Path::absolute(b"/a/b").unwrap();
        let keys: Vec<&[u8]> = path.keys_above().collect();
        assert_eq!(keys, [&b""[..], b"\0a", b"\0a\0b"]);
        assert_eq!(Path::root().keys_above().count(), 1);
        let special = Path::special("@releaseDomain");
        assert_eq!(special.keys_above().collect::<Vec<_>>(), [&b""[..], b"@releaseDomain"]);
        assert_eq!(path.parent().unwrap().to_string(), "/a");
        assert_eq!(path.parent().unwrap().parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
    }
}
