//! Watches, and the search for the connections whose watches fire for a change.

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

/// Bytes for a watch beside its path and token: the watch, its place in the connection's list, and its place in each
/// index.
const WATCH_PLACE: usize = price::shared(size_of::<Watch>())
    + price::listed::<Arc<Watch>>()
    + price::mapped::<Path, Vec<Group>>()
    + price::listed::<Group>()
    + price::listed::<Arc<Watch>>();

/// A watch of one connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// The path that is watched.
    pub(crate) path: Path,
    /// The client's own tag.
    pub(crate) token: Arc<[u8]>,
    /// The domain relative to whose home the watch was given, if the watch was relative. Events of a relative watch are
    /// relative, too.
    pub(crate) relative_to: Option<u16>,
}

impl Watch {
    /// Bytes of heap for the watch.
    pub(crate) fn cost(&self) -> usize {
        WATCH_PLACE + price::text(&self.path) + price::shared(self.token.len())
    }

    /// The event's path in the form that this watch's client wants.
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

/// Gives back room that the price of a list's items does not cover.
pub(crate) fn trim<T>(list: &mut Vec<T>) {
    if list.capacity() > 2 * list.len() {
        list.shrink_to_fit();
    }
}

/// All watches by path; the watches of a path are by connection.
#[derive(Default)]
pub(crate) struct WatchIndex {
    by_path: BTreeMap<Path, Vec<Group>>,
    len: usize,
}

/// How far a change has been told: up to which of the paths at or above the changed path, and up to which of the
/// connections that watch this path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Number of paths above, from the root on, whose watches are all told.
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

    /// Takes a watch out.
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

    /// The next connection, after those `told`, that watches `path` itself or, unless `exact`, a path above; with the
    /// connection's watches of that path. `None`: no further connection watches.
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
