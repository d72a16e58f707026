//! The ICMP errors that a router or the receiver owes a sender, and how many of them.
//!
//! Source: RFC 792; RFC 1122, section 3.2.2 (no error about what a group received); RFC 1812, sections 4.3 and 5.2.7; RFC 1191 (the MTU in the error).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use smoltcp::wire::IpProtocol;

use super::{PortId, frames};
use crate::net::headers::{Fragment, Head, checksum};
use crate::net::mac::MacAddr;

/// Errors that the senders behind one port get in a second.
const PER_SECOND: u32 = 20;
const SECOND: u64 = 1_000_000_000;
/// Ports whose errors are counted; the counts last for a second.
const MAX_COUNTED: usize = 256;
/// Bytes that an error quotes behind the IP header.
const QUOTED: usize = 8;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// There is no way to the receiver now.
    Unreachable,
    /// An administrator does not want the packet to get there.
    Prohibited,
    /// The packet has passed too many routers.
    HopLimit,
    /// The next network takes packets up to this length.
    TooLong(u16),
    /// The receiver has no service at the port.
    Closed,
}

/// How many errors went to each port's senders in this second.
#[derive(Default)]
pub(super) struct Budget {
    second: u64,
    sent: BTreeMap<PortId, u32>,
}

impl Budget {
    /// Whether the port's senders get one more.
    pub(super) fn take(&mut self, now_ns: u64, port: PortId) -> bool {
        if self.second != now_ns / SECOND {
            self.second = now_ns / SECOND;
            self.sent.clear();
        }
        if self.sent.len() >= MAX_COUNTED && !self.sent.contains_key(&port) {
            return false;
        }
        let sent = self.sent.entry(port).or_default();
        *sent += 1;
        *sent <= PER_SECOND
    }
}

/// The error about the packet with this head, from the router's station and address. `None`: a router says nothing about
/// such a packet.
pub(super) fn frame(head: &Head<'_>, mac: MacAddr, own: Ipv4Addr, complaint: Complaint) -> Option<Vec<u8>> {
    let header = head.ipv4()?;
    // About errors, later fragments, and what did not come from one station, there are no errors.
    let is_later = matches!(head.fragment(), Fragment::Later(..));
    if is_later || head.icmp().is_some_and(|icmp| !icmp.is_query) || !head.from().is_station() {
        return None;
    }
    let source = header.source;
    if source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback() {
        return None;
    }
    let (kind, code, mtu) = match complaint {
        Complaint::Unreachable => (3, 0, 0),
        Complaint::Prohibited => (3, 13, 0),
        Complaint::TooLong(mtu) => (3, 4, mtu),
        Complaint::HopLimit => (11, 0, 0),
        Complaint::Closed => (3, 3, 0),
    };
    let at = head.network_at();
    let end = (at + usize::from(header.header_len) + QUOTED).min(head.bytes().len());
    let mut message = alloc::vec![kind, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&head.bytes()[at..end]);
    let sum = checksum::of(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(frames::ipv4((mac, head.from()), (own, source), IpProtocol::Icmp, &message))
}
