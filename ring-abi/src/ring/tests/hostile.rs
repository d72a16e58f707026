//! One end of a ring whose peer writes anything, at any time.

use proptest::prelude::*;

use super::*;

proptest! {
    /// A frontend that writes anything anywhere between the backend's steps never makes the backend panic, take more
    /// requests than fit, or write outside the slots.
    #[test]
    fn hostile_frontend(
        writes in prop::collection::vec((0usize..24, any::<u32>(), 0u8..7), 1..100),
        near in any::<bool>(),
    ) {
        let whole = leaked_pages(1);
        whole.fill(0, 4096, 0);
        let page = whole.slice(0, SLOTS + 4 * 8).unwrap();
        let mut back = BackRing::<Words, _>::new(page).unwrap();
        let mut answered = 0u32;
        for (word, value, action) in writes {
            let value = if near { answered.wrapping_add(value % 12).wrapping_sub(2) } else { value };
            page.store_u32(word * 4, value);
            match action {
                0 => {
                    let _ = back.next_request();
                }
                1 if back.in_flight() > 0 => {
                    back.push_response(&value);
                    answered += 1;
                }
                2 => {
                    let _ = back.publish_responses();
                }
                3 => {
                    let _ = back.arm_and_recheck();
                }
                4 => {
                    let before = back.in_flight();
                    prop_assert!(back.peek_in_batch().is_err() || back.in_flight() == before);
                }
                5 => {
                    let _ = back.next_in_batch();
                }
                _ => {
                    let _ = back.arm_for(1 + value % back.size());
                }
            }
            prop_assert!(back.in_flight() <= back.size());
        }
        prop_assert!((page.len()..4096).all(|offset| whole.load_u8(offset) == 0), "written outside the ring");
    }

    /// The same for a hostile backend: no panic, and never more responses than requests published.
    #[test]
    fn hostile_backend(
        writes in prop::collection::vec((0usize..24, any::<u32>(), 0u8..5), 1..100),
        near in any::<bool>(),
    ) {
        let whole = leaked_pages(1);
        let page = whole.slice(0, SLOTS + 4 * 8).unwrap();
        let mut front = FrontRing::<Words, _>::new(page).unwrap();
        let (mut sent, mut published, mut got) = (0u32, 0u32, 0u32);
        for (word, value, action) in writes {
            let value = if near { got.wrapping_add(value % 12).wrapping_sub(2) } else { value };
            page.store_u32(word * 4, value);
            match action {
                0 | 1 => sent += u32::from(front.push_request(&value).is_ok()),
                2 => {
                    let _ = front.publish_requests();
                    published = sent;
                }
                3 => got += u32::from(matches!(front.next_response(), Ok(Some(_)))),
                _ => {
                    let _ = front.arm_and_recheck();
                }
            }
            prop_assert!(got <= published && sent - got <= front.size());
        }
        prop_assert!((page.len()..4096).all(|offset| whole.load_u8(offset) == 0), "written outside the ring");
    }

    /// A byte ring whose peer writes anything: this end does not panic, and counts stay within the ring.
    #[test]
    fn hostile_byte_ring(writes in prop::collection::vec((0usize..7, any::<u32>(), any::<bool>(), 0usize..3000), 1..60)) {
        let page = leaked_pages(1);
        let mut server = crate::io::xs_wire::server(page).unwrap();
        let mut buffer = [0; 3000];
        for (word, value, reading, len) in writes {
            page.store_u32(0x800 + word * 4, value);
            let moved = if reading { server.read(&mut buffer[..len]) } else { server.write(&buffer[..len]) };
            prop_assert!(moved.unwrap_or(0) <= len.min(1024));
        }
    }
}
