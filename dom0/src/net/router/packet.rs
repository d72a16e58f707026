//! What a packet's ends are, and where a packet may go.

use core::net::{IpAddr, Ipv4Addr};

use super::flows::{End, NoFlow};
use super::{Arrival, Reason, Role, dhcp, dns};
use crate::net::headers::{Endpoint, Fragment, Head, Side, Transport, protocol};

/// Protocol, sender and receiver of a packet whose connection is known by them.
pub(super) fn ends(head: &Head<'_>) -> Result<(u8, End, End), Reason> {
    if head.transport() == Transport::Malformed {
        return Err(Reason::Malformed);
    }
    if head.fragment() != Fragment::Whole {
        return Err(Reason::Fragment);
    }
    let flow = head.flow().ok_or(Reason::Protocol)?;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (flow.source, flow.destination) else {
        return Err(Reason::Protocol);
    };
    if head.icmp().is_some_and(|icmp| !icmp.is_query) || !is_translated(flow.protocol) {
        return Err(Reason::Protocol);
    }
    let sender = End { address: source, port: flow.source_port };
    Ok((flow.protocol, sender, End { address: destination, port: flow.destination_port }))
}

fn is_translated(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::ICMP)
}

/// An ICMP query has one identifier, which stands for the port of both ends: the flow's own end decides.
pub(super) fn rewrite(packet: &mut Arrival<'_, '_>, side: Side, end: End) -> Result<(), Reason> {
    let to = Endpoint { ip: IpAddr::V4(end.address), port: Some(end.port) };
    packet.head.rewrite(side, to, packet.is_partial).then_some(()).ok_or(Reason::Malformed)
}

pub(super) fn reason(no_flow: NoFlow) -> Reason {
    match no_flow {
        NoFlow::Protocol => Reason::Protocol,
        NoFlow::NotABeginning => Reason::NoConnection,
        NoFlow::Exhausted => Reason::Exhausted,
    }
}

/// Whether a packet to this address may leave its network (RFC 6890).
pub(super) fn is_global(address: Ipv4Addr) -> bool {
    !(address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240)
}

/// Whether a packet to the control domain's own address on a network of this role is a whole datagram for a port without a
/// service.
pub(super) fn is_for_no_service(head: &Head<'_>, role: Role) -> bool {
    let is_datagram = head.transport() == Transport::Udp && head.fragment() == Fragment::Whole;
    let is_served = |port| match role {
        Role::Inside => matches!(port, dhcp::SERVER_PORT | dns::PORT),
        Role::Uplink => port == dhcp::CLIENT_PORT || dns::ASKING_PORTS.contains(&port),
    };
    is_datagram && head.ports().is_some_and(|(_, port)| !is_served(port))
}
