//! Requests in their slots, from submission to end.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::{BlockOp, Client, Segment, SubmitError};

use super::sharing::Claim;
use super::{Hardware, Limits, Part, Run, SECTOR, Start};

/// How often a request is given to a device that is reset each time.
const MAX_TRIES: u8 = 3;

/// Most bytes of heap that a client with `requests` requests under way makes a disk keep: its members of joined
/// requests, its ends that the driver has to tell, its claim, and its place among the clients to be called. A vector
/// that grows has up to twice the room that it needs. All else is taken when the disk is opened.
pub const fn client_bytes(requests: usize) -> usize {
    let request = size_of::<Member>() + size_of::<End>() + 2 * size_of::<usize>();
    2 * (requests * request + size_of::<Claim>() + size_of::<Arc<Client>>())
}

/// The end of an operation: its client, its tag, and whether it went well.
pub(super) type End = (Arc<Client>, u32, bool);

/// What a disk knows of one operation that a client submitted.
struct Member {
    client: Arc<Client>,
    tag: u32,
    /// The sector at which the operation begins.
    sector: u64,
    /// Number of parts of the operation.
    parts: usize,
}

/// A request: an operation, and the operations that joined it.
struct Request {
    op: BlockOp,
    first: Member,
    joined: Vec<Member>,
    /// The sector behind the last one.
    end: u64,
    /// The first part that is not done yet, and its sector.
    at: usize,
    sector: u64,
    /// Parts that the device's present command has; `None`: the device has no command of this request.
    sent: Option<usize>,
    /// The member that is being done by itself, after the members together failed.
    alone: Option<usize>,
    /// Resets of the device while it had a command of this request.
    resets: u8,
}

impl Request {
    fn member(&self, index: usize) -> &Member {
        if index == 0 { &self.first } else { &self.joined[index - 1] }
    }

    /// The part behind the last that is to be done now: that of all members, or of the one that is done alone.
    fn last(&self) -> usize {
        let members = self.alone.map_or(self.joined.len(), |alone| alone);
        self.first.parts + self.joined[..members].iter().map(|member| member.parts).sum::<usize>()
    }
}

/// A slot: a request's parts, for which there is room from the start, and the request.
struct Slot {
    parts: Vec<Part>,
    request: Option<Request>,
}

pub(super) struct Inner<H> {
    pub(super) hardware: H,
    limits: Limits,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots whose requests wait for the device. The list has room for all.
    ready: VecDeque<u16>,
    /// The slot of the request that further operations may join.
    open: Option<u16>,
    /// Parts of the operation that is being submitted; kept between calls for the capacity.
    next: Vec<Part>,
    /// Clients that were turned away; the first turned away is the first served.
    pub(super) claims: Vec<Claim>,
    /// Clients of which the disk has requests.
    pub(super) holders: usize,
    /// Clients that are to be called; the vector has room for every client with a claim.
    pub(super) called: Vec<Arc<Client>>,
    /// Number of submitted operations whose clients were not told of the end: [`Inner::ended`] has room for all of these.
    untold: usize,
    /// Ended operations whose clients must be called; kept between calls for the capacity.
    pub(super) ended: Vec<End>,
    /// The disk takes no request any more.
    pub(super) closed: bool,
}

impl<H: Hardware> Inner<H> {
    pub(super) fn new(limits: Limits, hardware: H) -> Self {
        let slot = |_| Slot { parts: Vec::with_capacity(limits.parts), request: None };
        Self {
            hardware,
            limits,
            slots: (0..limits.slots).map(slot).collect(),
            free: (0..limits.slots).rev().collect(),
            ready: VecDeque::with_capacity(limits.slots.into()),
            open: None,
            next: Vec::with_capacity(limits.parts),
            claims: Vec::new(),
            holders: 0,
            called: Vec::new(),
            untold: 0,
            ended: Vec::new(),
            closed: false,
        }
    }

    /// Number of slots in all, and of those that are free.
    pub(super) fn room(&self) -> (usize, usize) {
        (self.slots.len(), self.free.len())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes an operation, for the device to do from the next [`Inner::pump`] on.
    pub(super) fn submit(
        &mut self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        if self.closed {
            return Err(SubmitError::Failed);
        }
        // There is room to tell the end of one more operation, whenever the end comes.
        let wanted = self.untold + 1 - self.ended.len();
        self.ended.try_reserve(wanted).map_err(|_| SubmitError::Failed)?;
        let bytes = self.set_next(segments)?;
        let is_transfer = matches!(op, BlockOp::Read | BlockOp::Write);
        let member = Member { client: client.clone(), tag, sector, parts: self.next.len() };
        let end = sector + bytes / SECTOR;
        if let Some(slot) = self.open
            && is_transfer
            && self.may_join(slot, &member, op, end)
        {
            let Slot { parts, request: Some(request) } = &mut self.slots[usize::from(slot)] else {
                unreachable!("an open slot has a request")
            };
            parts.append(&mut self.next);
            request.joined.push(member);
            request.end = end;
        } else {
            self.close_open();
            self.admit(client)?;
            let number = self.free.pop().ok_or(SubmitError::Full)?;
            let slot = &mut self.slots[usize::from(number)];
            slot.parts.append(&mut self.next);
            self.holders += usize::from(super::sharing::count(&member.client));
            let joined = Vec::new();
            slot.request = Some(Request {
                op,
                first: member,
                joined,
                end,
                at: 0,
                sector,
                sent: None,
                alone: None,
                resets: 0,
            });
            self.open = Some(number);
            if !is_transfer {
                self.close_open();
            }
        }
        self.untold += 1;
        Ok(())
    }

    /// Puts the parts of `segments` into [`Inner::next`], and gives the number of bytes. Segments that follow each other
    /// in machine memory become one part.
    fn set_next(&mut self, segments: &[Segment]) -> Result<u64, SubmitError> {
        self.next.clear();
        let mut bytes = 0;
        for segment in segments {
            let maddr = segment.maddr.raw();
            bytes += u64::from(segment.len);
            if let Some(last) = self.next.last_mut()
                && last.maddr + u64::from(last.len) == maddr
                && last.len + segment.len <= self.limits.part_bytes
            {
                last.len += segment.len;
                continue;
            }
            if self.next.len() == self.limits.parts {
                return Err(SubmitError::Failed); // more segments than the geometry allows
            }
            self.next.push(Part { maddr, len: segment.len });
        }
        Ok(bytes)
    }

    /// Whether the transfer of `member`, whose parts are [`Inner::next`], begins where the open request ends, and fits.
    fn may_join(&mut self, slot: u16, member: &Member, op: BlockOp, end: u64) -> bool {
        let Slot { parts, request: Some(request) } = &mut self.slots[usize::from(slot)] else { return false };
        let (Some(last), Some(next)) = (parts.last(), self.next.first()) else { return false };
        // Only requests of one client join: one domain's errors and delays must not reach another domain.
        request.op == op
            && request.end == member.sector
            && Arc::ptr_eq(&request.first.client, &member.client)
            && parts.len() + member.parts <= self.limits.parts
            && (end - request.first.sector) * SECTOR <= self.limits.bytes
            && self.hardware.continues(last, next)
            && has_room(&mut request.joined)
    }

    /// Nothing joins the open request any more.
    fn close_open(&mut self) {
        self.ready.extend(self.open.take());
    }

    /// Gives the device all requests that wait, as far as the device takes them.
    pub(super) fn pump(&mut self) {
        self.close_open();
        let mut any = false;
        while let Some(&number) = self.ready.front() {
            let slot = &mut self.slots[usize::from(number)];
            let Some(request) = &mut slot.request else { unreachable!("a slot that waits has a request") };
            let run = Run {
                op: request.op,
                sector: request.sector,
                parts: &slot.parts[request.at..request.last()],
            };
            match self.hardware.start(number, run) {
                Start::Busy => break,
                Start::Taken(parts) => {
                    request.sent = Some(parts);
                    any = true;
                    self.ready.pop_front();
                }
                Start::Unfit => {
                    request.sent = Some(0);
                    self.ready.pop_front();
                    self.ended_command(number, false);
                }
            }
        }
        if any {
            self.hardware.ring();
        }
    }

    /// Notes that the command of a slot has ended, and prepares the request's next command or ends the request.
    pub(super) fn ended_command(&mut self, number: u16, ok: bool) {
        let slot = &mut self.slots[usize::from(number)];
        let Some(request) = &mut slot.request else { return };
        let Some(sent) = request.sent.take() else { return };
        if ok {
            let done = &slot.parts[request.at..request.at + sent];
            request.sector += done.iter().map(|part| u64::from(part.len)).sum::<u64>() / SECTOR;
            request.at += sent;
            if request.at < request.last() {
                return self.ready.push_back(number);
            }
        }
        match request.alone {
            None if !ok && !request.joined.is_empty() => {
                request.alone = Some(0);
                (request.at, request.sector) = (0, request.first.sector);
                self.ready.push_back(number);
            }
            None => self.release(number, ok),
            Some(index) => {
                let member = request.member(index);
                self.ended.push((member.client.clone(), member.tag, ok));
                if index == request.joined.len() {
                    return self.release_rest(number, index + 1, ok);
                }
                request.at = request.last();
                request.alone = Some(index + 1);
                request.sector = request.member(index + 1).sector;
                self.ready.push_back(number);
            }
        }
    }

    /// Ends the request in a slot, with all its members.
    fn release(&mut self, number: u16, ok: bool) {
        self.release_rest(number, 0, ok);
    }

    /// Ends the request in a slot, with its members from number `from` on.
    fn release_rest(&mut self, number: u16, from: usize, ok: bool) {
        let slot = &mut self.slots[usize::from(number)];
        let Some(request) = slot.request.take() else { return };
        slot.parts.clear();
        self.free.push(number);
        self.holders -= usize::from(super::sharing::uncount(&request.first.client));
        let members = [request.first].into_iter().chain(request.joined).skip(from);
        self.ended.extend(members.map(|member| (member.client, member.tag, ok)));
    }

    /// Has every request of which a reset device had a command wait for the device again. A request that had the device
    /// reset [`MAX_TRIES`] times fails instead.
    pub(super) fn send_again(&mut self) {
        for number in (0..self.slots.len() as u16).rev() {
            let Some(request) = &mut self.slots[usize::from(number)].request else { continue };
            if request.sent.is_none() {
                continue;
            }
            request.resets += 1;
            if request.resets == MAX_TRIES {
                request.resets = 0;
                self.ended_command(number, false);
            } else {
                request.sent = None;
                self.ready.push_front(number);
            }
        }
    }

    /// Ends all requests, as failed.
    pub(super) fn fail_all(&mut self) {
        self.open = None;
        self.ready.clear();
        for number in 0..self.slots.len() as u16 {
            let alone = self.slots[usize::from(number)].request.as_ref().and_then(|request| request.alone);
            self.release_rest(number, alone.unwrap_or(0), false);
        }
    }

    /// Notes that the clients of `ended` operations are being told of the ends.
    pub(super) fn told(&mut self, ended: usize) {
        self.untold -= ended;
    }

    /// Takes back the empty vectors of a round of ends, for their room, unless others took their place meanwhile.
    pub(super) fn give_back(&mut self, ended: Vec<End>, called: Vec<Arc<Client>>) {
        if self.ended.is_empty() && self.ended.capacity() < ended.capacity() {
            self.ended = ended;
        }
        if self.called.capacity() < called.capacity() {
            self.called = called;
        }
    }
}

/// Makes room for one more member, where the vector has room for at most twice its members; `false`: there is no memory.
fn has_room(joined: &mut Vec<Member>) -> bool {
    joined.len() < joined.capacity() || joined.try_reserve_exact(joined.len().max(1)).is_ok()
}
