//! The ring and its slots: requests go in, and each answer wakes the task that waits for the answer.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::executor::{Either, select, spawn};
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::io::blkif::*;
use ring_abi::ring::FrontRing;
use ring_abi::types::{DomId, PAGE_SIZE};
use spin::Mutex;

use super::{BlockError, SECTORS_PER_PAGE, Statistics};

/// One request as the disk asks for it.
pub(super) enum Command {
    /// Read or write, at most as long as one request can be.
    Transfer {
        /// `BLKIF_OP_READ` or `BLKIF_OP_WRITE`.
        operation: u8,
        first: u64,
        sectors: usize,
        buffer: Arc<Pages>,
        /// Page of the buffer where the transfer starts.
        page: usize,
    },
    Flush,
    Discard {
        first: u64,
        sectors: u64,
    },
}

/// The place of one request. The slot's index is the request's id on the ring.
enum Slot {
    Free,
    /// With the backend.
    Busy {
        /// The request's buffer, which stays here until the backend no longer uses the buffer.
        lent: Option<Granted<Arc<Pages>>>,
        waker: Option<Waker>,
        /// The future is gone: nobody takes the answer.
        abandoned: bool,
    },
    /// The backend has answered; the request's future has not seen the answer yet.
    Done(i16),
}

/// Guarded by a leaf lock, which is also held while grants are made and an event is sent.
struct State {
    ring: Option<FrontRing<BlkifRing, Granted>>,
    slots: Vec<Slot>,
    /// Pages that list the segments of indirect requests. The pages stay granted for as long as the queue lives.
    lists: Vec<Option<Granted>>,
    free: Vec<u16>,
    statistics: Statistics,
}

/// The requests of one disk.
pub(super) struct Queue {
    dom: DomId,
    port: Port,
    state: Mutex<State>,
    /// A slot became free, or the queue broke.
    space: Notify,
    /// The task must end.
    stop: Notify,
    /// Nobody need look at the backend's state any more.
    ended: Notify,
}

impl Queue {
    pub(super) fn new(dom: DomId, ring: FrontRing<BlkifRing, Granted>, port: Port) -> Arc<Self> {
        let size = ring.size() as usize;
        let state = State {
            slots: (0..size).map(|_| Slot::Free).collect(),
            lists: (0..size).map(|_| None).collect(),
            free: (0..size as u16).rev().collect(),
            ring: Some(ring),
            statistics: Statistics::default(),
        };
        Arc::new(Self {
            dom,
            port,
            state: Mutex::new(state),
            space: Notify::new(),
            stop: Notify::new(),
            ended: Notify::new(),
        })
    }

    /// Starts the task that takes answers.
    pub(super) fn start(self: &Arc<Self>) {
        spawn(pump(self.clone()));
    }

    pub(super) fn statistics(&self) -> Statistics {
        self.state.lock().statistics
    }

    /// Runs one request; the future gives the result once the backend has answered.
    pub(super) async fn submit(self: &Arc<Self>, command: Command) -> Result<(), BlockError> {
        let id = loop {
            // The lock must not be held over the wait.
            let taken = self.state.lock().take();
            match taken? {
                Some(id) => break id,
                None => self.space.notified().await,
            }
        };
        let notify = match self.state.lock().push(self.dom, id, &command) {
            Ok(notify) => notify,
            Err(error) => {
                self.space.notify_one();
                return Err(error);
            }
        };
        if notify {
            self.port.notify();
        }
        let answer = Answer { queue: self, id };
        poll_fn(|context| answer.poll(context.waker())).await
    }

    /// Waits until nothing is in flight.
    pub(super) async fn drain(&self) {
        loop {
            {
                let state = self.state.lock();
                if state.ring.is_none() || state.free.len() == state.slots.len() {
                    return;
                }
            }
            self.space.notified().await;
            // This task took the notification, so it notifies again: another task may wait for a slot.
            self.space.notify_one();
            pvrt::yield_now().await;
        }
    }

    /// Ends the queue: everything in flight fails, and each page goes back once the backend no longer uses the page.
    /// `false`: the queue had ended before.
    pub(super) fn shut(&self) -> bool {
        let mut wakers = Vec::new();
        {
            let mut state = self.state.lock();
            // Each lent page goes back when the backend no longer uses the page.
            if state.ring.take().is_none() {
                return false;
            }
            state.lists.clear();
            for slot in &mut state.slots {
                if let Slot::Busy { waker, .. } = core::mem::replace(slot, Slot::Free) {
                    wakers.extend(waker);
                }
            }
        }
        for waker in wakers {
            waker.wake();
        }
        self.space.notify_all();
        self.space.notify_one();
        self.stop.notify_one();
        self.ended.notify_one();
        true
    }

    /// Waits until the queue is shut. Only one task may wait.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }
}

impl State {
    /// Reserves a slot; `None`: all slots are in use, and the caller waits for a free slot.
    fn take(&mut self) -> Result<Option<u16>, BlockError> {
        if self.ring.is_none() {
            return Err(BlockError::Disconnected);
        }
        Ok(self.free.pop())
    }

    /// Puts the request of a reserved slot on the ring; true when the backend must be notified.
    fn push(&mut self, dom: DomId, id: u16, command: &Command) -> Result<bool, BlockError> {
        let pushed = self.try_push(dom, id, command);
        if pushed.is_err() {
            self.slots[usize::from(id)] = Slot::Free;
            self.free.push(id);
        }
        pushed
    }

    fn try_push(&mut self, dom: DomId, id: u16, command: &Command) -> Result<bool, BlockError> {
        let mut lent = None;
        let request = match command {
            Command::Transfer { operation, first, sectors, buffer, page } => {
                // A read lets the backend write to the pages.
                let readonly = *operation == BLKIF_OP_WRITE;
                let segments = sectors.div_ceil(SECTORS_PER_PAGE);
                let mut granted = Granted::with_room(buffer.clone(), segments);
                for index in 0..segments {
                    granted.allow(dom, page + index, readonly).map_err(BlockError::Resources)?;
                }
                self.statistics.bytes += (sectors * SECTOR_SIZE) as u64;
                let granted = lent.insert(granted);
                if segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST {
                    direct(*operation, id, *first, *sectors, granted)
                } else {
                    self.indirect(dom, *operation, id, *first, *sectors, granted)?
                }
            }
            Command::Flush => BlkifRequest {
                operation: BLKIF_OP_FLUSH_DISKCACHE,
                id: u64::from(id),
                ..BlkifRequest::default()
            },
            Command::Discard { first, sectors } => BlkifRequest::from_discard(&BlkifRequestDiscard {
                operation: BLKIF_OP_DISCARD,
                id: u64::from(id),
                sector_number: *first,
                nr_sectors: *sectors,
                ..BlkifRequestDiscard::default()
            }),
        };
        let ring = self.ring.as_mut().ok_or(BlockError::Disconnected)?;
        // There are as many slots as ring entries, so the ring has room.
        ring.push_request(&request).map_err(|_| BlockError::Disconnected)?;
        self.statistics.requests += 1;
        self.slots[usize::from(id)] = Slot::Busy { lent, waker: None, abandoned: false };
        Ok(ring.publish_requests())
    }

    /// Makes a request whose segments are listed in a page of the frontend's.
    fn indirect(
        &mut self,
        dom: DomId,
        operation: u8,
        id: u16,
        first: u64,
        sectors: usize,
        granted: &Granted<Arc<Pages>>,
    ) -> Result<BlkifRequest, BlockError> {
        let list = match &mut self.lists[usize::from(id)] {
            Some(list) => list,
            empty => {
                let page = Pages::zeroed(1).map_err(|_| BlockError::Resources(Errno::ENOMEM))?;
                empty.insert(Granted::whole(page, dom, true).map_err(BlockError::Resources)?)
            }
        };
        let bytes = list.memory().bytes();
        for (index, segment) in segments(sectors, granted).enumerate() {
            bytes.write_value(index * size_of::<BlkifRequestSegment>(), &segment);
        }
        let mut request = BlkifRequestIndirect {
            operation: BLKIF_OP_INDIRECT,
            indirect_op: operation,
            nr_segments: granted.refs().len() as u16,
            id: u64::from(id),
            sector_number: first,
            ..BlkifRequestIndirect::default()
        };
        request.indirect_grefs[0] = list.gref(0).raw();
        Ok(BlkifRequest::from_indirect(&request))
    }

    /// Takes an answer. `Err`: the answer belongs to no request, or the answer came while the backend still uses the
    /// pages and may change what was read. Those pages stay out of use until the backend no longer uses the pages.
    fn complete(&mut self, response: &BlkifResponse) -> Result<Option<Waker>, &'static str> {
        const UNASKED: &str = "answer to no request";
        let slot = usize::try_from(response.id).ok().and_then(|id| self.slots.get_mut(id)).ok_or(UNASKED)?;
        if let Slot::Busy { lent, .. } = slot
            && let Some(granted) = lent.take()
            && granted.end().is_err()
        {
            return Err("answer before the pages were given back");
        }
        match core::mem::replace(slot, Slot::Free) {
            Slot::Busy { waker, abandoned, .. } => {
                if abandoned {
                    self.free.push(response.id as u16);
                } else {
                    *slot = Slot::Done(response.status);
                }
                Ok(waker)
            }
            other => {
                *slot = other;
                Err(UNASKED)
            }
        }
    }
}

/// Makes a request that holds its own segments.
fn direct(operation: u8, id: u16, first: u64, sectors: usize, granted: &Granted<Arc<Pages>>) -> BlkifRequest {
    let mut request = BlkifRequest {
        operation,
        nr_segments: granted.refs().len() as u8,
        id: u64::from(id),
        sector_number: first,
        ..BlkifRequest::default()
    };
    for (slot, segment) in request.seg.iter_mut().zip(segments(sectors, granted)) {
        *slot = segment;
    }
    request
}

/// The segments of a transfer: each segment is a whole page, and the last segment ends where the sectors end.
fn segments(sectors: usize, granted: &Granted<Arc<Pages>>) -> impl Iterator<Item = BlkifRequestSegment> {
    const _: () = assert!(PAGE_SIZE / SECTOR_SIZE <= 256);
    granted.refs().enumerate().map(move |(index, gref)| {
        let left = sectors - index * SECTORS_PER_PAGE;
        BlkifRequestSegment {
            gref: gref.raw(),
            first_sect: 0,
            last_sect: (left.min(SECTORS_PER_PAGE) - 1) as u8,
            ..BlkifRequestSegment::default()
        }
    })
}

/// The future that awaits the answer of one slot. If the caller drops the future early, the slot waits on for the
/// answer and is free after that.
struct Answer<'a> {
    queue: &'a Queue,
    id: u16,
}

impl Answer<'_> {
    fn poll(&self, waker: &Waker) -> Poll<Result<(), BlockError>> {
        let mut state = self.queue.state.lock();
        let broken = state.ring.is_none();
        match &mut state.slots[usize::from(self.id)] {
            Slot::Busy { waker: slot, .. } => {
                match slot {
                    Some(old) => old.clone_from(waker),
                    None => *slot = Some(waker.clone()),
                }
                Poll::Pending
            }
            Slot::Done(status) => Poll::Ready(match *status {
                BLKIF_RSP_OKAY => Ok(()),
                BLKIF_RSP_EOPNOTSUPP => Err(BlockError::Unsupported),
                _ => Err(BlockError::Io),
            }),
            Slot::Free => {
                debug_assert!(broken, "a slot freed under its request");
                Poll::Ready(Err(BlockError::Disconnected))
            }
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            match &mut state.slots[usize::from(self.id)] {
                Slot::Busy { abandoned, waker, .. } => {
                    *abandoned = true;
                    *waker = None;
                    return;
                }
                Slot::Free => return,
                done => *done = Slot::Free,
            }
            state.free.push(self.id);
        }
        self.queue.space.notify_one();
    }
}

/// Takes answers until the queue ends.
async fn pump(queue: Arc<Queue>) {
    loop {
        match turn(&queue) {
            Ok(true) => {}
            Ok(false) => {
                if let Either::Right(()) = select(queue.port.wait(), queue.stop.notified()).await {
                    return;
                }
            }
            Err(reason) => {
                log::error!("blkfront: backend d{}: {reason}; disconnected", queue.dom);
                queue.shut();
                return;
            }
        }
    }
}

/// Takes all answers that there are; `true` when there may be more.
fn turn(queue: &Queue) -> Result<bool, &'static str> {
    let mut freed = false;
    loop {
        let waker = {
            let mut state = queue.state.lock();
            let Some(ring) = state.ring.as_mut() else { return Ok(false) };
            let Some(response) = ring.next_response().map_err(|_| "ring overrun")? else { break };
            let free = state.free.len();
            let waker = state.complete(&response)?;
            freed |= state.free.len() > free;
            waker
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
    if freed {
        queue.space.notify_one();
    }
    let mut state = queue.state.lock();
    let Some(ring) = state.ring.as_mut() else { return Ok(false) };
    ring.arm_and_recheck().map_err(|_| "ring overrun")
}
