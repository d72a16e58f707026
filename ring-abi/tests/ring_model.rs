//! The index protocol of the rings under a model checker. The checker tries the interleavings of a few preemptions, and
//! the reorderings that the memory model allows, for a few messages.
//!
//! Run by `RUSTFLAGS="--cfg loom" cargo test -p ring-abi --test ring_model --release --target-dir target/loom`.
#![cfg(loom)]

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Arc, Notify};
use loom::thread;
use ring_abi::ring::bytes::{ByteRing, Channel};
use ring_abi::ring::{BackRing, FrontRing, RingPage, RingProtocol, SLOTS};

/// A ring of words.
struct Words;

impl RingProtocol for Words {
    type Request = u32;
    type Response = u32;
}

/// A page whose words are the checker's atomics. Indices are ordered as the engines ask, and contents are not ordered
/// at all, so that a slot read too early shows a stale value.
struct Page(Vec<AtomicU32>);

impl Page {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self((0..bytes / 4).map(|_| AtomicU32::new(0)).collect()))
    }
}

/// One end's handle of the page.
struct Shared(Arc<Page>);

impl RingPage for Shared {
    fn ring_bytes(&self) -> usize {
        self.0.0.len() * 4
    }

    fn load_index(&self, offset: usize) -> u32 {
        self.0.0[offset / 4].load(Ordering::Acquire)
    }

    fn store_index(&self, offset: usize, value: u32) {
        self.0.0[offset / 4].store(value, Ordering::Release);
    }

    fn copy_out(&self, offset: usize, target: &mut [u8]) {
        for (word, bytes) in target.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&self.0.0[offset / 4 + word].load(Ordering::Relaxed).to_le_bytes());
        }
    }

    fn copy_in(&self, offset: usize, source: &[u8]) {
        for (word, bytes) in source.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            self.0.0[offset / 4 + word].store(value, Ordering::Relaxed);
        }
    }

    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// When the backend answers.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// The backend answers each request when the backend takes the request.
    AtOnce,
    /// The backend answers two requests at a time, and the frontend publishes each request by itself: so the backend
    /// sleeps while one request is in flight.
    InPairs,
}

/// Requests go one way and answers come back, and each end sleeps whenever the end may. A lost notification is a
/// deadlock, and a slot read or written too early gives a wrong value.
fn exchange(slots: usize, messages: u32, start: u32, answers: Answers) {
    let page = Page::new(SLOTS + 4 * slots);
    let mut front = FrontRing::<Words, _>::starting_at(Shared(Arc::clone(&page)), start).unwrap();
    let mut back = BackRing::<Words, _>::attach(Shared(page)).unwrap();
    let to_back = Arc::new(Notify::new());
    let to_front = Arc::new(Notify::new());
    let (wake_front, woken) = (Arc::clone(&to_front), Arc::clone(&to_back));

    let backend = thread::spawn(move || {
        let mut expected = 1;
        let mut held = Vec::new();
        while expected <= messages {
            while let Some(value) = back.next_request().unwrap() {
                assert_eq!(value, expected);
                expected += 1;
                held.push(value);
            }
            if answers == Answers::AtOnce || held.len() == 2 {
                for value in held.drain(..) {
                    back.push_response(&(value + 100));
                }
                if back.publish_responses() {
                    wake_front.notify();
                }
            }
            if expected <= messages && !back.arm_and_recheck().unwrap() {
                woken.wait();
            }
        }
    });

    let (mut sent, mut got) = (0, 0);
    while got < messages {
        while sent < messages && front.push_request(&(sent + 1)).is_ok() {
            sent += 1;
            if answers == Answers::InPairs && front.publish_requests() {
                to_back.notify();
            }
        }
        if front.publish_requests() {
            to_back.notify();
        }
        while let Some(value) = front.next_response().unwrap() {
            got += 1;
            assert_eq!(value, got + 100);
        }
        let room = sent < messages && front.free_requests() > 0;
        if got < messages && !room && !front.arm_and_recheck().unwrap() {
            to_front.wait();
        }
    }
    backend.join().unwrap();
}

#[test]
fn one_slot_is_reused() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| exchange(1, 2, u32::MAX, Answers::AtOnce));
}

#[test]
fn two_messages_in_two_slots() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| exchange(2, 2, 0, Answers::AtOnce));
}

#[test]
fn slots_are_reused_across_the_wrap() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| exchange(2, 3, u32::MAX - 1, Answers::AtOnce));
}

#[test]
fn a_backend_sleeps_with_a_request_in_flight() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| exchange(2, 2, u32::MAX, Answers::InPairs));
}

/// The byte rings have no suppression: the writer always notifies.
#[test]
fn bytes_arrive_in_order() {
    const TO: Channel = Channel { data: 0, size: 4, cons: 8, prod: 12 };
    const FROM: Channel = Channel { data: 4, size: 4, cons: 16, prod: 20 };
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let page = Page::new(24);
        let mut writer = ByteRing::attach(Shared(Arc::clone(&page)), FROM, TO).unwrap();
        let mut reader = ByteRing::attach(Shared(page), TO, FROM).unwrap();
        let to_reader = Arc::new(Notify::new());
        let to_writer = Arc::new(Notify::new());
        let (wake_writer, woken) = (Arc::clone(&to_writer), Arc::clone(&to_reader));
        let thread = thread::spawn(move || {
            let mut expected = 1u32;
            while expected <= 2 {
                let mut word = [0; 4];
                match reader.read(&mut word).unwrap() {
                    0 => woken.wait(),
                    _ => {
                        assert_eq!(u32::from_le_bytes(word), expected);
                        expected += 1;
                        wake_writer.notify();
                    }
                }
            }
        });
        let mut next = 1u32;
        while next <= 2 {
            match writer.write(&next.to_le_bytes()).unwrap() {
                0 => to_writer.wait(),
                _ => {
                    next += 1;
                    to_reader.notify();
                }
            }
        }
        thread.join().unwrap();
    });
}
