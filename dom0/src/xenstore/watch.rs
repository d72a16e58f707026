//! Watches, and the connections that are to hear of a change.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::connection::ConnId;
use super::path::{Path, Place, home_prefix_len};
use super::price;

/// `@introduceDomain`: a domain was introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// `@releaseDomain`: a domain shut down, crashed, was released or destroyed.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";

/// What a watch takes beside its path and token: itself, its place in its connection's list, and one of each index.
const WATCH_PLACE: usize = price::shared(size_of::<Watch>())
    + price::listed::<Arc<Watch>>()
    + price::mapped::<Path, Vec<Group>>()
    + price::listed::<Group>()
    + price::listed::<Arc<Watch>>();

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
    /// What the heap takes for it.
    pub(crate) fn cost(&self) -> usize {
        WATCH_PLACE + price::text(&self.path) + price::shared(self.token.len())
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

/// The watches that one connection has of a path.
struct Group {
    conn: ConnId,
    watches: Vec<Arc<Watch>>,
}

/// Gives back room that the price of what is in a list does not cover.
pub(crate) fn trim<T>(list: &mut Vec<T>) {
    if list.capacity() > 2 * list.len() {
        list.shrink_to_fit();
    }
}

/// All watches by path, and those of a path by connection.
#[derive(Default)]
pub(crate) struct WatchIndex {
    by_path: BTreeMap<Path, Vec<Group>>,
    len: usize,
}

/// How far a change has been told: at which path at or above its own, and of the connections that watch this path, to
/// which.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Paths above, from the root on, that are done with.
    levels: usize,
    /// The last connection at the next.
    conn: Option<ConnId>,
}

impl WatchIndex {
    /// Number of watches.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a watch. The caller has seen that the watch is new.
    pub(crate) fn add(&mut self, conn: ConnId, watch: Arc<Watch>) {
        let groups = self.by_path.entry(watch.path.clone()).or_insert_with(|| Vec::with_capacity(1));
        match groups.binary_search_by_key(&conn, |group| group.conn) {
            Ok(at) => groups[at].watches.push(watch),
            Err(at) => groups.insert(at, Group { conn, watches: Vec::from([watch]) }),
        }
        self.len += 1;
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, conn: ConnId, watch: &Arc<Watch>) {
        let Some(groups) = self.by_path.get_mut(&watch.path) else { return };
        if let Ok(at) = groups.binary_search_by_key(&conn, |group| group.conn) {
            let watches = &mut groups[at].watches;
            if let Some(found) = watches.iter().position(|w| Arc::ptr_eq(w, watch)) {
                watches.remove(found);
                trim(watches);
                self.len -= 1;
            }
            if watches.is_empty() {
                groups.remove(at);
                trim(groups);
            }
        }
        if groups.is_empty() {
            self.by_path.remove(&watch.path);
        }
    }

    /// The next connection that watches `path` itself or, unless `exact`, any path above it, after those `told`; and
    /// its watches there. `None`: no further one does.
    pub(crate) fn next(&self, path: &Path, exact: bool, told: &mut Told) -> Option<(ConnId, &[Arc<Watch>])> {
        let here = path.key().len();
        for key in path.keys_above().skip(told.levels) {
            let is_meant = !exact || key.bytes.len() == here;
            if is_meant && let Some(groups) = self.by_path.get(&key as &dyn Place) {
                let at = groups.partition_point(|group| told.conn.is_some_and(|conn| group.conn <= conn));
                if let Some(group) = groups.get(at) {
                    told.conn = Some(group.conn);
                    return Some((group.conn, &group.watches));
                }
            }
            told.levels += 1;
            told.conn = None;
        }
        None
    }
}
