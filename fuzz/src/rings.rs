//! The ring engines alone.

use ring_abi::ring::bytes::ByteRing;
use ring_abi::ring::{BackRing, FrontRing, RSP_PROD, RingError, RingProtocol, SLOTS};

use crate::input::Input;
use crate::page::HostilePage;

/// A ring of words.
struct Words;

impl RingProtocol for Words {
    type Request = u32;
    type Response = u32;
}

/// Memory of one to eight slots.
fn page(input: &Input) -> HostilePage {
    HostilePage::new(SLOTS + (4 << input.below(4)), input)
}

/// A backend whose frontend is hostile: never more in flight than slots, no response but to a request taken, and an
/// index that the backend publishes is one that it counted itself.
pub(crate) fn back(data: &[u8]) {
    let input = Input::new(data);
    let page = page(&input);
    let Ok(mut ring) = BackRing::<Words, _>::attach(page.clone()) else { return };
    let mut published = page.word(RSP_PROD);
    let (mut taken, mut answered) = (0u64, 0u64);
    while !input.is_empty() {
        match input.below(5) {
            0 | 1 => match ring.next_request() {
                Ok(request) => taken += u64::from(request.is_some()),
                Err(error) => assert!(matches!(error, RingError::ProducerOverrun { .. })),
            },
            2 if ring.in_flight() > 0 => {
                ring.push_response(&input.u32());
                answered += 1;
            }
            3 => {
                let moved = ring.publish_responses();
                let unpublished = page.word(RSP_PROD).wrapping_sub(published);
                assert!(!moved || unpublished != 0, "a notification for nothing");
                published = page.word(RSP_PROD);
            }
            _ => {
                let _ = ring.arm_and_recheck();
            }
        }
        assert_eq!(u64::from(ring.in_flight()), taken - answered);
        assert!(ring.in_flight() <= ring.size());
        if let Ok(waiting) = ring.unconsumed() {
            assert!(waiting + ring.in_flight() <= ring.size());
        }
    }
}

/// A frontend whose backend is hostile: no more answers than questions that were published.
pub(crate) fn front(data: &[u8]) {
    let input = Input::new(data);
    let page = page(&input);
    let start = input.u32();
    let mut ring = FrontRing::<Words, _>::starting_at(page, start).expect("a slot");
    let (mut sent, mut published, mut got) = (0u64, 0u64, 0u64);
    while !input.is_empty() {
        match input.below(5) {
            0 | 1 => {
                let room = ring.free_requests();
                let pushed = ring.push_request(&input.u32());
                assert_eq!(pushed.is_ok(), room > 0);
                sent += u64::from(pushed.is_ok());
            }
            2 => {
                let notify = ring.publish_requests();
                assert!(!notify || sent > published, "a notification for nothing");
                published = sent;
            }
            3 => got += u64::from(matches!(ring.next_response(), Ok(Some(_)))),
            _ => {
                let _ = ring.arm_and_recheck();
            }
        }
        assert!(got <= published && sent - got <= u64::from(ring.size()));
        assert_eq!(u64::from(ring.free_requests()), u64::from(ring.size()) - (sent - got));
    }
}

/// A xenstore server's or console's end whose peer is hostile.
pub(crate) fn bytes(data: &[u8]) {
    use ring_abi::io::{console, xs_wire};
    let input = Input::new(data);
    let page = HostilePage::new(4096, &input);
    let [rx, tx] =
        if input.u8() & 1 == 0 { [console::OUT, console::IN] } else { [xs_wire::REQ, xs_wire::RSP] };
    for offset in [rx.cons, rx.prod, tx.cons, tx.prod] {
        page.set(offset, &input.u32().to_le_bytes());
    }
    let mut ring = ByteRing::attach(page.clone(), rx, tx).expect("a page");
    let (mut cons, mut prod) = (page.word(rx.cons), page.word(tx.prod));
    let mut buffer = [0; 3000];
    while !input.is_empty() {
        let length = usize::from(input.u16()) % buffer.len();
        if input.u8() & 1 == 0 {
            let count = ring.read(&mut buffer[..length]).unwrap_or(0);
            assert!(count <= length.min(rx.size));
            cons = cons.wrapping_add(count as u32);
            assert!(count == 0 || page.word(rx.cons) == cons, "our own index is not the peer's to move");
        } else {
            let count = ring.write(&buffer[..length]).unwrap_or(0);
            assert!(count <= length.min(tx.size));
            prod = prod.wrapping_add(count as u32);
            assert!(count == 0 || page.word(tx.prod) == prod, "our own index is not the peer's to move");
        }
    }
}
