//! One ring of the frontend, with its event channel.

use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};

use ring_abi::io::blkif::*;
use ring_abi::ring::{REQ_PROD, SLOTS};
use ring_abi::types::{DomId, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::{PATIENCE_MS, SLOT_BYTES};
use crate::Verdict;
use crate::shared::{FrontRing, open_port};

/// One ring with its event channel.
pub struct Ring {
    ring: FrontRing,
    /// Slots of the ring.
    pub slots: u32,
}

impl Deref for Ring {
    type Target = FrontRing;

    fn deref(&self) -> &FrontRing {
        &self.ring
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut FrontRing {
        &mut self.ring
    }
}

impl Ring {
    /// Makes an empty ring of `pages` pages for `dom`, whose indices begin at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`](crate::Problem::Error): no memory, grant or port is left.
    pub fn new(dom: DomId, pages: usize, index: u32) -> Verdict<Self> {
        let fit = (pages * PAGE_SIZE - SLOTS) / SLOT_BYTES;
        let ring = FrontRing::new(dom, pages, Arc::new(open_port(dom)?), index)?;
        Ok(Self { ring, slots: 1 << fit.ilog2() })
    }

    /// Opens another port for `dom`.
    ///
    /// # Errors
    /// [`Problem::Error`](crate::Problem::Error): no port is left.
    pub fn open_port(&mut self, dom: DomId) -> Verdict {
        self.port = Arc::new(open_port(dom)?);
        Ok(())
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

    fn take(&mut self) -> BlkifResponse {
        let response = self.bytes().read_value(self.slot(self.consumed));
        self.consumed = self.consumed.wrapping_add(1);
        response
    }

    /// The next response.
    ///
    /// # Errors
    /// The errors of [`FrontRing::answered`].
    pub async fn response(&mut self) -> Verdict<BlkifResponse> {
        self.answered(PATIENCE_MS).await?;
        Ok(self.take())
    }

    /// Sends a request while nothing else is in flight, and returns the response to it.
    ///
    /// # Errors
    /// [`Problem::Fail`](crate::Problem::Fail): no response comes, or the response has another id.
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
    /// [`Problem::Fail`](crate::Problem::Fail): the backend answers with an error, or not at all.
    pub async fn succeeds(&mut self, what: &str, request: &BlkifRequest) -> Verdict {
        let status = self.status(request).await?;
        ensure_eq!(status, BLKIF_RSP_OKAY, "status of {what}");
        Ok(())
    }

    /// Sends a request, and checks that the backend answers with any status but success.
    ///
    /// # Errors
    /// [`Problem::Fail`](crate::Problem::Fail): the request succeeds, or the backend does not answer.
    pub async fn refused(&mut self, what: &str, request: &BlkifRequest) -> Verdict<i16> {
        let status = self.status(request).await?;
        ensure!(status < 0, "status of {what}: {status}, is to be an error");
        Ok(status)
    }
}
