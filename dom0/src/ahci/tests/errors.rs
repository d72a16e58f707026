//! Disks and adapters that fail, hang, or go.

use super::*;

/// Runs the port's task beside `act` for a while.
fn beside<T>(service: Service<FakeDma>, act: impl Future<Output = T>) -> T {
    block_on_test(async {
        pvrt::spawn(async move {
            service.run().await;
        });
        act.await
    })
}

/// Kicks the disk, runs the model and lets the port's task look, until nothing is under way.
async fn drain(model: &Model, disk: &Disk, event: &Notify) {
    for _ in 0..200 {
        disk.kick();
        model.run();
        event.notify_one();
        time::sleep(1_000_000_000).await;
        if disk.in_flight() == 0 {
            return;
        }
    }
    panic!("requests do not end");
}

/// The commands that fail, and no others, whether the disk queues or not, and however the adapter shows a failure.
#[test]
fn errors_reach_the_client_and_nobody_else() {
    for limits in [
        Limits::default(),
        Limits { clears_failed: true, ..Limits::default() },
        PLAIN,
        Limits { clears_failed: false, ..PLAIN },
    ] {
        let (arena, model, disk, service) = disk(limits);
        let event = service.event.clone();
        let client = Client::new(16);
        model.bad_sector(203, 0x40);
        model.bad_sector(500, 0x04);
        beside(service, async {
            for tag in 0..8 {
                let from = segment(&arena);
                arena.fill(from.maddr.raw(), PAGE_SIZE, tag as u8 + 1);
                disk.submit(&client, tag, BlockOp::Write, 100 * u64::from(tag), &[from]).unwrap();
            }
            drain(&model, &disk, &event).await;
        });
        let expected: Vec<_> = (0..8).map(|tag| (tag, tag != 2 && tag != 5)).collect();
        assert_eq!(ends(&client), expected);
        for tag in [0usize, 1, 3, 4, 6, 7] {
            assert_eq!(model.content(100 * tag * 512, 1), [tag as u8 + 1]);
        }
        // Afterwards all is as before.
        model.mend();
        disk.submit(&client, 9, BlockOp::Read, 200, &[segment(&arena)]).unwrap();
        turn(&model, &disk);
        assert_eq!(ends(&client), [(9, true)]);
    }
    let error = AhciError::Device { status: 0x41, error: 0x44 };
    assert_eq!(format!("{error}"), "a command failed: aborted, uncorrectable data, status 0x41, error 0x44");
}

#[test]
fn members_of_a_joined_request_fail_one_by_one() {
    let (arena, model, disk, service) = disk(Limits::default());
    let event = service.event.clone();
    let client = Client::new(8);
    model.bad_sector(1011, 0x40);
    beside(service, async {
        for tag in 0..4 {
            disk.submit(&client, tag, BlockOp::Read, 1000 + 8 * u64::from(tag), &[segment(&arena)]).unwrap();
        }
        drain(&model, &disk, &event).await;
    });
    assert_eq!(ends(&client), [(0, true), (1, false), (2, true), (3, true)]);
}

#[test]
fn a_link_that_fails_has_its_commands_done_again() {
    for limits in [Limits::default(), PLAIN] {
        let (arena, model, disk, service) = disk(limits);
        let event = service.event.clone();
        let client = Client::new(8);
        beside(service, async {
            for tag in 0..4 {
                disk.submit(&client, tag, BlockOp::Read, 100 * u64::from(tag), &[segment(&arena)]).unwrap();
            }
            disk.kick();
            model.run_some(1);
            model.break_link();
            drain(&model, &disk, &event).await;
        });
        assert_eq!(ends(&client), [0, 1, 2, 3].map(|tag| (tag, true)));
    }
}

/// A disk of another serial number or size gets nothing that was meant for the one that it replaces, whether a command was under
/// way or not.
#[test]
fn a_disk_in_anothers_place_gets_none_of_its_requests() {
    let changes: [fn(&mut Limits); 2] =
        [|limits| limits.serial = "serial three", |limits| limits.sectors -= 8];
    for change in changes {
        for under_way in [false, true] {
            let (arena, model, disk, service) = disk(Limits::default());
            let event = service.event.clone();
            let client = Client::new(8);
            let before = model.content(0, PAGE_SIZE);
            beside(service, async {
                let from = segment(&arena);
                arena.fill(from.maddr.raw(), PAGE_SIZE, 0x5a);
                if under_way {
                    disk.submit(&client, 0, BlockOp::Write, 0, &[from]).unwrap();
                    disk.kick();
                    model.break_link();
                }
                model.swap(change);
                event.notify_one();
                time::sleep(1_000_000_000).await;
                model.run();
                assert_eq!(disk.submit(&client, 1, BlockOp::Write, 0, &[from]), Err(SubmitError::Failed));
            });
            let expected: &[_] = if under_way { &[(0, false)] } else { &[] };
            assert_eq!((ends(&client), disk.in_flight()), (expected.to_vec(), 0));
            assert_eq!(model.content(0, PAGE_SIZE), before);
        }
    }
}

/// The same disk, plugged in again, goes on.
#[test]
fn a_disk_that_comes_back_gets_its_requests() {
    let (arena, model, disk, service) = disk(Limits::default());
    let event = service.event.clone();
    let client = Client::new(8);
    beside(service, async {
        disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        model.break_link();
        model.swap(|_| ());
        drain(&model, &disk, &event).await;
    });
    assert_eq!(ends(&client), [(0, true)]);
}

/// A disk that no longer says what it is after a reset is asked a few times, and given up.
#[test]
fn a_disk_that_does_not_say_what_it_is_after_a_reset_is_given_up() {
    let (arena, model, disk, service) = disk(Limits::default());
    let client = Client::new(8);
    beside(service, async {
        disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        model.break_link();
        model.change(|limits| limits.answers = false);
        time::sleep(60_000_000_000).await;
    });
    assert_eq!((ends(&client), disk.in_flight()), (alloc::vec![(0, false)], 0));
}

#[test]
fn a_command_that_does_not_end_restarts_the_port_and_fails_at_last() {
    let (arena, model, disk, service) = disk(Limits::default());
    let client = Client::new(8);
    beside(service, async {
        disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        let before = model.commands().1;
        time::sleep(34_000_000_000).await;
        assert_eq!(model.commands().1, before, "half a minute is not over");
        time::sleep(80_000_000_000).await;
        assert_eq!((ends(&client), model.commands().1), (alloc::vec![(0, false)], before + 3));
        disk.submit(&client, 1, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        time::sleep(40_000_000_000).await;
        assert_eq!(ends(&client), [(1, false)]);
        assert_eq!(disk.submit(&client, 2, BlockOp::Flush, 0, &[]), Err(SubmitError::Failed));
    });
}

#[test]
fn a_disk_that_is_pulled_out_fails_all() {
    let (arena, model, disk, service) = disk(Limits::default());
    let client = Client::new(8);
    beside(service, async {
        disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        model.pull();
        time::sleep(8_000_000_000).await;
    });
    assert_eq!((ends(&client), disk.in_flight()), (alloc::vec![(0, false)], 0));
}

/// The memory of a port that does not stop is never used again, and its requests never end. (I46)
#[test]
fn what_a_port_may_still_use_is_nobody_elses() {
    let (arena, model, disk, service) = disk(Limits::default());
    let client = Client::new(8);
    let before = arena.dropped();
    disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
    disk.kick();
    model.change(|limits| limits.stops = false);
    model.break_link();
    let ended = block_on_test(time::timeout(600_000_000_000, service.run()));
    let error = ended.expect("the disk is given up");
    assert_eq!((error, ends(&client)), (AhciError::StopTimeout, alloc::vec![]));
    assert_eq!(disk.submit(&client, 1, BlockOp::Flush, 0, &[]), Err(SubmitError::Failed));
    drop(disk);
    assert_eq!(arena.dropped(), before + 1, "the test's own page alone");
}
