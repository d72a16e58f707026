//! Shares of a disk: a client that finds no room has a claim, and room that comes free is kept for clients with claims.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use backends::{Client, SubmitError};

use super::{InFlight, Inner, SLOT_ENTRIES};
use crate::virtio::DmaSource;

/// How often a client that was turned away is called and does not ask again before its place is given up: a client that
/// wants nothing any more does not say so.
const MAX_CALLS: u32 = 16;

/// A client that was turned away. What becomes free is kept for such clients, in the order in which they came.
pub(super) struct Claim {
    client: Arc<Client>,
    /// How often the client was called since.
    calls: u32,
}

impl<S: DmaSource> Inner<S> {
    /// A slot and, if `entries` need one, a table for a request of `client`; else the client is called when there is room.
    pub(super) fn reserve_for(
        &mut self,
        client: &Arc<Client>,
        entries: usize,
    ) -> Result<(usize, Option<u16>), SubmitError> {
        if self.broken.is_some() {
            return Err(SubmitError::Failed);
        }
        self.close_open();
        let place = self.claims.iter().position(|claim| Arc::ptr_eq(&claim.client, client));
        // Clients that were turned away are served first, each with a fair part of what there is.
        let reserved = if self.claims.is_empty() || self.may_take(client, place, entries) {
            self.reserve(entries)
        } else {
            Err(SubmitError::Full)
        };
        match (&reserved, place) {
            (Ok(_), Some(place)) => _ = self.claims.remove(place),
            (Err(_), None) => {
                // A client that could not be called must not wait.
                let clients = self.claims.len() + 1;
                self.claims.try_reserve(1).map_err(|_| SubmitError::Failed)?;
                self.called.try_reserve(clients).map_err(|_| SubmitError::Failed)?;
                self.claims.push(Claim { client: client.clone(), calls: 0 });
            }
            // The client still wants something: what ended when it was called was not what it waits for.
            (Err(_), Some(place)) => self.claims[place].calls = 0,
            _ => {}
        }
        reserved
    }

    /// Whether `client`, at `place` of the queue of claims or not in that queue, may take what is free: each client may
    /// hold an equal part, and what is free is kept for those who came before.
    fn may_take(&self, client: &Client, place: Option<usize>, entries: usize) -> bool {
        if self.in_flight() == 0 {
            return true; // there is nobody whose end would call the others
        }
        let before = place.unwrap_or(self.claims.len());
        let requests = client.share.requests.load(Relaxed) as usize;
        if !self.indirect {
            // Requests take descriptors by their length, so that no equal part can be told.
            return before == 0 || requests == 0;
        }
        let idle = |claim: &&Claim| claim.client.share.requests.load(Relaxed) == 0;
        let newcomer = usize::from(place.is_none() && requests == 0);
        let clients = self.holders + self.claims.iter().filter(idle).count() + newcomer;
        let fair =
            |held: usize, all: usize, free: usize| free > before && held < (all / clients.max(1)).max(1);
        let tables = client.share.tables.load(Relaxed) as usize;
        fair(requests, self.queue.size().into(), self.queue.free())
            && (entries <= SLOT_ENTRIES || fair(tables, self.tables.len(), self.free_tables.len()))
    }

    /// Counts what the device has for a client.
    pub(super) fn count(&mut self, request: &InFlight) {
        let share = &request.first.client.share;
        self.holders += usize::from(share.requests.fetch_add(1, Relaxed) == 0);
        share.tables.fetch_add(request.table.is_some().into(), Relaxed);
    }

    /// Counts what the device has no more.
    pub(super) fn give_back(&mut self, request: &InFlight) {
        let share = &request.first.client.share;
        self.holders -= usize::from(share.requests.fetch_sub(1, Relaxed) == 1);
        share.tables.fetch_sub(request.table.is_some().into(), Relaxed);
    }

    /// The clients to be called, since something ended: all that were turned away and still want something.
    pub(in crate::virtio::blk) fn owed_a_call(&mut self) -> Vec<Arc<Client>> {
        if self.ended.is_empty() || self.claims.is_empty() {
            return Vec::new();
        }
        let mut called = core::mem::take(&mut self.called);
        self.claims.retain_mut(|claim| {
            claim.calls += 1;
            claim.calls <= MAX_CALLS && Arc::strong_count(&claim.client) > 1
        });
        called.extend(self.claims.iter().map(|claim| claim.client.clone()));
        called
    }
}
