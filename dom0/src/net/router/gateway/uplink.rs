//! The way to the world: which network that is, and its address.

use alloc::string::String;
use core::net::Ipv4Addr;

use smoltcp::wire::Ipv4Cidr;

use super::{BridgeId, Gateway, Role, Segment};

/// Whether a station can have the address.
pub(super) fn is_station(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}

impl Gateway {
    /// The uplink has this address from now on, whatever a DHCP server would say.
    ///
    /// # Errors
    /// There is no uplink; the address is none that a station can have, or the way to the world does not lie in its network.
    pub fn set_uplink(
        &mut self,
        now_ns: u64,
        address: Ipv4Cidr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), String> {
        let own = address.address();
        if !is_station(own) || address.prefix_len() == 0 {
            return Err(alloc::format!("{address}: no address that a station can have"));
        }
        if let Some(gateway) = gateway.filter(|gateway| *gateway == own || !address.contains_addr(gateway)) {
            return Err(alloc::format!("{gateway}: no other station of {address}"));
        }
        let id = self.uplink_id().ok_or("there is no network card")?;
        let overlaps =
            |inside: Ipv4Cidr| inside.contains_addr(&own) || address.contains_addr(&inside.address());
        let mut others = self.segments.keys().filter(|other| **other != id);
        if others
            .any(|other| self.router.network(*other).and_then(|other| other.address).is_some_and(overlaps))
        {
            return Err(alloc::format!("{address}: the guests' network has such addresses"));
        }
        if let Some(segment) = self.segments.get_mut(&id) {
            segment.host.ask_for_no_address();
            segment.host.set_address(Some(address), gateway);
        }
        self.change_uplink(now_ns, id, Some(address), gateway);
        Ok(())
    }

    pub(super) fn change_uplink(
        &mut self,
        now_ns: u64,
        id: BridgeId,
        address: Option<Ipv4Cidr>,
        gateway: Option<Ipv4Addr>,
    ) {
        let Some(mut network) = self.router.network(id).cloned() else { return };
        (network.address, network.gateway) = (address, gateway);
        self.router.set_network(id, network);
        self.router.tick(now_ns);
    }

    pub(super) fn uplink(&mut self) -> Option<&mut Segment> {
        let id = self.uplink_id()?;
        self.segments.get_mut(&id)
    }

    /// The network by which packets to `to` go.
    pub(super) fn way_to(&self, to: Ipv4Addr) -> Option<BridgeId> {
        let has = |id: &BridgeId| {
            self.router
                .network(*id)
                .and_then(|network| network.address)
                .is_some_and(|own| own.contains_addr(&to))
        };
        self.segments.keys().copied().find(has).or_else(|| self.uplink_id())
    }

    pub(super) fn uplink_id(&self) -> Option<BridgeId> {
        let is_uplink =
            |id: &BridgeId| self.router.network(*id).is_some_and(|network| network.role == Role::Uplink);
        self.segments.keys().copied().find(is_uplink)
    }
}
