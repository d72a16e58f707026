//! The frontend against a backend in the same process: real rings, real grants. The test plays the backend.

mod breaches;
mod control;
mod ends;

use super::*;
use crate::xenbus::testing::TestStore;
use alloc::format;
use alloc::vec::Vec;
use pvrt::executor::{block_on_test, spawn, time};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::netif::*;
use ring_abi::ring::BackRing;
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE, Port as PortNumber};

const FRONT: &str = "device/vif/0";
const BACK: &str = "/local/domain/0/backend/vif/1/0";
const GUEST: DomId = DomId::new(1);

/// What the backend says of itself, and the interface's MTU.
fn nodes(store: &TestStore, mtu: Option<u16>, features: &[&str]) {
    store.set(&format!("{FRONT}/backend"), BACK);
    store.set(&format!("{FRONT}/backend-id"), "0");
    store.set(&format!("{FRONT}/mac"), "00:16:3e:01:02:03");
    store.set(&format!("{FRONT}/state"), "1");
    if let Some(mtu) = mtu {
        store.set(&format!("{FRONT}/mtu"), &format!("{mtu}"));
    }
    for feature in features {
        store.set(&format!("{BACK}/{feature}"), "1");
    }
    store.set(&format!("{BACK}/state"), "2");
}

const FEATURES: [&str; 5] =
    ["feature-rx-copy", "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"];

/// The backend's ends of the rings.
struct Backend {
    store: TestStore,
    transmit: BackRing<NetifTxRing, GrantMap>,
    receive: BackRing<NetifRxRing, GrantMap>,
    port: Port,
}

/// A packet as the backend saw it: the requests without the extra information, the GSO information and the bytes.
type Seen = (Vec<NetifTxRequest>, Option<NetifExtraGso>, Vec<u8>);

impl Backend {
    /// Waits for the frontend's nodes, and connects.
    async fn start(store: TestStore) -> Self {
        let front = |name: &str| -> Option<u32> { store.get(&format!("{FRONT}/{name}"))?.parse().ok() };
        while front("state") != Some(4) {
            time::sleep(1000).await;
        }
        let map = |name: &str| {
            let gref = GrantRef::new(front(name).expect("written"));
            map_grants(GUEST, &[gref], true).expect("granted")
        };
        let transmit = BackRing::attach(map("tx-ring-ref")).expect("a page is enough");
        let receive = BackRing::attach(map("rx-ring-ref")).expect("a page is enough");
        let number = PortNumber::new(front("event-channel").expect("written"));
        let port = Port::bind_interdomain(GUEST, number).expect("bound");
        store.set(&format!("{BACK}/state"), "4");
        Self { store, transmit, receive, port }
    }

    /// Takes a packet, and answers it.
    fn take(&mut self) -> Option<Seen> {
        let first = self.transmit.next_request().expect("a sane frontend")?;
        let mut requests = alloc::vec![first];
        let mut gso = None;
        if first.flags & NETTXF_EXTRA_INFO != 0 {
            let slot = self.transmit.next_request().expect("a sane frontend").expect("extra information");
            assert_eq!(slot.as_extra().flags, 0, "the last one");
            gso = Some(slot.as_extra().as_gso());
        }
        while requests[requests.len() - 1].flags & NETTXF_MORE_DATA != 0 {
            requests.push(self.transmit.next_request().expect("a sane frontend").expect("the rest"));
        }
        // The first request has the whole packet's size, or the most that the field holds.
        let rest: usize = requests[1..].iter().map(|request| usize::from(request.size)).sum();
        let mut bytes = Vec::new();
        for (index, request) in requests.iter().enumerate() {
            let mut len = usize::from(request.size);
            if index == 0 {
                len = if len == 0xffff { PAGE_SIZE } else { len - rest };
            }
            let page = map_grants(GUEST, &[GrantRef::new(request.gref)], false).expect("granted");
            let mut piece = alloc::vec![0; len];
            page.page(0).read(request.offset.into(), &mut piece);
            bytes.extend(piece);
        }
        for (index, request) in requests.iter().enumerate() {
            self.transmit.push_response(&NetifTxResponse { id: request.id, status: NETIF_RSP_OKAY });
            if index == 0 && gso.is_some() {
                self.transmit.push_response(&NetifTxResponse { id: 0, status: NETIF_RSP_NULL });
            }
        }
        if self.transmit.publish_responses() {
            self.port.notify();
        }
        Some((requests, gso, bytes))
    }

    /// One answer to the next receive request, with `bytes` at `offset` of its page.
    fn part(&mut self, bytes: &[u8], offset: u16, flags: u16) -> NetifRxResponse {
        let request = self.receive.next_request().expect("a sane frontend").expect("a buffer");
        let page = map_grants(GUEST, &[GrantRef::new(request.gref)], true).expect("granted");
        page.page(0).write(offset.into(), bytes);
        NetifRxResponse { id: request.id, offset, flags, status: bytes.len() as i16 }
    }

    fn give(&mut self, packet: &[u8], flags: u16, extras: &[NetifExtraInfo]) {
        let pieces: Vec<&[u8]> = packet.chunks(PAGE_SIZE).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let more = if index + 1 < pieces.len() { NETRXF_MORE_DATA } else { 0 };
            let first = if index == 0 { flags } else { 0 };
            let response = self.part(piece, 0, first | more);
            self.receive.push_response(&response);
            if index == 0 {
                for extra in extras {
                    self.receive.next_request().expect("a sane frontend").expect("a buffer");
                    self.receive.push_response(&NetifRxResponse::from_extra(extra));
                }
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        if self.receive.publish_responses() {
            self.port.notify();
        }
    }

    fn state(&self, state: u32) {
        self.store.set(&format!("{BACK}/state"), &format!("{state}"));
    }
}

/// Connects both ends.
async fn pair(mtu: Option<u16>) -> (Interface, Backend) {
    let store = TestStore::new();
    nodes(&store, mtu, &FEATURES);
    let client = store.connect();
    let (sender, receiver) = pvrt::executor::sync::oneshot();
    spawn(async move {
        assert!(sender.send(Backend::start(store).await).is_ok(), "waited for");
    });
    let interface = Interface::connect(&client, FRONT).await.expect("connected");
    (interface, receiver.await.expect("started"))
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

const PLAIN: Offload = Offload { checksum: Checksum::Complete, gso: None, hash: None };
const SEGMENTED: Offload =
    Offload { checksum: Checksum::Partial, gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), hash: None };

#[test]
fn packets_of_all_sizes_pass_both_ways_and_around_the_rings() {
    block_on_test(async {
        let (interface, mut backend) = pair(Some(65_535)).await;
        assert_eq!(interface.properties().mac, [0, 0x16, 0x3e, 1, 2, 3]);
        let mut received = Vec::new();
        for (round, len) in
            [14, 60, 1514, 4095, 4096, 4097, 8192, 9014, 65_549, 14].iter().cycle().take(200).enumerate()
        {
            let packet = bytes(*len, round);
            interface.send(&packet, PLAIN).expect("room");
            interface.flush().expect("connected");
            let (requests, gso, seen) = backend.take().expect("sent");
            assert!(seen == packet && gso.is_none(), "{len} bytes");
            assert_eq!(requests.len(), len.div_ceil(PAGE_SIZE));
            assert_eq!(usize::from(requests[0].size), (*len).min(0xffff));
            backend.give(&packet, 0, &[]);
            received.clear();
            assert_eq!(interface.receive(&mut received), Ok(Some(PLAIN)));
            assert!(received == packet, "{len} bytes");
            assert_eq!(interface.receive(&mut received), Ok(None));
        }
        let statistics = interface.statistics();
        assert_eq!((statistics.sent, statistics.received, statistics.send_errors), (200, 200, 0));
        assert_eq!(statistics.sent_bytes, statistics.received_bytes);
    });
}

#[test]
fn offloads_pass_both_ways() {
    block_on_test(async {
        let (interface, mut backend) = pair(None).await;
        let packet = bytes(40_000, 5);
        interface.send(&packet, SEGMENTED).expect("room");
        let verified = Offload { checksum: Checksum::Verified, ..PLAIN };
        interface.send(&packet[..100], verified).expect("room");
        interface.flush().expect("connected");
        let (requests, gso, seen) = backend.take().expect("sent");
        assert!(seen == packet);
        let gso = gso.expect("asked for");
        assert_eq!((gso.r#type, gso.size, gso.gso_type), (1, 1448, 1));
        assert_eq!(
            requests[0].flags,
            NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED | NETTXF_EXTRA_INFO | NETTXF_MORE_DATA
        );
        let (requests, gso, _) = backend.take().expect("sent");
        assert_eq!((requests[0].flags, gso), (NETTXF_DATA_VALIDATED, None));

        let gso =
            NetifExtraGso { r#type: XEN_NETIF_EXTRA_TYPE_GSO, size: 900, gso_type: 2, ..Default::default() };
        let hash = NetifExtraHash { r#type: XEN_NETIF_EXTRA_TYPE_HASH, flags: 1, ..Default::default() };
        backend.give(
            &packet,
            NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED | NETRXF_EXTRA_INFO,
            &[hash.into(), gso.into()],
        );
        backend.give(&packet[..60], NETRXF_DATA_VALIDATED, &[]);
        let mut received = Vec::new();
        let expected = Offload { gso: Some(Gso { kind: GsoKind::TcpV6, size: 900 }), ..SEGMENTED };
        let hash = Some(PacketHash { kind: 0, value: 0 });
        assert_eq!(interface.receive(&mut received), Ok(Some(Offload { hash, ..expected })));
        assert!(received == packet);
        // The buffers that the extra information took are posted again: all 256 are there.
        assert_eq!(interface.receive(&mut received), Ok(Some(verified)));
        interface.flush().expect("connected");
        let mut buffers = Vec::new();
        while let Some(request) = backend.receive.next_request().expect("a sane frontend") {
            buffers.push(request.id);
        }
        buffers.sort_unstable();
        assert_eq!(buffers, (0..256).collect::<Vec<u16>>());
    });
}

#[test]
fn what_the_backend_lacks_is_not_sent() {
    block_on_test(async {
        let store = TestStore::new();
        nodes(&store, Some(9000), &["feature-rx-copy", "feature-no-csum-offload"]);
        let client = store.connect();
        spawn(async move {
            // The rings must outlive the connection.
            core::mem::forget(Backend::start(store).await);
        });
        let interface = Interface::connect(&client, FRONT).await.expect("connected");
        assert_eq!(interface.longest(), 1514, "no packet in pieces");
        let partial = Offload { checksum: Checksum::Partial, ..PLAIN };
        for (len, offload) in [(13, PLAIN), (1519, PLAIN), (100, partial), (100, SEGMENTED)] {
            assert_eq!(
                interface.send(&bytes(len, 0), offload),
                Err(NetError::BadPacket),
                "{len} {offload:?}"
            );
        }
        interface.send(&bytes(1518, 0), PLAIN).expect("with a VLAN tag");
    });
    block_on_test(async {
        let (interface, _backend) = pair(None).await;
        let empty = Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 0 }), ..SEGMENTED };
        let complete = Offload { checksum: Checksum::Complete, ..SEGMENTED };
        for (len, offload) in [(2000, empty), (2000, complete), (MAX_PACKET + 1, SEGMENTED)] {
            assert_eq!(
                interface.send(&bytes(len, 0), offload),
                Err(NetError::BadPacket),
                "{len} {offload:?}"
            );
        }
    });
    block_on_test(async {
        let store = TestStore::new();
        nodes(&store, None, &["feature-sg"]);
        let client = store.connect();
        let failed = Interface::connect(&client, FRONT).await.err();
        assert_eq!(failed, Some(NetError::Unsupported("feature-rx-copy")));
    });
}

#[test]
fn a_full_ring_says_so_and_wakes_its_task_when_there_is_room() {
    block_on_test(async {
        let (interface, mut backend) = pair(Some(9000)).await;
        let interface = Arc::new(interface);
        let packet = bytes(9014, 1);
        // A new ring asks for an event with its first answer, whether its owner waits or not.
        interface.send(&packet, PLAIN).expect("room");
        interface.flush().expect("connected");
        assert!(backend.take().is_some());
        assert!(interface.shared.ports[0].take_event());
        let mut sent = 0;
        while interface.has_room(packet.len()).expect("connected") {
            interface.send(&packet, PLAIN).expect("room");
            sent += 1;
        }
        assert_eq!(sent, transmit::BUFFERS / 3);
        assert_eq!(interface.send(&packet, PLAIN), Err(NetError::Full));
        let waiting = spawn_ready(&interface);
        time::sleep(1000).await;
        assert!(!waiting.is_done(), "nothing has come");
        assert!(backend.take().is_some(), "flushed by the wait");
        time::sleep(1000).await;
        assert!(waiting.is_done());
        interface.send(&packet, PLAIN).expect("room again");
        while backend.take().is_some() {}
        // No packet waits for room, so answers wake nobody; a received packet does.
        let waiting = spawn_ready(&interface);
        time::sleep(1000).await;
        interface.send(&packet, PLAIN).expect("room");
        interface.flush().expect("connected");
        assert!(backend.take().is_some());
        time::sleep(1000).await;
        assert!(!waiting.is_done(), "an answer is no reason to wake");
        backend.give(&bytes(60, 0), 0, &[]);
        time::sleep(1000).await;
        assert!(waiting.is_done());
    });
}

/// A task that waits by [`Interface::ready`].
struct Waiting(Arc<core::sync::atomic::AtomicBool>);

impl Waiting {
    fn is_done(&self) -> bool {
        self.0.load(core::sync::atomic::Ordering::Relaxed)
    }
}

fn spawn_ready(interface: &Arc<Interface>) -> Waiting {
    let done = Arc::new(core::sync::atomic::AtomicBool::new(false));
    let (flag, interface) = (done.clone(), interface.clone());
    spawn(async move {
        interface.ready().await;
        flag.store(true, core::sync::atomic::Ordering::Relaxed);
    });
    Waiting(done)
}

#[test]
fn errors_of_single_packets_are_counted() {
    block_on_test(async {
        let (interface, mut backend) = pair(None).await;
        interface.send(&bytes(60, 0), PLAIN).expect("room");
        interface.flush().expect("connected");
        let request = backend.transmit.next_request().expect("sane").expect("sent");
        backend.transmit.push_response(&NetifTxResponse { id: request.id, status: NETIF_RSP_DROPPED });
        // A new ring asks for an event with its first answer; the frontend asks for no other.
        assert!(backend.transmit.publish_responses());
        interface.has_room(60).expect("connected");
        assert_eq!(interface.statistics().send_errors, 1);
        // A part failed: the whole packet is lost, and the next one is whole.
        let first = backend.part(&bytes(4096, 0), 0, NETRXF_MORE_DATA);
        let second = NetifRxResponse { status: NETIF_RSP_ERROR, ..backend.part(&[], 0, 0) };
        let short = backend.part(&bytes(13, 0), 0, 0);
        for response in [first, second, short] {
            backend.receive.push_response(&response);
        }
        backend.publish();
        let late = bytes(60, 9);
        backend.give(&late, 0, &[]);
        let mut received = Vec::new();
        assert_eq!(interface.receive(&mut received), Ok(Some(PLAIN)));
        assert_eq!(received, late);
        assert_eq!(interface.statistics().receive_errors, 2);
    });
}

#[test]
fn a_packet_whose_rest_comes_later_is_whole_in_the_end() {
    block_on_test(async {
        let (interface, mut backend) = pair(None).await;
        let packet = bytes(5000, 3);
        let first = backend.part(&packet[..3000], 7, NETRXF_MORE_DATA | NETRXF_DATA_VALIDATED);
        backend.receive.push_response(&first);
        backend.publish();
        let mut received = Vec::new();
        assert_eq!(interface.receive(&mut received), Ok(None));
        let second = backend.part(&packet[3000..], 1, 0);
        backend.receive.push_response(&second);
        backend.publish();
        let verified = Offload { checksum: Checksum::Verified, ..PLAIN };
        assert_eq!(interface.receive(&mut received), Ok(Some(verified)));
        assert!(received == packet);
    });
}

#[test]
fn nonsense_in_the_store_is_named() {
    block_on_test(async {
        let store = TestStore::new();
        nodes(&store, Some(67), &FEATURES);
        let client = store.connect();
        let failed = Interface::connect(&client, FRONT).await.err();
        assert_eq!(failed, Some(NetError::Store(StoreError::BadValue(format!("{FRONT}/mtu")))));
    });
}
