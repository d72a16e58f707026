//! A datagram in a frame.

use core::net::{IpAddr, Ipv4Addr};

use crate::net::headers::{Fragment, Head, Transport, checksum};
use crate::net::mac::MacAddr;

/// A UDP datagram in a whole frame.
pub(super) struct Datagram {
    pub(super) from: MacAddr,
    pub(super) source: Ipv4Addr,
    pub(super) source_port: u16,
    pub(super) destination: Ipv4Addr,
    pub(super) destination_port: u16,
    pub(super) payload: core::ops::Range<usize>,
}

impl Datagram {
    /// `None`: the frame has none, or its checksums are wrong.
    pub(super) fn read(frame: &mut [u8]) -> Option<Self> {
        let len = frame.len() as u32;
        let head = Head::parse(frame, len)?;
        if head.transport() != Transport::Udp
            || head.fragment() != Fragment::Whole
            || !head.is_ipv4_sum_right()
        {
            return None;
        }
        let (IpAddr::V4(source), IpAddr::V4(destination)) = head.addresses()? else { return None };
        let (source_port, destination_port) = head.ports()?;
        let at = head.transport_at()?;
        let bytes = head.bytes();
        let udp_len = usize::from(u16::from_be_bytes([*bytes.get(at + 4)?, *bytes.get(at + 5)?]));
        let datagram = bytes.get(at..at + udp_len)?;
        let has_sum = datagram.get(6..8)? != [0, 0];
        let pseudo = checksum::pseudo(source.into(), destination.into(), head.protocol(), udp_len as u32);
        if has_sum && checksum::fold(checksum::sum(datagram) + pseudo) != 0xffff {
            return None;
        }
        let payload = at + 8..at + udp_len;
        Some(Self { from: head.from(), source, source_port, destination, destination_port, payload })
    }
}
