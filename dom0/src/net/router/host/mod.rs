//! The control domain as a station of one network: its own IP stack, which answers and sends pings, and on an uplink asks for
//! an address and asks name servers. [`tcp`]: the connections.

mod tcp;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr,
    Ipv6Cidr,
};

pub use self::tcp::{MAX_CONNECTIONS, TcpError};
use super::dns;
use crate::net::headers::ETHERNET_BYTES;
use crate::net::mac::MacAddr;

/// Frames of the stack's that wait for the owner, at most, and answers to pings.
const MAX_WAITING: usize = 64;
/// Frames that wait for the stack: more than one peer may have under way to a connection.
const MAX_RECEIVED: usize = 2 * tcp::BUFFER_BYTES / 1460;
/// Messages of name servers that wait at most, and their bytes.
const DNS_MESSAGES: usize = 16;
const DNS_BYTES: usize = 8192;
/// Bytes of a ping beside its headers.
const PING_BYTES: usize = 56;

/// The wire of the stack: two queues.
#[derive(Default)]
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: u16,
}

impl phy::Device for Queues {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Room<'_>)> {
        if self.sent.len() >= MAX_WAITING {
            return None;
        }
        let frame = self.received.pop_front()?;
        Some((Frame(frame), Room(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        (self.sent.len() < MAX_WAITING).then_some(Room(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu) + ETHERNET_BYTES;
        capabilities
    }
}

struct Frame(Vec<u8>);

impl phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'a>(&'a mut Vec<Vec<u8>>);

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = alloc::vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

/// What a DHCP server gave the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    /// The uplink's address; `None`: the uplink has lost its address.
    pub(super) address: Option<Ipv4Cidr>,
    /// The way to the world.
    pub(super) gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub(super) servers: Vec<Ipv4Addr>,
}

/// An answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The station that answered.
    pub from: IpAddr,
    /// Number of the ping.
    pub sequence: u16,
    /// When the answer came.
    pub at_ns: u64,
}

/// The station.
pub(super) struct Host {
    interface: Interface,
    device: Queues,
    sockets: SocketSet<'static>,
    ping: SocketHandle,
    ident: u16,
    /// On an uplink: for an address, and for names.
    dhcp: Option<SocketHandle>,
    dns: Option<SocketHandle>,
    pongs: Vec<Pong>,
    connections: tcp::Connections,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

impl Host {
    /// The station with Ethernet address `mac`. `seed` is what an outsider does not know. The station has some kilobytes,
    /// so it lives on the heap.
    #[inline(never)]
    pub(super) fn new(now_ns: u64, mac: MacAddr, mtu: u16, seed: u64) -> Box<Self> {
        let mut device = Queues { mtu, ..Queues::default() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, instant(now_ns));
        interface.update_ip_addrs(|addresses| {
            // The list is empty, and has room for one.
            let _ = addresses.push(IpCidr::Ipv6(Ipv6Cidr::new(mac.link_local(), 64)));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let ident = (seed >> 48) as u16;
        let buffer =
            || icmp::PacketBuffer::new(alloc::vec![icmp::PacketMetadata::EMPTY; 8], alloc::vec![0; 1024]);
        let mut ping = icmp::Socket::new(buffer(), buffer());
        // The socket is not open yet, so it can be bound.
        let _ = ping.bind(icmp::Endpoint::Ident(ident));
        let ping = sockets.add(ping);
        Box::new(Self {
            interface,
            device,
            sockets,
            ping,
            ident,
            dhcp: None,
            dns: None,
            pongs: Vec::new(),
            connections: tcp::Connections::default(),
        })
    }

    /// Sets the address, the way to the world, and none before.
    pub(super) fn set_address(&mut self, address: Option<Ipv4Cidr>, gateway: Option<Ipv4Addr>) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.retain(|cidr| !matches!(cidr, IpCidr::Ipv4(_)));
            if let Some(address) = address
                && addresses.push(IpCidr::Ipv4(address)).is_err()
            {
                log::warn!("network: no room for the address {address}");
            }
        });
        self.interface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway
            && self.interface.routes_mut().add_default_ipv4_route(gateway).is_err()
        {
            log::warn!("network: no room for the route by {gateway}");
        }
    }

    /// From now on the station asks a DHCP server for its address.
    pub(super) fn ask_for_address(&mut self) {
        let socket = self.sockets.add(dhcpv4::Socket::new());
        self.dhcp = Some(socket);
    }

    /// From now on the station asks nobody for an address.
    pub(super) fn ask_for_no_address(&mut self) {
        if let Some(socket) = self.dhcp.take() {
            self.sockets.remove(socket);
        }
    }

    /// From now on the station asks name servers, from UDP port `port`.
    pub(super) fn ask_for_names(&mut self, port: u16) {
        let buffer = || {
            udp::PacketBuffer::new(
                alloc::vec![udp::PacketMetadata::EMPTY; DNS_MESSAGES],
                alloc::vec![0; DNS_BYTES],
            )
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        if socket.bind(port).is_err() {
            log::warn!("network: UDP port {port} cannot be bound");
        }
        self.dns = Some(self.sockets.add(socket));
    }

    /// A frame for the station. Beyond what waits already a frame is lost, as on any wire.
    pub(super) fn receive(&mut self, frame: Vec<u8>) {
        if self.device.received.len() < MAX_RECEIVED {
            self.device.received.push_back(frame);
        }
    }

    /// Does what there is to do. The result is what the uplink's DHCP server has said, if that is new.
    pub(super) fn poll(&mut self, now_ns: u64) -> Option<Configuration> {
        self.interface.poll(instant(now_ns), &mut self.device, &mut self.sockets);
        self.sweep_connections(now_ns);
        self.take_pongs(now_ns);
        let event = self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp?).poll()?;
        let configuration = match event {
            dhcpv4::Event::Configured(config) => Configuration {
                address: Some(config.address),
                gateway: config.router,
                servers: config.dns_servers.iter().copied().collect(),
            },
            dhcpv4::Event::Deconfigured => {
                Configuration { address: None, gateway: None, servers: Vec::new() }
            }
        };
        self.set_address(configuration.address, configuration.gateway);
        Some(configuration)
    }

    /// Takes the frames that the station sends.
    pub(super) fn take_sent(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.device.sent.drain(..)
    }

    /// When [`Self::poll`] must be called at the latest.
    pub(super) fn next_ns(&mut self, now_ns: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_ns), &self.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0) * 1000)
    }

    /// Asks name server `server`.
    pub(super) fn ask_server(&mut self, server: Ipv4Addr, message: &[u8]) {
        let Some(socket) = self.dns else { return };
        let to = IpEndpoint::new(IpAddress::Ipv4(server), dns::PORT);
        // Without room the question is lost, and the guest asks again.
        let _ = self.sockets.get_mut::<udp::Socket<'_>>(socket).send_slice(message, to);
    }

    /// Takes an answer of a name server: the server, and the message.
    pub(super) fn server_said(&mut self) -> Option<(Ipv4Addr, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dns?);
        loop {
            let (message, from) = socket.recv().ok()?;
            if let (IpAddress::Ipv4(address), dns::PORT) = (from.endpoint.addr, from.endpoint.port) {
                return Some((address, message.to_vec()));
            }
        }
    }

    /// Sends a ping. `false`: the station has no way to `to`, or too many pings wait to be sent.
    pub(super) fn ping(&mut self, to: Ipv4Addr, sequence: u16) -> bool {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.ping);
        let data = [0x5a; PING_BYTES];
        let repr = Icmpv4Repr::EchoRequest { ident: self.ident, seq_no: sequence, data: &data };
        let Ok(bytes) = socket.send(repr.buffer_len(), IpAddress::Ipv4(to)) else { return false };
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
        true
    }

    fn take_pongs(&mut self, now_ns: u64) {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.ping);
        while let Ok((bytes, from)) = socket.recv() {
            let Ok(packet) = Icmpv4Packet::new_checked(bytes) else { continue };
            let repr = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default());
            if let Ok(Icmpv4Repr::EchoReply { ident, seq_no, .. }) = repr
                && ident == self.ident
                && self.pongs.len() < MAX_WAITING
            {
                self.pongs.push(Pong { from: from.into(), sequence: seq_no, at_ns: now_ns });
            }
        }
    }

    /// Takes the answers to pings.
    pub(super) fn pongs(&mut self) -> Vec<Pong> {
        core::mem::take(&mut self.pongs)
    }
}
