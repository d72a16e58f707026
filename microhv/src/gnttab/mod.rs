//! Grant tables: what a domain lets others do with its pages.

use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

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

impl<P: Platform> Hypervisor<P> {
    /// Ends the grant mappings of a domain that is being destroyed, from handle `from` on; the handle to go on with, or
    /// `None` when all are done.
    pub fn release_grant_mappings(&self, domain: &Domain, from: u32) -> Option<u32> {
        let _ = (domain, from);
        None
    }

    /// Takes the table's frames back from a domain that is being destroyed.
    pub fn release_grant_table(&self, domain: &Domain) {
        let _ = domain;
    }
}
