//! The control ring, with a backend that has all of it, one that has nothing, and some that lie.

use alloc::string::{String, ToString};

use zerocopy::FromZeros;

use super::*;

/// What a backend does with control requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// All is there; the backend keeps so many pages of each queue.
    Able(u32),
    /// Nothing is there, as on Linux's netback for lent pages.
    Unable,
    /// Hashes are there, but the table is refused.
    NoTable,
    Silent,
    WrongId,
    Overrun,
}

/// What the backend was asked.
#[derive(Default)]
struct Asked {
    kinds: Vec<u16>,
    /// Pages lent, by queue and whether for reading.
    lent: Vec<(u32, u16, u32)>,
    table: Vec<u32>,
    key: Vec<u8>,
}

fn answer(manner: Manner, request: &XenNetifCtrlRequest, asked: &mut Asked) -> (u32, u32) {
    let [first, second, third] = request.data;
    let page = |gref| map_grants(GUEST, &[GrantRef::new(gref)], false).expect("granted");
    asked.kinds.push(request.r#type);
    match request.r#type {
        _ if manner == Manner::Unable => (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0),
        XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS => (0, 15),
        XEN_NETIF_CTRL_TYPE_SET_HASH_KEY => {
            assert_eq!(second, 40);
            asked.key = alloc::vec![0; 40];
            page(first).page(0).read(0, &mut asked.key);
            (0, 0)
        }
        XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE => (0, 127),
        XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING if manner == Manner::NoTable => (2, 0),
        XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING => {
            assert_eq!(third, 0);
            let page = page(first);
            asked.table = (0..second as usize).map(|at| page.page(0).load_u32(at * 4)).collect();
            (0, 0)
        }
        XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE => match manner {
            Manner::Able(pages) => (0, pages),
            _ => (0, 0),
        },
        XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING => {
            let list = page(second);
            for at in 0..third as usize {
                let mut entry = XenNetifGref::new_zeroed();
                list.page(0).read(at * 8, zerocopy::IntoBytes::as_mut_bytes(&mut entry));
                let writable = entry.flags & XEN_NETIF_CTRLF_GREF_READONLY == 0;
                assert!(
                    map_grants(GUEST, &[GrantRef::new(entry.r#ref)], writable).is_ok(),
                    "a page as it is granted"
                );
                asked.lent.push((first, entry.flags, entry.r#ref));
            }
            (0, 0)
        }
        _ => (0, 0),
    }
}

/// Serves the control ring until the frontend is content, which is when nothing is asked for a while.
async fn serve(store: TestStore, manner: Manner) -> Asked {
    let number = |name: &str| -> u32 {
        let text = store.get(&format!("{FRONT}/{name}"));
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    };
    while store.get(&format!("{FRONT}/state")).as_deref() != Some("4") {
        time::sleep(1000).await;
    }
    let page = || map_grants(GUEST, &[GrantRef::new(number("ctrl-ring-ref"))], true).expect("granted");
    let raw = page();
    let mut ring = BackRing::<NetifCtrlRing, _>::attach(page()).expect("a page is enough");
    let port = Port::bind_interdomain(GUEST, PortNumber::new(number("event-channel-ctrl"))).expect("bound");
    store.set(&format!("{BACK}/state"), "4");
    let mut asked = Asked::default();
    let mut quiet = 0;
    while quiet < 100 {
        quiet += 1;
        while manner != Manner::Silent
            && let Some(request) = ring.next_request().expect("a sane frontend")
        {
            quiet = 0;
            let (status, data) = answer(manner, &request, &mut asked);
            let id = if manner == Manner::WrongId { !request.id } else { request.id };
            ring.push_response(&XenNetifCtrlResponse { id, r#type: request.r#type, status, data });
            if manner == Manner::Overrun {
                raw.bytes().store_u32(ring_abi::ring::RSP_PROD, 200);
                port.notify();
                return asked;
            }
            if ring.publish_responses() {
                port.notify();
            }
        }
        let _ = ring.arm_and_recheck();
        time::sleep(20_000).await;
    }
    asked
}

/// Connects with `queues` queues to a backend that allows four.
async fn arranged(manner: Manner, queues: usize) -> (Interface, Asked, TestStore) {
    arranged_as(manner, queues, true).await
}

/// As [`arranged`], for a frontend that lends its buffers or does not.
async fn arranged_as(manner: Manner, queues: usize, lends: bool) -> (Interface, Asked, TestStore) {
    let store = TestStore::new();
    nodes(&store, None, &FEATURES);
    store.set(&format!("{BACK}/feature-ctrl-ring"), "1");
    store.set(&format!("{BACK}/multi-queue-max-queues"), "4");
    let (sender, receiver) = pvrt::executor::sync::oneshot();
    let of_backend = store.clone();
    spawn(async move {
        assert!(sender.send(serve(of_backend, manner).await).is_ok(), "waited for");
    });
    let interface = Interface::connect_as(&store.connect(), FRONT, queues, lends).await.expect("connected");
    (interface, receiver.await.expect("served"), store)
}

#[test]
fn all_buffers_are_lent_where_there_is_room() {
    block_on_test(async {
        let (interface, asked, _) = arranged(Manner::Able(400), 1).await;
        assert_eq!(interface.arrangement(), Arrangement { queues: 1, hashed: false, lent: 384 });
        assert!(!asked.kinds.contains(&XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM), "one queue needs no hash");
        assert_eq!(asked.lent.iter().filter(|(_, flags, _)| *flags == 0).count(), receive::BUFFERS);
        let mut grefs: Vec<_> = asked.lent.iter().map(|(_, _, gref)| gref).collect();
        grefs.sort_unstable();
        grefs.dedup();
        assert_eq!(grefs.len(), 384);
        let (interface, asked, _) = arranged_as(Manner::Able(400), 2, false).await;
        assert_eq!(interface.arrangement(), Arrangement { queues: 2, hashed: true, lent: 0 });
        assert!(asked.lent.is_empty(), "unless the frontend shall lend none");
    });
}

#[test]
fn several_queues_are_hashed_and_lend_what_fits() {
    block_on_test(async {
        let (interface, asked, store) = arranged(Manner::Able(300), 9).await;
        assert_eq!(interface.arrangement(), Arrangement { queues: 4, hashed: true, lent: 1200 });
        assert_eq!(store.get(&format!("{FRONT}/multi-queue-num-queues")).as_deref(), Some("4"));
        assert_eq!(store.get(&format!("{FRONT}/tx-ring-ref")), None);
        assert_eq!(asked.table.len(), 124, "as many entries for each");
        assert!(asked.table.iter().enumerate().all(|(at, queue)| *queue as usize == at % 4));
        assert!(asked.key.chunks(8).all(|word| word.iter().any(|byte| *byte != 0)));
        for queue in 0..4 {
            let of_queue = asked.lent.iter().filter(|(number, ..)| *number == queue);
            assert_eq!(of_queue.clone().count(), 300);
            assert_eq!(of_queue.filter(|(_, flags, _)| *flags == 0).count(), receive::BUFFERS);
        }
        assert_eq!(asked.kinds.iter().rposition(|kind| *kind == XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS), Some(6));
    });
}

#[test]
fn what_the_backend_does_not_have_is_done_without() {
    block_on_test(async {
        let (interface, asked, _) = arranged(Manner::Unable, 2).await;
        assert_eq!(interface.arrangement(), Arrangement { queues: 2, hashed: false, lent: 0 });
        assert_eq!(asked.kinds.len(), 3, "an algorithm, none, and the size of one list");
        let (interface, asked, _) = arranged(Manner::NoTable, 2).await;
        assert_eq!(interface.arrangement(), Arrangement { queues: 2, hashed: false, lent: 0 });
        let algorithms = asked.kinds.iter().filter(|kind| **kind == XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM);
        assert_eq!(algorithms.count(), 2, "set, and taken back");
        let (interface, asked, _) = arranged(Manner::Able(0), 1).await;
        assert_eq!((interface.arrangement().lent, asked.kinds.len()), (0, 1));
    });
}

#[test]
fn a_backend_that_lies_on_the_control_ring_is_asked_no_more() {
    block_on_test(async {
        for manner in [Manner::Silent, Manner::WrongId, Manner::Overrun] {
            let (interface, asked, _) = arranged(manner, 1).await;
            assert_eq!(interface.arrangement(), Arrangement { queues: 1, hashed: false, lent: 0 });
            assert!(asked.kinds.len() <= 1);
            interface.send(&bytes(60, 0), PLAIN).expect("the interface goes on");
            interface.flush().expect("connected");
        }
    });
}

#[test]
fn no_control_ring_is_offered_and_none_is_made() {
    block_on_test(async {
        let (interface, backend) = pair(None).await;
        let node = |name: &str| -> Option<String> { backend.store.get(&format!("{FRONT}/{name}")) };
        assert_eq!((node("ctrl-ring-ref"), node("event-channel-ctrl")), (None, None));
        assert_eq!(node("multi-queue-num-queues"), None);
        assert_eq!(interface.arrangement(), Arrangement { queues: 1, hashed: false, lent: 0 });
        assert_eq!(node("state"), Some("4".to_string()));
    });
}

#[test]
fn flows_keep_to_their_queues() {
    let packet = |source_port: u8, destination: u8, protocol: u8, fragment: [u8; 2]| {
        let mut packet = alloc::vec![0; 60];
        packet[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        packet[20..22].copy_from_slice(&fragment);
        packet[23] = protocol;
        packet[33] = destination;
        packet[35] = source_port;
        packet
    };
    let queue = |packet: &[u8]| queue_for(packet, 4);
    let spread = |packets: &mut dyn Iterator<Item = Vec<u8>>| {
        let mut seen = [0; 4];
        packets.for_each(|packet| seen[queue(&packet)] += 1);
        seen
    };
    assert!(spread(&mut (0..100).map(|port| packet(port, 1, 6, [0x40, 0]))).iter().all(|count| *count >= 15));
    assert!(spread(&mut (0..100).map(|to| packet(1, to, 1, [0; 2]))).iter().all(|count| *count >= 15));
    // Parts of one packet, of which one alone has ports.
    assert_eq!(queue(&packet(7, 1, 17, [0x20, 0])), queue(&packet(99, 1, 17, [0, 100])));
    assert_eq!(queue(&packet(7, 1, 6, [0; 2])), queue(&packet(7, 1, 6, [0; 2])));
    assert_eq!(queue_for(&packet(7, 1, 6, [0; 2]), 1), 0);
    for len in 0..60 {
        assert!(queue(&packet(7, 1, 6, [0; 2])[..len]) < 4);
    }
}
