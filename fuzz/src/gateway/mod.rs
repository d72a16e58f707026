//! The gateway between hostile guests and a hostile world: translation, addresses, names and forwards, while time passes
//! and guests come, go and change their names.
//!
//! What the target holds against the gateway: a packet that goes on is right wherever its sender's was, a guest gets
//! nothing that is another's, and no owner has more than its share.

mod frames;
mod judge;
mod steps;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

use dom0::net::headers::protocol;
use dom0::net::router::flows::{FLOWS_PER_OWNER, MAX_FLOWS, Owner, TRANSLATED_PORTS};
use dom0::net::router::neighbours::PER_PORT;
use dom0::net::router::{Arrival, DOMAIN, Gateway, Guest, Network, Random, Role, Routed, dhcp};
use dom0::net::switch::{BridgeId, PortConfig, PortId, Switch};
use dom0::net::{Head, MacAddr};
use smoltcp::wire::Ipv4Cidr;

use self::frames::End;
use self::judge::{Key, Seen, check_own, is_in};
use crate::input::Input;

/// What dom0 sees of a frame, at most.
const HEAD: usize = 256;
/// What dom0's own stack takes of a frame.
const STACK: usize = 4096;
const GUESTS: usize = 4;
const NAMES: [&str; 3] = ["web", "db", "mail"];
/// Most bytes of an IP packet, by network.
const MTU: [u16; 3] = [1500, 1500, 9000];
/// Networks of the gateway: guests with servers, guests without, the world.
const INSIDE: usize = 0;
const OTHER: usize = 1;
const UPLINK: usize = 2;
/// The gateway's stations on them.
const OWN: [MacAddr; 3] = [station(201), station(202), station(203)];
const NETWORK: [u8; 3] = [10, 88, 0];

const fn station(n: u8) -> MacAddr {
    MacAddr([0, 0x16, 0x3e, 0, 0, n])
}

fn inside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, last)
}

fn outside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

/// A guest's interface.
#[derive(Clone, Copy)]
struct Vif {
    port: PortId,
    mac: MacAddr,
    name: usize,
    fixed: Option<Ipv4Addr>,
}

struct World {
    input: Input,
    gateway: Gateway,
    switch: Switch,
    bridges: [BridgeId; 3],
    wire: PortId,
    vifs: Vec<Vif>,
    made: u8,
    now_ns: u64,
    /// The guest's end of each connection that a guest's packet has passed.
    begun: HashMap<Key, End>,
    /// What guests asked of the name server: interface, identifier, port.
    asked: HashSet<(PortId, u16, u16)>,
    /// What the DHCP server has offered to each station.
    offered: HashMap<MacAddr, Ipv4Addr>,
    /// Which interface got the first packet of each connection by a forward.
    forwarded: HashMap<Key, PortId>,
    /// What the gateway asked the world's name servers, and its DHCP server.
    questions: Vec<Vec<u8>>,
    requests: Vec<Vec<u8>>,
    /// The last packets that went to the world and to a guest, which errors quote.
    left: Vec<u8>,
    came: Vec<u8>,
    dhcp: dhcp::Server,
}

fn pool(server: Ipv4Addr, first: Ipv4Addr, last: Ipv4Addr) -> dhcp::Pool {
    dhcp::Pool { server: Ipv4Cidr::new(server, 24), first, last, mtu: 1500, domain: DOMAIN.into() }
}

impl World {
    fn new(input: Input) -> World {
        let mut switch = Switch::new([1, 2]);
        let bridges = ["xenbr0", "xenbr1", "eth0"].map(|name| switch.add_bridge(name).expect("a bridge"));
        let mut gateway = Gateway::new(Random::new(b"fuzz"));
        let has_address = input.below(2) == 1;
        let network = |role, at: usize, address: Option<Ipv4Addr>, gateway| Network {
            role,
            mac: OWN[at],
            address: address.map(|address| Ipv4Cidr::new(address, 24)),
            gateway,
            mtu: MTU[at],
        };
        let guests = network(Role::Inside, INSIDE, Some(inside(1)), None);
        gateway.add_network(0, bridges[INSIDE], guests, Some(pool(inside(1), inside(10), inside(14))));
        let other = network(Role::Inside, OTHER, Some(Ipv4Addr::new(10, 89, 0, 1)), None);
        gateway.add_network(0, bridges[OTHER], other, None);
        let uplink = has_address.then(|| outside(15));
        let uplink = network(Role::Uplink, UPLINK, uplink, has_address.then(|| outside(2)));
        gateway.add_network(0, bridges[UPLINK], uplink, None);
        if has_address {
            gateway.set_name_servers(vec![outside(2), outside(3)]);
        }
        let wire =
            switch.add_port(PortConfig::wire("eth0".into(), bridges[UPLINK], MTU[UPLINK])).expect("room");
        let dhcp = dhcp::Server::new(pool(outside(2), outside(15), outside(30)));
        let mut world = World {
            input,
            gateway,
            switch,
            bridges,
            wire,
            vifs: Vec::new(),
            made: 0,
            now_ns: 0,
            begun: HashMap::new(),
            asked: HashSet::new(),
            offered: HashMap::new(),
            forwarded: HashMap::new(),
            questions: Vec::new(),
            requests: Vec::new(),
            left: Vec::new(),
            came: Vec::new(),
            dhcp,
        };
        for n in 0..GUESTS {
            let vif = world.vif(n % NAMES.len(), (n == GUESTS - 1).then(|| inside(200)));
            world.vifs.push(vif);
        }
        world
    }

    /// A new interface of a guest.
    fn vif(&mut self, name: usize, fixed: Option<Ipv4Addr>) -> Vif {
        self.made += 1;
        let mac = station(self.made);
        let config = PortConfig::vif(format!("vif{}", self.made), self.bridges[INSIDE], mac);
        let port = self.switch.add_port(config).expect("room");
        self.introduce(port, name, fixed);
        Vif { port, mac, name, fixed }
    }

    fn introduce(&mut self, port: PortId, name: usize, fixed: Option<Ipv4Addr>) {
        let guest = Guest { name: NAMES[name].into(), network: self.bridges[INSIDE], fixed };
        self.gateway.set_guest(port, guest).expect("an address of its own");
    }

    fn uplink(&self) -> Option<Ipv4Addr> {
        Some(self.gateway.router().network(self.bridges[UPLINK])?.address?.address())
    }

    fn vif_of(&self, mac: MacAddr) -> Option<&Vif> {
        self.vifs.iter().find(|vif| vif.mac == mac)
    }

    /// The domain to which a configuration or a lease gives the address.
    fn domain_of(&self, address: Ipv4Addr) -> Option<usize> {
        let server = self.gateway.dhcp(self.bridges[INSIDE]).expect("there");
        let holder = server.holder(self.now_ns, address);
        let owner = |vif: &&Vif| holder.map_or(vif.fixed == Some(address), |port| vif.port == port);
        self.vifs.iter().find(owner).map(|vif| vif.name)
    }

    /// A bridge hands a frame to the gateway, which then does what is due.
    fn hand_over(
        &mut self,
        network: usize,
        port: PortId,
        frame: &[u8],
        is_partial: bool,
        segment: Option<u16>,
    ) {
        self.carry(network, port, frame, is_partial, segment);
        self.poll();
    }

    /// A bridge hands a frame to the gateway. `port`: behind which the sender is.
    fn carry(&mut self, network: usize, port: PortId, frame: &[u8], is_partial: bool, segment: Option<u16>) {
        let mut bytes = frame.to_vec();
        let (network_id, len) = (self.bridges[network], frame.len());
        let routed = {
            let Some(mut head) = Head::parse(&mut bytes[..len.min(HEAD)], len as u32) else { return };
            if head.to() != OWN[network] && !head.to().is_group() {
                return;
            }
            let arrival = Arrival { network: network_id, port, head: &mut head, is_partial, segment };
            self.gateway.input(self.now_ns, arrival)
        };
        match routed {
            Routed::Drop(_) => {}
            Routed::Stack => {
                assert_eq!(bytes, frame, "changed, and not sent on");
                if len <= STACK {
                    self.note_question(network, port, frame);
                    self.gateway.deliver(self.now_ns, network_id, port, bytes, is_partial);
                }
            }
            Routed::Forward(to) if to == self.bridges[UPLINK] => {
                assert_eq!(network, INSIDE, "from there nobody gets to the world");
                self.check_left(port, frame, &bytes, is_partial);
                self.left = bytes;
            }
            Routed::Forward(to) => {
                assert!(to == self.bridges[INSIDE] && network == UPLINK, "between networks");
                self.check_came(frame, &bytes, is_partial);
                self.came = bytes;
            }
        }
    }

    /// What both ways have in common: the sender's checksums stay right, and the packet has one hop less.
    fn check_passed(before: &Seen, after: &Seen, is_partial: bool) {
        assert!(before.is_header_right && after.is_header_right, "the header's checksum");
        assert!(is_partial || !before.is_right || after.is_right, "{before:?} became {after:?}");
        assert_eq!((before.protocol, before.ttl - 1), (after.protocol, after.ttl));
        assert!(after.ttl > 0);
    }

    /// A guest's packet went to the world.
    fn check_left(&mut self, port: PortId, before: &[u8], after: &[u8], is_partial: bool) {
        assert_eq!(after[6..12], OWN[UPLINK].0, "from another station");
        let vif = self.vifs.iter().find(|vif| vif.port == port).expect("a guest that is there");
        // What smoltcp reads no packet in has no whole transport, and its checksum is nobody's.
        let (Some(before), Some(after)) = (Seen::of(before), Seen::of(after)) else { return };
        Self::check_passed(&before, &after, is_partial);
        assert!(is_in(before.source.0, NETWORK) && before.source.0 != inside(1), "{before:?}");
        assert!(self.domain_of(before.source.0).is_none_or(|name| name == vif.name), "another's address");
        assert_eq!(Some(after.source.0), self.uplink());
        assert_eq!(before.destination.0, after.destination.0);
        assert!(!is_in(after.destination.0, NETWORK) && !is_in(after.destination.0, [10, 89, 0]));
        if after.is_error {
            return;
        }
        let port = after.source.1;
        let is_forward = self
            .gateway
            .router()
            .forwards()
            .any(|forward| (forward.protocol, forward.port) == (after.protocol, port));
        assert!(TRANSLATED_PORTS.contains(&port) || is_forward, "from port {port}");
        self.begun.insert(after.key_from(true), before.source);
    }

    /// A packet of the world's came to a guest.
    fn check_came(&mut self, before: &[u8], after: &[u8], is_partial: bool) {
        assert_eq!(after[6..12], OWN[INSIDE].0, "from another station");
        let to = MacAddr(after[..6].try_into().expect("six bytes"));
        let vif = self.vif_of(to).expect("a guest that is there");
        let begins = before.get(47).is_some_and(|flags| flags & 0x12 == frames::SYN);
        let (Some(before), Some(after)) = (Seen::of(before), Seen::of(after)) else { return };
        Self::check_passed(&before, &after, is_partial);
        assert!(after.total_len <= MTU[INSIDE], "longer than the guests' network takes");
        assert_eq!(Some(before.destination.0), self.uplink());
        // A query of ICMP has one identifier for both ends.
        let far =
            |seen: &Seen| if seen.protocol == protocol::ICMP { (seen.source.0, 0) } else { seen.source };
        assert_eq!(far(&before), far(&after));
        let address = after.destination.0;
        let domain = self.domain_of(address);
        assert!(domain.is_none_or(|name| name == vif.name), "{} got a packet of {domain:?}'s", vif.name);
        if after.is_error {
            return;
        }
        let forward = self
            .gateway
            .router()
            .forwards()
            .find(|forward| (forward.protocol, forward.port) == (before.protocol, before.destination.1));
        let begun = self.begun.get(&before.key_from(false));
        let is_forwarded = forward.is_some_and(|forward| forward.to_port == after.destination.1);
        let port = vif.port;
        if is_forwarded && before.protocol == protocol::TCP {
            let first = *self.forwarded.entry(before.key_from(false)).or_insert(port);
            assert!(begins || first == port, "another guest's connection");
            self.forwarded.insert(before.key_from(false), port);
        }
        assert!(is_forwarded || begun == Some(&after.destination), "nobody asked for {before:?}: {after:?}");
    }

    /// Remembers what a guest asks of the name server.
    fn note_question(&mut self, network: usize, port: PortId, frame: &[u8]) {
        if network == INSIDE
            && let Some(seen) = Seen::of(frame)
            && seen.protocol == protocol::UDP
            && let Some(id) = frame.get(42..44)
        {
            self.asked.insert((port, u16::from_be_bytes([id[0], id[1]]), seen.source.1));
        }
    }

    /// Has the gateway do what is due, and looks at what it sends.
    fn poll(&mut self) {
        for round in 0.. {
            let (sent, next_ns) = self.gateway.poll(self.now_ns);
            assert!(sent.len() <= 512, "{} frames at once", sent.len());
            for (id, frame) in &sent {
                let network = self.bridges.iter().position(|bridge| bridge == id).expect("a network");
                self.check_sent(network, frame);
            }
            if sent.is_empty() && next_ns > self.now_ns {
                return;
            }
            assert!(round < 64, "the gateway never rests");
        }
    }

    fn check_sent(&mut self, network: usize, frame: &[u8]) {
        let (to, datagram) = check_own(frame, OWN[network], MTU[network]);
        let Some((from, to_end, payload)) = datagram else { return };
        match (network, from.1, to_end.1) {
            (INSIDE, 53, port) => {
                let vif = self.vif_of(to).expect("a guest that is there");
                let id = u16::from_be_bytes([payload[0], payload[1]]);
                // A domain may ask by one interface from the address of the other.
                let mut own = self.vifs.iter().filter(|other| other.name == vif.name);
                let has_asked = own.any(|own| self.asked.contains(&(own.port, id, port)));
                assert!(has_asked, "an answer to another's question");
            }
            (INSIDE, 67, 68) => {
                let client = MacAddr(payload[28..34].try_into().expect("six bytes"));
                assert!(to == client || to == MacAddr::BROADCAST, "another's address");
                let given: [u8; 4] = payload[16..20].try_into().expect("four bytes");
                self.offered.insert(client, given.into());
            }
            (UPLINK, _, 53) => self.questions.push(frame.to_vec()),
            (UPLINK, 68, 67) => self.requests.push(frame.to_vec()),
            _ => {}
        }
    }

    /// What is a domain's, nobody else has.
    fn check_owners(&self) {
        let router = self.gateway.router();
        let name = |port| self.vifs.iter().find(|vif| vif.port == port).map(|vif| vif.name);
        for (network, address, _, port) in router.neighbours().list(self.now_ns) {
            if network == self.bridges[INSIDE]
                && let Some(domain) = self.domain_of(address)
            {
                assert_eq!(name(port), Some(domain), "{address} is another's");
            }
        }
        for (flow, owner, _) in router.flows().list(self.now_ns) {
            if let (Owner::Port(port), Some(domain)) = (owner, self.domain_of(flow.inside.address)) {
                assert_eq!(name(port), Some(domain), "{flow:?} is another's");
            }
        }
        for forward in router.forwards() {
            if let Some(named) = NAMES.iter().position(|name| *name == forward.guest)
                && let Some(to) = forward.to
            {
                assert!(self.domain_of(to).is_none_or(|domain| domain == named), "{forward:?} to another");
                let is_there = self.vifs.iter().any(|vif| vif.name == named);
                assert!(is_there, "{forward:?}: nobody is called so");
            }
        }
    }

    /// No owner has more than its share.
    fn check_bounds(&self) {
        self.check_owners();
        let router = self.gateway.router();
        let mut owners: BTreeMap<Owner, usize> = BTreeMap::new();
        router.flows().list(0).for_each(|(_, owner, _)| *owners.entry(owner).or_default() += 1);
        assert!(owners.values().all(|count| *count <= FLOWS_PER_OWNER), "{owners:?}");
        assert!(router.flows().len() <= MAX_FLOWS);
        let is_there = |port| port == self.wire || self.vifs.iter().any(|vif| vif.port == port);
        for owner in owners.keys() {
            assert!(!matches!(owner, Owner::Port(port) if !is_there(*port)), "a port that is gone");
        }
        let mut known: BTreeMap<PortId, usize> = BTreeMap::new();
        router.neighbours().list(0).for_each(|(.., port)| *known.entry(port).or_default() += 1);
        assert!(known.iter().all(|(port, count)| *count <= PER_PORT && is_there(*port)), "{known:?}");
        let mut leases: BTreeMap<PortId, usize> = BTreeMap::new();
        let server = self.gateway.dhcp(self.bridges[INSIDE]).expect("there");
        server.leases(self.now_ns).iter().for_each(|lease| *leases.entry(lease.port).or_default() += 1);
        assert!(
            leases.iter().all(|(port, count)| *count <= dhcp::ADDRESSES_PER_PORT && is_there(*port)),
            "{leases:?}"
        );
    }
}

/// Frames of guests and of the world, and all that happens between.
pub(crate) fn run(data: &[u8]) {
    let input = Input::new(data);
    let mut world = World::new(input.clone());
    world.begin();
    for steps in 0.. {
        if input.is_empty() {
            break;
        }
        world.step();
        if steps % 8 == 7 {
            world.check_owners();
        }
    }
    world.check_bounds();
}
