use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::*;

type Outer = Mutex<rank::PageTables, u32>;
type Inner = Mutex<rank::VcpuTime, u32>;
type List = Mutex<rank::DomainList, u32>;

/// What `act` panics with.
fn complaint(act: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(act)).expect_err("this is against the order");
    *payload.downcast::<String>().expect("a formatted message")
}

#[test]
fn outwards_is_against_the_order() {
    let (outer, inner, list) = (Outer::new(1), Inner::new(2), List::new(3));
    {
        let _outer = outer.lock();
        let _inner = inner.lock();
        assert_eq!(*list.lock(), 3);
    }
    let inner = inner.lock();
    let said = complaint(|| drop(outer.lock()));
    assert!(said.contains("PageTables") && said.contains("VcpuTime"), "{said}");
    drop(inner);
    let list = list.lock();
    assert!(complaint(|| drop(outer.lock())).contains("DomainList"));
    drop(list);
    assert_eq!(*outer.lock(), 1, "a lock that was refused is free");
}

#[test]
fn two_of_one_rank_are_a_pair_or_none() {
    let (a, b, list) = (Outer::new(1), Outer::new(2), List::new(3));
    {
        let _a = a.lock();
        complaint(|| drop(b.lock()));
        complaint(|| drop(lock_pair((1, &a), (2, &b))));
    }
    let _list = list.lock();
    complaint(|| drop(list.lock()));
}

#[test]
fn a_pair_is_taken_by_number_and_given_by_argument() {
    let (a, b) = (Outer::new(1), Outer::new(2));
    for (of_a, of_b) in [(3, 7), (7, 3)] {
        let (first, second) = lock_pair((of_a, &a), (of_b, &b));
        assert_eq!((*first, second.as_deref()), (1, Some(&2)));
    }
    assert!(lock_pair((3, &a), (3, &a)).1.is_none());
    let _b = b.lock_of(Some(7));
    complaint(|| drop(a.lock_of(Some(3))));
    drop(a.lock_of(Some(8)));
}

/// A domain that left the list is in use still, and its successor has its number.
#[test]
fn a_pair_of_one_number_has_an_order_too() {
    let locks = [Outer::new(1), Outer::new(2)];
    for (n, m) in [(0, 1), (1, 0)] {
        let (first, second) = lock_pair((5, &locks[n]), (5, &locks[m]));
        assert_eq!((*first, second.as_deref().copied()), (n as u32 + 1, Some(m as u32 + 1)));
    }
    let _first = locks[0].lock_of(Some(5));
    drop(locks[1].lock_of(Some(5)));
    drop(_first);
    let _second = locks[1].lock_of(Some(5));
    complaint(|| drop(locks[0].lock_of(Some(5))));
}

#[test]
fn an_attempt_may_be_against_the_order_but_counts() {
    let (outer, inner) = (Outer::new(1), Inner::new(2));
    let held = inner.lock();
    let attempt = outer.try_lock().expect("a free lock");
    assert!(outer.try_lock().is_none(), "a lock that is held");
    drop(held);
    drop(inner.lock());
    complaint(|| drop(Outer::new(3).lock()));
    drop(attempt);
    drop(outer.lock());
}

#[test]
fn locks_may_be_freed_in_any_order() {
    let (outer, inner, list) = (Outer::new(1), Inner::new(2), List::new(3));
    let (first, second) = (outer.lock(), inner.lock());
    drop(first);
    complaint(|| drop(outer.lock()));
    let third = list.lock();
    drop(second);
    complaint(|| drop(inner.lock()));
    drop(third);
    drop((outer.lock(), inner.lock()));
}

#[test]
fn each_thread_has_an_order_of_its_own() {
    let (outer, inner) = (Outer::new(1), Inner::new(2));
    let (said, heard) = mpsc::channel();
    let (go_on, went_on) = mpsc::channel();
    std::thread::scope(|scope| {
        let inner = &inner;
        scope.spawn(move || {
            let _inner = inner.lock();
            said.send(()).expect("the other thread");
            went_on.recv().expect("the other thread");
        });
        heard.recv().expect("the other thread");
        assert_eq!(*outer.lock(), 1, "another thread's lock does not count here");
        go_on.send(()).expect("the other thread");
    });
}

#[test]
fn a_panic_frees_what_it_held() {
    let (outer, inner) = (Outer::new(1), Inner::new(2));
    let said = complaint(|| {
        let _inner = inner.lock();
        panic!("{}", "for another reason");
    });
    assert_eq!(said, "for another reason");
    drop((outer.lock(), inner.lock()));
}

#[test]
fn a_rank_takes_no_room() {
    let (outer, list) = (Outer::new(1), List::new(3));
    assert_eq!(size_of_val(&outer), size_of_val(&outer.lock));
    assert_eq!(size_of_val(&list), size_of_val(&list.lock));
}

/// A CPU of the model: what it remembers of the one entry, 0: nothing, and what others ask of it.
#[derive(Default)]
struct ModelCpu {
    remembered: AtomicU64,
    flushes: FlushState,
}

const MODEL_CPUS: usize = 4;
static MODEL: [ModelCpu; MODEL_CPUS] =
    [const { ModelCpu { remembered: AtomicU64::new(0), flushes: FlushState::new() } }; MODEL_CPUS];
static ORDERS: FlushOrders = FlushOrders::new();

std::thread_local! {
    static MODEL_CPU: core::cell::Cell<Option<usize>> = const { core::cell::Cell::new(None) };
}

/// What a thread does for others while it waits: its CPU's flush, if it is one.
fn serve() {
    if let Some(cpu) = MODEL_CPU.get().map(|n| &MODEL[n])
        && cpu.flushes.is_asked()
    {
        cpu.flushes.serve(&ORDERS, || cpu.remembered.store(0, Ordering::SeqCst));
    }
}

/// Each CPU uses the entry, and now and then changes it under a lock for which the others spin, and waits for their flushes
/// with the lock held. A CPU that waits serves, so nobody waits for ever; and once a flush is over, no CPU uses what was there
/// before.
#[test]
fn a_flush_under_a_lock_ends_and_reaches_all() {
    serve_by(serve);
    let rounds = if cfg!(miri) { 20 } else { 2_000 };
    let lock = Mutex::<rank::PageTables, ()>::new(());
    let (entry, floor, left) = (AtomicU64::new(1), AtomicU64::new(1), AtomicU64::new(MODEL_CPUS as u64));
    let change = |me: usize| {
        let _held = lock.lock();
        let new = entry.fetch_add(1, Ordering::SeqCst) + 1;
        let order = ORDERS.order();
        let others = || MODEL.iter().enumerate().filter(|(n, _)| *n != me).map(|(_, cpu)| cpu);
        for cpu in others() {
            // Nobody has to be interrupted: the CPUs of the model look again and again.
            let _ = cpu.flushes.ask();
        }
        MODEL[me].remembered.store(0, Ordering::SeqCst);
        others().for_each(|cpu| {
            while !cpu.flushes.has_done(order) {
                wait_a_turn();
                std::thread::yield_now();
            }
        });
        floor.store(new, Ordering::SeqCst);
    };
    std::thread::scope(|scope| {
        for (me, cpu) in MODEL.iter().enumerate() {
            let (entry, floor, left, change) = (&entry, &floor, &left, &change);
            scope.spawn(move || {
                MODEL_CPU.set(Some(me));
                for round in 0..rounds {
                    let least = floor.load(Ordering::SeqCst);
                    let remembered = &cpu.remembered;
                    if remembered.load(Ordering::SeqCst) == 0 {
                        remembered.store(entry.load(Ordering::SeqCst), Ordering::SeqCst);
                    }
                    let used = remembered.load(Ordering::SeqCst);
                    assert!(used >= least, "CPU {me} uses {used} after a flush of what was before {least}");
                    if round % MODEL_CPUS == me {
                        change(me);
                    }
                    wait_a_turn();
                }
                left.fetch_sub(1, Ordering::SeqCst);
                while left.load(Ordering::SeqCst) != 0 {
                    wait_a_turn();
                    std::thread::yield_now();
                }
            });
        }
    });
    assert_eq!(entry.load(Ordering::SeqCst), 1 + rounds as u64);
}

/// Other tests wait for locks too, but not all the time: the count comes back to none.
#[test]
fn a_cpu_that_waits_for_a_lock_is_heard_of() {
    let comes = |wanted: bool| {
        let began = std::time::Instant::now();
        while is_waited_for() != wanted {
            assert!(began.elapsed().as_secs() < 20, "whether a CPU waits is not {wanted}");
            std::thread::yield_now();
        }
    };
    let lock = Outer::new(1);
    std::thread::scope(|scope| {
        let held = lock.lock();
        scope.spawn(|| *lock.lock() += 1);
        comes(true);
        drop(held);
    });
    assert_eq!(*lock.lock(), 2);
    comes(false);
}

/// A CPU that gives way goes on once nobody waits for a lock, and after some turns anyway: others may wait for other locks.
#[test]
fn a_cpu_gives_way_for_some_turns_at_most() {
    let mut waits = [true, true, true, false].into_iter();
    assert_eq!(give_turns(|| waits.next().unwrap_or(true)), 3);
    assert_eq!(give_turns(|| true), TURNS);
    assert_eq!(give_turns(|| false), 0);
}

/// A CPU goes and comes back, over and over, while another orders flushes of it: no order waits for ever, and once an order is over
/// the CPU has flushed after it, or is away and has flushed before it went.
#[test]
fn no_flush_waits_for_a_cpu_that_goes() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    let (orders, state, is_up) = (FlushOrders::new(), FlushState::new(), AtomicBool::new(true));
    // What the CPU remembers: the last change that it may have missed is that of its last flush.
    let (change, known, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let flush = || known.store(change.load(SeqCst), SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(SeqCst) {
                if state.is_asked() {
                    state.serve(&orders, flush);
                }
                round += 1;
                if round % 3 == 0 {
                    state.flush(&orders, flush);
                    is_up.store(false, SeqCst);
                    std::hint::spin_loop();
                    is_up.store(true, SeqCst);
                    state.flush(&orders, flush);
                }
            }
        });
        for wanted in 1..=300 {
            change.store(wanted, SeqCst);
            let order = orders.order();
            let was_up = is_up.load(SeqCst);
            if was_up && !state.has_done(order) {
                let _ = state.ask();
            }
            let mut turns = 0u64;
            while was_up && !state.is_over(order, || is_up.load(SeqCst)) {
                std::thread::yield_now();
                turns += 1;
                assert!(turns < 1_000_000, "the order of change {wanted} is never over");
            }
            if state.has_done(order) {
                assert!(known.load(SeqCst) >= wanted, "flushed before the change");
            }
        }
        is_over.store(true, SeqCst);
    });
}
