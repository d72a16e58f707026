//! Several clients of one disk: what each client gets, and what each client makes the disk keep.

use super::*;

/// The device ends its oldest command.
fn end_one(queue: &Queue) {
    queue.with(|device| {
        if !device.has.is_empty() {
            let slot = device.has.remove(0).slot;
            device.ended.push((slot, true));
        }
    });
    queue.service().unwrap();
}

/// A client that floods a disk leaves a neighbour its part: the neighbour waits for no more of the flood's requests than
/// the disk has slots, and half of them at most once it is known.
#[test]
fn a_flood_leaves_a_neighbour_its_part() {
    let queue = queue(16, 16);
    let (flood, modest) = (Client::new(64), Client::new(4));
    let mut tag = 0;
    let mut fill = |queue: &Queue| {
        while read(queue, &flood, tag % 50, 80 * u64::from(tag % 50), 1).is_ok() {
            tag += 1;
        }
        queue.kick();
        ends(&flood);
    };
    fill(&queue);
    let mut waits = Vec::new();
    for _ in 0..20 {
        let mut waited = 0;
        while read(&queue, &modest, 1, 8, 1).is_err() {
            end_one(&queue);
            fill(&queue);
            waited += 1;
            assert!(waited < 100, "starved");
        }
        waits.push(waited);
        queue.kick();
        while ends(&modest).is_empty() {
            end_one(&queue);
            fill(&queue);
        }
    }
    assert!(waits.iter().all(|waited| *waited <= 2), "{waits:?}");
}

/// A client that was turned away and wants nothing any more, or is gone, keeps nothing from the other clients.
#[test]
fn a_claim_that_is_not_taken_up_lapses() {
    let queue = queue(16, 16);
    let (busy, idle) = (Client::new(64), Client::new(64));
    let mut tag = 0;
    let mut fill = |queue: &Queue| {
        while read(queue, &busy, tag % 50, 80 * u64::from(tag % 50), 1).is_ok() {
            tag += 1;
        }
        queue.kick();
        ends(&busy);
    };
    fill(&queue);
    assert_eq!(read(&queue, &idle, 0, 0, 1), Err(SubmitError::Full));
    {
        let gone = Client::new(1);
        assert_eq!(read(&queue, &gone, 0, 0, 1), Err(SubmitError::Full));
    }
    for _ in 0..40 {
        end_one(&queue);
        fill(&queue);
    }
    assert_eq!(queue.in_flight(), 16, "the busy one has all again");
}

#[test]
fn a_full_disk_turns_away_and_calls_back() {
    let queue = queue(2, 16);
    let (client, other) = (Client::new(2), Client::new(2));
    read(&queue, &client, 0, 0, 1).unwrap();
    read(&queue, &client, 1, 800, 1).unwrap();
    assert_eq!(queue.submit(&other, 0, BlockOp::Flush, 0, &[]), Err(SubmitError::Full));
    queue.kick();
    let mut context = core::task::Context::from_waker(core::task::Waker::noop());
    assert!(other.poll_ready(&mut context).is_pending());
    end_one(&queue);
    assert!(other.poll_ready(&mut context).is_ready());
    other.take(&mut Vec::new());
    assert_eq!(queue.submit(&other, 0, BlockOp::Flush, 0, &[]), Ok(()));
}

/// Once a disk is open, the disk takes no more memory for a client than the vbd's claim contains for this, whatever a
/// frontend with the largest ring asks for.
#[test]
fn a_client_makes_the_disk_keep_no_more_than_its_claim_has() {
    use backends::blk::MAX_REQUESTS;
    let most = client_bytes(MAX_REQUESTS);
    for (joined, good) in [(16, true), (16, false), (2, true), (2, false), (1, true), (1, false)] {
        let queue = queue(63, 16);
        let client = Client::new(2 * MAX_REQUESTS);
        let account = Account::claim(1 << 20).unwrap();
        for _ in 0..3 {
            let mut taken = 0;
            for tag in 0..MAX_REQUESTS as u32 {
                let sector = u64::from(tag / joined * 400 + tag % joined * 8);
                let one = pages(0x100 * u64::from(tag + 1), 1);
                let submit = || queue.inner.lock().submit(&client, tag, BlockOp::Read, sector, &one);
                taken += usize::from(account.charge(submit).is_ok());
            }
            queue.kick();
            while queue.in_flight() > 0 {
                end_all(&queue, |_| good);
            }
            let mut ended = Vec::with_capacity(MAX_REQUESTS);
            client.take(&mut ended);
            assert_eq!(ended.len(), taken);
        }
        let peak = account.figures().unwrap().peak;
        assert!(peak > 0 && peak <= most, "{joined} joined: {peak} of {most}");
    }
}
