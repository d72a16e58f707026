//! Between a network of guests and the world: addresses, names, and translation.
//!
//! [`Router`] decides on packets that a bridge hands to the control domain: those for the gateway's station, and those for
//! all. A guest's packet to the world leaves by the uplink with the uplink's address; an answer comes back; and what an
//! administrator forwards comes in. Networks of guests do not reach each other here. All else is for the control domain's
//! own IP stack.
//!
//! - [`Gateway`]: all of this together, as the owner of the bridges uses it;
//! - `host`: the control domain's own station on a network;
//! - [`flows`]: the connections, and what translates them;
//! - [`neighbours`]: which station has which address;
//! - [`dhcp`] and [`dns`]: addresses and names for the guests;
//! - `errors`: the ICMP errors that the router and the control domain owe.
//!
//! Pure logic on packets' heads, without rings or devices. IPv4 alone is routed: of IPv6 a bridge carries what stays on it.
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod dns;
mod errors;
pub mod flows;
mod forwards;
mod frames;
mod gateway;
mod host;
pub mod neighbours;
mod packet;
mod random;
#[cfg(test)]
mod tests;
mod types;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::Ipv4Cidr;

use self::errors::{Budget, Complaint};
use self::flows::{Direction, End, Flow, Flows, Owner};
use self::neighbours::Neighbours;
use self::packet::{ends, is_for_no_service, is_global, reason, rewrite};
use super::headers::{Endpoint, Network as Carries, Side};
use super::mac::MacAddr;
use super::switch::{BridgeId, PortId};

pub use gateway::{Connection, DOMAIN, Gateway, Guest};
pub use host::{MAX_CONNECTIONS, Pong, TcpError};
pub use random::Random;
pub use types::{Arrival, Forward, Network, REASONS, Reason, Role, Routed};

/// Between networks.
pub struct Router {
    networks: Vec<(BridgeId, Network)>,
    /// By number. The place of one that was taken away is for the next.
    forwards: Vec<Option<Forward>>,
    flows: Flows,
    neighbours: Neighbours,
    /// Frames that the router itself sends: on which network, and the bytes.
    outgoing: Vec<(BridgeId, Vec<u8>)>,
    errors: Budget,
    /// Packets that went on, and those that were dropped, by reason.
    forwarded: u64,
    dropped: [u64; REASONS],
}

/// Most frames that wait for the owner to send them.
const MAX_OUTGOING: usize = 64;

impl Router {
    /// A router without networks.
    pub fn new(random: Random) -> Self {
        Self {
            networks: Vec::new(),
            forwards: Vec::new(),
            flows: Flows::new(random),
            neighbours: Neighbours::default(),
            outgoing: Vec::new(),
            errors: Budget::default(),
            forwarded: 0,
            dropped: [0; REASONS],
        }
    }

    /// Adds a network, or changes one.
    pub fn set_network(&mut self, id: BridgeId, network: Network) {
        if network.role == Role::Uplink {
            self.neighbours.set_uplink(id, network.gateway);
        }
        match self.networks.iter_mut().find(|(other, _)| *other == id) {
            Some((_, old)) => *old = network,
            None => self.networks.push((id, network)),
        }
    }

    /// The network `id`.
    pub fn network(&self, id: BridgeId) -> Option<&Network> {
        self.networks.iter().find(|(other, _)| *other == id).map(|(_, network)| network)
    }

    /// Packets that went on.
    pub fn forwarded(&self) -> u64 {
        self.forwarded
    }

    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// The connections.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The stations.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// A server gave station `mac` behind `port` this address.
    pub fn learn(&mut self, now_ns: u64, network: BridgeId, port: PortId, address: Ipv4Addr, mac: MacAddr) {
        self.neighbours.learn(now_ns, network, port, address, mac);
    }

    /// A server or a configuration gives the address to the guest behind `port`. What others have said of the address before
    /// counts no more, and their connections end.
    pub fn assign(&mut self, network: BridgeId, port: PortId, address: Ipv4Addr) {
        self.neighbours.assign(network, port, address);
        self.flows.forget_addresses(&[address]);
    }

    /// The port is gone, and nobody has its `addresses` any more: connections that forwards have brought there end, too.
    pub fn forget(&mut self, port: PortId, addresses: &[Ipv4Addr]) {
        self.flows.forget(Owner::Port(port));
        self.flows.forget_addresses(addresses);
        self.neighbours.forget(port);
    }

    /// Whether the router itself has frames to send.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Takes the frames that the router itself sends.
    pub fn take_outgoing(&mut self) -> Vec<(BridgeId, Vec<u8>)> {
        core::mem::take(&mut self.outgoing)
    }

    /// To be called some times a minute, and when an uplink has got its address. The way to the world is asked for before
    /// a packet needs it.
    pub fn tick(&mut self, now_ns: u64) {
        self.flows.sweep(now_ns);
        let has_way = |(id, network): &(BridgeId, Network)| Some((*id, network.clone(), network.gateway?));
        let ways: Vec<_> = self.networks.iter().filter_map(has_way).collect();
        for (id, network, gateway) in ways {
            // Nothing waits for the answer.
            let _ = self.station(now_ns, id, &network, gateway);
        }
    }

    /// Drops a packet that the owner does not let in, and counts it.
    pub fn refuse(&mut self, reason: Reason) -> Routed {
        self.dropped[reason as usize] += 1;
        Routed::Drop(reason)
    }

    fn send(&mut self, network: BridgeId, frame: Vec<u8>) {
        if self.outgoing.len() < MAX_OUTGOING {
            self.outgoing.push((network, frame));
        }
    }

    /// Decides on a packet that the bridge handed over. The head is rewritten for its way.
    pub fn input(&mut self, now_ns: u64, mut packet: Arrival<'_, '_>) -> Routed {
        match self.route(now_ns, &mut packet) {
            Ok(Routed::Drop(reason)) | Err(reason) => self.refuse(reason),
            Ok(routed) => {
                self.forwarded += u64::from(matches!(routed, Routed::Forward(_)));
                routed
            }
        }
    }

    fn route(&mut self, now_ns: u64, packet: &mut Arrival<'_, '_>) -> Result<Routed, Reason> {
        let Some(network) = self.network(packet.network).cloned() else { return Err(Reason::Unreachable) };
        match packet.head.network() {
            Carries::Arp => {
                self.learn_from_arp(now_ns, packet, &network);
                return Ok(Routed::Stack);
            }
            Carries::Ipv4 => {}
            Carries::Malformed => return Err(Reason::Malformed),
            Carries::Ipv6 | Carries::Other => return Ok(Routed::Stack),
        }
        let header = packet.head.ipv4().ok_or(Reason::Malformed)?;
        if !packet.head.is_ipv4_sum_right() {
            return Err(Reason::Malformed);
        }
        let own = network.address.is_some_and(|own| own.address() == header.destination);
        let for_us = packet.head.to() == network.mac;
        match network.role {
            // What is for all, or for a group, goes no further than the network.
            _ if !for_us => Ok(Routed::Stack),
            Role::Inside if own => self.receive(now_ns, packet, &network),
            Role::Inside => self.leave(now_ns, packet, &network),
            Role::Uplink if own => self.enter(now_ns, packet, &network),
            Role::Uplink if network.address.is_none() => Ok(Routed::Stack),
            Role::Uplink => Err(Reason::Unreachable),
        }
    }

    fn learn_from_arp(&mut self, now_ns: u64, packet: &Arrival<'_, '_>, network: &Network) {
        let Some(arp) = packet.head.arp() else { return };
        let inside = network.address.is_some_and(|own| {
            own.contains_addr(&arp.sender) && arp.sender != own.address() && !arp.sender.is_unspecified()
        });
        // Most of what stations of an uplink say is for each other.
        let is_of_use = network.role == Role::Inside || self.neighbours.is_wanted(packet.network, arp.sender);
        if inside && is_of_use && arp.sender_mac == packet.head.from() && arp.sender_mac.is_station() {
            self.neighbours.learn(now_ns, packet.network, packet.port, arp.sender, arp.sender_mac);
        }
    }

    /// A guest's packet to the world.
    fn leave(&mut self, now_ns: u64, packet: &mut Arrival<'_, '_>, from: &Network) -> Result<Routed, Reason> {
        let header = packet.head.ipv4().ok_or(Reason::Malformed)?;
        if !from
            .address
            .is_some_and(|own| own.contains_addr(&header.source) && own.address() != header.source)
        {
            return Err(Reason::Source);
        }
        if !is_global(header.destination) || self.is_guests(header.destination) {
            self.complain(now_ns, packet, from, Complaint::Prohibited);
            return Err(Reason::Unreachable);
        }
        let uplink = self.networks.iter().find(|(_, network)| network.role == Role::Uplink).cloned();
        let Some((uplink_id, uplink)) = uplink else { return Err(Reason::Unreachable) };
        let Some(own) = uplink.address else {
            self.complain(now_ns, packet, from, Complaint::Unreachable);
            return Err(Reason::Unreachable);
        };
        if header.ttl <= 1 {
            self.complain(now_ns, packet, from, Complaint::HopLimit);
            return Err(Reason::HopLimit);
        }
        self.check_length(now_ns, packet, from, uplink.mtu)?;
        let hop =
            if own.contains_addr(&header.destination) { Some(header.destination) } else { uplink.gateway };
        let hop = hop.ok_or(Reason::Unreachable)?;
        let mac = self.station(now_ns, uplink_id, &uplink, hop)?;
        if packet.head.icmp().is_some_and(|icmp| icmp.is_error) {
            let flow = self.translate_error(now_ns, packet, Direction::In)?;
            // A connection of an address that the uplink had before.
            if flow.outside.address != own.address() {
                return Err(Reason::NoConnection);
            }
        } else {
            let (protocol, source, destination) = ends(packet.head)?;
            let flags = packet.head.tcp_flags();
            let owner = Owner::Port(packet.port);
            let flow = self
                .flows
                .outbound(now_ns, owner, (protocol, source, destination), flags, own.address())
                .map_err(reason)?;
            rewrite(packet, Side::Source, flow.outside)?;
        }
        self.hand_on(packet, &uplink, mac, uplink_id)
    }

    /// A packet from the world to the uplink's own address.
    fn enter(&mut self, now_ns: u64, packet: &mut Arrival<'_, '_>, own: &Network) -> Result<Routed, Reason> {
        if packet.head.icmp().is_some_and(|icmp| icmp.is_error) {
            return match self.translate_error(now_ns, packet, Direction::Out) {
                Ok(flow) => self.bring_to_guest(now_ns, packet, flow.inside.address),
                // The error may be about a packet of the control domain's own.
                Err(Reason::NoConnection | Reason::Fragment) => Ok(Routed::Stack),
                Err(reason) => Err(reason),
            };
        }
        let Ok((protocol, remote, outside)) = ends(packet.head) else {
            return self.receive(now_ns, packet, own);
        };
        let flags = packet.head.tcp_flags();
        let flow = match self.flows.inbound(now_ns, protocol, remote, outside, flags) {
            Some(flow) => flow,
            None => match self.forward_of(protocol, outside.port) {
                // A guest would take the sender for a neighbour, or for itself.
                Some(_) if !self.is_of_world(remote.address) => return Err(Reason::Source),
                Some((number, to)) => {
                    let flow = Flow { protocol, inside: to, remote, outside };
                    self.flows.forward(now_ns, number, flow, flags).map_err(reason)?
                }
                None => return self.receive(now_ns, packet, own),
            },
        };
        rewrite(packet, Side::Destination, flow.inside)?;
        self.bring_to_guest(now_ns, packet, flow.inside.address)
    }

    /// A packet to the control domain's own address on `network`. A datagram for no service goes no further, and its sender
    /// hears of it as often as of other errors: the stack would answer every one of a flood.
    fn receive(
        &mut self,
        now_ns: u64,
        packet: &Arrival<'_, '_>,
        network: &Network,
    ) -> Result<Routed, Reason> {
        if !is_for_no_service(packet.head, network.role) {
            return Ok(Routed::Stack);
        }
        self.complain(now_ns, packet, network, Complaint::Closed);
        Err(Reason::Closed)
    }

    /// Whether the address is one of a network of guests.
    fn is_guests(&self, address: Ipv4Addr) -> bool {
        let mut inside = self.networks.iter().filter(|(_, network)| network.role == Role::Inside);
        inside.any(|(_, network)| network.address.is_some_and(|own| own.contains_addr(&address)))
    }

    /// Whether a station of the world's can have the address.
    fn is_of_world(&self, address: Ipv4Addr) -> bool {
        let is_own = |own: Ipv4Cidr| own.address() == address;
        is_global(address)
            && !self.is_guests(address)
            && !self.networks.iter().any(|(_, network)| network.address.is_some_and(is_own))
    }

    /// Sends a packet that was translated already to the guest with `address`.
    fn bring_to_guest(
        &mut self,
        now_ns: u64,
        packet: &mut Arrival<'_, '_>,
        address: Ipv4Addr,
    ) -> Result<Routed, Reason> {
        let of_address = |(_, network): &&(BridgeId, Network)| {
            network.role == Role::Inside && network.address.is_some_and(|own| own.contains_addr(&address))
        };
        let Some((id, network)) = self.networks.iter().find(of_address).cloned() else {
            return Err(Reason::Unreachable);
        };
        let header = packet.head.ipv4().ok_or(Reason::Malformed)?;
        if header.ttl <= 1 {
            return Err(Reason::HopLimit);
        }
        // No error goes back to the world for this: the packet's addresses are translated already, and both networks have
        // the same MTU in all but odd configurations.
        if self.is_too_long(packet, network.mtu) {
            return Err(Reason::TooLong);
        }
        let mac = self.station(now_ns, id, &network, address)?;
        self.hand_on(packet, &network, mac, id)
    }

    fn hand_on(
        &mut self,
        packet: &mut Arrival<'_, '_>,
        network: &Network,
        mac: MacAddr,
        id: BridgeId,
    ) -> Result<Routed, Reason> {
        if !packet.head.pass_hop() {
            return Err(Reason::HopLimit);
        }
        packet.head.set_from(network.mac);
        packet.head.set_to(mac);
        Ok(Routed::Forward(id))
    }

    /// The station with `address`; if it is not known the network is asked.
    fn station(
        &mut self,
        now_ns: u64,
        id: BridgeId,
        network: &Network,
        address: Ipv4Addr,
    ) -> Result<MacAddr, Reason> {
        let found = self.neighbours.find(now_ns, id, address);
        if found.ask
            && let Some(own) = network.address
        {
            self.send(id, frames::arp_request(network.mac, own.address(), address));
        }
        found.mac.ok_or(Reason::Resolving)
    }

    /// Translates an ICMP error that quotes a packet which went in `direction`, and the packet that it quotes.
    fn translate_error(
        &mut self,
        now_ns: u64,
        packet: &mut Arrival<'_, '_>,
        direction: Direction,
    ) -> Result<Flow, Reason> {
        let quoted = packet.head.quoted_flow().ok_or(Reason::NoConnection)?;
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (quoted.source, quoted.destination) else {
            return Err(Reason::NoConnection);
        };
        let sender = End { address: source, port: quoted.source_port };
        let receiver = End { address: destination, port: quoted.destination_port };
        let flow = self
            .flows
            .quoted(now_ns, direction, (quoted.protocol, sender, receiver))
            .ok_or(Reason::NoConnection)?;
        // An error on the way out has the uplink's address, one on the way in is the guest's.
        let (quoted_side, side, end) = match direction {
            Direction::Out => (Side::Source, Side::Destination, flow.inside),
            Direction::In => (Side::Destination, Side::Source, flow.outside),
        };
        let to = |port| Endpoint { ip: IpAddr::V4(end.address), port };
        let done = packet.head.rewrite_quoted(quoted_side, to(Some(end.port)), packet.is_partial)
            && packet.head.rewrite(side, to(None), packet.is_partial);
        done.then_some(flow).ok_or(Reason::Malformed)
    }

    fn is_too_long(&self, packet: &Arrival<'_, '_>, mtu: u16) -> bool {
        let header = packet.head.ipv4().map_or(0, |header| header.total_len);
        packet.segment.unwrap_or(header) > mtu
    }

    fn check_length(
        &mut self,
        now_ns: u64,
        packet: &Arrival<'_, '_>,
        from: &Network,
        mtu: u16,
    ) -> Result<(), Reason> {
        if !self.is_too_long(packet, mtu) {
            return Ok(());
        }
        // A router may cut a packet that allows it. This one does not: hosts have not relied on that for decades, and
        // the error tells a sender what to do.
        self.complain(now_ns, packet, from, Complaint::TooLong(mtu));
        Err(Reason::TooLong)
    }

    /// Sends the packet's sender an ICMP error, if the sender's budget allows one.
    fn complain(&mut self, now_ns: u64, packet: &Arrival<'_, '_>, network: &Network, complaint: Complaint) {
        let Some(own) = network.address else { return };
        if let Some(frame) = errors::frame(packet.head, network.mac, own.address(), complaint)
            && self.errors.take(now_ns, packet.port)
        {
            self.send(packet.network, frame);
        }
    }
}
