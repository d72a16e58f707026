//! Backends that break the protocol, by plan and at random.

use super::*;
use proptest::prelude::*;
use ring_abi::shared::SharedMemory;

/// Offset of `rsp_prod` in a shared ring.
const RSP_PROD: usize = 8;

/// What a backend does against the rules, each with one packet sent before.
#[test]
fn a_backend_against_the_rules_is_disconnected() {
    type Crime = fn(&mut Backend);
    let extra = |kind: u8, gso_type: u8, size: u16| -> NetifExtraInfo {
        NetifExtraGso { r#type: kind, gso_type, size, ..Default::default() }.into()
    };
    let crimes: [(&str, Crime); 8] = [
        ("transmit overrun", |backend| backend.transmit.page().shared().store_u32(RSP_PROD, 2)),
        ("receive overrun", |backend| backend.receive.page().shared().store_u32(RSP_PROD, 257)),
        ("an id without a request", |backend| {
            backend.transmit.next_request().expect("sane").expect("sent");
            backend.transmit.push_response(&NetifTxResponse { id: 7, status: 0 });
            let _ = backend.transmit.publish_responses();
        }),
        ("an id beyond the buffers", |backend| {
            backend.transmit.next_request().expect("sane").expect("sent");
            backend.transmit.push_response(&NetifTxResponse { id: 0xffff, status: 0 });
            let _ = backend.transmit.publish_responses();
        }),
        ("another buffer's id", |backend| {
            let response = backend.part(&[0; 60], 0, 0);
            backend.receive.push_response(&NetifRxResponse { id: response.id ^ 1, ..response });
            backend.publish();
        }),
        ("a part over the page's end", |backend| {
            let response = backend.part(&[0; 60], 0, 0);
            backend.receive.push_response(&NetifRxResponse { offset: 4096 - 59, ..response });
            backend.publish();
        }),
        ("an offset beyond the page", |backend| {
            let response = backend.part(&[], 0, 0);
            backend.receive.push_response(&NetifRxResponse { offset: 0xffff, ..response });
            backend.publish();
        }),
        ("extra information that does not come", |backend| {
            let response = backend.part(&[0; 60], 0, NETRXF_EXTRA_INFO);
            backend.receive.push_response(&response);
            backend.publish();
        }),
    ];
    for (name, crime) in crimes {
        block_on_test(async {
            let (interface, mut backend) = pair(None).await;
            interface.send(&bytes(60, 0), PLAIN).expect("room");
            interface.flush().expect("connected");
            crime(&mut backend);
            expect_end(&interface, name);
        });
    }
    let bad =
        [extra(0, 1, 1), extra(2, 1, 1), extra(5, 1, 1), extra(1, 0, 1), extra(1, 3, 1), extra(1, 1, 0)];
    for bad in bad {
        block_on_test(async {
            let (interface, mut backend) = pair(None).await;
            backend.give(&[0; 60], NETRXF_EXTRA_INFO, &[bad]);
            expect_end(&interface, "bad extra information");
        });
    }
    block_on_test(async {
        let (interface, mut backend) = pair(None).await;
        for _ in 0..17 {
            let response = backend.part(&[0; 4096], 0, NETRXF_MORE_DATA);
            backend.receive.push_response(&response);
        }
        backend.publish();
        expect_end(&interface, "a packet without end");
    });
}

/// Receiving or sending finds the breach, and everything after that says that the interface has ended.
fn expect_end(interface: &Interface, crime: &str) {
    let mut received = Vec::new();
    let found = interface.receive(&mut received).is_err() || interface.has_room(60).is_err();
    assert!(found, "{crime}");
    assert_eq!(interface.send(&bytes(60, 0), PLAIN), Err(NetError::Disconnected), "{crime}");
    assert_eq!(interface.receive(&mut received), Err(NetError::Disconnected), "{crime}");
    assert_eq!(interface.flush(), Err(NetError::Disconnected), "{crime}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a backend answers, the frontend neither panics nor gives a packet that is longer than one can be.
    #[test]
    fn random_answers(answers in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u16>(), -3i16..4200), 1..60)) {
        block_on_test(async {
            let (interface, mut backend) = pair(None).await;
            let mut received = Vec::new();
            for (id, offset, flags, status) in answers {
                let Ok(Some(request)) = backend.receive.next_request() else { break };
                // Mostly plausible: else every case would end with its first answer.
                let id = if id % 8 == 0 { id } else { request.id };
                let offset = if offset % 8 == 0 { offset } else { 0 };
                let response = NetifRxResponse { id, offset, flags: flags & 0x1f, status };
                backend.receive.push_response(&response);
                backend.publish();
                received.clear();
                match interface.receive(&mut received) {
                    Ok(None) => assert!(received.is_empty()),
                    Ok(Some(_)) => assert!((ETHERNET_HEADER..=MAX_PACKET).contains(&received.len())),
                    Err(error) => {
                        assert_eq!(error, NetError::Disconnected);
                        break;
                    }
                }
                interface.flush().expect("connected");
            }
        });
    }
}
