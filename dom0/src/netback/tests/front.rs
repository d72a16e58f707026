//! Frontends in the backend's own program, and what the toolstack does for them.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::{spawn, time};
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::io::netif::*;
use ring_abi::ring::FrontRing;
use ring_abi::types::DomId;

use super::super::{Network, run};
use crate::net::MacAddr;
use crate::net::headers::testing::station;
use crate::net::switch::{Counters, Reason};
use crate::xenstore::{Client, Nodes, Quotas, Xenstore};

/// A store with a network backend, and its network.
pub(super) fn start() -> (Client, Arc<Network>) {
    let store = Xenstore::new(Quotas::XEN);
    let network = Arc::new(Network::new());
    spawn(run(store.clone(), network.clone()));
    spawn(store.clone().settle());
    (store.client(), network)
}

pub(super) fn back(domain: u16) -> alloc::string::String {
    format!("/local/domain/0/backend/vif/{domain}/0")
}

pub(super) fn front(domain: u16) -> alloc::string::String {
    format!("/local/domain/{domain}/device/vif/0")
}

/// Does what the toolstack does for a vif of `domain`, with these nodes more in the backend's directory.
pub(super) fn make_vif(client: &Client, domain: u16, more: &[(&str, &str)]) {
    let (back, front, mac) = (back(domain), front(domain), station(domain as u8).to_string());
    client
        .atomically(|tx| {
            for (name, value) in [("backend", back.as_str()), ("backend-id", "0"), ("state", "1")] {
                tx.write(&format!("{front}/{name}"), value)?;
            }
            let usual = [("frontend", front.as_str()), ("online", "1"), ("mac", &mac), ("bridge", "xenbr0")];
            for (name, value) in usual.iter().chain(more).chain(&[("state", "1")]) {
                tx.write(&format!("{back}/{name}"), *value)?;
            }
            Ok(())
        })
        .unwrap();
}

pub(super) async fn back_state(client: &Client, domain: u16, state: &str) {
    let path = format!("{}/state", back(domain));
    for _ in 0..1000 {
        if client.read_str(&path).is_ok_and(|now| now == state) {
            return;
        }
        time::sleep(1_000_000).await;
    }
    panic!("backend {domain} stays in {:?}, not {state}", client.read_str(&path));
}

/// What was counted at a vif's port.
pub(super) fn counters(network: &Network, domain: u16) -> Counters {
    let fabric = network.0.lock();
    let bridge = fabric.switch.find_bridge("xenbr0").unwrap();
    let name = format!("vif{domain}.0");
    let mut ports = fabric.switch.ports_of(bridge);
    let port = ports.find(|port| fabric.switch.config(*port).is_some_and(|config| config.name == name));
    fabric.switch.counters(port.unwrap()).unwrap().clone()
}

pub(super) fn drops(network: &Network, domain: u16, reason: Reason) -> u64 {
    counters(network, domain).drops(reason)
}

type Page = Granted<Arc<Pages>>;

/// One queue of a frontend.
pub(super) struct Queue {
    pub(super) tx: FrontRing<NetifTxRing, Page>,
    pub(super) rx: FrontRing<NetifRxRing, Page>,
    pub(super) pages: [Arc<Pages>; 2],
    pub(super) tx_port: Port,
    /// None: the queue has one port.
    pub(super) rx_port: Option<Port>,
    /// Pages that packets are sent from and received in.
    pub(super) data: Granted<Pages>,
    /// Requests posted so far.
    next: usize,
}

pub(super) const DATA_PAGES: usize = 64;

/// A frontend that has connected.
pub(super) struct Frontend {
    pub(super) domain: u16,
    pub(super) queues: Vec<Queue>,
}

/// The frontends of domains 2 to 39, each with room for so many packets.
pub(super) async fn receivers(client: &Client, room: usize) -> Vec<Frontend> {
    let mut receivers = Vec::new();
    for domain in 2..40 {
        let mut receiver = Frontend::start(client, domain).await;
        receiver.queues[0].post(room);
        receivers.push(receiver);
    }
    receivers
}

impl Frontend {
    /// Makes a vif, and connects to it as Linux does: with one queue.
    pub(super) async fn start(client: &Client, domain: u16) -> Self {
        make_vif(client, domain, &[]);
        Self::connect(client, domain, 1, &[]).await
    }

    /// Connects with so many queues; with more than one, each ring has an event channel of its own.
    pub(super) async fn connect(client: &Client, domain: u16, queues: usize, more: &[(&str, &str)]) -> Self {
        back_state(client, domain, "2").await;
        let front = front(domain);
        let write = |name: &str, value: &str| client.write(&format!("{front}/{name}"), value).unwrap();
        let queues: Vec<Queue> = (0..queues).map(|_| Queue::new(queues > 1)).collect();
        for (n, queue) in queues.iter().enumerate() {
            let directory = if queues.len() > 1 { format!("queue-{n}/") } else { "".into() };
            queue.nodes().iter().for_each(|(name, value)| write(&format!("{directory}{name}"), value));
        }
        for (name, value) in [("request-rx-copy", "1"), ("feature-rx-notify", "1"), ("feature-sg", "1")] {
            write(name, value);
        }
        if queues.len() > 1 {
            write("multi-queue-num-queues", &queues.len().to_string());
        }
        more.iter().for_each(|(name, value)| write(name, value));
        write("state", "4");
        back_state(client, domain, "4").await;
        Self { domain, queues }
    }

    pub(super) fn mac(&self) -> MacAddr {
        station(self.domain as u8)
    }
}

impl Queue {
    fn new(is_split: bool) -> Self {
        let pages = [(); 2].map(|()| Arc::new(Pages::zeroed(1).unwrap()));
        let granted = |page: &Arc<Pages>| Granted::whole(page.clone(), DomId::DOM0, false).unwrap();
        let port = || Port::alloc_unbound(DomId::DOM0).unwrap();
        Self {
            tx: FrontRing::new(granted(&pages[0])).unwrap(),
            rx: FrontRing::new(granted(&pages[1])).unwrap(),
            pages: pages.clone(),
            tx_port: port(),
            rx_port: is_split.then(port),
            data: Granted::whole(Pages::zeroed(DATA_PAGES).unwrap(), DomId::DOM0, false).unwrap(),
            next: 0,
        }
    }

    fn nodes(&self) -> Vec<(&'static str, alloc::string::String)> {
        let mut nodes = alloc::vec![
            ("tx-ring-ref", self.tx.page().gref(0).to_string()),
            ("rx-ring-ref", self.rx.page().gref(0).to_string()),
        ];
        match &self.rx_port {
            None => nodes.push(("event-channel", self.tx_port.number().to_string())),
            Some(rx_port) => {
                nodes.push(("event-channel-tx", self.tx_port.number().to_string()));
                nodes.push(("event-channel-rx", rx_port.number().to_string()));
            }
        }
        nodes
    }

    /// Sends a frame in one slot.
    pub(super) fn send(&mut self, frame: &[u8], id: u16) {
        self.write_slot(frame, id, 0, frame.len() as u16);
        self.ring();
    }

    /// Writes one slot of a packet.
    pub(super) fn write_slot(&mut self, bytes: &[u8], id: u16, flags: u16, size: u16) {
        let page = usize::from(id) % (DATA_PAGES / 2);
        self.data.memory().page(page).write(16, bytes);
        let gref = self.data.gref(page).raw();
        self.tx.push_request(&NetifTxRequest { gref, offset: 16, flags, id, size }).unwrap();
    }

    /// Shows the backend what was written.
    pub(super) fn ring(&mut self) {
        if self.tx.publish_requests() {
            self.tx_port.notify();
        }
    }

    /// Sends a TCP frame whose checksum is left to others, to be cut into segments of `size` bytes; 0: not to be cut.
    pub(super) fn send_unfinished(&mut self, frame: &[u8], size: u16, gso_type: u8) {
        let more = frame.len() > 2000;
        let flags = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED | if more { NETTXF_MORE_DATA } else { 0 };
        let (first, rest) = frame.split_at(frame.len().min(2000));
        let extra = if size > 0 { NETTXF_EXTRA_INFO } else { 0 };
        self.write_slot(first, 0, flags | extra, frame.len() as u16);
        if size > 0 {
            let r#type = XEN_NETIF_EXTRA_TYPE_GSO;
            let gso = NetifExtraGso { r#type, size, gso_type, ..NetifExtraGso::default() };
            self.tx.push_request(&NetifTxRequest::from_extra(&NetifExtraInfo::from(gso))).unwrap();
        }
        let pieces = rest.chunks(4000).count();
        for (n, piece) in rest.chunks(4000).enumerate() {
            let flags = if n + 1 < pieces { NETTXF_MORE_DATA } else { 0 };
            self.write_slot(piece, 1 + n as u16, flags, piece.len() as u16);
        }
        self.ring();
    }

    /// Sends a long TCP frame of which the second slot's grant is none.
    pub(super) fn send_badly(&mut self, frame: &[u8], size: u16) {
        let flags = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED | NETTXF_MORE_DATA | NETTXF_EXTRA_INFO;
        let (first, rest) = frame.split_at(frame.len() - 4000);
        self.write_slot(&first[..first.len().min(4000)], 0, flags, first.len().min(4000) as u16 + 4000);
        let (r#type, gso_type) = (XEN_NETIF_EXTRA_TYPE_GSO, XEN_NETIF_GSO_TYPE_TCPV4);
        let gso = NetifExtraGso { r#type, size, gso_type, ..NetifExtraGso::default() };
        self.tx.push_request(&NetifTxRequest::from_extra(&NetifExtraInfo::from(gso))).unwrap();
        let size = rest.len() as u16;
        self.tx.push_request(&NetifTxRequest { gref: u32::MAX, offset: 0, flags: 0, id: 1, size }).unwrap();
        self.ring();
    }

    /// Asks for a group's packets.
    pub(super) fn join(&mut self, group: MacAddr) {
        self.write_slot(&[], 0, NETTXF_EXTRA_INFO, 0);
        let r#type = XEN_NETIF_EXTRA_TYPE_MCAST_ADD;
        let extra = NetifExtraInfo::from(NetifExtraMcast { r#type, flags: 0, addr: group.0 });
        self.tx.push_request(&NetifTxRequest::from_extra(&extra)).unwrap();
        self.ring();
    }

    /// The answers so far: tag and status.
    pub(super) fn answers(&mut self) -> Vec<(u16, i16)> {
        let mut answers = Vec::new();
        while let Some(answer) = self.tx.next_response().unwrap() {
            answers.push((answer.id, answer.status));
        }
        let _ = self.tx.arm_and_recheck().unwrap();
        answers
    }

    /// Whether any page of the packets is used by others.
    pub(super) fn is_lent(&self) -> bool {
        self.data.in_use()
    }

    /// Changes a byte of the slot with the tag `id`.
    pub(super) fn scribble(&self, id: usize, at: usize, byte: u8) {
        self.data.memory().page(id).store_u8(16 + at, byte);
    }

    /// Posts `count` pages to receive in.
    pub(super) fn post(&mut self, count: usize) {
        for _ in 0..count {
            let id = self.next % (DATA_PAGES / 2);
            self.next += 1;
            let gref = self.data.gref(DATA_PAGES / 2 + id).raw();
            self.rx.push_request(&NetifRxRequest { id: id as u16, pad: 0, gref }).unwrap();
        }
        if self.rx.publish_requests() {
            self.rx_port.as_ref().unwrap_or(&self.tx_port).notify();
        }
    }

    /// The packets that have come: their bytes, or the error of each.
    pub(super) fn received(&mut self) -> Vec<Result<Vec<u8>, i16>> {
        let (mut packets, mut bytes) = (Vec::new(), Vec::new());
        while let Some(response) = self.rx.next_response().unwrap() {
            if response.flags & NETRXF_EXTRA_INFO != 0 {
                // Of what a packet's extra information says the tests know.
                let _ = self.rx.next_response().unwrap();
            }
            if response.status < 0 {
                packets.push(Err(response.status));
                continue;
            }
            let mut piece = alloc::vec![0; response.status as usize];
            let page = self.data.memory().page(DATA_PAGES / 2 + usize::from(response.id));
            page.read(response.offset.into(), &mut piece);
            bytes.append(&mut piece);
            if response.flags & NETRXF_MORE_DATA == 0 {
                packets.push(Ok(core::mem::take(&mut bytes)));
            }
        }
        let _ = self.rx.arm_and_recheck().unwrap();
        packets
    }
}
