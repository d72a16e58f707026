//! The frontend's end of a ring.

use core::marker::PhantomData;

use zerocopy::{FromZeros, IntoBytes};

use super::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingError, RingPage, RingProtocol, initialise, must_notify,
    slot_offset, slots,
};

/// Gives requests and takes responses.
pub struct FrontRing<P, M> {
    page: M,
    size: u32,
    /// Requests written, published or not.
    req_prod_pvt: u32,
    /// Requests published: our own memory of `req_prod`.
    req_prod: u32,
    /// Next response to take.
    rsp_cons: u32,
    protocol: PhantomData<fn(P)>,
}

impl<P: RingProtocol, M: RingPage> FrontRing<P, M> {
    /// Makes an empty ring in memory that the frontend has not granted yet.
    ///
    /// # Errors
    /// [`RingError::TooSmall`]: no slot fits the memory.
    pub fn new(page: M) -> Result<Self, RingError> {
        Self::starting_at(page, 0)
    }

    /// Like [`Self::new`], with indices that start at `index`.
    ///
    /// # Errors
    /// [`RingError::TooSmall`]: no slot fits the memory.
    pub fn starting_at(page: M, index: u32) -> Result<Self, RingError> {
        let size = slots::<P>(page.ring_bytes());
        if size == 0 {
            return Err(RingError::TooSmall);
        }
        initialise(&page, index);
        Ok(Self { page, size, req_prod_pvt: index, req_prod: index, rsp_cons: index, protocol: PhantomData })
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Number of requests that [`Self::push_request`] accepts before the frontend takes a response.
    #[must_use]
    pub const fn free_requests(&self) -> u32 {
        self.size - self.req_prod_pvt.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request. The backend sees the request after [`Self::publish_requests`].
    ///
    /// # Errors
    /// [`RingError::Full`]: every slot holds a request without a response that was taken.
    pub fn push_request(&mut self, request: &P::Request) -> Result<(), RingError> {
        if self.free_requests() == 0 {
            return Err(RingError::Full);
        }
        self.page.copy_in(slot_offset::<P>(self.req_prod_pvt, self.size), request.as_bytes());
        self.req_prod_pvt = self.req_prod_pvt.wrapping_add(1);
        Ok(())
    }

    /// Shows the backend the requests written so far. `true`: the caller must notify the backend.
    #[must_use = "the backend sleeps until it is notified"]
    pub fn publish_requests(&mut self) -> bool {
        let (old, new) = (self.req_prod, self.req_prod_pvt);
        if old == new {
            return false;
        }
        self.page.store_index(REQ_PROD, new);
        self.req_prod = new;
        // The store comes before the load: otherwise a backend that arms now and looks again could miss this request.
        self.page.full_barrier();
        must_notify(old, new, self.page.load_index(REQ_EVENT))
    }

    /// Number of responses that wait to be taken.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the backend claims to have answered requests that the frontend never sent.
    pub fn unconsumed(&self) -> Result<u32, RingError> {
        // Pairs with the barrier before the backend publishes `rsp_prod`.
        let rsp_prod = self.page.load_index(RSP_PROD);
        let pending = rsp_prod.wrapping_sub(self.rsp_cons);
        if pending > self.req_prod.wrapping_sub(self.rsp_cons) {
            return Err(RingError::ProducerOverrun { prod: rsp_prod, cons: self.rsp_cons });
        }
        Ok(pending)
    }

    /// Takes the next response; `None` if no response waits.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the backend claims to have answered requests that the frontend never sent.
    pub fn next_response(&mut self) -> Result<Option<P::Response>, RingError> {
        if self.unconsumed()? == 0 {
            return Ok(None);
        }
        let mut response = P::Response::new_zeroed();
        self.page.copy_out(slot_offset::<P>(self.rsp_cons, self.size), response.as_mut_bytes());
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// Asks the backend to notify of the next response, then looks again. `true`: responses wait already.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the backend claims to have answered requests that the frontend never sent.
    pub fn arm_and_recheck(&mut self) -> Result<bool, RingError> {
        if self.unconsumed()? > 0 {
            return Ok(true);
        }
        self.page.store_index(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.page.full_barrier();
        Ok(self.unconsumed()? > 0)
    }

    /// The ring's memory.
    pub const fn page(&self) -> &M {
        &self.page
    }

    /// Gives the memory back.
    pub fn into_page(self) -> M {
        self.page
    }
}
