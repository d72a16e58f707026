//! The backend's end of the ring: takes requests, checks them, carries them out and answers them.

use alloc::format;
use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::blkif::*;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS};
use ring_abi::types::GrantRef;

use super::{Asked, Back, GIVEN_UP_NS, PATIENCE_NS, SILENCE_NS};
use crate::blkfront::FrontError;
use crate::blkif::front::SLOT_BYTES;
use crate::{Problem, Verdict};

impl Back {
    /// The ring's indices: `req_prod`, `req_event`, `rsp_prod`, `rsp_event`.
    pub fn indices(&self) -> [u32; 4] {
        [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].map(|offset| self.ring().load_u32(offset))
    }

    /// The number of requests that the backend has not taken yet.
    pub fn waiting(&self) -> u32 {
        let cons = self.attached.as_ref().map_or(0, |attached| attached.req_cons);
        self.ring().load_u32(REQ_PROD).wrapping_sub(cons)
    }

    /// The next request. The backend waits for the event that `req_event` asks for, so that a lost event is
    /// noticed.
    ///
    /// # Errors
    /// [`Problem::Fail`]: no request comes, no event comes with the request, or the frontend claims more
    /// requests than the ring holds.
    pub async fn request(&mut self) -> Verdict<BlkifRequest> {
        let end = time::now_ns() + PATIENCE_NS;
        while self.waiting() == 0 {
            let wanted = self.attached().req_cons.wrapping_add(1);
            self.ring().store_u32(REQ_EVENT, wanted);
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            // A request that came before the frontend could see `req_event` has no event.
            if self.waiting() > 0 {
                break;
            }
            let attached = self.attached();
            let left = end.saturating_sub(time::now_ns());
            if time::timeout(left, attached.port.wait()).await.is_err() {
                ensure!(self.waiting() == 0, "there is a request, but no event though req_event asked");
                return Err(Problem::Fail("the frontend asks nothing".into()));
            }
        }
        let waiting = self.waiting();
        let attached = self.attached();
        let open = attached.req_cons.wrapping_sub(attached.rsp_prod);
        ensure!(waiting + open <= 32, "{waiting} new requests and {open} open ones on a ring of 32");
        let at = SLOTS + (attached.req_cons % 32) as usize * SLOT_BYTES;
        attached.req_cons = attached.req_cons.wrapping_add(1);
        Ok(self.ring().read_value(at))
    }

    /// Checks that the frontend sends no request.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend sends one.
    pub async fn silent(&self) -> Verdict {
        time::sleep(SILENCE_NS).await;
        ensure_eq!(self.waiting(), 0, "requests of a frontend that has nothing to ask");
        Ok(())
    }

    /// Writes a response into the next slot. The frontend does not see the response before
    /// [`publish`](Self::publish).
    pub fn push(&mut self, id: u64, operation: u8, status: i16) {
        let attached = self.attached();
        let at = SLOTS + (attached.rsp_prod % 32) as usize * SLOT_BYTES;
        attached.rsp_prod = attached.rsp_prod.wrapping_add(1);
        let response = BlkifResponse { id, operation, status, ..BlkifResponse::default() };
        self.ring().write_value(at, &response);
    }

    /// Shows the frontend all responses; notifies it where its `rsp_event` asks, or in any case if `always`.
    pub fn publish(&mut self, always: bool) {
        let new = self.attached().rsp_prod;
        let bytes = self.ring();
        let old = bytes.load_u32(RSP_PROD);
        bytes.swap_u32(RSP_PROD, new);
        let event = bytes.load_u32(RSP_EVENT);
        let attached = self.attached();
        if always || new.wrapping_sub(event) < new.wrapping_sub(old) {
            attached.port.notify();
        }
    }

    /// Publishes `ahead` responses more than were written, and notifies the frontend.
    pub fn claim(&mut self, ahead: u32) {
        let prod = self.attached().rsp_prod.wrapping_add(ahead);
        self.ring().store_u32(RSP_PROD, prod);
        self.notify();
    }

    /// Overwrites the frontend's own index.
    pub fn overwrite_req_prod(&mut self, value: u32) {
        self.ring().store_u32(REQ_PROD, value);
    }

    /// Fills all slots with `byte`.
    pub fn overwrite_slots(&mut self, byte: u8) {
        self.ring().fill(SLOTS, 32 * SLOT_BYTES, byte);
    }

    /// Sends an event.
    pub fn notify(&mut self) {
        self.attached().port.notify();
    }

    /// Answers one request at once.
    pub fn respond(&mut self, request: &BlkifRequest, status: i16) {
        self.push(request.id, operation_of(request), status);
        self.publish(false);
    }

    /// Checks each segment of a read or write, and returns the segments.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the request is not one that a frontend may make.
    pub fn segments(&self, request: &BlkifRequest) -> Verdict<(u8, Vec<BlkifRequestSegment>)> {
        let (operation, segments) = if request.operation == BLKIF_OP_INDIRECT {
            let indirect = request.as_indirect();
            let count = usize::from(indirect.nr_segments);
            ensure!(
                count > 0 && count <= self.disk.indirect,
                "{count} indirect segments of {}",
                self.disk.indirect
            );
            let mut list = Vec::new();
            for page in 0..count.div_ceil(SEGMENTS_PER_INDIRECT_PAGE) {
                let map = self.map(indirect.indirect_grefs[page], false)?;
                let here = (count - page * SEGMENTS_PER_INDIRECT_PAGE).min(SEGMENTS_PER_INDIRECT_PAGE);
                list.extend((0..here).map(|n| map.bytes().read_value::<BlkifRequestSegment>(n * 8)));
            }
            (indirect.indirect_op, list)
        } else {
            let count = usize::from(request.nr_segments);
            ensure!((1..=BLKIF_MAX_SEGMENTS_PER_REQUEST).contains(&count), "{count} segments in a request");
            (request.operation, request.seg[..count].to_vec())
        };
        ensure!(matches!(operation, BLKIF_OP_READ | BLKIF_OP_WRITE), "operation {operation} with segments");
        let unit = u64::from(self.disk.sector_size / 512);
        let mut sectors = 0;
        for segment in &segments {
            let BlkifRequestSegment { first_sect, last_sect, .. } = *segment;
            ensure!(first_sect <= last_sect && last_sect < 8, "a segment from {first_sect} to {last_sect}");
            let length = u64::from(last_sect - first_sect) + 1;
            ensure!(length.is_multiple_of(unit), "a segment of {length} sectors on a disk of {unit} each");
            sectors += length;
        }
        let first = request.sector_number;
        ensure!(first.is_multiple_of(unit), "a request at sector {first} of a disk of {unit} each");
        let inside = first.checked_add(sectors).is_some_and(|end| end <= self.disk.sectors);
        ensure!(inside, "sectors {first}+{sectors} of a disk of {}", self.disk.sectors);
        Ok((operation, segments))
    }

    fn map(&self, gref: u32, writable: bool) -> Verdict<GrantMap> {
        map_grants(self.dom, &[GrantRef::new(gref)], writable).map_err(|status| {
            Problem::Fail(format!("a page of a request ({gref}) cannot be mapped: {status}"))
        })
    }

    /// Checks that the frontend ends the grant of a page. If the backend had the page mapped a moment ago, the
    /// frontend may have to try again, so the check waits.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend does not do so in time.
    pub async fn grant_ends(&self, gref: u32) -> Verdict {
        let end = time::now_ns() + PATIENCE_NS;
        while self.grants(gref) {
            ensure!(time::now_ns() < end, "a frontend that has closed still grants its ring");
            time::sleep(50_000_000).await;
        }
        Ok(())
    }

    /// Waits until the frontend has set `req_prod` to another value than `old`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend does not do so in time.
    pub async fn req_prod_after(&self, old: u32) -> Verdict<u32> {
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            let now = self.indices()[0];
            if now != old {
                return Ok(now);
            }
            ensure!(time::now_ns() < end, "req_prod stays {old:#x} after another request");
            time::sleep(1_000_000).await;
        }
    }

    /// Whether a frontend still grants a page.
    pub fn grants(&self, gref: u32) -> bool {
        self.map(gref, false).is_ok()
    }

    /// Carries out a read or write without answering, and returns the grants that the request used.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the request is not one that a frontend may make.
    pub fn perform(&mut self, request: &BlkifRequest) -> Verdict<Vec<u32>> {
        let (operation, segments) = self.segments(request)?;
        let mut at = request.sector_number as usize * 512;
        for segment in &segments {
            let map = self.map(segment.gref, operation == BLKIF_OP_READ)?;
            let offset = usize::from(segment.first_sect) * 512;
            let end = at + (usize::from(segment.last_sect - segment.first_sect) + 1) * 512;
            if operation == BLKIF_OP_READ {
                map.bytes().write(offset, &self.data[at..end]);
            } else {
                map.bytes().read(offset, &mut self.data[at..end]);
            }
            at = end;
        }
        Ok(segments.iter().map(|segment| segment.gref).collect())
    }

    /// Takes requests, carries them out and answers them, until the frontend's operation ends.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a request is not one that a frontend may make, or the operation does not end.
    pub async fn serve<T>(&mut self, asked: Asked<T>) -> Verdict<Result<T, FrontError>> {
        let ended = self.serve_for(PATIENCE_NS, asked).await?;
        ended.ok_or_else(|| Problem::Fail("an operation of the frontend's does not end".into()))
    }

    /// [`serve`](Self::serve), for a connection that the frontend may have given up, as [`given_up`](Self::given_up).
    ///
    /// # Errors
    /// The errors of both.
    pub async fn serve_given_up<T>(&mut self, asked: Asked<T>) -> Verdict<Option<Result<T, FrontError>>> {
        if self.strict {
            return self.serve(asked).await.map(Some);
        }
        self.serve_for(GIVEN_UP_NS, asked).await
    }

    async fn serve_for<T>(
        &mut self,
        limit_ns: u64,
        mut asked: Asked<T>,
    ) -> Verdict<Option<Result<T, FrontError>>> {
        let end = time::now_ns() + limit_ns;
        while time::now_ns() < end {
            // This wait is short, so that a request that arrives meanwhile is soon served.
            if let Ok(result) = time::timeout(10_000, &mut asked).await {
                let result = result.map_err(|_| Problem::Fail("the frontend dropped an operation".into()))?;
                return Ok(Some(result));
            }
            while self.waiting() > 0 {
                let request = self.request().await?;
                self.perform(&request)?;
                self.push(request.id, operation_of(&request), BLKIF_RSP_OKAY);
            }
            self.publish(false);
        }
        Ok(None)
    }
}

/// The operation that a response must name. For an indirect request that is the operation inside, not
/// `BLKIF_OP_INDIRECT`: Linux takes a backend that answers otherwise for broken.
fn operation_of(request: &BlkifRequest) -> u8 {
    match request.operation {
        BLKIF_OP_INDIRECT => request.as_indirect().indirect_op,
        operation => operation,
    }
}
