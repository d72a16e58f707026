//! What an administrator sees of the networks.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::Ipv4Addr;

use pvrt::executor::time;

use super::Network;
use super::card::Ways;
use super::changes::find_port;
use crate::net::headers::protocol;
use crate::net::router::flows::{Flow, Owner};
use crate::net::router::{Reason as RouterReason, Role};
use crate::net::switch::{PortId, Reason, Switch, VlanId, Vlans};

/// Most lines of a list of connections.
const MAX_SHOWN: usize = 200;

impl Network {
    /// Bridges with their ports, what went through each port, and what was dropped there.
    pub fn show_bridges(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let switch = &fabric.switch;
        let mut lines = Vec::new();
        for (bridge, name) in switch.bridges() {
            lines.push(name.to_string());
            for port in switch.ports_of(bridge) {
                let Some(mut line) = port_line(switch, port) else { continue };
                if let Some(card) = fabric.outside.as_ref().and_then(|outside| outside.find_card(port)) {
                    let Ways { lent, copied, finished } = card.ways;
                    // Writing to a string does not fail.
                    let _ = write!(line, "; sent: {lent} lent, {copied} copied, {finished} made by dom0");
                }
                lines.push(line);
            }
        }
        lines
    }

    /// The stations that are known on a bridge, or on all.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn show_stations(&self, bridge: Option<&str>) -> Result<Vec<String>, String> {
        let fabric = &*self.0.lock();
        let switch = &fabric.switch;
        if let Some(name) = bridge
            && switch.find_bridge(name).is_none()
        {
            return Err(format!("`{name}`: no such bridge"));
        }
        let mut lines = Vec::new();
        for (id, name) in switch.bridges().filter(|(_, name)| bridge.is_none_or(|wanted| wanted == *name)) {
            let mut stations: Vec<_> = switch.stations(id, time::now_ns()).collect();
            stations.sort_unstable_by_key(|station| (station.vlan, station.mac));
            lines.extend(stations.iter().map(|station| {
                let vlan = match station.vlan.number() {
                    0 => String::new(),
                    number => format!(".{number}"),
                };
                let age = station.age_s.map_or("its own".into(), |seconds| format!("heard {seconds} s ago"));
                format!("{name}{vlan}  {}  {}  {age}", station.mac, port_name(switch, station.port))
            }));
        }
        Ok(lines)
    }

    /// The rules of a port, or of all ports that have any, by their places.
    ///
    /// # Errors
    /// There is no such port.
    pub fn show_rules(&self, port: Option<&str>) -> Result<Vec<String>, String> {
        let fabric = &*self.0.lock();
        let switch = &fabric.switch;
        let ports: Vec<PortId> = match port {
            Some(port) => alloc::vec![find_port(fabric, port)?],
            None => switch.bridges().flat_map(|(bridge, _)| switch.ports_of(bridge)).collect(),
        };
        let mut lines = Vec::new();
        for port in ports {
            let Some(rules) = switch.rules(port) else { continue };
            let flows = switch.flows(port, time::now_ns());
            lines.push(format!("{}: {flows} flows go on", port_name(switch, port)));
            let places = rules.rules().iter().zip(1..);
            lines.extend(places.map(|(rule, place): (_, u32)| format!("  {place:>2}  {rule}")));
        }
        Ok(lines)
    }

    /// The VLANs of a port.
    ///
    /// # Errors
    /// There is no such port.
    pub fn show_vlans(&self, port: &str) -> Result<Vec<String>, String> {
        let fabric = &*self.0.lock();
        let id = find_port(fabric, port)?;
        let config = fabric.switch.config(id).ok_or("the port is gone")?;
        Ok(alloc::vec![format!("{}  {}", config.name, config.vlans)])
    }

    /// dom0's place on the networks: addresses, and what the router did.
    pub fn show_gateway(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let Some(outside) = &fabric.outside else { return alloc::vec!["dom0 is on no network".into()] };
        let (gateway, mut lines) = (&outside.gateway, Vec::new());
        for (bridge, name) in fabric.switch.bridges() {
            let Some(network) = gateway.router().network(bridge) else { continue };
            let mut line = match network.role {
                Role::Inside => format!("{name}: dom0 is the gateway"),
                Role::Uplink => format!("{name}: the way to the world"),
            };
            // Writing to a string does not fail.
            match network.address {
                Some(address) => _ = write!(line, ", {address}"),
                None => line.push_str(", no address yet"),
            }
            if let Some(hop) = network.gateway {
                let _ = write!(line, " by {hop}");
            }
            lines.push(line);
        }
        let router = gateway.router();
        let servers: Vec<String> = gateway.names().servers().iter().map(Ipv4Addr::to_string).collect();
        lines.push(format!(
            "name servers: {}",
            if servers.is_empty() { "none".into() } else { servers.join(", ") }
        ));
        let (flows, evicted) = (router.flows().len(), router.flows().evicted());
        lines.push(format!(
            "{} packets routed, {flows} connections, {evicted} given up early",
            router.forwarded()
        ));
        for reason in RouterReason::ALL {
            let dropped = router.dropped(*reason);
            if dropped > 0 {
                lines.push(format!("  dropped, {reason}: {dropped}"));
            }
        }
        lines
    }

    /// dom0's own TCP connections, with the bytes that wait in each.
    pub fn show_connections(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let Some(outside) = &fabric.outside else { return Vec::new() };
        let line = |socket: &smoltcp::socket::tcp::Socket<'_>| {
            let (to_send, to_read) = (socket.send_queue(), socket.recv_queue());
            let state = socket.state();
            match (socket.local_endpoint(), socket.remote_endpoint()) {
                (Some(local), Some(remote)) => {
                    format!("{local} to {remote}: {state}, {to_send} bytes to send, {to_read} to read")
                }
                _ => format!("port {}: {state}", socket.listen_endpoint().port),
            }
        };
        outside.gateway.connections().map(line).collect()
    }

    /// The addresses that DHCP has given, with their stations and how long they last.
    pub fn show_leases(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let (Some(outside), now_ns) = (&fabric.outside, time::now_ns()) else { return Vec::new() };
        let mut lines = Vec::new();
        for (bridge, name) in fabric.switch.bridges() {
            let Some(server) = outside.gateway.dhcp(bridge) else { continue };
            for lease in server.leases(now_ns) {
                let seconds = (lease.until_ns - now_ns) / 1_000_000_000;
                let port = port_name(&fabric.switch, lease.port);
                lines.push(format!("{name}  {}  {}  {port}  {seconds} s", lease.address, lease.mac));
            }
        }
        lines
    }

    /// The connections that the router translates.
    pub fn show_flows(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let Some(outside) = &fabric.outside else { return Vec::new() };
        let router = outside.gateway.router();
        let mut lines = Vec::new();
        for (flow, owner, answered) in router.flows().list(time::now_ns()).take(MAX_SHOWN) {
            let whose = match owner {
                Owner::Port(port) => port_name(&fabric.switch, port),
                Owner::Forward(number) => {
                    let port = router.forward(number).map_or(0, |forward| forward.port);
                    format!("forward {port}")
                }
            };
            let state = if answered { "" } else { ", not answered" };
            lines.push(format!("{}  {whose}{state}", flow_text(&flow)));
        }
        if router.flows().len() > MAX_SHOWN {
            lines.push(format!("and more: {} in all", router.flows().len()));
        }
        lines
    }

    /// The address of a guest by name.
    pub fn address_of(&self, guest: &str) -> Option<Ipv4Addr> {
        self.0.lock().outside.as_ref()?.gateway.address_of(time::now_ns(), guest)
    }

    /// Sends a ping. `false`: there is no way to the address.
    pub fn ping(&self, to: Ipv4Addr, sequence: u16) -> bool {
        let fabric = &mut *self.0.lock();
        let Some(outside) = &mut fabric.outside else { return false };
        let sent = outside.gateway.ping(to, sequence);
        fabric.flush(time::now_ns());
        sent
    }

    /// When the answer to ping `sequence` came, if it has come. Answers to others are forgotten.
    pub fn pong(&self, sequence: u16) -> Option<u64> {
        let pongs = self.0.lock().outside.as_mut()?.gateway.pongs();
        pongs.iter().find(|pong| pong.sequence == sequence).map(|pong| pong.at_ns)
    }

    /// The ports at which the world reaches guests.
    pub fn show_forwards(&self) -> Vec<String> {
        let fabric = &*self.0.lock();
        let Some(outside) = &fabric.outside else { return Vec::new() };
        let line = |forward: &crate::net::router::Forward| {
            let to = forward.to.map_or("not there".into(), |to| to.to_string());
            format!("{} -> {}:{} ({to})", forward.port, forward.guest, forward.to_port)
        };
        outside.gateway.router().forwards().map(line).collect()
    }
}

fn port_name(switch: &Switch, port: PortId) -> String {
    switch.config(port).map_or_else(|| "gone".into(), |config| config.name.clone())
}

fn port_line(switch: &Switch, port: PortId) -> Option<String> {
    let (config, counters) = (switch.config(port)?, switch.counters(port)?);
    let mut line = format!(
        "  {:<16} in {} packets, {} bytes; out {} packets, {} bytes",
        config.name, counters.in_packets, counters.in_bytes, counters.out_packets, counters.out_bytes
    );
    // Writing to a string does not fail.
    if config.vlans != Vlans::Access(VlanId::UNTAGGED) && config.vlans != Vlans::All {
        let _ = write!(line, "; VLANs {}", config.vlans);
    }
    if let Some(rules) = switch.rules(port) {
        let _ = write!(line, "; {} rules", rules.rules().len());
    }
    for reason in Reason::ALL {
        let drops = counters.drops(*reason);
        if drops > 0 {
            let _ = write!(line, "; dropped, {reason}: {drops}");
        }
    }
    Some(line)
}

fn flow_text(flow: &Flow) -> String {
    let protocol = match flow.protocol {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        _ => "icmp",
    };
    format!(
        "{protocol}  {}:{}  {}:{}  {}:{}",
        flow.inside.address,
        flow.inside.port,
        flow.outside.address,
        flow.outside.port,
        flow.remote.address,
        flow.remote.port
    )
}
