//! Two threads, each sleeping whenever it may: a lost wake-up ends in both asleep.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use ring_abi::io::blkif::{BlkifRequest, BlkifResponse, BlkifRing};
use ring_abi::ring::SLOTS;
use ring_abi::shared::leaked_pages;

use crate::peer::{self, Back, Front, Kind, Maker, Words};
use crate::random::Random;

/// No end works this long without a wake-up, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// An event channel.
#[derive(Default)]
struct Event {
    pending: Mutex<bool>,
    woken: Condvar,
}

impl Event {
    fn notify(&self) {
        *self.pending.lock().expect("no panic") = true;
        self.woken.notify_one();
    }

    fn wait(&self, who: &str) {
        let pending = self.pending.lock().expect("no panic");
        let (mut pending, timeout) =
            self.woken.wait_timeout_while(pending, LIMIT, |pending| !*pending).expect("no panic");
        assert!(!timeout.timed_out(), "a wake-up was lost: the {who} sleeps over work");
        *pending = false;
    }
}

/// Messages that carry a number.
trait Numbered: Kind {
    fn request(number: u32) -> Self::Request;
    fn number(request: &Self::Request) -> u32;
    fn response(number: u32) -> Self::Response;
    fn answered(response: &Self::Response) -> u32;
}

impl Numbered for Words {
    fn request(number: u32) -> u32 {
        number
    }

    fn number(request: &u32) -> u32 {
        *request
    }

    fn response(number: u32) -> u32 {
        !number
    }

    fn answered(response: &u32) -> u32 {
        !*response
    }
}

impl Numbered for BlkifRing {
    fn request(number: u32) -> BlkifRequest {
        // First and last bytes say the same, so that half a message shows.
        let mut request =
            BlkifRequest { id: u64::from(number), sector_number: u64::from(!number), ..Default::default() };
        request.seg[10].gref = number;
        request
    }

    fn number(request: &BlkifRequest) -> u32 {
        let number = request.id as u32;
        assert_eq!((request.sector_number, request.seg[10].gref), (u64::from(!number), number));
        number
    }

    fn response(number: u32) -> BlkifResponse {
        BlkifResponse { id: u64::from(number), status: number as i16, ..Default::default() }
    }

    fn answered(response: &BlkifResponse) -> u32 {
        assert_eq!(response.status, response.id as i16);
        response.id as u32
    }
}

/// Lets the other thread run, now and then, at any point.
fn dawdle(random: &mut Random) {
    match random.below(16) {
        0 => thread::yield_now(),
        1 => (0..random.below(200)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

fn backend<P: Numbered>(mut back: Box<dyn Back<P>>, messages: u32, own: &Event, peer: &Event) -> u32 {
    let mut random = Random::new(1);
    let mut held = Vec::new();
    let (mut taken, mut answered, mut notified) = (0, 0, 0);
    while answered < messages {
        let batch = random.below(6);
        while held.len() < batch as usize
            && let Some(request) = back.next().expect("an honest frontend")
        {
            assert_eq!(P::number(&request), taken, "requests arrive in order");
            taken += 1;
            held.push(P::number(&request));
            dawdle(&mut random);
        }
        // Answered in the order asked, so that the frontend can tell if one is missing.
        for number in held.drain(..) {
            back.push(&P::response(number));
            answered += 1;
        }
        if back.publish() {
            notified += 1;
            peer.notify();
        }
        dawdle(&mut random);
        if answered < messages && !back.arm().expect("an honest frontend") {
            own.wait("backend");
        }
    }
    notified
}

fn frontend<P: Numbered>(mut front: Box<dyn Front<P>>, messages: u32, own: &Event, peer: &Event) -> u32 {
    let mut random = Random::new(2);
    let (mut sent, mut got, mut notified) = (0, 0, 0);
    while got < messages {
        let batch = 1 + random.below(5);
        for _ in 0..batch {
            if sent < messages && front.push(&P::request(sent)) {
                sent += 1;
                dawdle(&mut random);
            }
        }
        if front.publish() {
            notified += 1;
            peer.notify();
        }
        while let Some(response) = front.next().expect("an honest backend") {
            assert_eq!(P::answered(&response), got, "responses arrive in order");
            got += 1;
        }
        dawdle(&mut random);
        // Often with room to spare, so that both ends fall asleep often.
        let idle = front.room() == 0 || sent == messages || random.below(3) == 0;
        if got < sent && idle && !front.arm().expect("an honest backend") {
            own.wait("frontend");
        }
    }
    notified
}

/// How many messages: in a long test run forty times as many.
fn messages(few: u32) -> u32 {
    if std::env::var_os(xtask::test::SOAK).is_some() { few * 40 } else { few }
}

fn exchange<P: Numbered>(front: Maker, back: Maker, bytes: usize, messages: u32) {
    let page = leaked_pages(bytes.div_ceil(4096)).slice(0, bytes).expect("inside");
    // The indices wrap half-way.
    let front = peer::front::<P>(front, page, (messages / 2).wrapping_neg());
    let back = peer::back::<P>(back, page);
    let slots = front.size();
    let to_front = Arc::new(Event::default());
    let to_back = Arc::new(Event::default());
    let (own, other) = (Arc::clone(&to_back), Arc::clone(&to_front));
    let thread = thread::spawn(move || backend::<P>(back, messages, &own, &other));
    let notified = frontend::<P>(front, messages, &to_front, &to_back);
    let answered = thread.join().expect("the backend's thread");
    assert!(notified > 0 && answered > 0, "somebody slept");
    if slots >= 32 {
        // What suppression is for.
        assert!(notified < messages && answered < messages, "{notified} {answered}");
    }
}

fn pairing(front: Maker, back: Maker) {
    exchange::<Words>(front, back, SLOTS + 4, messages(50_000));
    exchange::<Words>(front, back, SLOTS + 8, messages(100_000));
    exchange::<Words>(front, back, SLOTS + 32, messages(100_000));
    exchange::<BlkifRing>(front, back, 4096, messages(100_000));
}

#[test]
fn our_front_and_our_back() {
    pairing(Maker::Ours, Maker::Ours);
}

#[test]
fn our_front_and_the_macros_back() {
    pairing(Maker::Ours, Maker::Macros);
}

#[test]
fn the_macros_front_and_our_back() {
    pairing(Maker::Macros, Maker::Ours);
}
