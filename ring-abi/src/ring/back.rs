//! The backend's end of a ring.

use core::marker::PhantomData;

use zerocopy::{FromZeros, IntoBytes};

use super::{
    REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, RingError, RingPage, RingProtocol, must_notify, slot_offset,
    slots,
};

/// A message where a copy in words is possible, however small the message's own fields are.
#[repr(align(8))]
struct Aligned<T>(T);

/// Takes requests and gives responses.
pub struct BackRing<P, M> {
    page: M,
    size: u32,
    /// Next request to take.
    req_cons: u32,
    /// The requests before this index are known to wait: `req_prod` as it was when this end looked and checked. An end
    /// that works through a batch looks once.
    known: u32,
    /// Responses written, published or not.
    rsp_prod_pvt: u32,
    /// Responses published: our own memory of `rsp_prod`.
    rsp_prod: u32,
    protocol: PhantomData<fn(P)>,
}

impl<P: RingProtocol, M: RingPage> BackRing<P, M> {
    /// Attaches to a new ring, all of whose indices are 0.
    ///
    /// # Errors
    /// [`RingError::TooSmall`]: no slot fits the page.
    pub fn new(page: M) -> Result<Self, RingError> {
        Self::at(page, 0)
    }

    /// Attaches to a ring that an earlier backend served. The backend takes every request without a response again.
    ///
    /// # Errors
    /// - [`RingError::TooSmall`]: no slot fits the page.
    /// - [`RingError::ProducerOverrun`]: the page's indices cannot belong together.
    pub fn attach(page: M) -> Result<Self, RingError> {
        let rsp_prod = page.load_index(RSP_PROD);
        let ring = Self::at(page, rsp_prod)?;
        ring.unconsumed()?;
        Ok(ring)
    }

    fn at(page: M, index: u32) -> Result<Self, RingError> {
        let size = slots::<P>(page.ring_bytes());
        if size == 0 {
            return Err(RingError::TooSmall);
        }
        let (req_cons, known, rsp_prod_pvt, rsp_prod) = (index, index, index, index);
        Ok(Self { page, size, req_cons, known, rsp_prod_pvt, rsp_prod, protocol: PhantomData })
    }

    /// Slots of the ring.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Requests taken and not yet answered by [`Self::push_response`].
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod_pvt)
    }

    /// Number of requests that wait to be taken.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the frontend claims more requests than the frontend has free slots.
    pub fn unconsumed(&self) -> Result<u32, RingError> {
        // Pairs with the barrier before the frontend publishes `req_prod`.
        let req_prod = self.page.load_index(REQ_PROD);
        let pending = req_prod.wrapping_sub(self.req_cons);
        // A slot is free for the frontend only once the slot's response is published, so this number is at most `size`.
        let occupied = self.req_cons.wrapping_sub(self.rsp_prod);
        if pending > self.size - occupied {
            return Err(RingError::ProducerOverrun { prod: req_prod, cons: self.req_cons });
        }
        Ok(pending)
    }

    /// Number of requests that wait to be taken, at least. The result is below `count` only if fewer than `count` wait.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`], as [`Self::unconsumed`] says.
    #[inline]
    pub fn waiting(&mut self, count: u32) -> Result<u32, RingError> {
        let known = self.known.wrapping_sub(self.req_cons);
        if known >= count { Ok(known) } else { self.look() }
    }

    #[inline(never)]
    fn look(&mut self) -> Result<u32, RingError> {
        let pending = self.unconsumed()?;
        self.known = self.req_cons.wrapping_add(pending);
        Ok(pending)
    }

    /// Takes the next request; `None` if the ring is empty.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the frontend claims more requests than it has free slots. Nothing on this ring
    /// can be trusted: the caller disconnects.
    pub fn next_request(&mut self) -> Result<Option<P::Request>, RingError> {
        let pending = self.look()?;
        Ok((pending > 0).then(|| self.peek().take()))
    }

    /// Like [`Self::next_request`], for an end that works through a batch: looks at the frontend's index only when no
    /// request is known to wait, so that a lie in the index shows a few requests later.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`], as [`Self::next_request`] says.
    #[inline(always)]
    pub fn next_in_batch(&mut self) -> Result<Option<P::Request>, RingError> {
        Ok(self.peek_in_batch()?.map(Waiting::take))
    }

    /// Takes the next of the requests that [`Self::waiting`] said wait.
    ///
    /// # Panics
    /// If it did not say so of this request: the caller's mistake.
    #[inline(always)]
    pub fn next_known(&mut self) -> P::Request {
        assert!(self.known != self.req_cons, "a request that is not known to wait");
        self.peek().take()
    }

    /// Like [`Self::next_in_batch`], and leaves the request on the ring until [`Waiting::take`].
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`], as [`Self::next_request`] says.
    #[inline(always)]
    pub fn peek_in_batch(&mut self) -> Result<Option<Waiting<'_, P, M>>, RingError> {
        let pending = self.waiting(1)?;
        Ok((pending > 0).then(|| self.peek()))
    }

    /// A copy of the next request. The caller knows that there is a request.
    #[inline(always)]
    fn peek(&mut self) -> Waiting<'_, P, M> {
        let mut request = Aligned(P::Request::new_zeroed());
        self.page.copy_out(slot_offset::<P>(self.req_cons, self.size), request.0.as_mut_bytes());
        Waiting { request: request.0, ring: self }
    }

    /// Writes a response. The frontend sees the response after [`Self::publish_responses`].
    ///
    /// # Panics
    /// If the backend has answered every request that it took.
    #[inline(always)]
    pub fn push_response(&mut self, response: &P::Response) {
        assert!(self.in_flight() > 0, "response without a request");
        let response = Aligned(*response);
        self.page.copy_in(slot_offset::<P>(self.rsp_prod_pvt, self.size), response.0.as_bytes());
        self.rsp_prod_pvt = self.rsp_prod_pvt.wrapping_add(1);
    }

    /// Writes many responses, as [`Self::push_response`] does one.
    ///
    /// # Panics
    /// If the backend has not taken so many requests without an answer.
    #[inline(always)]
    pub fn push_responses(&mut self, responses: impl ExactSizeIterator<Item = P::Response>) {
        let end = self.rsp_prod_pvt.wrapping_add(responses.len() as u32);
        assert!(responses.len() <= self.in_flight() as usize, "responses without a request");
        for (response, index) in responses
            .zip(core::iter::successors(Some(self.rsp_prod_pvt), |index| Some(index.wrapping_add(1))))
        {
            let response = Aligned(response);
            self.page.copy_in(slot_offset::<P>(index, self.size), response.0.as_bytes());
        }
        self.rsp_prod_pvt = end;
    }

    /// Index of the next response that [`Self::push_response`] writes.
    #[must_use]
    pub const fn next_response(&self) -> u32 {
        self.rsp_prod_pvt
    }

    /// Changes the response at `index` ([`Self::next_response`] when the response was written), which the backend has
    /// not published yet. The frontend may have written to the slot meanwhile; so `change` gives no value of the slot to
    /// anybody but the frontend.
    ///
    /// # Panics
    /// If the backend has published the response, or has not written the response.
    pub fn amend_response(&mut self, index: u32, change: impl FnOnce(&mut P::Response)) {
        let written = self.rsp_prod_pvt.wrapping_sub(self.rsp_prod);
        assert!(index.wrapping_sub(self.rsp_prod) < written, "no response of ours");
        let offset = slot_offset::<P>(index, self.size);
        let mut response = P::Response::new_zeroed();
        self.page.copy_out(offset, response.as_mut_bytes());
        change(&mut response);
        self.page.copy_in(offset, response.as_bytes());
    }

    /// Shows the frontend the responses written so far. `true`: the caller must notify the frontend.
    #[must_use = "the frontend sleeps until it is notified"]
    pub fn publish_responses(&mut self) -> bool {
        let (old, new) = (self.rsp_prod, self.rsp_prod_pvt);
        if old == new {
            return false;
        }
        self.page.store_index(RSP_PROD, new);
        self.rsp_prod = new;
        // The store comes before the load: otherwise a frontend that arms now and looks again could miss this response.
        self.page.full_barrier();
        must_notify(old, new, self.page.load_index(RSP_EVENT))
    }

    /// Asks the frontend to notify of the next request, then looks again. `true`: requests wait already.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the frontend claims more requests than it has free slots.
    pub fn arm_and_recheck(&mut self) -> Result<bool, RingError> {
        self.arm_for(1)
    }

    /// Asks the frontend to notify when `count` requests wait, 1 to [`Self::size`], then looks again. `true`: so many
    /// wait already.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the frontend claims more requests than it has free slots.
    pub fn arm_for(&mut self, count: u32) -> Result<bool, RingError> {
        if self.unconsumed()? >= count {
            return Ok(true);
        }
        self.page.store_index(REQ_EVENT, self.req_cons.wrapping_add(count));
        self.page.full_barrier();
        Ok(self.unconsumed()? >= count)
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

/// A request that waits on the ring: a private copy, which stays what it was whatever the frontend does to the slot.
pub struct Waiting<'a, P: RingProtocol, M> {
    request: P::Request,
    ring: &'a mut BackRing<P, M>,
}

impl<P: RingProtocol, M> Waiting<'_, P, M> {
    /// The copy.
    #[must_use]
    pub const fn request(&self) -> &P::Request {
        &self.request
    }

    /// Takes the request from the ring.
    #[inline]
    pub fn take(self) -> P::Request {
        self.ring.req_cons = self.ring.req_cons.wrapping_add(1);
        self.request
    }
}
