//! Memory of a case that another domain uses.

use alloc::format;
use alloc::sync::Arc;
use core::sync::atomic::{Ordering, fence};

use pvrt::event::Port;
use pvrt::executor::time;
use pvrt::grant::Granted as Lent;
use pvrt::mem::Pages;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::DomId;

use crate::{Problem, Verdict};

/// Pages with a grant for each. Dropped, they are freed once the other domain no longer uses them.
pub struct Granted(Lent);

impl Granted {
    /// `count` zeroed pages that `dom` may read and, unless `readonly`, write.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant entries are left.
    pub fn new(dom: DomId, count: usize, readonly: bool) -> Verdict<Self> {
        let pages = Pages::zeroed(count).map_err(|_| Problem::Error("out of memory".into()))?;
        Lent::whole(pages, dom, readonly)
            .map(Self)
            .map_err(|errno| Problem::Error(alloc::format!("granting a page: {errno}")))
    }

    /// The bytes of all pages.
    pub fn bytes(&self) -> SharedBytes<'_> {
        self.0.shared()
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.0.refs().len()
    }

    /// The grant reference of page `page`.
    pub fn gref(&self, page: usize) -> u32 {
        self.0.gref(page).raw()
    }

    /// Whether the other domain has any of the pages mapped.
    pub fn in_use(&self) -> bool {
        self.0.in_use()
    }
}

/// A frontend's ring as a case keeps it, whatever its requests are: the pages, the indices and the event channel.
pub struct FrontRing {
    memory: Granted,
    /// The event channel, which another ring may share.
    pub port: Arc<Port>,
    /// Next request's index.
    pub produced: u32,
    /// Next response's index.
    pub consumed: u32,
}

impl FrontRing {
    /// An empty ring of `pages` pages for `dom`, whose indices begin at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn new(dom: DomId, pages: usize, port: Arc<Port>, index: u32) -> Verdict<Self> {
        let memory = Granted::new(dom, pages, false)?;
        let (bytes, next) = (memory.bytes(), index.wrapping_add(1));
        for (offset, value) in [(REQ_PROD, index), (RSP_PROD, index), (REQ_EVENT, next), (RSP_EVENT, next)] {
            bytes.store_u32(offset, value);
        }
        Ok(Self { memory, port, produced: index, consumed: index })
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

    /// Requests of which no response was taken.
    pub fn open(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed)
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

    /// Waits until there is a response. The wait is for the event that `rsp_event` asks for, so that a lost event is noticed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none within `ms`, the backend claims more responses than there are requests, or no event comes with
    /// the response.
    pub async fn answered(&self, ms: u64) -> Verdict {
        let end = time::now_ns() + ms * 1_000_000;
        while self.waiting() == 0 {
            self.bytes().store_u32(RSP_EVENT, self.consumed.wrapping_add(1));
            fence(Ordering::SeqCst);
            if self.waiting() > 0 {
                break;
            }
            let left = end.saturating_sub(time::now_ns()) / 1_000_000;
            if left == 0 || !self.event(left).await {
                ensure!(self.waiting() == 0, "there is a response, but no event though rsp_event asked");
                return Err(Problem::Fail(format!("no response within {ms} ms")));
            }
        }
        let (waiting, open) = (self.waiting(), self.open());
        ensure!(waiting <= open, "{waiting} responses to {open} requests");
        Ok(())
    }

    /// Checks that no response comes within `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a response comes.
    pub async fn silent(&self, ms: u64) -> Verdict {
        time::sleep(ms * 1_000_000).await;
        ensure_eq!(self.waiting(), 0, "responses that nobody asked for");
        Ok(())
    }
}

/// Opens a port for `dom`.
///
/// # Errors
/// [`Problem::Error`]: no port is left.
pub fn open_port(dom: DomId) -> Verdict<Port> {
    Port::alloc_unbound(dom).map_err(|errno| Problem::Error(format!("alloc_unbound: {errno}")))
}
