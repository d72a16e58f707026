//! The ring itself: ids, indices, wake-ups, several pages and queues.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use pvrt::executor::time;
use ring_abi::io::blkif::*;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};

use super::front::{Front, Options, PATIENCE_MS, Ring, pattern, segment, transfer};
use super::transfers::PLACE;
use crate::shared::Granted;
use crate::{Env, Verdict};

cases! {
    needs [Store, Disk];

    "blkif.id.zero-and-max" = id_ends {
        title: "the ids 0 and 2^64-1",
        rule: "A response has the id of its request, whatever that is.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkif.id.each-bit" = id_bits {
        title: "an id for each bit",
        rule: "A response has all 64 bits of its request's id.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkif.id.in-errors" = id_in_errors {
        title: "ids of requests that are refused",
        rule: "A response has the id of its request, whatever its status.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkif.id.twice-at-once" = id_twice {
        title: "several requests with one id in flight",
        rule: "Ids are the frontend's own: equal ones are answered as often as they were asked.",
        source: "io/blkif.h, struct blkif_request, id",
    }
    "blkif.response.operation" = operation_echo {
        title: "the operation in the response to a read, a write and an unknown operation",
        rule: "A response has the operation of its request.",
        source: "io/blkif.h, struct blkif_response, operation",
    }
    "blkif.ring.full" = full {
        title: "as many requests at once as the ring has slots",
        rule: "A one-page ring holds 32 requests, each answered once, in any order.",
        source: "io/ring.h, __RING_SIZE; io/blkif.h",
    }
    "blkif.ring.full-again-and-again" = full_often {
        title: "the ring filled ten times",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "blkif.ring.one-at-a-time" = one_at_a_time {
        title: "a hundred requests, each after the response before",
        rule: "Indices run on: the slot of an index is its remainder by the ring's size.",
        source: "io/ring.h, RING_GET_REQUEST",
    }
    "blkif.ring.mixed-in-flight" = mixed {
        title: "reads of eleven pages and of one sector, and writes, all in flight",
        rule: "Requests may be answered out of order: the id says which.",
        source: "io/blkif.h, struct blkif_response, id",
    }
    "blkif.ring.indices-near-wrap" = near_wrap {
        title: "a ring whose indices start at 2^32-40",
        rule: "A backend takes the ring's indices as it finds them, and they wrap at 2^32.",
        source: "io/ring.h, BACK_RING_ATTACH",
    }
    "blkif.ring.unpublished" = unpublished {
        title: "a request in its slot behind req_prod",
        rule: "A request exists from the moment req_prod counts it, with or without an event.",
        source: "io/ring.h, RING_PUSH_REQUESTS",
    }
    "blkif.ring.events-without-requests" = spurious {
        title: "a hundred events and nothing asked",
        rule: "An event promises nothing: the indices say what there is.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "blkif.ring.req-event-is-armed" = req_event {
        title: "req_event once the backend has nothing to do",
        rule: "A backend that goes to sleep asks for an event with the next request: req_event is one more than req_prod.",
        source: "io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "blkif.ring.only-owed-events" = owed_events {
        title: "fifty requests, with events only where req_event asks",
        rule: "A backend sees every request whose event its req_event did not ask for.",
        source: "io/ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY",
    }
    "blkif.ring.rsp-event-of-the-fourth" = rsp_event_fourth {
        title: "rsp_event four responses ahead",
        rule: "A backend sends an event when its responses reach rsp_event.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "blkif.ring.requests-stay-readable" = slots_elsewhere {
        title: "the slots that hold no response",
        rule: "A response takes the first 16 bytes of the slot of its index, and no other slot.",
        source: "io/ring.h, RING_GET_RESPONSE; io/blkif.h, struct blkif_response",
    }
    "blkif.ring.overrun" = overrun {
        title: "req_prod one more than the ring holds ahead",
        rule: "A frontend that claims more requests than the ring holds gets no response for them, and may connect anew.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "blkif.ring.overrun-by-half" = overrun_half {
        title: "req_prod 2^31 ahead",
        rule: "A frontend that claims more requests than the ring holds gets no response for them, and may connect anew.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
    "blkif.ring.back" = backwards {
        title: "req_prod one less than it was",
        rule: "Indices only grow: one less is 2^32-1 more, an overrun.",
        source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW",
    }
}

async fn id_ends(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for id in [0, u64::MAX, 1 << 63, u64::from(u32::MAX), 1 << 32] {
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        request.id = id;
        front.ring().succeeds("a read", &request).await?;
    }
    front.close().await
}

async fn id_bits(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for half in 0..2 {
        let ids: Vec<u64> = (0..32).map(|bit| 1u64 << (half * 32 + bit)).collect();
        all_answered(front.ring(), &buffer, &ids).await?;
    }
    front.close().await
}

/// Publishes a one-sector read for each id at once. Checks that the backend answers each id as often as it was
/// used, and with success.
pub(super) async fn all_answered(ring: &mut Ring, buffer: &Granted, ids: &[u64]) -> Verdict {
    let mut open: BTreeMap<u64, u32> = BTreeMap::new();
    for (n, &id) in ids.iter().enumerate() {
        // At most 32 requests use one grant: a hypervisor may count the uses of a grant in seven bits.
        let page = buffer.gref(n / 32 % buffer.count());
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(page, 0, 0)]);
        request.id = id;
        ring.push(&request);
        *open.entry(id).or_default() += 1;
    }
    ring.publish();
    for _ in ids {
        let response = ring.response().await?;
        let left = open.get_mut(&response.id).filter(|left| **left > 0);
        ensure!(left.is_some(), "a response with id {:#x}, which is not open", response.id);
        ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {:#x}", response.id);
        if let Some(left) = left {
            *left -= 1;
        }
    }
    Ok(())
}

async fn id_in_errors(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for (operation, last) in [(BLKIF_OP_READ, 8), (BLKIF_OP_WRITE, 200), (77, 0)] {
        for id in [u64::MAX - 1, 0x8000_0001] {
            let mut request = transfer(operation, PLACE, &[segment(buffer.gref(0), 0, last)]);
            request.id = id;
            front.ring().refused("a bad request", &request).await?;
        }
    }
    front.close().await
}

async fn id_twice(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    all_answered(front.ring(), &buffer, &[5, 5, 6, 5, 6, 5, 5, 5]).await?;
    front.close().await
}

async fn operation_echo(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for operation in [BLKIF_OP_READ, BLKIF_OP_WRITE, 99] {
        let request = transfer(operation, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        let response = front.ring().ask(&request).await?;
        ensure_eq!(response.operation, operation, "the response's operation");
    }
    front.close().await
}

async fn full(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let ids: Vec<u64> = (0..32).map(|n| 1000 + n).collect();
    all_answered(front.ring(), &buffer, &ids).await?;
    front.close().await
}

async fn full_often(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for round in 0..10 {
        // Each round begins at another slot.
        let ids: Vec<u64> = (0..32 - round % 3).map(|n| round * 100 + n).collect();
        all_answered(front.ring(), &buffer, &ids).await?;
    }
    front.close().await
}

async fn one_at_a_time(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 8, 50).await?;
    let buffer = front.buffer(1)?;
    for n in 0..100u64 {
        let sector = PLACE + n % 8;
        let mut request = transfer(BLKIF_OP_READ, sector, &[segment(buffer.gref(0), 0, 0)]);
        request.id = n;
        front.ring().succeeds("a read", &request).await?;
        ensure_eq!(buffer.bytes().load_u8(0), pattern(sector, 50), "the first byte of read {n}");
    }
    front.close().await
}

async fn mixed(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    front.fill(PLACE, 88, 51).await?;
    let big = front.buffer(11)?;
    let small = front.buffer(1)?;
    let out = front.buffer(1)?;
    out.bytes().fill(0, 4096, 0x33);
    for round in 0..4u64 {
        let all: [_; 11] = core::array::from_fn(|page| segment(big.gref(page), 0, 7));
        let list = [
            transfer(BLKIF_OP_READ, PLACE, &all),
            transfer(BLKIF_OP_READ, PLACE + 5, &[segment(small.gref(0), 1, 1)]),
            transfer(BLKIF_OP_WRITE, PLACE + 100, &[segment(out.gref(0), 0, 7)]),
        ];
        for n in 0..30 {
            let mut request = list[n % 3];
            request.id = round << 8 | n as u64;
            front.ring().push(&request);
        }
        front.ring().publish();
        let mut seen = [false; 30];
        for _ in 0..30 {
            let response = front.ring().response().await?;
            let n = (response.id ^ round << 8) as usize;
            ensure!(n < 30 && !seen[n], "a response with id {:#x}, which is not open", response.id);
            seen[n] = true;
            ensure_eq!(response.status, BLKIF_RSP_OKAY, "status of request {n}");
            ensure_eq!(response.operation, list[n % 3].operation, "operation of response {n}");
        }
        ensure_eq!(small.bytes().load_u8(512), pattern(PLACE + 5, 51), "the sector read");
        ensure_eq!(big.bytes().load_u8(10 * 4096), pattern(PLACE + 80, 51), "the last page read");
    }
    front.close().await
}

async fn near_wrap(env: &mut Env) -> Verdict {
    let options = Options { index: 0u32.wrapping_sub(40), ..Options::default() };
    let mut front = Front::connect(env, &options).await?;
    let buffer = front.buffer(1)?;
    for round in 0..4u64 {
        let ids: Vec<u64> = (0..25).map(|n| round * 100 + n).collect();
        all_answered(front.ring(), &buffer, &ids).await?;
    }
    ensure!(front.ring().produced < 100, "the indices have wrapped");
    front.close().await
}

async fn unpublished(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().push(&request);
    front.ring().notify();
    front.ring().silent(100).await?;
    front.ring().publish();
    let response = front.ring().response().await?;
    ensure_eq!(response.id, request.id, "the response's id");
    front.close().await
}

async fn spurious(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for _ in 0..100 {
        front.ring().notify();
    }
    front.ring().silent(50).await?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().succeeds("a read", &request).await?;
    front.close().await
}

async fn req_event(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    for _ in 0..5 {
        let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        front.ring().succeeds("a read", &request).await?;
        let ring = front.ring();
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        let wanted = ring.produced.wrapping_add(1);
        while ring.bytes().load_u32(REQ_EVENT) != wanted && time::now_ns() < end {
            time::sleep(1_000_000).await;
        }
        ensure_eq!(ring.bytes().load_u32(REQ_EVENT), wanted, "req_event of an idle backend");
    }
    front.close().await
}

async fn owed_events(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let ring = front.ring();
    for n in 0..50u64 {
        let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        request.id = n;
        let old = ring.produced;
        ring.push(&request);
        ring.bytes().swap_u32(REQ_PROD, ring.produced);
        let event = ring.bytes().load_u32(REQ_EVENT);
        if ring.produced.wrapping_sub(event) < ring.produced.wrapping_sub(old) {
            ring.notify();
        }
        if n % 5 == 4 {
            for _ in 0..5 {
                ring.response().await?;
            }
        }
    }
    front.close().await
}

async fn rsp_event_fourth(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let ring = front.ring();
    for round in 0..3u64 {
        // Drops events that earlier requests have left.
        ring.drain_events();
        ring.bytes().store_u32(RSP_EVENT, ring.consumed.wrapping_add(4));
        for n in 0..4 {
            let mut request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
            request.id = round * 10 + n;
            ring.push(&request);
        }
        ring.publish();
        while ring.waiting() < 4 {
            ensure!(ring.event(PATIENCE_MS).await, "no event for the fourth response");
        }
        for _ in 0..4 {
            ring.response().await?;
        }
    }
    front.close().await
}

async fn slots_elsewhere(env: &mut Env) -> Verdict {
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let ring = front.ring();
    for slot in 0..32 {
        ring.bytes().fill(64 + slot * 112, 112, 0xcc);
    }
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    ring.succeeds("a read", &request).await?;
    for slot in 1..32 {
        for at in 0..112 {
            let got = ring.bytes().load_u8(64 + slot * 112 + at);
            ensure!(got == 0xcc, "byte {at} of slot {slot}, which holds no response, became {got:#x}");
        }
    }
    front.close().await
}

/// Claims `ahead` requests more than were written, then connects anew.
async fn claims(env: &mut Env, ahead: u32) -> Verdict {
    {
        let mut front = Front::usual(env).await?;
        let buffer = front.buffer(1)?;
        let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
        front.ring().succeeds("a read", &request).await?;
        let ring = front.ring();
        ring.bytes().store_u32(REQ_PROD, ring.produced.wrapping_add(ahead));
        ring.notify();
        time::sleep(100_000_000).await;
        let answered = ring.bytes().load_u32(RSP_PROD).wrapping_sub(ring.consumed);
        ensure_eq!(answered, 0, "responses to requests that cannot be");
    }
    let mut front = Front::usual(env).await?;
    let buffer = front.buffer(1)?;
    let request = transfer(BLKIF_OP_READ, PLACE, &[segment(buffer.gref(0), 0, 0)]);
    front.ring().succeeds("a read on a new ring", &request).await?;
    front.close().await
}

async fn overrun(env: &mut Env) -> Verdict {
    claims(env, 33).await
}

async fn overrun_half(env: &mut Env) -> Verdict {
    claims(env, 1 << 31).await
}

async fn backwards(env: &mut Env) -> Verdict {
    claims(env, u32::MAX).await
}
