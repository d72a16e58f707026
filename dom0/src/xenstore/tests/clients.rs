//! Clients within dom0.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::*;
use super::*;

#[test]
fn clients_within_dom0() {
    let store = Xenstore::new(Quotas::XEN);
    let (one, two) = (store.client(), store.client());
    one.write("/a/b", "5").unwrap();
    assert_eq!(two.read_as::<u32>("/a/b"), Ok(5));
    assert_eq!(two.read_as::<u32>("/a"), Err(XsError::Inval));
    assert_eq!(two.directory("/").unwrap(), ["a"]);
    two.watch("/a", "t").unwrap();
    let event = |path: &str| Some(WatchEvent { path: path.into(), token: "t".into() });
    assert_eq!(two.try_event(), event("/a"));
    {
        let discarded = one.transaction().unwrap();
        discarded.rm("/a").unwrap();
        assert!(!discarded.exists("/a/b"));
    }
    assert!(one.exists("/a/b"));
    let mut tries = 0;
    one.atomically(|tx| {
        tries += 1;
        let value: u32 = tx.read_as("/a/b")?;
        if tries == 1 {
            two.write("/a/b", "7")?;
        }
        tx.write("/a/b", (value + 1).to_string())
    })
    .unwrap();
    assert_eq!((tries, one.read_str("/a/b").unwrap().as_str()), (2, "8"));
    assert_eq!(two.try_event(), event("/a/b"));
    assert_eq!(two.try_event(), None);
    drop(two);
    let figures = store.figures();
    assert_eq!((figures.watches, figures.connections, figures.nodes), (0, 1, 3));
    assert_eq!(figures.transactions, 0);
    one.rm("/a").unwrap();
    assert_eq!(one.read("/a"), Err(XsError::NoEnt));
}

struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The task that serves a ring is woken by what others change, and not by the reply of the ring's own turn.
#[test]
fn a_turn_does_not_wake_whose_turn_it_is() {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let mut bed = Bed::new(1);
    let conn = bed.rings[&1].0;
    bed.ok(1, wire::XS_WATCH, 0, b"x\0t\0");
    assert_eq!(bed.events(1), [""; 0]);
    for woken in 0..3 {
        assert!(bed.server.poll_output(conn, &mut context).is_pending());
        bed.ok(1, wire::XS_READ, 0, b"/local/domain/1\0");
        assert!(bed.server.take_woken().is_empty());
        assert!(bed.server.poll_output(conn, &mut context).is_pending());
        bed.dom0(wire::XS_WRITE, b"/local/domain/1/x\0value").unwrap();
        bed.server.take_woken().into_iter().for_each(Waker::wake);
        assert_eq!(count.0.load(Ordering::Relaxed), woken + 1);
        assert!(bed.server.poll_output(conn, &mut context).is_ready());
        assert_eq!(bed.events(1), ["x|t|"]);
    }
}

#[test]
fn an_event_wakes_its_waiter_and_an_effect_its_own() {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    let mut context = Context::from_waker(&waker);
    let store = Xenstore::new(Quotas::XEN);
    let client = store.client();
    assert_eq!(client.poll_event(&mut context), Poll::Pending);
    client.watch("/x", "t").unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(client.poll_event(&mut context).is_ready());
    let mut effect = core::pin::pin!(store.next_effect());
    assert!(effect.as_mut().poll(&mut context).is_pending());
    client.introduce(3, 1, 1).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    let Poll::Ready(Effect::Introduced { conn, .. }) = effect.as_mut().poll(&mut context) else { panic!() };
    let mut output = core::pin::pin!(store.output_ready(conn));
    assert!(output.as_mut().poll(&mut context).is_pending());
    client.release(3).unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    assert!(output.as_mut().poll(&mut context).is_ready());
}

/// While a task waits for the work that is left, others leave more work than is done.
#[test]
fn who_waits_for_what_is_left_does_not_wait_for_what_comes() {
    let store = Xenstore::reluctant();
    let client = store.client();
    let tree = |top: &str| (0..10).for_each(|at| client.write(&format!("/{top}/{at}"), "").unwrap());
    tree("own");
    client.rm("/own").unwrap();
    let mut settled = pin!(store.settled());
    let mut polls = 0;
    while settled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        polls += 1;
        assert!(polls < 100, "it waits for others");
        tree(&format!("others/{polls}"));
        client.rm(&format!("/others/{polls}")).unwrap();
    }
    assert!(polls > 5, "{polls}");
    assert!(store.settle_some(), "what others left is still there");
}
