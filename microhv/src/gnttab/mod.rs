//! Grant tables: what a domain lets others do with its pages.

/// The grant table of one domain, and its mappings of others' grants.
#[derive(Debug)]
pub struct GrantTable {}

impl GrantTable {
    /// An empty table that may grow to `max_frames`, with at most `max_maptrack_frames` of mappings.
    pub const fn new(max_frames: u32, max_maptrack_frames: u32) -> Self {
        let _ = (max_frames, max_maptrack_frames);
        Self {}
    }
}
