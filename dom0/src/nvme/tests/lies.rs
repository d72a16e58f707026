//! Controllers that fail, hang, or lie.

use core::sync::atomic::AtomicBool;

use super::*;
use crate::hw::fake::FakeInterrupt;

/// What a controller's task does until the controller is given up.
fn run(service: Service<FakeDma>) -> impl Future<Output = NvmeError> {
    service.run(FakeInterrupt(Arc::new(AtomicBool::new(false))))
}

/// The same, for a controller that is given up within minutes.
fn given_up(service: Service<FakeDma>) -> NvmeError {
    block_on_test(time::timeout(600_000_000_000, run(service))).expect("the controller is given up")
}

/// Three writes that the controller has, of different clients.
fn writes(arena: &Arena, disk: &Disk) -> Vec<Arc<Client>> {
    let clients: Vec<_> = (0..3).map(|_| Client::new(1)).collect();
    for (client, tag) in clients.iter().zip(0..) {
        let page = segment(arena);
        arena.fill(page.maddr.raw(), PAGE_SIZE, tag as u8 + 1);
        disk.submit(client, tag, BlockOp::Write, 80 * u64::from(tag), &[page]).unwrap();
    }
    disk.kick();
    clients
}

fn outcomes(clients: &[Arc<Client>]) -> Vec<(u32, bool)> {
    clients.iter().flat_map(|client| ends(client)).collect()
}

#[test]
fn errors_reach_the_client() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(4);
    for (tag, status) in [0x281, 0x006, 0x7ff].into_iter().enumerate() {
        model.bad_block(40 * tag as u64, status);
        disk.submit(&client, tag as u32, BlockOp::Read, 40 * tag as u64, &[segment(&arena)]).unwrap();
    }
    disk.submit(&client, 3, BlockOp::Read, BLOCKS - 1, &[segment(&arena)]).unwrap();
    disk.submit(&client, 4, BlockOp::Read, 800, &[segment(&arena)]).unwrap();
    turn(&model, &disk);
    assert_eq!(ends(&client), [(0, false), (1, false), (2, false), (3, false), (4, true)]);
    let text = alloc::format!("{}", Status::failed(0x281).unwrap());
    assert_eq!(text, "unrecovered read error (status 0x2, 0x81)");
}

#[test]
fn a_controller_that_lies_is_reset_and_out_of_use() {
    for lie in
        [Lie::Command(9), Lie::Command(63), Lie::Command(u16::MAX), Lie::Again, Lie::Queue(0), Lie::Queue(7)]
            .into_iter()
            .chain([5, 63, 64, u16::MAX].map(Lie::Head))
    {
        let (arena, model, disk, service) = disk(Limits::default());
        let clients = writes(&arena, &disk);
        model.run_some(1);
        disk.service().unwrap();
        assert_eq!(outcomes(&clients), [(0, true)]);
        model.lie(lie);
        model.run_some(1);
        assert!(matches!(given_up(service), NvmeError::Queue(_)), "{lie:?}");
        assert_eq!(outcomes(&clients), [(1, false), (2, false)], "{lie:?}");
        let late = disk.submit(&clients[0], 9, BlockOp::Read, 0, &[segment(&arena)]);
        assert_eq!((late, disk.in_flight(), model.counts().1), (Err(SubmitError::Failed), 0, 1));
        disk.kick();
        disk.service().unwrap();
        drop(disk);
    }
}

/// What was under way when the controller failed is done after the reset, and nobody notices.
#[test]
fn a_controller_that_fails_is_reset_and_gets_its_commands_again() {
    let (arena, model, disk, service) = disk(Limits::default());
    let clients = writes(&arena, &disk);
    model.run_some(1);
    disk.service().unwrap();
    model.fail();
    model.run();
    block_on_test(async {
        pvrt::spawn(async move {
            run(service).await;
        });
        // Requests that come before the driver has noticed wait.
        disk.submit(&clients[0], 3, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        time::sleep(6_000_000_000).await;
    });
    assert_eq!(model.counts(), (1, 1));
    model.run();
    disk.service().unwrap();
    assert_eq!(outcomes(&clients), [(0, true), (3, true), (1, true), (2, true)]);
    for tag in 0..3 {
        assert_eq!(model.content(80 * 512 * tag, 1), [tag as u8 + 1]);
    }
}

#[test]
fn a_command_that_does_not_end_resets_the_controller_and_fails_at_last() {
    let (arena, model, disk, service) = disk(Limits::default());
    let clients = writes(&arena, &disk);
    // The controller executes nothing, so no reset helps.
    let error = block_on_test(async {
        let service = pvrt::executor::spawn_join(run(service));
        time::sleep(34_000_000_000).await;
        assert_eq!(model.counts().1, 0, "half a minute is not over");
        time::sleep(80_000_000_000).await;
        assert_eq!(outcomes(&clients), [(0, false), (1, false), (2, false)]);
        assert_eq!(model.counts().1, 3);
        disk.submit(&clients[0], 3, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
        disk.kick();
        service.await.unwrap()
    });
    assert!(matches!(error, NvmeError::Lost(_)));
    assert_eq!(outcomes(&clients), [(3, false)]);
}

#[test]
fn a_controller_that_is_another_after_its_reset_is_given_up() {
    let changes: [fn(&mut Limits); 3] =
        [|limits| limits.starts = false, |limits| limits.shift = 12, |limits| limits.most = 3];
    for change in changes {
        let (arena, model, disk, service) = disk(Limits::default());
        let clients = writes(&arena, &disk);
        model.fail();
        model.change(change);
        given_up(service);
        assert_eq!(outcomes(&clients), [(0, false), (1, false), (2, false)]);
        assert_eq!(disk.in_flight(), 0);
    }
}

/// The memory of a controller that does not stop is never used again, and its requests never end. (I46)
#[test]
fn what_a_controller_may_still_use_is_nobody_elses() {
    for pulled in [true, false] {
        let (arena, model, disk, service) = disk(Limits::default());
        let clients = writes(&arena, &disk);
        model.change(|limits| limits.stops = false);
        if pulled {
            model.pull();
        } else {
            model.lie(Lie::Queue(3));
            model.run_some(1);
        }
        given_up(service);
        assert_eq!(outcomes(&clients), []);
        let late = disk.submit(&clients[0], 9, BlockOp::Read, 0, &[]);
        assert_eq!(late, Err(SubmitError::Failed));
        drop(disk);
        assert_eq!(arena.dropped(), 3, "the test's own pages alone");
    }
}

#[test]
fn a_controller_that_says_it_read_nothing_is_out_of_use() {
    let (arena, model, disk, service) = disk(Limits::default());
    let client = Client::new(1);
    disk.submit(&client, 0, BlockOp::Read, 0, &[segment(&arena)]).unwrap();
    disk.kick();
    model.lie(Lie::Head(0));
    model.run_some(1);
    assert_eq!(disk.service(), Err(NvmeError::Queue(QueueError::BadHead(0))));
    drop(service);
}
