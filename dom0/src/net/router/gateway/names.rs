//! What the name forwarder and the forwards are told of the guests.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::net::Ipv4Addr;

use super::{BridgeId, Guest, PortId, Role, Router, Segment, dns};
use crate::net::mac::MacAddr;

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
}

impl dns::Names for Names<'_> {
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let of_name = |(_, guest): &(&PortId, &Guest)| guest.name.eq_ignore_ascii_case(name);
        self.guests.iter().filter(of_name).find_map(|(port, guest)| self.of_port(*port, guest))
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
