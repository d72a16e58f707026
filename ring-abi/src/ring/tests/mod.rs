//! Both ends in one program: honest ends on random schedules, and one end that is [`hostile`].

mod back;
mod hostile;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::io::blkif::{BlkifRequest, BlkifResponse, BlkifRing};
use crate::io::netif::{NetifRxRing, NetifTxRing};
use crate::shared::{SharedBytes, leaked_pages};

/// A ring of words, so that four slots fit in 80 bytes.
struct Words;

impl RingProtocol for Words {
    type Request = u32;
    type Response = u32;
}

fn words(slots: usize) -> SharedBytes<'static> {
    leaked_pages(1).slice(0, SLOTS + 4 * slots).unwrap()
}

fn pair(
    page: SharedBytes<'static>,
    index: u32,
) -> (FrontRing<Words, SharedBytes<'static>>, BackRing<Words, SharedBytes<'static>>) {
    let front = FrontRing::starting_at(page, index).unwrap();
    let back = BackRing::attach(page).unwrap();
    (front, back)
}

fn request(id: u64) -> BlkifRequest {
    BlkifRequest { id, ..Default::default() }
}

#[test]
fn slot_counts_follow_the_memory() {
    assert_eq!(slots::<BlkifRing>(0), 0);
    assert_eq!(slots::<BlkifRing>(SLOTS), 0);
    assert_eq!(slots::<BlkifRing>(SLOTS + 111), 0);
    assert_eq!(slots::<BlkifRing>(SLOTS + 112), 1);
    assert_eq!(slots::<BlkifRing>(4096), 32);
    assert_eq!(slots::<BlkifRing>(8192), 64);
    assert_eq!(slots::<BlkifRing>(16 * 4096), 512);
    assert_eq!((slots::<NetifTxRing>(4096), slots::<NetifRxRing>(4096)), (256, 256));
    assert_eq!(slots::<Words>(usize::MAX), 1 << 30);
}

#[test]
fn too_small_is_refused() {
    let page = words(0);
    assert!(matches!(FrontRing::<Words, _>::new(page), Err(RingError::TooSmall)));
    assert!(matches!(BackRing::<Words, _>::new(page), Err(RingError::TooSmall)));
}

#[test]
fn a_request_and_its_response() {
    let page = leaked_pages(1);
    let mut front = FrontRing::<BlkifRing, _>::new(page).unwrap();
    let mut back = BackRing::<BlkifRing, _>::new(page).unwrap();
    assert_eq!(back.next_request(), Ok(None));
    front.push_request(&request(7)).unwrap();
    assert_eq!(back.next_request(), Ok(None), "not published");
    assert!(front.publish_requests(), "a new ring is armed");
    assert!(!front.publish_requests(), "nothing new");
    assert_eq!(back.next_request().unwrap().unwrap().id, 7);
    assert_eq!(back.in_flight(), 1);
    back.push_response(&BlkifResponse { id: 7, status: -1, ..Default::default() });
    assert_eq!(front.next_response(), Ok(None), "not published");
    assert!(back.publish_responses());
    let response = front.next_response().unwrap().unwrap();
    assert_eq!((response.id, response.status), (7, -1));
    assert_eq!(front.next_response(), Ok(None));
}

#[test]
fn every_slot_can_be_used_and_no_more() {
    let page = leaked_pages(4);
    let mut front = FrontRing::<BlkifRing, _>::new(page).unwrap();
    let mut back = BackRing::<BlkifRing, _>::new(page).unwrap();
    assert_eq!(front.size(), 128);
    for id in 0..128 {
        front.push_request(&request(id)).unwrap();
    }
    assert_eq!(front.push_request(&request(128)), Err(RingError::Full));
    assert!(front.publish_requests());
    for id in 0..128 {
        assert_eq!(back.next_request().unwrap().unwrap().id, id);
    }
    // Answered out of order; the slots are reused in order.
    for id in (0..128).rev() {
        back.push_response(&BlkifResponse { id, ..Default::default() });
    }
    assert_eq!(front.free_requests(), 0);
    assert!(back.publish_responses());
    for id in (0..128).rev() {
        assert_eq!(front.next_response().unwrap().unwrap().id, id);
    }
    assert_eq!(front.free_requests(), 128);
}

#[test]
fn requests_are_not_announced_to_a_busy_backend() {
    let (mut front, mut back) = pair(words(4), u32::MAX);
    front.push_request(&1).unwrap();
    assert!(front.publish_requests());
    assert_eq!(back.next_request(), Ok(Some(1)));
    // Not armed since: the backend is still looking.
    front.push_request(&2).unwrap();
    assert!(!front.publish_requests());
    assert_eq!(back.arm_and_recheck(), Ok(true));
    assert_eq!(back.next_request(), Ok(Some(2)));
    assert_eq!(back.arm_and_recheck(), Ok(false));
    front.push_request(&3).unwrap();
    assert!(front.publish_requests());
}

#[test]
fn overrun_counts_requests_in_flight() {
    let page = words(4);
    let (mut front, mut back) = pair(page, 0);
    for value in 0..4 {
        front.push_request(&value).unwrap();
    }
    let _ = front.publish_requests();
    for value in 0..3 {
        assert_eq!(back.next_request(), Ok(Some(value)));
    }
    // Three requests are in flight, so exactly one more slot is legal.
    page.store_u32(REQ_PROD, 5);
    assert_eq!(back.next_request(), Err(RingError::ProducerOverrun { prod: 5, cons: 3 }));
    assert_eq!(back.arm_and_recheck(), Err(RingError::ProducerOverrun { prod: 5, cons: 3 }));
    page.store_u32(REQ_PROD, 2);
    assert_eq!(back.next_request(), Err(RingError::ProducerOverrun { prod: 2, cons: 3 }));
    page.store_u32(REQ_PROD, 4);
    assert_eq!(back.next_request(), Ok(Some(3)));
    // A response frees a slot when the response is published, not before.
    back.push_response(&0);
    page.store_u32(REQ_PROD, 5);
    assert!(back.next_request().is_err());
    let _ = back.publish_responses();
    assert!(back.next_request().is_ok());
}

#[test]
fn a_backend_cannot_answer_what_was_not_asked() {
    let page = words(4);
    let (mut front, _) = pair(page, 0);
    front.push_request(&1).unwrap();
    page.store_u32(RSP_PROD, 1);
    assert!(front.next_response().is_err(), "written but not published");
    let _ = front.publish_requests();
    page.store_u32(RSP_PROD, 2);
    assert_eq!(front.next_response(), Err(RingError::ProducerOverrun { prod: 2, cons: 0 }));
    page.store_u32(RSP_PROD, u32::MAX);
    assert!(front.arm_and_recheck().is_err());
    page.store_u32(RSP_PROD, 1);
    assert!(front.next_response().unwrap().is_some());
    assert_eq!(front.next_response(), Ok(None));
}

#[test]
fn a_new_backend_takes_the_unanswered_again() {
    let page = words(4);
    let (mut front, mut back) = pair(page, u32::MAX - 1);
    for value in 0..3 {
        front.push_request(&value).unwrap();
    }
    let _ = front.publish_requests();
    assert_eq!(back.next_request(), Ok(Some(0)));
    back.push_response(&0);
    let _ = back.publish_responses();
    assert_eq!(back.next_request(), Ok(Some(1)));
    let mut back = BackRing::<Words, _>::attach(page).unwrap();
    assert_eq!(back.next_request(), Ok(Some(1)));
    assert_eq!(back.next_request(), Ok(Some(2)));
    assert_eq!(back.next_request(), Ok(None));
}

#[test]
fn attaching_to_nonsense_fails() {
    let page = words(4);
    page.store_u32(REQ_PROD, 5);
    assert!(matches!(BackRing::<Words, _>::attach(page), Err(RingError::ProducerOverrun { .. })));
    page.store_u32(RSP_PROD, 6);
    assert!(matches!(BackRing::<Words, _>::attach(page), Err(RingError::ProducerOverrun { .. })));
}

/// Memory that counts how often each byte is read: a peer could change a byte between two reads.
#[derive(Clone)]
struct Counting {
    page: SharedBytes<'static>,
    reads: alloc::rc::Rc<core::cell::RefCell<Vec<u32>>>,
}

impl Counting {
    fn new(page: SharedBytes<'static>) -> Self {
        Self { page, reads: alloc::rc::Rc::new(core::cell::RefCell::new(alloc::vec![0; page.len()])) }
    }

    /// The highest number of reads that any byte had since the last call.
    fn most(&self) -> u32 {
        self.reads.borrow_mut().iter_mut().map(core::mem::take).max().unwrap_or(0)
    }
}

impl RingPage for Counting {
    fn ring_bytes(&self) -> usize {
        self.page.len()
    }

    fn load_index(&self, offset: usize) -> u32 {
        self.reads.borrow_mut()[offset] += 1;
        self.page.load_u32(offset)
    }

    fn store_index(&self, offset: usize, value: u32) {
        self.page.store_u32(offset, value);
    }

    fn copy_out(&self, offset: usize, target: &mut [u8]) {
        self.reads.borrow_mut()[offset..][..target.len()].iter_mut().for_each(|count| *count += 1);
        self.page.read(offset, target);
    }

    fn copy_in(&self, offset: usize, source: &[u8]) {
        self.page.write(offset, source);
    }
}

/// If an end read a byte twice, the end could check one value and use another.
#[test]
fn nothing_shared_is_read_twice() {
    let memory = leaked_pages(1);
    let page = Counting::new(memory);
    let mut front = FrontRing::<BlkifRing, _>::new(page.clone()).unwrap();
    let mut back = BackRing::<BlkifRing, _>::attach(page.clone()).unwrap();
    assert!(page.most() <= 1, "attaching");
    for round in 0..40 {
        front.push_request(&request(round)).unwrap();
        assert_eq!(page.most(), 0, "pushing a request reads nothing");
        let _ = front.publish_requests();
        assert_eq!(page.most(), 1, "publishing looks at the event index");
        assert!(back.next_request().unwrap().is_some());
        assert_eq!(page.most(), 1, "taking a request");
        back.push_response(&BlkifResponse::default());
        assert_eq!(page.most(), 0, "pushing a response reads nothing");
        let _ = back.publish_responses();
        assert_eq!(page.most(), 1, "publishing looks at the event index");
        assert!(front.next_response().unwrap().is_some());
        assert_eq!(page.most(), 1, "taking a response");
        // One read before the event index is written, one after: the first may be in vain, and the second decides.
        assert_eq!(front.arm_and_recheck(), Ok(false));
        assert_eq!(page.most(), 2, "arming");
        assert_eq!(back.arm_and_recheck(), Ok(false));
        assert_eq!(page.most(), 2, "arming");
    }

    let page = Counting::new(memory);
    let mut client = crate::io::xs_wire::client(page.clone()).unwrap();
    let mut server = crate::io::xs_wire::server(page.clone()).unwrap();
    let mut buffer = [0; 700];
    for _ in 0..5 {
        page.most();
        assert!(client.write(&buffer).unwrap() > 0);
        assert_eq!(page.most(), 1, "writing bytes");
        assert!(server.read(&mut buffer).unwrap() > 0);
        assert_eq!(page.most(), 1, "reading bytes");
    }
}

/// One step of an honest schedule.
#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    PublishRequests,
    Take(u8),
    Respond(u8),
    PublishResponses,
    Collect(u8),
    BackSleep,
    FrontSleep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1u8..6).prop_map(Step::Push),
        Just(Step::PublishRequests),
        (1u8..6).prop_map(Step::Take),
        (1u8..6).prop_map(Step::Respond),
        Just(Step::PublishResponses),
        (1u8..6).prop_map(Step::Collect),
        Just(Step::BackSleep),
        Just(Step::FrontSleep),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Nothing is lost, repeated or reordered, and an end that sleeps while work waits has been notified. This holds
    /// for every start of the indices around the wrap.
    #[test]
    fn honest_ends(steps in steps(), start in prop_oneof![Just(0u32), u32::MAX - 300..=u32::MAX, any::<u32>()], log in 0u32..4) {
        let page = words(1 << log);
        let (mut front, mut back) = pair(page, start);
        let (mut sent, mut taken, mut answered, mut collected) = (0u32, 0u32, 0u32, 0u32);
        let mut in_flight = VecDeque::new();
        let (mut back_sleeps, mut front_sleeps) = (false, false);
        let (mut published, mut published_responses) = (0, 0);
        for step in steps {
            match step {
                Step::Push(count) => for _ in 0..count {
                    match front.push_request(&sent) {
                        Ok(()) => sent += 1,
                        Err(error) => {
                            prop_assert_eq!(error, RingError::Full);
                            prop_assert_eq!(sent - collected, front.size());
                        }
                    }
                },
                Step::PublishRequests => {
                    if front.publish_requests() {
                        back_sleeps = false;
                    }
                    published = sent;
                }
                Step::Take(count) => for _ in 0..count {
                    let got = back.next_request().unwrap();
                    prop_assert_eq!(got, (taken < published).then_some(taken));
                    if let Some(value) = got {
                        in_flight.push_back(value);
                        taken += 1;
                        back_sleeps = false;
                    }
                },
                Step::Respond(count) => for _ in 0..count {
                    if let Some(value) = in_flight.pop_front() {
                        back.push_response(&!value);
                        answered += 1;
                    }
                },
                Step::PublishResponses => {
                    if back.publish_responses() {
                        front_sleeps = false;
                    }
                    published_responses = answered;
                }
                Step::Collect(count) => for _ in 0..count {
                    let got = front.next_response().unwrap();
                    prop_assert_eq!(got, (collected < published_responses).then_some(!collected));
                    if got.is_some() {
                        collected += 1;
                        front_sleeps = false;
                    }
                },
                Step::BackSleep => {
                    let work = back.arm_and_recheck().unwrap();
                    prop_assert_eq!(work, taken < published);
                    back_sleeps = !work;
                }
                Step::FrontSleep => {
                    let work = front.arm_and_recheck().unwrap();
                    prop_assert_eq!(work, collected < published_responses);
                    front_sleeps = !work;
                }
            }
            prop_assert!(!(back_sleeps && taken < published), "the backend sleeps over requests");
            prop_assert!(!(front_sleeps && collected < published_responses), "the frontend sleeps over responses");
            prop_assert_eq!(back.in_flight() as usize, in_flight.len());
            prop_assert_eq!(front.free_requests(), front.size() - (sent - collected));
        }
    }
}

/// Two threads that park when there is nothing to do. A lost notification would hang, so each wait has a limit.
#[test]
fn two_threads() {
    use core::sync::atomic::AtomicBool;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    const MESSAGES: u32 = 50_000;
    const LIMIT: Duration = Duration::from_secs(20);

    fn sleep(flag: &AtomicBool) {
        let start = Instant::now();
        while !flag.swap(false, Ordering::SeqCst) {
            thread::park_timeout(Duration::from_secs(1));
            assert!(start.elapsed() < LIMIT, "a notification was lost");
        }
    }

    let (mut front, mut back) = pair(words(4), u32::MAX - 1000);
    let to_front = Arc::new(AtomicBool::new(false));
    let to_back = Arc::new(AtomicBool::new(false));
    let front_thread = thread::current();
    let (wake_front, woken) = (Arc::clone(&to_front), Arc::clone(&to_back));
    let backend = thread::spawn(move || {
        let mut expected = 0;
        while expected < MESSAGES {
            while let Some(value) = back.next_request().unwrap() {
                assert_eq!(value, expected);
                expected += 1;
                back.push_response(&!value);
            }
            if back.publish_responses() {
                wake_front.store(true, Ordering::SeqCst);
                front_thread.unpark();
            }
            if expected < MESSAGES && !back.arm_and_recheck().unwrap() {
                sleep(&woken);
            }
        }
    });
    let (mut sent, mut got) = (0, 0);
    while got < MESSAGES {
        while sent < MESSAGES && front.push_request(&sent).is_ok() {
            sent += 1;
        }
        if front.publish_requests() {
            to_back.store(true, Ordering::SeqCst);
            backend.thread().unpark();
        }
        while let Some(value) = front.next_response().unwrap() {
            assert_eq!(value, !got);
            got += 1;
        }
        let room = sent < MESSAGES && front.free_requests() > 0;
        if got < MESSAGES && !room && !front.arm_and_recheck().unwrap() {
            sleep(&to_front);
        }
    }
    backend.join().unwrap();
}
