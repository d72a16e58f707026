//! Shares of a disk: a client that finds no room gets a claim, and free room is kept for clients with claims.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use backends::{Client, SubmitError};

use super::Hardware;
use super::requests::Inner;

/// How often the driver calls a client that was turned away and does not ask again, before the client loses its place:
/// a client that wants nothing any more does not say so.
const MAX_CALLS: u32 = 16;

/// A client that was turned away. Free room is kept for such clients, in the order in which they were turned away.
pub(super) struct Claim {
    pub(super) client: Arc<Client>,
    /// How often the client was called since.
    calls: u32,
}

/// Counts a request for its client. `true`: this is the client's first.
pub(super) fn count(client: &Client) -> bool {
    client.share.requests.fetch_add(1, Relaxed) == 0
}

/// Takes a request out of its client's count. `true`: this was the client's last.
pub(super) fn uncount(client: &Client) -> bool {
    client.share.requests.fetch_sub(1, Relaxed) == 1
}

impl<H: Hardware> Inner<H> {
    /// Lets `client` take a free slot. Where no slot is free for this client, the client gets a claim, and the driver calls
    /// the client when a slot may be free.
    pub(super) fn admit(&mut self, client: &Arc<Client>) -> Result<(), SubmitError> {
        let place = self.claims.iter().position(|claim| Arc::ptr_eq(&claim.client, client));
        let may = self.room().1 > 0 && (self.claims.is_empty() || self.may_take(client, place));
        match (may, place) {
            (true, Some(place)) => _ = self.claims.remove(place),
            (false, None) => {
                self.claims.retain(|claim| Arc::strong_count(&claim.client) > 1); // others have gone
                // A client that cannot be called must not wait: its request fails.
                let clients = self.claims.len() + 1;
                self.claims.try_reserve(1).map_err(|_| SubmitError::Failed)?;
                self.called.try_reserve(clients).map_err(|_| SubmitError::Failed)?;
                self.claims.push(Claim { client: client.clone(), calls: 0 });
            }
            // The client still wants something.
            (false, Some(place)) => self.claims[place].calls = 0,
            _ => {}
        }
        if may { Ok(()) } else { Err(SubmitError::Full) }
    }

    /// Whether `client` may take a free slot. `place` is the client's place among the claims, if the client has a claim.
    /// Each client may hold an equal part of the slots, and free slots are kept for clients with earlier claims.
    fn may_take(&self, client: &Client, place: Option<usize>) -> bool {
        let (all, free) = self.room();
        if free == all {
            return true; // nothing is under way, so no end would call the clients with claims
        }
        let held = client.share.requests.load(Relaxed) as usize;
        let before = place.unwrap_or(self.claims.len());
        let idle = |claim: &&Claim| claim.client.share.requests.load(Relaxed) == 0;
        let newcomer = usize::from(place.is_none() && held == 0);
        let clients = self.holders + self.claims.iter().filter(idle).count() + newcomer;
        free > before && held < (all / clients.max(1)).max(1)
    }

    /// The clients to be called because something ended: all that were turned away and still want something.
    pub(super) fn owed_a_call(&mut self) -> Vec<Arc<Client>> {
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
