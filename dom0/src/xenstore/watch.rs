//! Watches, and who is to hear of a change.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::connection::ConnId;
use super::path::{Path, Place, home_prefix_len};

/// `@introduceDomain`: a domain was introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// `@releaseDomain`: a domain shut down, crashed, was released or destroyed.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// What a watch costs beyond its path and token, for accounts.
const WATCH_OVERHEAD: usize = 128;

/// A watch of one connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// What is watched.
    pub(crate) path: Path,
    /// The client's own tag.
    pub(crate) token: Arc<[u8]>,
    /// Was it given relative to this domain's home? Then its events are too.
    pub(crate) relative_to: Option<u16>,
}

impl Watch {
    /// Bytes accounted.
    pub(crate) fn cost(&self) -> usize {
        WATCH_OVERHEAD + self.path.key().len() + self.token.len()
    }

    /// The event's path as this watch's client wants it.
    pub(crate) fn event_text(&self, event: &Path) -> Vec<u8> {
        let mut text = event.text();
        if let Some(domid) = self.relative_to {
            text.drain(..home_prefix_len(domid).min(text.len()));
        }
        text
    }
}

/// All watches by path.
#[derive(Default)]
pub(crate) struct WatchIndex {
    by_path: BTreeMap<Path, Vec<(ConnId, Arc<Watch>)>>,
    len: usize,
}

impl WatchIndex {
    /// Number of watches.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds one. Whoever calls has seen that it is new.
    pub(crate) fn add(&mut self, conn: ConnId, watch: Arc<Watch>) {
        self.by_path.entry(watch.path.clone()).or_default().push((conn, watch));
        self.len += 1;
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, conn: ConnId, watch: &Arc<Watch>) {
        let Some(list) = self.by_path.get_mut(&watch.path) else { return };
        if let Some(at) = list.iter().position(|(c, w)| *c == conn && Arc::ptr_eq(w, watch)) {
            list.remove(at);
            self.len -= 1;
        }
        if list.is_empty() {
            self.by_path.remove(&watch.path);
        }
    }

    /// The watches that a change of `path` matches: those of the path itself and, unless `exact`, of
    /// any above it.
    pub(crate) fn matching(&self, path: &Path, exact: bool) -> Vec<(ConnId, Arc<Watch>)> {
        let here = path.key().len();
        let keys = path.keys_above().filter(|key| !exact || key.bytes.len() == here);
        keys.filter_map(|key| self.by_path.get(&key as &dyn Place)).flatten().cloned().collect()
    }
}
