//! Frames that the router itself makes.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress,
    IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use crate::net::MacAddr;

/// Bytes of the shortest frame that Ethernet allows, without the check sequence.
const MIN_FRAME: usize = 60;
/// How many routers a packet of the router's own may pass.
const HOPS: u8 = 64;

fn ethernet(from: MacAddr, to: MacAddr, protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut bytes = alloc::vec![0; (EthernetFrame::<&[u8]>::header_len() + len).max(MIN_FRAME)];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(EthernetAddress(from.0));
    frame.set_dst_addr(EthernetAddress(to.0));
    frame.set_ethertype(protocol);
    bytes
}

/// The question which station has `address`.
pub(super) fn arp_request(mac: MacAddr, own: Ipv4Addr, address: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: own,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    let mut bytes = ethernet(mac, MacAddr::BROADCAST, EthernetProtocol::Arp, repr.buffer_len());
    repr.emit(&mut ArpPacket::new_unchecked(EthernetFrame::new_unchecked(&mut bytes[..]).payload_mut()));
    bytes
}

/// An end as UDP names it: station, address and port.
#[derive(Clone, Copy)]
pub(super) struct UdpEnd {
    pub(super) mac: MacAddr,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
}

/// A UDP datagram.
pub(super) fn udp(from: UdpEnd, to: UdpEnd, payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr { src_port: from.port, dst_port: to.port };
    let ip = Ipv4Repr {
        src_addr: from.address,
        dst_addr: to.address,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: HOPS,
    };
    let sums = ChecksumCapabilities::default();
    let mut bytes = ethernet(from.mac, to.mac, EthernetProtocol::Ipv4, ip.buffer_len() + ip.payload_len);
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &sums);
    udp.emit(
        &mut UdpPacket::new_unchecked(packet.payload_mut()),
        &IpAddress::Ipv4(from.address),
        &IpAddress::Ipv4(to.address),
        payload.len(),
        |to| to.copy_from_slice(payload),
        &sums,
    );
    bytes
}

/// An IPv4 packet with this payload.
pub(super) fn ipv4(
    macs: (MacAddr, MacAddr),
    addresses: (Ipv4Addr, Ipv4Addr),
    protocol: IpProtocol,
    payload: &[u8],
) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: addresses.0,
        dst_addr: addresses.1,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: HOPS,
    };
    let mut bytes = ethernet(macs.0, macs.1, EthernetProtocol::Ipv4, ip.buffer_len() + payload.len());
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    bytes
}
