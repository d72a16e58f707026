//! The guests' names and addresses. A domain's name matches with or without case, as DNS has it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::{BridgeId, DOMAIN, Gateway, Guest, MacAddr, PortId, Role, Router, Segment, dns, frames};

/// What the name forwarder is told of the guests.
pub(super) struct Names<'a> {
    pub(super) guests: &'a BTreeMap<PortId, Guest>,
    pub(super) segments: &'a BTreeMap<BridgeId, Segment>,
    pub(super) router: &'a Router,
    pub(super) now_ns: u64,
}

impl Names<'_> {
    fn of_port(&self, port: PortId, guest: &Guest) -> Option<Ipv4Addr> {
        let server = self.segments.get(&guest.network).and_then(|segment| segment.dhcp.as_ref());
        let leased = || server?.address_behind(self.now_ns, port);
        // A guest may have set its address by itself.
        let seen = || {
            let of_port = |(_, _, _, other): &(BridgeId, Ipv4Addr, MacAddr, PortId)| *other == port;
            self.router.neighbours().list(self.now_ns).find(of_port).map(|(_, address, ..)| address)
        };
        guest.fixed.or_else(leased).or_else(seen)
    }

    fn first(&self, is_called_so: impl Fn(&str) -> bool) -> Option<Ipv4Addr> {
        let mut guests = self.guests.iter().filter(|(_, guest)| is_called_so(&guest.name));
        guests.find_map(|(port, guest)| self.of_port(*port, guest))
    }

    /// The address of the guest that an administrator means: `web`, `Web`, `web.internal` or `web.internal.`.
    pub(super) fn find(&self, text: &str) -> Option<Ipv4Addr> {
        let whole = text.strip_suffix('.').unwrap_or(text);
        let host = whole.rsplit_once('.').filter(|(_, end)| end.eq_ignore_ascii_case(DOMAIN));
        let name = |name| dns::Names::address(self, name);
        name(text).or_else(|| name(whole)).or_else(|| name(host?.0))
    }
}

impl dns::Names for Names<'_> {
    /// Of two names that differ in case alone, the one that is written so is meant.
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.first(|other| other == name).or_else(|| self.first(|other| other.eq_ignore_ascii_case(name)))
    }

    fn name(&self, address: Ipv4Addr) -> Option<String> {
        // Each guest costs one comparison here, and few are asked for their address: any guest may ask this, and often.
        let fixed =
            self.guests.iter().filter(|(_, guest)| guest.fixed == Some(address)).map(|(port, _)| *port);
        let leased =
            self.segments.values().filter_map(|segment| segment.dhcp.as_ref()?.holder(self.now_ns, address));
        let neighbours = self.router.neighbours();
        let seen = self.segments.keys().filter_map(|id| neighbours.port(self.now_ns, *id, address));
        let guests = fixed.chain(leased).chain(seen).filter_map(|port| Some((port, self.guests.get(&port)?)));
        let mut has = guests.filter(|(port, guest)| self.of_port(*port, guest) == Some(address));
        has.next().map(|(_, guest)| guest.name.to_ascii_lowercase())
    }

    fn is_inside(&self, address: Ipv4Addr) -> bool {
        let of = |id| self.router.network(id).filter(|network| network.role == Role::Inside)?.address;
        self.segments.keys().filter_map(|id| of(*id)).any(|own| own.contains_addr(&address))
    }
}

impl Gateway {
    /// Hands the name servers' answers back to the guests.
    pub(super) fn hand_back_answers(&mut self, now_ns: u64, sent: &mut Vec<(BridgeId, Vec<u8>)>) {
        while let Some((server, message)) = self.uplink().and_then(|uplink| uplink.host.server_said()) {
            let Some((asker, answer)) = self.names.answer(now_ns, server, &message) else { continue };
            let Some(id) = self.guests.get(&asker.port).map(|guest| guest.network) else { continue };
            let Some(network) = self.router.network(id) else { continue };
            let (mac, Some(own)) = (network.mac, network.address) else { continue };
            let neighbours = self.router.neighbours();
            let Some(to) = neighbours.station(now_ns, id, asker.address) else { continue };
            // Somebody else may have got the address since.
            if !neighbours.port(now_ns, id, asker.address).is_some_and(|port| self.are_one(port, asker.port))
            {
                continue;
            }
            let server = frames::UdpEnd { mac, address: own.address(), port: dns::PORT };
            let client = frames::UdpEnd { mac: to, address: asker.address, port: asker.udp_port };
            sent.push((id, frames::udp(server, client, &answer)));
        }
    }
}
