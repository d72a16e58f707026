//! One ring of the frontend, with its event channel.

use alloc::format;

use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::{PATIENCE_MS, SLOT_BYTES};
use crate::shared::Granted;
use crate::{Problem, Verdict};

/// One ring with its event channel.
pub struct Ring {
    memory: Granted,
    port: Port,
    /// Slots of the ring.
    pub slots: u32,
    /// Next request's index.
    pub produced: u32,
    /// Next response's index.
    pub consumed: u32,
}

impl Ring {
    /// Makes an empty ring of `pages` pages for `dom`, whose indices begin at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory, grant or port is left.
    pub fn new(dom: DomId, pages: usize, index: u32) -> Verdict<Self> {
        let memory = Granted::new(dom, pages, false)?;
        let port = open_port(dom)?;
        let fit = (pages * PAGE_SIZE - SLOTS) / SLOT_BYTES;
        let bytes = memory.bytes();
        let next = index.wrapping_add(1);
        for (offset, value) in [(REQ_PROD, index), (RSP_PROD, index), (REQ_EVENT, next), (RSP_EVENT, next)] {
            bytes.store_u32(offset, value);
        }
        Ok(Self { memory, port, slots: 1 << fit.ilog2(), produced: index, consumed: index })
    }

    /// Opens another port for `dom`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no port is left.
    pub fn open_port(&mut self, dom: DomId) -> Verdict {
        self.port = open_port(dom)?;
        Ok(())
    }

    /// The ring's memory.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.memory.bytes()
    }

    /// The grant of ring page `page`.
    pub fn gref(&self, page: usize) -> u32 {
        self.memory.gref(page)
    }

    /// The event channel's number.
    pub fn port_number(&self) -> u32 {
        self.port.number().raw()
    }

    /// Whether the backend has the ring mapped.
    pub fn in_use(&self) -> bool {
        self.memory.in_use()
    }

    fn slot(&self, index: u32) -> usize {
        SLOTS + (index & (self.slots - 1)) as usize * SLOT_BYTES
    }

    /// Writes a request into the next slot. The backend does not see the request before
    /// [`publish`](Self::publish).
    pub fn push(&mut self, request: &BlkifRequest) {
        self.bytes().write(self.slot(self.produced), request.as_bytes());
        self.produced = self.produced.wrapping_add(1);
    }

    /// Publishes all requests written so far, and notifies the backend.
    pub fn publish(&self) {
        self.bytes().store_u32(REQ_PROD, self.produced);
        self.port.notify();
    }

    /// Notifies the backend.
    pub fn notify(&self) {
        self.port.notify();
    }

    /// Forgets the events that have come.
    pub fn drain_events(&self) {
        while self.port.take_event() {}
    }

    /// Waits at most `ms` for an event, and returns whether an event came.
    pub async fn event(&self, ms: u64) -> bool {
        time::timeout(ms * 1_000_000, self.port.wait()).await.is_ok()
    }

    /// The number of responses that the case has not taken yet.
    pub fn waiting(&self) -> u32 {
        self.bytes().load_u32(RSP_PROD).wrapping_sub(self.consumed)
    }

    fn take(&mut self) -> BlkifResponse {
        let response = self.bytes().read_value(self.slot(self.consumed));
        self.consumed = self.consumed.wrapping_add(1);
        response
    }

    /// The next response. The case waits for the event that `rsp_event` asks for, so that a lost event is
    /// noticed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no response comes within [`PATIENCE_MS`], the backend claims more responses than
    /// there are requests, or no event comes with the response.
    pub async fn response(&mut self) -> Verdict<BlkifResponse> {
        let asked = self.produced.wrapping_sub(self.consumed);
        if self.waiting() == 0 {
            self.bytes().store_u32(RSP_EVENT, self.consumed.wrapping_add(1));
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            let end = time::now_ns() + PATIENCE_MS * 1_000_000;
            while self.waiting() == 0 {
                let left = end.saturating_sub(time::now_ns()) / 1_000_000;
                if left == 0 || !self.event(left).await {
                    ensure!(self.waiting() == 0, "there is a response, but no event though rsp_event asked");
                    return Err(Problem::Fail(format!("no response within {PATIENCE_MS} ms")));
                }
            }
        }
        let waiting = self.waiting();
        ensure!(waiting <= asked, "{waiting} responses to {asked} requests");
        Ok(self.take())
    }

    /// Checks that no response comes within `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a response comes.
    pub async fn silent(&mut self, ms: u64) -> Verdict {
        time::sleep(ms * 1_000_000).await;
        ensure_eq!(self.waiting(), 0, "responses that nobody asked for");
        Ok(())
    }

    /// Sends a request while nothing else is in flight, and returns the response to it.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no response comes, or the response has another id.
    pub async fn ask(&mut self, request: &BlkifRequest) -> Verdict<BlkifResponse> {
        self.push(request);
        self.publish();
        let response = self.response().await?;
        ensure_eq!(response.id, request.id, "the response's id");
        Ok(response)
    }

    /// Sends a request while nothing else is in flight, and returns the response's status.
    ///
    /// # Errors
    /// The errors of [`ask`](Self::ask).
    pub async fn status(&mut self, request: &BlkifRequest) -> Verdict<i16> {
        Ok(self.ask(request).await?.status)
    }

    /// Sends a request, and checks that the backend carries the request out.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend answers with an error, or not at all.
    pub async fn succeeds(&mut self, what: &str, request: &BlkifRequest) -> Verdict {
        let status = self.status(request).await?;
        ensure_eq!(status, BLKIF_RSP_OKAY, "status of {what}");
        Ok(())
    }

    /// Sends a request, and checks that the backend answers with any status but success.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the request succeeds, or the backend does not answer.
    pub async fn refused(&mut self, what: &str, request: &BlkifRequest) -> Verdict<i16> {
        let status = self.status(request).await?;
        ensure!(status < 0, "status of {what}: {status}, is to be an error");
        Ok(status)
    }
}

pub(super) fn open_port(dom: DomId) -> Verdict<Port> {
    Port::alloc_unbound(dom).map_err(|errno| Problem::Error(format!("alloc_unbound: {errno}")))
}
