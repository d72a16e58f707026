//! The network interface as `smoltcp` wants it.

use alloc::vec::Vec;

use frontends::netfront::{Checksum, Interface, NetError, Offload, set_partial};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

/// A netfront interface under `smoltcp`.
///
/// TCP and UDP checksums are netback's, as far as netback takes them. So `smoltcp` neither computes nor checks them, and this
/// type checks those of packets that nobody vouches for.
pub struct Device<'a> {
    interface: &'a Interface,
    received: Vec<u8>,
    scratch: Vec<u8>,
    /// netback completes checksums.
    offload: bool,
    /// Packets dropped for a wrong checksum.
    pub bad_checksums: u64,
    /// netback broke the connection or is gone.
    pub failed: Option<NetError>,
}

impl<'a> Device<'a> {
    /// Uses `interface`.
    pub fn new(interface: &'a Interface) -> Self {
        let properties = interface.properties();
        let offload = properties.checksum_ipv4 && properties.checksum_ipv6;
        Self { interface, received: Vec::new(), scratch: Vec::new(), offload, bad_checksums: 0, failed: None }
    }

    /// The next packet that is as its sender sent it.
    fn take(&mut self) -> bool {
        loop {
            self.received.clear();
            match self.interface.receive(&mut self.received) {
                Ok(None) => return false,
                Err(error) => {
                    self.failed = Some(error);
                    return false;
                }
                Ok(Some(Offload { checksum: Checksum::Complete, .. })) if !is_sound(&self.received) => {
                    self.bad_checksums += 1;
                }
                Ok(Some(_)) => return true,
            }
        }
    }
}

/// Whether the TCP or UDP checksum of a packet is right. A packet without one is sound.
pub fn is_sound(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return true };
    let (protocol, source, target, payload) = match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return true };
            if packet.more_frags() || packet.frag_offset() != 0 {
                return true;
            }
            let (source, target) = (packet.src_addr(), packet.dst_addr());
            (packet.next_header(), IpAddress::Ipv4(source), IpAddress::Ipv4(target), packet.payload())
        }
        EthernetProtocol::Ipv6 => {
            let Ok(packet) = Ipv6Packet::new_checked(frame.payload()) else { return true };
            let (source, target) = (packet.src_addr(), packet.dst_addr());
            (packet.next_header(), IpAddress::Ipv6(source), IpAddress::Ipv6(target), packet.payload())
        }
        _ => return true,
    };
    match protocol {
        IpProtocol::Tcp => {
            TcpPacket::new_checked(payload).is_ok_and(|packet| packet.verify_checksum(&source, &target))
        }
        IpProtocol::Udp => {
            UdpPacket::new_checked(payload).is_ok_and(|packet| packet.verify_checksum(&source, &target))
        }
        _ => true,
    }
}

impl phy::Device for Device<'_> {
    type RxToken<'t>
        = RxToken<'t>
    where
        Self: 't;
    type TxToken<'t>
        = TxToken<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // A received packet may be answered at once, so there must be room for an answer.
        if !self.interface.has_room(self.interface.longest()).unwrap_or(false) || !self.take() {
            return None;
        }
        let Self { interface, received, scratch, offload, .. } = self;
        Some((RxToken { packet: received }, TxToken { interface, scratch, offload: *offload }))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        if !self.interface.has_room(self.interface.longest()).unwrap_or(false) {
            return None;
        }
        let Self { interface, scratch, offload, .. } = self;
        Some(TxToken { interface, scratch, offload: *offload })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.interface.longest();
        let mut checksum = ChecksumCapabilities::default();
        if self.offload {
            checksum.tcp = phy::Checksum::None;
            checksum.udp = phy::Checksum::None;
        } else {
            checksum.tcp = phy::Checksum::Tx;
            checksum.udp = phy::Checksum::Tx;
        }
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A received packet.
pub struct RxToken<'t> {
    packet: &'t [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.packet)
    }
}

/// Room for a packet.
pub struct TxToken<'t> {
    interface: &'t Interface,
    scratch: &'t mut Vec<u8>,
    offload: bool,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        let partial = self.offload && set_partial(self.scratch);
        let checksum = if partial { Checksum::Partial } else { Checksum::Complete };
        // There is room: the token was given for the longest packet. If the interface has ended, the packet is lost, as
        // on a network that has ended.
        let _ = self.interface.send(self.scratch, Offload { checksum, ..Offload::default() });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{EthernetAddress, Ipv4Address, Ipv4Repr, UdpRepr};

    fn udp() -> Vec<u8> {
        let (source, target) = (Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2));
        let ip = Ipv4Repr {
            src_addr: source,
            dst_addr: target,
            next_header: IpProtocol::Udp,
            payload_len: 8 + 5,
            hop_limit: 64,
        };
        let mut bytes = alloc::vec![0; 14 + 20 + 13];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        frame.set_src_addr(EthernetAddress([2; 6]));
        frame.set_ethertype(EthernetProtocol::Ipv4);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &ChecksumCapabilities::default());
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        UdpRepr { src_port: 1, dst_port: 2 }.emit(
            &mut datagram,
            &source.into(),
            &target.into(),
            5,
            |payload| payload.copy_from_slice(b"hello"),
            &ChecksumCapabilities::default(),
        );
        bytes
    }

    #[test]
    fn a_changed_byte_is_found_where_there_is_a_checksum() {
        let sound = udp();
        assert!(is_sound(&sound));
        for at in 26..sound.len() {
            // A UDP length of which the packet has not all is not sound either.
            let mut changed = sound.clone();
            changed[at] ^= 0x10;
            assert!(!is_sound(&changed), "byte {at}");
        }
        // Fragments, other protocols, and what is no IP have no checksum to look at.
        let mut fragment = sound.clone();
        fragment[20] |= 0x20;
        fragment[40] ^= 1;
        let mut arp = sound.clone();
        arp[13] = 6;
        for other in [&fragment[..], &arp, &[], &sound[..13]] {
            assert!(is_sound(other));
        }
    }
}
