//! The network frontend against a hostile backend.

use dom0::xenstore::Client;
use frontends::netfront::{
    Checksum, ETHERNET_HEADER, Gso, GsoKind, Interface, MAX_PACKET, NetError, Offload, RingState,
};
use frontends::xenbus::Xenstore;
use pvrt::event::Port;
use pvrt::executor::time::{sleep, timeout};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::netif::{
    NETIF_RSP_NULL, NETIF_RSP_OKAY, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA, NETTXF_EXTRA_INFO, NetifExtraGso,
    NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifRxRing, NetifTxRequest, NetifTxResponse,
    NetifTxRing,
};
use ring_abi::ring::{REQ_PROD, RSP_PROD, RingProtocol, SLOTS};
use ring_abi::types::GrantRef;

use crate::devices::{self, GUEST, Paths};
use crate::input::Input;

mod control;

use control::Control;

const PATHS: Paths = Paths { back: "/local/domain/0/backend/vif/5/0", front: "/local/domain/5/device/vif/0" };
const SLOTS_PER_RING: u32 = 256;
/// Queues that the frontend asks for, at most.
const QUEUES: usize = 4;

fn make_device(dom0: &Client, input: &Input) {
    let back = [
        ("feature-rx-copy", "1"),
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
        ("multi-queue-max-queues", "3"),
        ("feature-ctrl-ring", "1"),
    ];
    PATHS.make(dom0, input, &back, &[("mac", "00:16:3e:01:02:03"), ("mtu", "9000")]);
}

fn slot<R: RingProtocol>(index: u32) -> usize {
    SLOTS + (index % SLOTS_PER_RING) as usize * R::SLOT_BYTES
}

/// The backend's side of the rings, without any engine that would keep it honest.
struct Liar {
    transmit: GrantMap,
    receive: GrantMap,
    port: Port,
    /// Buffers that it took and keeps.
    kept: Vec<GrantMap>,
    sent: u32,
    received: u32,
    /// The next receive slot has extra information.
    owes_extra: bool,
}

impl Liar {
    /// Takes the rings of the queue with its nodes in `directory`.
    fn attach(dom0: &Client, directory: &str) -> Option<Liar> {
        let node = |name: &str| format!("{directory}{name}");
        let rings = [&*node("tx-ring-ref"), &*node("rx-ring-ref")];
        let ([transmit, receive], port) = PATHS.take(dom0, rings, &node("event-channel"))?;
        Some(Liar { transmit, receive, port, kept: Vec::new(), sent: 0, received: 0, owes_extra: false })
    }

    /// Does one wrong or right thing.
    fn act(&mut self, input: &Input) {
        match input.below(16) {
            0..6 => self.give(input),
            6..10 => self.answer(input),
            10 => self.receive.bytes().store_u32(RSP_PROD, self.received),
            11 => {
                let page = if input.u8() & 1 == 0 { &self.transmit } else { &self.receive };
                page.bytes().store_u32(input.below(4) * 4, input.u32());
            }
            12 => {
                let page = if input.u8() & 1 == 0 { &self.transmit } else { &self.receive };
                page.bytes().write(SLOTS + usize::from(input.u8()) * 8, &input.take(8));
            }
            13 => {
                let request: NetifTxRequest =
                    self.transmit.bytes().read_value(slot::<NetifTxRing>(input.u8().into()));
                self.keep(request.gref);
            }
            14 => {
                let request: NetifRxRequest =
                    self.receive.bytes().read_value(slot::<NetifRxRing>(input.u8().into()));
                self.keep(request.gref);
            }
            _ => {}
        }
        self.port.notify();
    }

    fn keep(&mut self, gref: u32) {
        if self.kept.len() < 8
            && let Ok(map) = map_grants(GUEST, &[GrantRef::new(gref)], true)
        {
            map.bytes().fill(0, 512, 0xee);
            self.kept.push(map);
        }
    }

    /// The next answer to a receive request: a part of a packet, extra information, or whatever.
    fn give(&mut self, input: &Input) {
        let page = self.receive.bytes();
        let at = slot::<NetifRxRing>(self.received);
        let request: NetifRxRequest = page.read_value(at);
        let mut response = NetifRxResponse { id: request.id, status: 60, ..Default::default() };
        let how = input.u8();
        if self.owes_extra && how < 0xe0 {
            let extra: NetifExtraInfo = NetifExtraGso {
                r#type: 1 + input.below(5) as u8,
                flags: input.u8() & 1,
                size: input.u16(),
                gso_type: 1 + input.below(3) as u8,
                ..Default::default()
            }
            .into();
            self.owes_extra = extra.flags & 1 != 0;
            response = NetifRxResponse::from_extra(&extra);
        } else {
            match how & 7 {
                0 => response.status = input.u16() as i16,
                1 => response.status = 4096,
                2 => response.offset = input.u16() & 0x1fff,
                3 => response.id = input.u16(),
                4 => response.flags = input.u16(),
                5 => response.flags = NETRXF_MORE_DATA,
                6 => response.flags = NETRXF_EXTRA_INFO,
                _ => {}
            }
            self.owes_extra = response.flags & NETRXF_EXTRA_INFO != 0;
        }
        // Without a request in the slot this is an overrun.
        if page.load_u32(REQ_PROD) != self.received || how == 0xff {
            page.write_value(at, &response);
            self.received = self.received.wrapping_add(1);
            let more = response.flags & (NETRXF_MORE_DATA | NETRXF_EXTRA_INFO) != 0 || self.owes_extra;
            if !more || how & 8 != 0 {
                page.store_u32(RSP_PROD, self.received);
            }
        }
    }

    /// The next answer to a transmit request.
    fn answer(&mut self, input: &Input) {
        let page = self.transmit.bytes();
        let at = slot::<NetifTxRing>(self.sent);
        let request: NetifTxRequest = page.read_value(at);
        let mut response = NetifTxResponse { id: request.id, status: NETIF_RSP_OKAY };
        match input.u8() {
            0..=0xbf => {}
            0xc0..=0xcf => response.status = input.u16() as i16,
            0xd0..=0xdf => response.id = u16::from(input.u8()),
            0xe0..=0xef => response.status = NETIF_RSP_NULL,
            _ => response.id = input.u16(),
        }
        if page.load_u32(REQ_PROD) == self.sent && input.u8() != 0xff {
            return;
        }
        page.write_value(at, &response);
        self.sent = self.sent.wrapping_add(1);
        if request.flags & NETTXF_EXTRA_INFO != 0 {
            let null = NetifTxResponse { id: 0, status: NETIF_RSP_NULL };
            page.write_value(slot::<NetifTxRing>(self.sent), &null);
            self.sent = self.sent.wrapping_add(1);
        }
        page.store_u32(RSP_PROD, self.sent);
    }
}

async fn backend(dom0: &Client, input: &Input) {
    PATHS.reach(dom0, 4).await;
    let queues = PATHS.number(dom0, "multi-queue-num-queues");
    let directories = (0..queues.unwrap_or(1)).map(|number| match queues {
        Some(_) => format!("queue-{number}/"),
        None => String::new(),
    });
    let mut liars: Vec<Liar> = directories.map_while(|directory| Liar::attach(dom0, &directory)).collect();
    if liars.is_empty() {
        return;
    }
    let mut control = Control::attach(dom0, liars.len() as u32);
    let state = if input.u8() & 15 == 0 { input.text(2) } else { "4".into() };
    PATHS.set_state(dom0, &state);
    while !input.is_empty() {
        if let Some(control) = &mut control {
            control.serve(input);
        }
        let number = input.below(liars.len());
        liars[number].act(input);
        sleep(u64::from(input.u8() & 3) * 50).await;
    }
    PATHS.set_state(dom0, "6");
}

/// A packet of any length, with any offload.
fn packet(input: &Input) -> (Vec<u8>, Offload) {
    let len = match input.u8() {
        0..=0x7f => 60,
        0x80..=0xbf => 1514,
        0xc0..=0xdf => usize::from(input.u16()),
        _ => MAX_PACKET - usize::from(input.u8() & 7),
    };
    let checksum =
        [Checksum::Complete, Checksum::Verified, Checksum::Partial, Checksum::Partial][input.below(4)];
    let gso = match input.below(4) {
        0 => Some(Gso { kind: GsoKind::TcpV4, size: input.u16() }),
        1 => Some(Gso { kind: GsoKind::TcpV6, size: 1448 }),
        _ => None,
    };
    (vec![0x5a; len], Offload { checksum, gso, hash: None })
}

/// Sends and receives until the backend has nothing more to do, or has broken the protocol.
async fn use_it(interface: &Interface, input: &Input) {
    let mut received = Vec::new();
    while !input.is_empty() {
        if input.u8() & 3 == 0 {
            let (bytes, offload) = packet(input);
            match interface.send(&bytes, offload) {
                Ok(()) | Err(NetError::Full | NetError::BadPacket) => {}
                Err(error) => {
                    assert_eq!(error, NetError::Disconnected);
                    break;
                }
            }
        }
        // No more than there are buffers, so that the frontend comes to an end.
        for _ in 0..=SLOTS_PER_RING as usize * QUEUES {
            received.clear();
            match interface.receive(&mut received) {
                Ok(Some(offload)) => {
                    assert!((ETHERNET_HEADER..=MAX_PACKET).contains(&received.len()));
                    assert!(offload.gso.is_none_or(|gso| gso.size > 0));
                }
                Ok(None) => break,
                Err(error) => return assert_eq!(error, NetError::Disconnected),
            }
        }
        let RingState { transmit_used, transmit_slots, receive_posted, receive_slots } =
            interface.ring_state();
        assert!(transmit_used <= transmit_slots && receive_posted <= receive_slots);
        let _ = timeout(200_000, interface.ready()).await;
    }
    // What has ended stays so.
    if interface.flush().is_err() {
        assert_eq!(interface.receive(&mut received), Err(NetError::Disconnected));
        assert_eq!(interface.send(&[0; 60], Offload::default()), Err(NetError::Disconnected));
    }
}

async fn frontend(guest: &Xenstore, input: &Input) {
    // More than the frontend waits for answers on the control ring.
    let attempt = timeout(3_000_000_000, Interface::connect_queues(guest, PATHS.front, QUEUES));
    let Ok(Ok(interface)) = attempt.await else { return };
    let (arrangement, state) = (interface.arrangement(), interface.ring_state());
    assert!((1..=QUEUES).contains(&arrangement.queues) && (arrangement.queues > 1 || !arrangement.hashed));
    // An interface that has ended meanwhile has no slots.
    let slots = (state.transmit_slots + state.receive_slots) as usize;
    assert!(slots == 0 || arrangement.lent <= slots);
    let properties = interface.properties();
    assert!(properties.mtu >= 68 && (properties.scatter_gather || properties.mtu <= 1500));
    assert!(properties.scatter_gather || !properties.gso_tcpv4 && !properties.gso_tcpv6);
    use_it(&interface, input).await;
    if input.u8() & 1 == 0 {
        let _ = timeout(100_000, interface.close()).await;
    }
}

/// Nodes, answers and packets of any kind: the frontend ends in order, and once both ends are gone no grant is left.
pub(crate) fn run(data: &[u8]) {
    devices::meet(data, make_device, frontend, backend);
}
