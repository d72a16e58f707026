//! Frames, written by hand.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use frontends::netfront::header_checksum;
use ring_abi::io::mac::MacAddr;

/// One end of what is said.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) mac: MacAddr,
    pub(crate) ip: Ipv4Addr,
}

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
/// Bytes of the headers of a datagram.
pub(crate) const HEADERS: usize = ETHERNET + IP + UDP;

fn ethernet(from: MacAddr, to: MacAddr, ethertype: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes()].concat()
}

/// A datagram, whose UDP has no checksum, as IPv4 allows.
pub(crate) fn udp(from: End, to: End, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(from.mac, to.mac, 0x800);
    let len = (IP + UDP + payload.len()) as u16;
    let mut header = [0; IP];
    (header[0], header[8], header[9]) = (0x45, 64, 17);
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[12..16].copy_from_slice(&from.ip.octets());
    header[16..].copy_from_slice(&to.ip.octets());
    let checksum = header_checksum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend((UDP as u16 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// An ARP answer to all: `ip` is at `mac`.
pub(crate) fn arp(from: MacAddr, mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(from, MacAddr::BROADCAST, 0x806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    for _ in 0..2 {
        frame.extend(mac.0);
        frame.extend(ip.octets());
    }
    frame
}

/// The sender, the receiver and both ports of a frame that is a datagram.
pub(crate) fn read(frame: &[u8]) -> Option<(End, End, [u16; 2])> {
    let mac = |at: usize| Some(MacAddr(*frame.get(at..)?.first_chunk()?));
    let ip = |at: usize| Some(Ipv4Addr::from(*frame.get(at..)?.first_chunk::<4>()?));
    let word = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    if word(12)? != 0x800 || *frame.get(ETHERNET)? != 0x45 || *frame.get(ETHERNET + 9)? != 17 {
        return None;
    }
    let from = End { mac: mac(6)?, ip: ip(ETHERNET + 12)? };
    let to = End { mac: mac(0)?, ip: ip(ETHERNET + 16)? };
    Some((from, to, [word(ETHERNET + IP)?, word(ETHERNET + IP + 2)?]))
}
