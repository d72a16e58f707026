//! Shares of a disk: a client that finds no room gets a claim, and the driver keeps free room for clients with claims.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use backends::{Client, SubmitError};

use super::{InFlight, Inner, SLOT_ENTRIES};
use crate::hw::DmaSource;

/// How often the driver calls a client that was turned away and does not ask again, before the client loses its place:
/// a client that wants nothing any more does not say so.
const MAX_CALLS: u32 = 16;

/// A client that was turned away. The driver keeps free room for such clients, in the order in which the clients were
/// turned away.
pub(super) struct Claim {
    client: Arc<Client>,
    /// How often the client was called since.
    calls: u32,
}

impl<S: DmaSource> Inner<S> {
    /// Gives a slot and, if `entries` descriptors need a table, a table for a request of `client`. Where there is no
    /// room, the client gets a claim, and the driver calls the client when there may be room.
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
        // Clients that were turned away are served first, each with an equal part of what the device has.
        let reserved = if self.claims.is_empty() || self.may_take(client, place, entries) {
            self.reserve(entries)
        } else {
            Err(SubmitError::Full)
        };
        match (&reserved, place) {
            (Ok(_), Some(place)) => _ = self.claims.remove(place),
            (Err(_), None) => {
                // A client that cannot be called must not wait: its request fails.
                let clients = self.claims.len() + 1;
                self.claims.try_reserve(1).map_err(|_| SubmitError::Failed)?;
                self.called.try_reserve(clients).map_err(|_| SubmitError::Failed)?;
                self.claims.push(Claim { client: client.clone(), calls: 0 });
            }
            // The client still wants something: the end for which the client was called freed too little.
            (Err(_), Some(place)) => self.claims[place].calls = 0,
            _ => {}
        }
        reserved
    }

    /// Whether `client` may take free room. `place` is the client's place among the claims, if the client has a claim.
    /// Each client may hold an equal part of the device, and free room is kept for clients with earlier claims.
    fn may_take(&self, client: &Client, place: Option<usize>, entries: usize) -> bool {
        if self.in_flight() == 0 {
            return true; // nothing is under way, so no end would call the clients with claims
        }
        let before = place.unwrap_or(self.claims.len());
        let requests = client.share.requests.load(Relaxed) as usize;
        if !self.indirect {
            // A request takes as many descriptors as the request has parts, so there is no number for an equal part.
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

    /// Counts `request` for its client: the device has the request now.
    pub(super) fn count(&mut self, request: &InFlight) {
        let share = &request.first.client.share;
        self.holders += usize::from(share.requests.fetch_add(1, Relaxed) == 0);
        share.tables.fetch_add(request.table.is_some().into(), Relaxed);
    }

    /// Takes `request` out of its client's count: the device has the request no more.
    pub(super) fn give_back(&mut self, request: &InFlight) {
        let share = &request.first.client.share;
        self.holders -= usize::from(share.requests.fetch_sub(1, Relaxed) == 1);
        share.tables.fetch_sub(request.table.is_some().into(), Relaxed);
    }

    /// The clients to be called because something ended: all that were turned away and still want something.
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
