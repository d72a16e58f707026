//! The control ring from end to end: hashes steer packets, lent pages are used and given back.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use backends::net::MAX_STAGED;
use pvrt::Account;
use pvrt::event::Port;
use pvrt::executor::block_on_test;
use pvrt::grant::{Granted, map_grants};
use pvrt::mem::Pages;
use ring_abi::io::netif::*;
use ring_abi::ring::{FrontRing, REQ_PROD};
use ring_abi::types::{DomId, GrantRef};
use zerocopy::{FromZeros, IntoBytes};

use super::front::*;
use super::{error, frame, moment};
use crate::net::headers::testing::{ethernet, frame as ip_frame, udp};
use crate::xenstore::{Client, Nodes};

/// What lending the most pages makes dom0 keep at most, of `BYTES_PER_VIF`.
const LENT_BYTES: usize = 24 << 10;

const OK: (u32, u32) = (XEN_NETIF_CTRL_STATUS_SUCCESS, 0);
const ADD: u16 = XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING;
const DEL: u16 = XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING;

/// A frontend's control ring.
struct Controls {
    ring: FrontRing<NetifCtrlRing, Granted<Arc<Pages>>>,
    page: Arc<Pages>,
    port: Port,
    /// What a request's data lies in.
    data: Granted<Pages>,
}

impl Controls {
    fn new() -> Self {
        let page = Arc::new(Pages::zeroed(1).unwrap());
        Self {
            ring: FrontRing::new(Granted::whole(page.clone(), DomId::DOM0, false).unwrap()).unwrap(),
            page,
            port: Port::alloc_unbound(DomId::DOM0).unwrap(),
            data: Granted::whole(Pages::zeroed(1).unwrap(), DomId::DOM0, false).unwrap(),
        }
    }

    fn nodes(&self) -> [(&'static str, String); 2] {
        let gref = self.ring.page().gref(0).to_string();
        [("ctrl-ring-ref", gref), ("event-channel-ctrl", self.port.number().to_string())]
    }

    /// One request and its answer.
    async fn ask(&mut self, r#type: u16, data: [u32; 3]) -> (u32, u32) {
        self.ring.push_request(&XenNetifCtrlRequest { id: 7, r#type, data }).unwrap();
        if self.ring.publish_requests() {
            self.port.notify();
        }
        moment().await;
        let answer = self.ring.next_response().unwrap().expect("an answer");
        (answer.status, answer.data)
    }

    /// A request with a list of a queue's pages.
    async fn list(&mut self, kind: u16, queue: u32, grefs: &[GrantRef], flags: u16) -> (u32, u32) {
        let list: Vec<_> =
            grefs.iter().map(|gref| XenNetifGref { r#ref: gref.raw(), flags, status: 1 }).collect();
        self.data.memory().page(0).write(0, list.as_bytes());
        self.ask(kind, [queue, self.data.gref(0).raw(), list.len() as u32]).await
    }

    /// A request with numbers in a page.
    async fn numbers(&mut self, kind: u16, numbers: &[u32], rest: u32) -> (u32, u32) {
        self.data.memory().page(0).write(0, numbers.as_bytes());
        let count = if kind == XEN_NETIF_CTRL_TYPE_SET_HASH_KEY { 4 } else { 1 } * numbers.len() as u32;
        self.ask(kind, [self.data.gref(0).raw(), count, rest]).await
    }
}

async fn connect(client: &Client, domain: u16, queues: usize) -> (Frontend, Controls) {
    make_vif(client, domain, &[]);
    back_state(client, domain, "2").await;
    assert_eq!(client.read_str(&alloc::format!("{}/feature-ctrl-ring", back(domain))).unwrap(), "1");
    let controls = Controls::new();
    let nodes = controls.nodes();
    let nodes: Vec<_> = nodes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    (Frontend::connect(client, domain, queues, &nodes).await, controls)
}

/// A UDP packet over IPv4 of the flow `port`.
fn packet(from: &Frontend, to: &Frontend, port: u16) -> Vec<u8> {
    let address = |last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
    ip_frame(from.mac(), to.mac(), &udp((address(1), port), (address(2 + port as u8), 9), &[port as u8; 60]))
}

/// The hash extra of the next packet in a queue, and where the packet is.
fn next_hash(queue: &mut Queue) -> Option<NetifExtraHash> {
    let response = queue.rx.next_response().unwrap()?;
    assert_ne!(response.flags & NETRXF_EXTRA_INFO, 0, "a packet without its hash");
    let extra = queue.rx.next_response().unwrap().expect("the extra").as_extra();
    assert_eq!(extra.r#type, XEN_NETIF_EXTRA_TYPE_HASH);
    Some(extra.as_hash())
}

#[test]
fn a_hash_that_the_frontend_sets_chooses_the_queue() {
    let (client, _) = start();
    block_on_test(async {
        let (mut two, mut controls) = connect(&client, 2, 2).await;
        let mut one = Frontend::start(&client, 1).await;
        two.queues.iter_mut().for_each(|queue| queue.post(30));
        assert_eq!(controls.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [1, 0, 0]).await, OK);
        assert_eq!(controls.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [15, 0, 0]).await, OK);
        let key: Vec<u32> = (1..=10).map(|word: u32| word.wrapping_mul(0x9e37_79b9)).collect();
        assert_eq!(controls.numbers(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, &key, 0).await, OK);
        assert_eq!(controls.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [4, 0, 0]).await, OK);
        for table in [[0, 1, 0, 1], [1, 1, 0, 0]] {
            assert_eq!(controls.numbers(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, &table, 0).await, OK);
            let packets = [0, 1, 2, 3, 4, 5, 6, 7].map(|port| packet(&one, &two, port));
            (0..).zip(&packets).for_each(|(id, packet)| one.queues[0].send(packet, id));
            moment().await;
            let mut got = [0; 2];
            for (n, queue) in two.queues.iter_mut().enumerate() {
                while let Some(hash) = next_hash(queue) {
                    let value = u32::from_le_bytes(hash.value);
                    assert_eq!(
                        (table[value as usize % 4] as usize, hash.hash_type, hash.algorithm),
                        (n, 0, 1)
                    );
                    got[n] += 1;
                }
            }
            assert!(got[0] > 0 && got[1] > 0 && got[0] + got[1] == 8, "{got:?}");
            one.queues[0].answers();
        }
        // What has nothing to hash counts as hash 0, and has no extra. Without an algorithm nobody is told of hashes.
        let plain = frame(&one, two.mac(), 60);
        one.queues[0].send(&plain, 0);
        moment().await;
        assert_eq!(two.queues[1].rx.next_response().unwrap().unwrap().flags, 0);
        assert_eq!(controls.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [0, 0, 0]).await, OK);
        let packet = packet(&one, &two, 1);
        one.queues[0].send(&packet, 1);
        moment().await;
        assert_eq!(two.queues[0].rx.next_response().unwrap().unwrap().flags, 0);
    });
}

#[test]
fn a_senders_hash_is_not_passed_on() {
    let (client, _) = start();
    block_on_test(async {
        make_vif(&client, 2, &[]);
        let mut two = Frontend::connect(&client, 2, 2, &[]).await;
        let mut one = Frontend::start(&client, 1).await;
        two.queues.iter_mut().for_each(|queue| queue.post(8));
        for value in [6u8, 7] {
            let bytes = packet(&one, &two, 5);
            one.queues[0].write_slot(&bytes, value.into(), NETTXF_EXTRA_INFO, bytes.len() as u16);
            let r#type = XEN_NETIF_EXTRA_TYPE_HASH;
            let hash =
                NetifExtraHash { r#type, hash_type: 1, algorithm: 1, value: [value, 0, 0, 0], flags: 0 };
            one.queues[0].tx.push_request(&NetifTxRequest::from_extra(&hash.into())).unwrap();
            one.queues[0].ring();
            moment().await;
            // The hash tells flows apart where the receiver has not said how.
            let response = two.queues[usize::from(value) % 2].rx.next_response().unwrap().unwrap();
            assert_eq!((response.flags, response.status as usize), (0, bytes.len()));
        }
    });
}

/// The pages that a frontend sends from, and those that it receives in.
fn pages(front: &Frontend) -> (Vec<GrantRef>, Vec<GrantRef>) {
    let all: Vec<_> = front.queues[0].data.refs().collect();
    (all[..DATA_PAGES / 2].to_vec(), all[DATA_PAGES / 2..].to_vec())
}

#[test]
fn lent_pages_are_used_until_they_are_taken_back() {
    let (client, _) = start();
    block_on_test(async {
        let (mut one, mut of_one) = connect(&client, 1, 1).await;
        let (mut two, mut of_two) = connect(&client, 2, 1).await;
        let carry = async |one: &mut Frontend, two: &mut Frontend| {
            two.queues[0].post(8);
            let frames = [60, 200, 300, 1500, 3000].map(|len| frame(one, two.mac(), len));
            frames.iter().enumerate().for_each(|(id, frame)| one.queues[0].send(frame, id as u16));
            moment().await;
            assert_eq!(two.queues[0].received(), frames.map(Ok));
            assert_eq!(one.queues[0].answers(), [0, 1, 2, 3, 4].map(|id| (id, NETIF_RSP_OKAY)));
        };
        let (sending, receiving) = (pages(&one).0, pages(&two).1);
        assert_eq!(of_one.list(ADD, 0, &sending, XEN_NETIF_CTRLF_GREF_READONLY).await, OK);
        carry(&mut one, &mut two).await;
        assert_eq!(of_two.list(ADD, 0, &receiving, 0).await, OK);
        carry(&mut one, &mut two).await;
        assert!(one.queues[0].data.in_use() && two.queues[0].data.in_use(), "mapped");
        // Some alone, and others again.
        assert_eq!(of_two.list(DEL, 0, &receiving[3..9], 0).await, (OK.0, 6));
        carry(&mut one, &mut two).await;
        assert_eq!(of_one.list(DEL, 0, &sending, 0).await, (OK.0, sending.len() as u32));
        assert!(!one.queues[0].data.in_use());
        carry(&mut one, &mut two).await;
        assert_eq!(of_two.list(ADD, 0, &receiving[3..9], 0).await, OK);
        carry(&mut one, &mut two).await;
        // The connection's end gives the rest back.
        client.write(&alloc::format!("{}/state", front(2)), "6").unwrap();
        back_state(&client, 2, "6").await;
        assert!(!two.queues[0].data.in_use());
    });
}

#[test]
fn packets_in_a_row_go_from_lent_pages_to_lent_pages() {
    let (client, network) = start();
    block_on_test(async {
        let (mut one, mut of_one) = connect(&client, 1, 1).await;
        let (mut two, mut of_two) = connect(&client, 2, 1).await;
        let (sending, receiving) = (pages(&one).0, pages(&two).1);
        let (mac_of_one, mac_of_two) = (one.mac(), two.mac());
        let alike = |len: usize| {
            let payload: Vec<u8> = (0..len).map(|at| (at * 5 + len) as u8).collect();
            ethernet(mac_of_one, mac_of_two, 0x0800, &payload)
        };
        // Nobody lends pages; the sender does; the receiver, too, lends some pages, and some for reading alone.
        let rounds = [
            (None, None),
            (Some((&mut of_one, &sending[..], XEN_NETIF_CTRLF_GREF_READONLY)), None),
            (None, Some((&receiving[..20], 0))),
            (None, Some((&receiving[20..24], XEN_NETIF_CTRLF_GREF_READONLY))),
        ];
        let mut all = 0;
        for (by_one, by_two) in rounds {
            if let Some((of_one, list, flags)) = by_one {
                assert_eq!(of_one.list(ADD, 0, list, flags).await, OK);
            }
            if let Some((list, flags)) = by_two {
                assert_eq!(of_two.list(ADD, 0, list, flags).await, OK);
            }
            for seed in 0..4 {
                two.queues[0].post(16);
                let frames = [60, 50, 200, 242, 243, 700, 1500, 3000].map(|len| alike(len + seed));
                frames.iter().enumerate().for_each(|(id, frame)| {
                    one.queues[0].write_slot(frame, id as u16, 0, frame.len() as u16);
                });
                // A packet of three slots among the others.
                let long = alike(9000 + seed);
                for (n, piece) in long.chunks(4000).enumerate() {
                    let flags = if n < 2 { NETTXF_MORE_DATA } else { 0 };
                    let size = if n == 0 { long.len() } else { piece.len() };
                    one.queues[0].write_slot(piece, 8 + n as u16, flags, size as u16);
                }
                one.queues[0].ring();
                moment().await;
                let received: Vec<_> = two.queues[0].received().into_iter().map(Result::unwrap).collect();
                assert_eq!(received, [&frames[..], &[long]].concat());
                let mut answers = one.queues[0].answers();
                answers.sort_unstable();
                assert_eq!(answers, (0..11).map(|id| (id, NETIF_RSP_OKAY)).collect::<Vec<_>>());
                all += 9;
            }
        }
        let [of_one, of_two] = [1, 2].map(|domain| counters(&network, domain));
        assert_eq!((of_one.in_packets, of_two.out_packets), (all, all));
        assert_eq!(of_one.in_bytes, of_two.out_bytes);
    });
}

#[test]
fn a_page_that_was_taken_back_is_not_touched() {
    let (client, _) = start();
    block_on_test(async {
        let (one, mut of_one) = connect(&client, 1, 1).await;
        let mut one = one;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(4);
        let gref = one.queues[0].data.gref(0);
        assert_eq!(of_one.list(ADD, 0, &[gref], 0).await, OK);
        assert_eq!(of_one.list(DEL, 0, &[gref], 0).await, (OK.0, 1));
        // The page goes back to its owner, and its reference to nobody.
        let old = core::mem::replace(
            &mut one.queues[0].data,
            Granted::whole(Pages::zeroed(DATA_PAGES).unwrap(), DomId::DOM0, false).unwrap(),
        );
        let old = old.end().expect("nobody has it mapped");
        assert!(map_grants(DomId::new(1), &[gref], false).is_err(), "no grant any more");
        let request = NetifTxRequest { gref: gref.raw(), offset: 0, flags: 0, id: 3, size: 60 };
        one.queues[0].tx.push_request(&request).unwrap();
        one.queues[0].ring();
        moment().await;
        assert_eq!(one.queues[0].answers(), [(3, NETIF_RSP_ERROR)]);
        assert!(two.queues[0].received().is_empty());
        drop(old);
    });
}

#[test]
fn what_a_frontend_lends_stays_within_its_vifs_budget() {
    let (client, _) = start();
    block_on_test(async {
        let account = Account::claim(1 << 20).unwrap();
        account.assign(DomId::new(1));
        let (_one, mut controls) = connect(&client, 1, 1).await;
        let (lent, more) = Account::own().charge(|| {
            let lend = |count| Granted::whole(Pages::zeroed(count).unwrap(), DomId::DOM0, false).unwrap();
            (lend(MAX_STAGED), lend(1))
        });
        let grefs: Vec<_> = lent.refs().collect();
        let connected = account.figures().unwrap();
        let size = controls.ask(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [0; 3]).await;
        assert_eq!(size, (OK.0, MAX_STAGED as u32));
        assert_eq!(controls.list(ADD, 0, &grefs, 0).await, OK);
        let figures = account.figures().unwrap();
        let more_bytes = figures.peak - connected.used;
        assert!(more_bytes <= LENT_BYTES, "{more_bytes} bytes");
        assert_eq!(
            controls.list(ADD, 0, &[more.gref(0)], 0).await.0,
            XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
        );
        assert!(lent.in_use() && !more.in_use());
        assert!(!account.is_overdrawn());
    });
}

#[test]
fn a_ruined_control_ring_ends_its_own_connection_alone() {
    let (client, _) = start();
    block_on_test(async {
        let (mut one, controls) = connect(&client, 1, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        one.queues[0].post(2);
        controls.page.bytes().store_u32(REQ_PROD, 5000);
        controls.port.notify();
        back_state(&client, 1, "5").await;
        assert!(error(&client, 1).contains("ring overrun"), "{}", error(&client, 1));
        let mut three = Frontend::start(&client, 3).await;
        three.queues[0].post(1);
        let frame = frame(&two, three.mac(), 60);
        two.queues[0].send(&frame, 0);
        moment().await;
        assert_eq!(three.queues[0].received(), [Ok(frame)]);
    });
}

#[test]
fn lists_of_any_content_hurt_nobody() {
    let (client, _) = start();
    block_on_test(async {
        let (mut one, mut controls) = connect(&client, 1, 2).await;
        let mut two = Frontend::start(&client, 2).await;
        two.queues[0].post(30);
        let mut list = vec![XenNetifGref::new_zeroed(); 512];
        for round in 0..20u32 {
            for (at, entry) in list.iter_mut().enumerate() {
                let gref = (at as u32).wrapping_mul(round) % 700;
                *entry = XenNetifGref { r#ref: gref, flags: (round % 3) as u16, status: u16::MAX };
            }
            controls.data.memory().page(0).write(0, list.as_bytes());
            for (kind, count) in [(ADD, round * 9), (DEL, 512), (ADD, 1 << 31 | round)] {
                let (status, _) = controls.ask(kind, [round % 3, controls.data.gref(0).raw(), count]).await;
                assert!(status <= 3);
            }
        }
        let frame = frame(&one, two.mac(), 4000);
        one.queues[0].send(&frame, 0);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(frame)]);
    });
}
