//! One ring of the frontend's, of whichever of the three kinds.

use alloc::sync::Arc;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RingProtocol, SLOTS, slots};
use ring_abi::types::{DomId, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::PATIENCE_MS;
use crate::Verdict;
use crate::shared::FrontRing;

/// A ring of one page with its event channel, which another ring may share.
pub struct Ring<P> {
    ring: FrontRing,
    /// The backend's domain.
    pub(super) dom: DomId,
    protocol: PhantomData<P>,
}

impl<P> Deref for Ring<P> {
    type Target = FrontRing;

    fn deref(&self) -> &FrontRing {
        &self.ring
    }
}

impl<P> DerefMut for Ring<P> {
    fn deref_mut(&mut self) -> &mut FrontRing {
        &mut self.ring
    }
}

impl<P: RingProtocol> Ring<P> {
    /// Slots of the ring.
    pub const SLOTS: u32 = slots::<P>(PAGE_SIZE);

    /// An empty ring for `dom`, the ring's indices at `index`.
    ///
    /// # Errors
    /// [`Problem::Error`](crate::Problem::Error): no memory or grant is left.
    pub fn new(dom: DomId, port: &Arc<Port>, index: u32) -> Verdict<Self> {
        let ring = FrontRing::new(dom, 1, port.clone(), index)?;
        Ok(Self { ring, dom, protocol: PhantomData })
    }

    /// The grant of the ring's page.
    pub fn gref(&self) -> u32 {
        self.ring.gref(0)
    }

    fn slot(index: u32) -> usize {
        SLOTS + (index & (Self::SLOTS - 1)) as usize * P::SLOT_BYTES
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

    /// The next response if there is one, and its index.
    ///
    /// # Errors
    /// [`Problem::Fail`](crate::Problem::Fail): there are more responses than requests.
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

    /// The next response, and its index.
    ///
    /// # Errors
    /// The errors of [`FrontRing::answered`].
    pub async fn response<T: FromBytes + IntoBytes>(&mut self) -> Verdict<(u32, T)> {
        self.answered(PATIENCE_MS).await?;
        let index = self.consumed;
        self.consumed = index.wrapping_add(1);
        Ok((index, self.bytes().read_value(Self::slot(index))))
    }

    /// Waits until the backend's `req_event` asks for the next request.
    ///
    /// # Errors
    /// [`Problem::Fail`](crate::Problem::Fail): `req_event` stays another.
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
