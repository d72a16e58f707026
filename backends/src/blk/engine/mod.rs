//! The engine: ring in, device operations out, completions in, responses out; everything in batches. The module
//! `intake` has the way of a request from the ring to the device.

mod intake;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::take;

use ring_abi::io::blkif::{
    BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY, BlkifRequestSegment, BlkifResponse,
    BlkifRing,
};
use ring_abi::ring::{BackRing, RingError, RingPage};
use ring_abi::types::GrantRef;

use super::request::{MAX_INDIRECT_SEGMENTS, Work};
use super::slot::Slot;
use crate::client::{Client, Completion};
use crate::traits::{BlockDevice, Geometry, GrantRead, Grants, Notifier, Segment, SubmitError};

/// Most requests taken from the ring in one poll: no frontend may hold the executor.
const BUDGET_REQUESTS: usize = 32;
/// A poll takes no further request once the poll has taken this many segments, the segments of indirect requests
/// included.
const BUDGET_SEGMENTS: usize = 256;
/// Most frames that a poll takes, and most that a poll gives back. A longer request takes and gives back its frames
/// over several polls, and other tasks run between the polls.
pub const PIECE: usize = 64;
/// Most indirect pages fetched in one poll.
pub const BUDGET_INDIRECT: usize = 8;
/// Most segments of one connection that are under way: as many as four of the longest requests have. From this number
/// follows how much memory a frontend makes the back end keep.
pub const MAX_SEGMENTS_IN_FLIGHT: usize = 4 * MAX_INDIRECT_SEGMENTS;
/// Requests of the largest ring.
pub const MAX_REQUESTS: usize = 128;
/// Most segments of the requests that one poll takes from the ring.
const POLL_SEGMENTS: usize = BUDGET_SEGMENTS + MAX_INDIRECT_SEGMENTS;

/// Most bytes of heap that one connection makes the engine's owner keep, where a grant takes `grant` bytes. What lies
/// behind a grant, and what the device needs, comes on top.
///
/// A slot always keeps room for a direct request; the room for a longer request exists only while the request is under
/// way.
pub const fn max_bytes(grant: usize) -> usize {
    let segment = size_of::<Segment>() + grant;
    let slot = size_of::<Slot<[usize; 2]>>() + 3 * size_of::<usize>() + 2 * size_of::<Completion>();
    let kept = BLKIF_MAX_SEGMENTS_PER_REQUEST * segment + size_of::<BlkifResponse>();
    let poll = size_of::<(GrantRef, bool)>() + size_of::<BlkifRequestSegment>();
    // A vector that grows as items are pushed may have twice the room that the items need.
    MAX_REQUESTS * (slot + kept)
        + MAX_SEGMENTS_IN_FLIGHT * segment
        + 2 * POLL_SEGMENTS * poll
        + 2 * PIECE * 3 * grant
        + 2 * BUDGET_REQUESTS * size_of::<(Starting, Fetching, GrantRead)>()
}

/// There is no memory for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Why a connection must end: after this, nothing on the connection's ring can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The frontend broke the ring's rules.
    Ring(RingError),
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => write!(f, "{error}"),
        }
    }
}

/// What the owner of the engine does after a poll.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Let other tasks run, then poll again.
    Again,
    /// Wait for an event from the frontend or for the [`Client`], then poll.
    Wait,
}

/// What a connection has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read from the disk.
    pub read_bytes: u64,
    /// Bytes written to the disk.
    pub written_bytes: u64,
}

/// An accepted request that waits for its frames. The frames that the request has already are in the request's slot.
struct Starting {
    slot: usize,
    /// Number of frames still to be taken. `maps` lists the missing frames of all starting requests, in order.
    missing: usize,
}

/// An accepted request whose segments are listed in a page of the frontend's. The record lasts for one poll.
struct Fetching {
    slot: usize,
    nr: usize,
}

/// The back end of one block ring.
///
/// One task owns the engine and polls the engine after each event and each completion. To end the connection, the owner
/// calls [`Self::close`], and then [`Self::poll_closed`] until `poll_closed` gives `None`. Only then may the owner drop
/// the engine: until then a device may still use the frontend's frames.
pub struct BlkBack<P: RingPage, G: Grants, N: Notifier, D: BlockDevice> {
    ring: BackRing<BlkifRing, P>,
    grants: G,
    notifier: N,
    device: D,
    geometry: Geometry,
    client: Arc<Client>,
    /// One slot for each slot of the ring, so that a frontend that keeps the ring's rules always finds a free slot.
    slots: Vec<Slot<G::Grant>>,
    free: Vec<usize>,
    /// Slots whose operation the full device turned away; the first turned away is the first served.
    stalled: VecDeque<usize>,
    /// The slot of a barrier that waits for every other request, or runs alone.
    barrier: Option<usize>,
    /// The barrier has its frames and waits: the barrier runs when no other request is left.
    held: bool,
    /// Number of segments of all accepted requests. An indirect request counts with the number that the request
    /// announced.
    segments: usize,
    /// Requests whose frames are being taken, in the order in which their segments became known: the direct requests of
    /// a batch before the indirect ones. While this list has an entry, the engine takes no further request from the
    /// ring.
    starting: Vec<Starting>,
    /// How many of `starting` have been handed to the device, or have failed.
    started: usize,
    /// The frames that the starting requests asked for: private copies of the numbers, so that no frontend changes a
    /// number meanwhile.
    maps: Vec<(GrantRef, bool)>,
    /// How many of `maps` have been taken, or passed over.
    taken: usize,
    /// Requests that the device has done, or that failed, and whose frames are being given back, in the order of the
    /// requests' ends.
    finished: Vec<usize>,
    /// Operations were queued since the last kick.
    kick: bool,
    stats: Stats,
    // These vectors are empty between polls; the engine keeps them for their capacity alone.
    completions: Vec<Completion>,
    mapped: Vec<Result<G::Grant, G::Error>>,
    reads: Vec<GrantRead>,
    fetching: Vec<Fetching>,
    released: Vec<G::Grant>,
    responses: Vec<BlkifResponse>,
}

impl<P: RingPage, G: Grants, N: Notifier, D: BlockDevice> BlkBack<P, G, N, D> {
    /// Serves `ring` from `device`.
    ///
    /// # Errors
    /// [`OutOfMemory`]: the heap has no room for a slot for each slot of the ring.
    pub fn new(ring: BackRing<BlkifRing, P>, grants: G, notifier: N, device: D) -> Result<Self, OutOfMemory> {
        let size = ring.size() as usize;
        let geometry = device.geometry();
        let (mut slots, mut free) = (Vec::new(), Vec::new());
        let room = slots.try_reserve_exact(size).and_then(|()| free.try_reserve_exact(size));
        room.map_err(|_| OutOfMemory)?;
        slots.resize_with(size, Slot::new);
        free.extend((0..size).rev());
        Ok(Self {
            ring,
            grants,
            notifier,
            device,
            geometry,
            client: Client::new(size),
            slots,
            free,
            stalled: VecDeque::new(),
            barrier: None,
            held: false,
            segments: 0,
            starting: Vec::new(),
            started: 0,
            maps: Vec::new(),
            taken: 0,
            finished: Vec::new(),
            kick: false,
            stats: Stats::default(),
            completions: Vec::new(),
            mapped: Vec::new(),
            reads: Vec::new(),
            fetching: Vec::new(),
            released: Vec::new(),
            responses: Vec::new(),
        })
    }

    /// The mailbox in which completions arrive; the engine's owner waits for the mailbox.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Requests accepted and not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Answers what the device has finished and takes up what the frontend has asked, within a budget.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend broke the ring's rules. The owner goes on with [`Self::close`].
    pub fn poll(&mut self) -> Result<Next, Disconnect> {
        self.reap();
        self.resume();
        let fetched = if self.starting.is_empty() { self.fetch() } else { Ok(true) };
        if !self.starting.is_empty() {
            self.start();
        }
        self.kick();
        if !self.finished.is_empty() {
            self.release();
        }
        let more = fetched.map_err(Disconnect::Ring)?;
        self.respond();
        if more || !self.starting.is_empty() || !self.finished.is_empty() {
            return Ok(Next::Again);
        }
        if !self.accepting() {
            return Ok(Next::Wait); // a completion resumes; the ring is looked at then
        }
        let pending = self.ring.arm_and_recheck().map_err(Disconnect::Ring)?;
        Ok(if pending { Next::Again } else { Next::Wait })
    }

    /// Begins the end: nothing more is taken from the ring, answered, or handed to the device.
    pub fn close(&mut self) {
        // The barrier goes first, so that no end of another request starts the barrier.
        self.held = false;
        if let Some(slot) = self.barrier.take() {
            self.fail_closing(slot);
        }
        for slot in take(&mut self.stalled) {
            self.fail_closing(slot);
        }
        // The engine gives back the frames that these requests have, and does not take the rest.
        for Starting { slot, .. } in take(&mut self.starting).split_off(take(&mut self.started)) {
            self.fail_closing(slot);
        }
        self.responses.clear();
    }

    /// Takes back what the device has finished, and gives frames back; called after [`Self::close`]. `None`: the device
    /// has returned everything, and the engine has given back every frame.
    ///
    /// `Some`: what the owner does before the next call. The frontend causes no further work.
    pub fn poll_closed(&mut self) -> Option<Next> {
        self.client.take(&mut self.completions);
        for index in 0..self.completions.len() {
            let Completion { tag, ok } = self.completions[index];
            let slot = tag as usize;
            self.slots[slot].returned(ok);
            self.slots[slot].fail(); // no further steps
            self.finish_if_done(slot);
        }
        self.completions.clear();
        self.release();
        self.responses.clear();
        match (self.in_flight(), self.finished.is_empty()) {
            (0, _) => None,
            (_, true) => Some(Next::Wait),
            (_, false) => Some(Next::Again),
        }
    }

    /// Whether requests may be taken from the ring now.
    fn accepting(&self) -> bool {
        self.stalled.is_empty()
            && self.barrier.is_none()
            && self.segments + MAX_INDIRECT_SEGMENTS <= MAX_SEGMENTS_IN_FLIGHT
    }

    /// Takes completions and advances the requests that the completions belong to.
    fn reap(&mut self) {
        self.client.take(&mut self.completions);
        for index in 0..self.completions.len() {
            let Completion { tag, ok } = self.completions[index];
            let slot = tag as usize;
            self.slots[slot].returned(ok);
            // A stalled slot goes on when its turn comes, in `resume`.
            if self.stalled.is_empty() || !self.stalled.contains(&slot) {
                self.advance(slot);
            }
        }
        self.completions.clear();
    }

    /// Offers the device again the operations that the full device turned away.
    fn resume(&mut self) {
        while let Some(slot) = self.stalled.pop_front() {
            if !self.issue(slot) {
                self.stalled.push_front(slot);
                return;
            }
            self.finish_if_done(slot);
        }
    }

    /// Submits the operations that `slot` has ready; remembers `slot` as stalled if the device is full.
    fn advance(&mut self, slot: usize) {
        if self.issue(slot) {
            self.finish_if_done(slot);
        } else {
            self.stalled.push_back(slot);
        }
    }

    /// Submits the operations that slot `index` has ready. `false`: the device is full.
    fn issue(&mut self, index: usize) -> bool {
        let slot = &mut self.slots[index];
        loop {
            slot.settle();
            let Some(issue) = slot.next_issue(&self.geometry) else { return true };
            match self.device.submit(&self.client, index as u32, issue.op, issue.sector, issue.segments) {
                Ok(()) => {
                    let receipt = issue.receipt();
                    slot.issued(receipt);
                    self.kick = true;
                }
                Err(SubmitError::Full) => return false,
                Err(SubmitError::Failed) => slot.fail(),
            }
        }
    }

    fn kick(&mut self) {
        if take(&mut self.kick) {
            self.device.kick();
        }
    }

    /// Ends the request in slot `index` if nothing of the request is under way. Every request ends through this
    /// function, because a held barrier waits for each end.
    fn finish_if_done(&mut self, index: usize) {
        if self.slots[index].is_finished() {
            self.finished.push(index);
            self.run_barrier();
        }
    }

    /// Fails a request as the connection closes. A barrier may also be stalled or starting, or have ended.
    fn fail_closing(&mut self, index: usize) {
        self.slots[index].fail();
        if !self.finished.contains(&index) {
            self.finish_if_done(index);
        }
    }

    /// Starts the held barrier if no other request is left.
    fn run_barrier(&mut self) {
        if let Some(slot) = self.barrier
            && self.held
            && self.in_flight() - self.finished.len() == 1
        {
            self.held = false;
            self.advance(slot);
        }
    }

    /// Gives back frames of finished requests, in one batch. Only then does a request without frames get its response.
    fn release(&mut self) {
        let mut ended = 0;
        for &index in &self.finished {
            let slot = &mut self.slots[index];
            let kept = (self.released.len() + slot.grants.len()).saturating_sub(PIECE);
            if kept > 0 {
                self.released.extend(slot.grants.drain(kept..));
                break; // the rest in the next poll
            }
            self.released.append(&mut slot.grants);
            ended += 1;
            self.segments -= slot.nr;
            let status = if slot.failed() { BLKIF_RSP_ERROR } else { BLKIF_RSP_OKAY };
            if status == BLKIF_RSP_OKAY {
                match slot.work {
                    Work::Read => self.stats.read_bytes += slot.bytes(),
                    Work::Write { .. } => self.stats.written_bytes += slot.bytes(),
                    Work::Discard { .. } => {}
                }
            }
            self.responses.push(response(slot.id, slot.operation, status));
            slot.trim();
        }
        if !self.released.is_empty() {
            self.grants.unmap_device(&mut self.released);
        }
        for slot in self.finished.drain(..ended) {
            if self.barrier == Some(slot) {
                self.barrier = None;
            }
            self.free.push(slot);
        }
    }

    /// Publishes all responses with at most one notification.
    fn respond(&mut self) {
        if self.responses.is_empty() {
            return;
        }
        for response in self.responses.drain(..) {
            self.stats.requests += 1;
            self.stats.errors += u64::from(response.status != BLKIF_RSP_OKAY);
            self.ring.push_response(&response);
        }
        if self.ring.publish_responses() {
            self.notifier.notify();
        }
    }
}

impl<P: RingPage, G: Grants, N: Notifier, D: BlockDevice> Drop for BlkBack<P, G, N, D> {
    /// Loses the frames that a device still has, rather than giving them back to the frontend. Only a broken device, or
    /// an owner that did not wait for `None` of `poll_closed`, brings the engine here.
    fn drop(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.outstanding() > 0) {
            log::error!("a block connection ended with {} operations under way", slot.outstanding());
            core::mem::forget(take(&mut slot.grants));
        }
    }
}

fn response(id: u64, operation: u8, status: i16) -> BlkifResponse {
    BlkifResponse { id, operation, status, ..Default::default() }
}
