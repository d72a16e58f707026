//! Several clients of one disk: what each client gets, and what each client makes the disk keep.

use super::*;

/// Once a disk is open, the disk takes no more memory for a client than the vbd's claim contains for this, whatever a
/// frontend with the largest ring asks for.
#[test]
fn a_client_makes_the_disk_keep_no_more_than_its_claim_has() {
    use backends::blk::{MAX_REQUESTS, MAX_SEGMENTS_IN_FLIGHT};
    let most = client_bytes(MAX_REQUESTS, MAX_SEGMENTS_IN_FLIGHT);
    // Number of pages of each request, number of requests that follow each other on the disk, and the first sector. The
    // rows have pairs, all requests in one, and the longest requests; the rows with 2047 do the same behind the disk's
    // end, where every request fails and each of its members goes to the device again.
    for (pages, joined, first) in [
        (6, 2, 0),
        (1, 128, 0),
        (8, 16, 0),
        (8, 1, 0),
        (2, 4, 0),
        (6, 2, 2047),
        (1, 128, 2047),
        (8, 16, 2047),
    ] {
        let (arena, device, blk) = disk(Limits::default());
        let client = Client::new(MAX_REQUESTS);
        let account = Account::claim(1 << 20).unwrap();
        let segments: Vec<_> = (0..pages).map(|_| (segment(&arena), segment(&arena)).0).collect();
        let frames = arena.frames();
        for round in 0..3 {
            let mut taken = 0;
            for tag in 0..MAX_REQUESTS as u32 {
                // Every second group of requests begins at a sector where the group before does not end, so that two
                // groups do not join.
                let row = first + u64::from(tag / joined % 2 * 512);
                let sector = row + u64::from(tag % joined) * 8 * pages as u64;
                let submit = || blk.inner.lock().submit_transfer(&client, tag, T_IN, sector, &segments);
                taken += usize::from(account.charge(submit).is_ok());
            }
            assert_eq!(taken, MAX_REQUESTS, "{pages} pages, {joined} joined");
            account.charge(|| blk.kick());
            for _ in 0..3 {
                device.run();
                account.charge(|| blk.service()).unwrap();
            }
            assert_eq!(ends(&client).len(), taken, "round {round}");
        }
        assert_eq!(arena.frames(), frames, "all its pages are there from the start");
        let peak = account.figures().unwrap().peak;
        assert!(peak > 0 && peak <= most, "{pages} pages, {joined} joined: {peak} of {most}");
    }
}

/// A disk is opened only with the pages for all requests that its queue can hold. So no request is turned away for want
/// of memory while nothing is under way whose end would call the request's client.
#[test]
fn a_disk_without_memory_for_its_queue_is_not_opened() {
    let count = {
        let (arena, ..) = disk(Limits::default());
        arena.frames()
    };
    for most in [0, 1, QUEUE_PAGES, QUEUE_PAGES + 3, count - 1] {
        let arena = Arena::default();
        arena.limit(most);
        let device = FakeDevice::new(&arena, Limits::default());
        let result = VirtioBlk::new("vda".into(), device.transport(), arena.clone(), 0);
        assert_eq!(result.err(), Some(BlkError::OutOfMemory), "{most} pages");
        assert!(device.was_reset());
    }
    let arena = Arena::default();
    arena.limit(count);
    let device = FakeDevice::new(&arena, Limits::default());
    assert!(VirtioBlk::new("vda".into(), device.transport(), arena.clone(), 0).is_ok());
}

/// One guest floods a shared disk with the longest requests and is always woken first; another guest wants one request
/// now and then.
#[test]
fn a_flood_leaves_a_neighbour_its_part() {
    for long in [false, true] {
        let (arena, device, blk) = disk(Limits { queue: 64, ..Limits::default() });
        let parts = if long { SLOT_ENTRIES } else { 1 };
        let scattered: Vec<_> = (0..parts).map(|_| (segment(&arena), segment(&arena)).0).collect();
        // The requests leave gaps between them on the disk, so that no two requests join.
        let read = |client: &Arc<Client>, tag: u32| {
            blk.submit(client, tag, BlockOp::Read, u64::from(tag % 64) * 16 % 1024, &scattered)
        };
        let (flood, modest) = (Client::new(256), Client::new(256));
        let mut waits = Vec::new();
        let mut tag = 0;
        for _ in 0..40 {
            while read(&flood, tag).is_ok() {
                tag += 1;
            }
            blk.kick();
            let mut waited = 0;
            while read(&modest, 1).is_err() {
                waited += 1;
                assert!(waited < 200, "long requests: {long}: starved");
                // The device ends one request. The flood, which has that request, takes what became free before any
                // other client does.
                blk.kick();
                device.run_some(1);
                blk.service().unwrap();
                take(&flood);
                while read(&flood, tag).is_ok() {
                    tag += 1;
                }
            }
            waits.push(waited);
            blk.kick();
            while take(&modest).is_empty() {
                device.run_some(1);
                blk.service().unwrap();
                take(&flood);
                while read(&flood, tag).is_ok() {
                    tag += 1;
                }
                blk.kick();
            }
        }
        let most = waits.iter().max().unwrap();
        assert!(*most <= 33, "long requests: {long}: waited for {most} of the neighbour's requests");
    }
}

/// A client that was turned away and wants nothing any more, or is gone, keeps nothing from the other clients.
#[test]
fn a_claim_that_is_not_taken_up_lapses() {
    let (arena, device, blk) = disk(Limits { queue: 16, ..Limits::default() });
    let one = [segment(&arena)];
    let (busy, idle) = (Client::new(64), Client::new(64));
    let read =
        |client: &Arc<Client>, tag: u32| blk.submit(client, tag, BlockOp::Read, u64::from(tag) * 16, &one);
    (0..16).for_each(|tag| read(&busy, tag).unwrap());
    assert_eq!(read(&idle, 0), Err(SubmitError::Full));
    {
        let gone = Client::new(1);
        assert_eq!(read(&gone, 0), Err(SubmitError::Full));
    }
    let held = |blk: &VirtioBlk<Arena>| blk.in_flight();
    for _ in 0..40 {
        blk.kick();
        device.run_some(1);
        blk.service().unwrap();
        take(&busy);
        while read(&busy, 17).is_ok() {}
    }
    assert_eq!(held(&blk), 16, "the busy one has all again");
}

/// Many short requests end before a table is free again. A client that waits for a table is called for each of these
/// ends, and keeps its place.
#[test]
fn who_asks_each_time_is_called_until_it_is_served() {
    let (arena, device, blk) = disk(Limits { queue: 256, ..Limits::default() });
    let scattered: Vec<_> = (0..SLOT_ENTRIES).map(|_| (segment(&arena), segment(&arena)).0).collect();
    let one = [segment(&arena)];
    let (flood, neighbour) = (Client::new(256), Client::new(4));
    for tag in 0..40u32 {
        blk.submit(&flood, tag, BlockOp::Read, u64::from(tag) * 16, &one).unwrap();
    }
    for tag in 0..MAX_TABLES as u32 {
        blk.submit(&flood, 100 + tag, BlockOp::Read, u64::from(tag % 10) * 128, &scattered).unwrap();
    }
    blk.kick();
    let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
    let try_it = || blk.submit(&neighbour, 7, BlockOp::Read, 0, &scattered);
    assert_eq!(try_it(), Err(SubmitError::Full));
    let (mut served, mut calls) = (false, 0);
    for _ in 0..2000 {
        device.run_some(1);
        blk.service().unwrap();
        take(&flood);
        if neighbour.poll_ready(&mut cx).is_ready() {
            calls += 1;
            take(&neighbour);
            served = served || try_it().is_ok();
            blk.kick();
        }
    }
    assert_eq!(blk.in_flight(), 0, "the device is idle");
    assert!(served, "called {calls} times, and never again: the neighbour waits for ever on an idle disk");
}

#[test]
fn a_full_queue_turns_away_and_calls_back() {
    for indirect in [true, false] {
        let (arena, device, blk) = disk(Limits { queue: 16, indirect, ..Limits::default() });
        let (client, other) = (Client::new(2), Client::new(2));
        let segments = [segment(&arena)];
        let mut taken = 0;
        while blk.submit(&client, taken, BlockOp::Read, 0, &segments).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, if indirect { 16 } else { 5 });
        assert_eq!(blk.submit(&other, 0, BlockOp::Read, 0, &segments), Err(SubmitError::Full));
        assert_eq!(blk.submit(&other, 0, BlockOp::Discard { sectors: 1 }, 0, &[]), Err(SubmitError::Full));
        blk.kick();
        device.run();
        blk.service().unwrap();
        let mut cx = core::task::Context::from_waker(core::task::Waker::noop());
        assert!(other.poll_ready(&mut cx).is_ready());
        assert_eq!(take(&client).len(), taken as usize);
        assert!(blk.submit(&other, 0, BlockOp::Read, 0, &segments).is_ok());
    }
}
