//! All that the control domain is on its networks: router, DHCP servers, name forwarder, and its own stations.
//!
//! The owner hands over what bridges have for the control domain: each packet's head first ([`Gateway::input`]), and, where the
//! answer is [`Routed::Stack`], the whole frame ([`Gateway::deliver`]). After either, and when [`Gateway::poll`] says, the owner
//! sends what [`Gateway::poll`] gives.

mod datagram;
mod names;
mod tcp;
mod uplink;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::wire::{EthernetAddress, Ipv4Cidr};

use self::datagram::Datagram;
use self::names::Names;
pub use self::tcp::Connection;
use self::uplink::is_station;
use super::host::{Host, Pong};
use super::{
    Arrival, BridgeId, Forward, Network, PortId, Random, Reason, Role, Routed, Router, dhcp, dns, frames,
};
use crate::net::mac::MacAddr;
use crate::net::segment::complete;

/// The domain of the guests' names (reserved for such use by ICANN in 2024).
pub const DOMAIN: &str = "internal";

/// How often connections that are over are looked for.
const TICK_NS: u64 = 10_000_000_000;

/// A guest's interface, as the gateway knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The domain's name. What a guest calls itself does not count: it could call itself as another.
    pub name: String,
    /// The network on which the interface is.
    pub network: BridgeId,
    /// The address that the configuration gives the interface.
    pub fixed: Option<Ipv4Addr>,
}

/// A network with the servers that it has.
struct Segment {
    host: Box<Host>,
    dhcp: Option<dhcp::Server>,
}

/// The control domain on its networks.
pub struct Gateway {
    router: Router,
    segments: BTreeMap<BridgeId, Segment>,
    guests: BTreeMap<PortId, Guest>,
    names: dns::Forwarder,
    /// The administrator has said which servers are asked for names.
    has_fixed_servers: bool,
    random: Random,
    /// Frames of the servers' that wait to be sent.
    outgoing: Vec<(BridgeId, Vec<u8>)>,
    /// Guests of forwards may have got other addresses.
    are_forwards_old: bool,
    next_tick_ns: u64,
}

impl Gateway {
    /// On no network yet.
    pub fn new(mut random: Random) -> Self {
        let mut branch = || Random::new(&random.draw().to_le_bytes());
        let (router, names) = (Router::new(branch()), dns::Forwarder::new(DOMAIN, branch()));
        Self {
            router,
            segments: BTreeMap::new(),
            guests: BTreeMap::new(),
            names,
            has_fixed_servers: false,
            random,
            outgoing: Vec::new(),
            are_forwards_old: false,
            next_tick_ns: 0,
        }
    }

    /// The router, to look at.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The name forwarder, to look at.
    pub fn names(&self) -> &dns::Forwarder {
        &self.names
    }

    /// The DHCP server of a network, to look at.
    pub fn dhcp(&self, id: BridgeId) -> Option<&dhcp::Server> {
        self.segments.get(&id)?.dhcp.as_ref()
    }

    /// Becomes a station of a network. Guests get addresses of `pool`; an uplink without an address asks for one.
    pub fn add_network(&mut self, now_ns: u64, id: BridgeId, network: Network, pool: Option<dhcp::Pool>) {
        let mut host = Host::new(now_ns, network.mac, network.mtu, self.random.draw());
        host.set_address(network.address, network.gateway);
        if network.role == Role::Uplink {
            if network.address.is_none() {
                host.ask_for_address();
            }
            let span = u64::from(dns::ASKING_PORTS.end - dns::ASKING_PORTS.start);
            host.ask_for_names(dns::ASKING_PORTS.start + (self.random.draw() % span) as u16);
        }
        self.router.set_network(id, network);
        self.segments.insert(id, Segment { host, dhcp: pool.map(dhcp::Server::new) });
    }

    /// These servers are asked for names, whatever a DHCP server says later.
    pub fn set_name_servers(&mut self, servers: Vec<Ipv4Addr>) {
        self.has_fixed_servers = !servers.is_empty();
        self.names.set_servers(servers);
    }

    /// A guest's interface is there, or has another configuration.
    ///
    /// # Errors
    /// The address that the configuration gives is the gateway's own.
    pub fn set_guest(&mut self, port: PortId, mut guest: Guest) -> Result<(), String> {
        self.check(&guest)?;
        let own = self.router.network(guest.network).and_then(|network| network.address);
        if let (Some(own), Some(fixed)) = (own, guest.fixed) {
            // An address of another network is the guest's business: no server here gives it, and no forward goes there.
            if !own.contains_addr(&fixed) {
                guest.fixed = None;
            }
        }
        if let Some(server) = self.segments.get_mut(&guest.network).and_then(|segment| segment.dhcp.as_mut())
            && let Some(fixed) = guest.fixed
        {
            server.fix(port, fixed);
        }
        let had = self.guests.get(&port).and_then(|guest| guest.fixed);
        if let Some(fixed) = guest.fixed.filter(|fixed| had != Some(*fixed)) {
            self.router.assign(guest.network, port, fixed);
        }
        self.guests.insert(port, guest);
        // A forward may be for the guest of this name, and one for the name before is for nobody now.
        self.are_forwards_old = true;
        Ok(())
    }

    /// Whether a guest's interface can be as said.
    ///
    /// # Errors
    /// As [`Gateway::set_guest`].
    pub fn check(&self, guest: &Guest) -> Result<(), String> {
        let own = self.router.network(guest.network).and_then(|network| network.address);
        match guest.fixed {
            Some(fixed) if own.is_some_and(|own| own.address() == fixed) => {
                Err(alloc::format!("ip `{fixed}`: it is the gateway's own address"))
            }
            _ => Ok(()),
        }
    }

    /// A guest's interface, if the gateway knows the interface.
    pub fn guest(&self, port: PortId) -> Option<&Guest> {
        self.guests.get(&port)
    }

    /// A domain is called otherwise from now on: names and forwards lead to whoever is called so.
    pub fn rename(&mut self, from: &str, to: &str) {
        self.guests.values_mut().filter(|guest| guest.name == from).for_each(|guest| guest.name = to.into());
        self.are_forwards_old = true;
    }

    /// The port is gone, and all that was kept for it.
    pub fn forget(&mut self, now_ns: u64, port: PortId) {
        let addresses = self.addresses_of(now_ns, port);
        self.guests.remove(&port);
        // The guest that gets the address next is not whom a forward is for.
        self.are_forwards_old = true;
        self.router.forget(port, &addresses);
        self.names.forget(port);
        for segment in self.segments.values_mut() {
            if let Some(server) = &mut segment.dhcp {
                server.forget(port);
            }
        }
    }

    /// The addresses of the guest behind `port`, by its configuration, leases and its own words, but for those that another
    /// interface has.
    fn addresses_of(&self, now_ns: u64, port: PortId) -> Vec<Ipv4Addr> {
        let Some(guest) = self.guests.get(&port) else { return Vec::new() };
        let server = self.segments.get(&guest.network).and_then(|segment| segment.dhcp.as_ref());
        let seen = self.router.neighbours().behind(port);
        let is_anothers = |address: &Ipv4Addr| {
            server.is_some_and(|server| server.other_owner(now_ns, port, *address).is_some())
        };
        let leased = server.into_iter().flat_map(|server| server.addresses(port));
        guest.fixed.into_iter().chain(leased).chain(seen).filter(|address| !is_anothers(address)).collect()
    }

    /// Forwards connections to a guest.
    ///
    /// # Errors
    /// As [`Router::add_forward`].
    pub fn add_forward(&mut self, now_ns: u64, forward: Forward) -> Result<u16, &'static str> {
        if self.is_own_port(forward.port) {
            return Err("dom0 has a connection at the port");
        }
        let number = self.router.add_forward(forward)?;
        self.find_forwards(now_ns);
        Ok(number)
    }

    /// Takes a forward away, with the connections by the forward. False: there is none at the port.
    #[must_use]
    pub fn remove_forward(&mut self, protocol: u8, port: u16) -> bool {
        self.router.remove_forward(protocol, port)
    }

    /// Looks where the guests of all forwards are.
    fn find_forwards(&mut self, now_ns: u64) {
        let guests: Vec<String> = self.router.forwards().map(|forward| forward.guest.clone()).collect();
        let found: Vec<Option<Ipv4Addr>> =
            guests.iter().map(|guest| self.address_of(now_ns, guest)).collect();
        self.router.resolve_forwards(|guest| {
            let at = guests.iter().position(|other| other == guest)?;
            found[at]
        });
    }

    /// The address of a guest by name, with the guests' domain behind or without, or of what is an address already.
    pub fn address_of(&self, now_ns: u64, guest: &str) -> Option<Ipv4Addr> {
        guest.parse().ok().or_else(|| self.as_names(now_ns).find(guest))
    }

    /// The ports of a domain's interfaces.
    pub fn ports_of(&self, domain: &str) -> Vec<PortId> {
        let is_its = |(_, guest): &(&PortId, &Guest)| guest.name == domain;
        self.guests.iter().filter(is_its).map(|(port, _)| *port).collect()
    }

    fn as_names(&self, now_ns: u64) -> Names<'_> {
        Names { guests: &self.guests, segments: &self.segments, router: &self.router, now_ns }
    }

    /// Decides on a packet that a bridge has for the control domain.
    pub fn input(&mut self, now_ns: u64, packet: Arrival<'_, '_>) -> Routed {
        let said = packet.head.arp().map(|arp| arp.sender);
        if let Some(source) = said.or_else(|| Some(packet.head.ipv4()?.source))
            && self.is_anothers(now_ns, packet.network, packet.port, source)
        {
            return self.router.refuse(Reason::Source);
        }
        // A guest with an address of its own choice is known from its first word on.
        self.are_forwards_old |= said.is_some();
        self.router.input(now_ns, packet)
    }

    /// Whether `address`, from which somebody behind `port` sends, belongs to another domain. Where the configuration or a
    /// lease says whose an address is, no word of another guest's counts, in ARP or elsewhere. (A domain with two
    /// interfaces may send from the address of one by the other.)
    fn is_anothers(&self, now_ns: u64, id: BridgeId, port: PortId, address: Ipv4Addr) -> bool {
        let server = self.segments.get(&id).and_then(|segment| segment.dhcp.as_ref());
        let owner = server.and_then(|server| server.other_owner(now_ns, port, address));
        owner.is_some_and(|owner| !self.are_one(owner, port))
    }

    /// Whether two interfaces are one domain's.
    fn are_one(&self, one: PortId, other: PortId) -> bool {
        let name = |port| self.guests.get(&port).map(|guest| &guest.name);
        name(one).is_some() && name(one) == name(other)
    }

    /// Takes a whole frame for the control domain's own stack. `is_partial`: the transport's checksum holds the sum of the
    /// pseudo header alone.
    pub fn deliver(
        &mut self,
        now_ns: u64,
        network: BridgeId,
        port: PortId,
        mut frame: Vec<u8>,
        is_partial: bool,
    ) {
        if is_partial {
            complete(&mut frame);
        }
        if let Some(datagram) = Datagram::read(&mut frame)
            && self.serve(now_ns, network, port, &datagram, &frame)
        {
            return;
        }
        if let Some(segment) = self.segments.get_mut(&network) {
            segment.host.receive(frame);
        }
    }

    /// Answers a datagram for one of the servers. `false`: the datagram is for none.
    fn serve(&mut self, now_ns: u64, id: BridgeId, port: PortId, datagram: &Datagram, frame: &[u8]) -> bool {
        let Some(network) = self.router.network(id).filter(|network| network.role == Role::Inside) else {
            return false;
        };
        let (mac, Some(own)) = (network.mac, network.address) else { return false };
        let payload = frame.get(datagram.payload.clone()).unwrap_or_default();
        let for_us = datagram.destination == own.address();
        match datagram.destination_port {
            dhcp::SERVER_PORT if for_us || datagram.destination.is_broadcast() => {
                self.serve_dhcp(now_ns, id, port, (mac, own), datagram.from, payload);
                true
            }
            dns::PORT if for_us => {
                self.serve_name(now_ns, id, port, (mac, own), datagram, payload);
                true
            }
            _ => false,
        }
    }

    fn serve_dhcp(
        &mut self,
        now_ns: u64,
        id: BridgeId,
        port: PortId,
        own: (MacAddr, Ipv4Cidr),
        from: MacAddr,
        message: &[u8],
    ) {
        let Some(server) = self.segments.get_mut(&id).and_then(|segment| segment.dhcp.as_mut()) else {
            return;
        };
        let Some(answer) = server.answer(now_ns, port, EthernetAddress(from.0), message) else { return };
        if let Some(address) = answer.newly {
            self.router.assign(id, port, address);
        }
        let server = frames::UdpEnd { mac: own.0, address: own.1.address(), port: dhcp::SERVER_PORT };
        let (to, address) = match answer.address {
            Some(address) => (from, address),
            None => (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
        };
        let client = frames::UdpEnd { mac: to, address, port: dhcp::CLIENT_PORT };
        self.outgoing.push((id, frames::udp(server, client, &answer.message)));
        if let Some(leased) =
            self.dhcp(id).and_then(|server| server.address_of(now_ns, port, EthernetAddress(from.0)))
        {
            self.router.learn(now_ns, id, port, leased, from);
            self.are_forwards_old = true;
        }
    }

    fn serve_name(
        &mut self,
        now_ns: u64,
        id: BridgeId,
        port: PortId,
        own: (MacAddr, Ipv4Cidr),
        datagram: &Datagram,
        message: &[u8],
    ) {
        let asker = dns::Asker { port, address: datagram.source, udp_port: datagram.source_port };
        let names = Names { guests: &self.guests, segments: &self.segments, router: &self.router, now_ns };
        match self.names.query(now_ns, asker, message, &names) {
            dns::Action::Answer(answer) => {
                let server = frames::UdpEnd { mac: own.0, address: own.1.address(), port: dns::PORT };
                let client = frames::UdpEnd {
                    mac: datagram.from,
                    address: datagram.source,
                    port: datagram.source_port,
                };
                self.outgoing.push((id, frames::udp(server, client, &answer)));
            }
            dns::Action::Ask(server, message) => {
                if let Some(uplink) = self.uplink() {
                    uplink.host.ask_server(server, &message);
                }
            }
            dns::Action::Drop => {}
        }
    }

    /// Sends a ping to `to`, by the network that has the address, or else by the uplink. `false`: there is no such way.
    pub fn ping(&mut self, to: Ipv4Addr, sequence: u16) -> bool {
        let way = self.way_to(to).and_then(|id| self.segments.get_mut(&id));
        way.is_some_and(|segment| segment.host.ping(to, sequence))
    }

    /// Takes the answers to pings.
    pub fn pongs(&mut self) -> Vec<Pong> {
        self.segments.values_mut().flat_map(|segment| segment.host.pongs()).collect()
    }

    /// Whether router or servers have frames that wait to be sent.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty() || self.router.has_outgoing()
    }

    /// Does what there is to do, and gives the frames to be sent, and when to call again at the latest.
    pub fn poll(&mut self, now_ns: u64) -> (Vec<(BridgeId, Vec<u8>)>, u64) {
        // Once for all packets since: a look goes through all that is known of a guest.
        if core::mem::take(&mut self.are_forwards_old) {
            self.find_forwards(now_ns);
        }
        if now_ns >= self.next_tick_ns {
            self.router.tick(now_ns);
            // An address may be known no longer.
            self.find_forwards(now_ns);
            self.next_tick_ns = now_ns + TICK_NS;
        }
        let mut next_ns = self.next_tick_ns;
        let mut sent = core::mem::take(&mut self.outgoing);
        let mut said = Vec::new();
        for (id, segment) in &mut self.segments {
            if let Some(configuration) = segment.host.poll(now_ns) {
                said.push((*id, configuration));
            }
        }
        for (id, configuration) in said {
            self.change_uplink(now_ns, id, configuration.address, configuration.gateway);
            if !self.has_fixed_servers {
                self.names.set_servers(configuration.servers);
            }
        }
        sent.extend(self.router.take_outgoing());
        self.hand_back_answers(now_ns, &mut sent);
        for (id, segment) in &mut self.segments {
            sent.extend(segment.host.take_sent().map(|frame| (*id, frame)));
            next_ns = next_ns.min(segment.host.next_ns(now_ns).unwrap_or(u64::MAX));
        }
        (sent, next_ns)
    }
}

#[cfg(test)]
mod tests;
