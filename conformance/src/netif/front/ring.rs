//! One ring of the frontend's, of whichever of the three kinds.

use alloc::format;
use alloc::sync::Arc;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering, fence};

use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingProtocol, SLOTS, slots};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::PATIENCE_MS;
use crate::shared::Granted;
use crate::{Problem, Verdict};

/// A ring of one page with its event channel, which another ring may share.
pub struct Ring<P> {
    memory: Granted,
    port: Arc<Port>,
    /// The backend's domain.
    pub(super) dom: DomId,
    /// Next request's index.
    pub produced: u32,
    /// Next response's index.
    pub consumed: u32,
    protocol: PhantomData<P>,
}

impl<P: RingProtocol> Ring<P> {
    /// Slots of the ring.
    pub const SLOTS: u32 = slots::<P>(PAGE_SIZE);

    /// An empty ring for `dom`, the ring's indices at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn new(dom: DomId, port: &Arc<Port>, index: u32) -> Verdict<Self> {
        let memory = Granted::new(dom, 1, false)?;
        let next = index.wrapping_add(1);
        for (offset, value) in [(REQ_PROD, index), (RSP_PROD, index), (REQ_EVENT, next), (RSP_EVENT, next)] {
            memory.bytes().store_u32(offset, value);
        }
        Ok(Self { memory, port: port.clone(), dom, produced: index, consumed: index, protocol: PhantomData })
    }

    /// The ring's memory.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.memory.bytes()
    }

    /// The grant of the ring's page.
    pub fn gref(&self) -> u32 {
        self.memory.gref(0)
    }

    /// The event channel's number.
    pub fn port_number(&self) -> u32 {
        self.port.number().raw()
    }

    /// Whether the backend has the ring mapped.
    pub fn in_use(&self) -> bool {
        self.memory.in_use()
    }

    fn slot(index: u32) -> usize {
        SLOTS + (index & (Self::SLOTS - 1)) as usize * P::SLOT_BYTES
    }

    /// Requests of which no response was taken.
    pub fn open(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed)
    }

    /// Writes a request into the next slot, unseen as yet.
    pub fn push<T: IntoBytes + Immutable>(&mut self, request: &T) {
        self.bytes().write(Self::slot(self.produced), request.as_bytes());
        self.produced = self.produced.wrapping_add(1);
    }

    /// Shows the backend all requests written, and notifies the backend where its `req_event` asks.
    pub fn publish(&self) -> bool {
        let old = self.bytes().swap_u32(REQ_PROD, self.produced);
        let event = self.bytes().load_u32(REQ_EVENT);
        let wanted = self.produced.wrapping_sub(event) < self.produced.wrapping_sub(old);
        if wanted {
            self.notify();
        }
        wanted
    }

    /// Claims `req_prod` to be `value`, and notifies the backend.
    pub fn claim(&self, value: u32) {
        self.bytes().store_u32(REQ_PROD, value);
        self.notify();
    }

    /// Notifies the backend.
    pub fn notify(&self) {
        self.port.notify();
    }

    /// Forgets the events that have come.
    pub fn drain_events(&self) {
        while self.port.take_event() {}
    }

    /// Waits for an event, at most `ms`; whether one came.
    pub async fn event(&self, ms: u64) -> bool {
        time::timeout(ms * 1_000_000, self.port.wait()).await.is_ok()
    }

    /// Responses that wait.
    pub fn waiting(&self) -> u32 {
        self.bytes().load_u32(RSP_PROD).wrapping_sub(self.consumed)
    }

    /// The next response if there is one, and its index.
    ///
    /// # Errors
    /// [`Problem::Fail`]: there are more responses than requests.
    pub fn take<T: FromBytes + IntoBytes>(&mut self) -> Verdict<Option<(u32, T)>> {
        let (waiting, open) = (self.waiting(), self.open());
        ensure!(waiting <= open, "{waiting} responses to {open} requests");
        if waiting == 0 {
            return Ok(None);
        }
        let index = self.consumed;
        self.consumed = index.wrapping_add(1);
        Ok(Some((index, self.bytes().read_value(Self::slot(index)))))
    }

    /// The next response, and its index. The wait is for the event that `rsp_event` asks for, so that a lost event is
    /// noticed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none within [`PATIENCE_MS`], more than there are requests, or no event with it.
    pub async fn response<T: FromBytes + IntoBytes>(&mut self) -> Verdict<(u32, T)> {
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        loop {
            if let Some(response) = self.take()? {
                return Ok(response);
            }
            self.bytes().store_u32(RSP_EVENT, self.consumed.wrapping_add(1));
            fence(Ordering::SeqCst);
            if self.waiting() > 0 {
                continue;
            }
            let left = end.saturating_sub(time::now_ns()) / 1_000_000;
            if left == 0 || !self.event(left).await {
                ensure!(self.waiting() == 0, "there is a response, but no event though rsp_event asked");
                return Err(Problem::Fail(format!("no response within {PATIENCE_MS} ms")));
            }
        }
    }

    /// Looks that no response comes within `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one does.
    pub async fn silent(&self, ms: u64) -> Verdict {
        time::sleep(ms * 1_000_000).await;
        ensure_eq!(self.waiting(), 0, "responses that nobody asked for");
        Ok(())
    }

    /// Waits until the backend's `req_event` asks for the next request.
    ///
    /// # Errors
    /// [`Problem::Fail`]: `req_event` stays another.
    pub async fn armed(&self) -> Verdict {
        let wanted = self.produced.wrapping_add(1);
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        while self.bytes().load_u32(REQ_EVENT) != wanted && time::now_ns() < end {
            time::sleep(1_000_000).await;
        }
        ensure_eq!(self.bytes().load_u32(REQ_EVENT), wanted, "req_event of an idle backend");
        Ok(())
    }
}
