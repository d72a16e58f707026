//! What guests, the world and an administrator do.

use std::net::Ipv4Addr;

use dom0::net::MacAddr;
use dom0::net::headers::protocol;
use dom0::net::router::{Forward, dhcp};

use super::frames::{self, ACK, End, SYN};
use super::{GUESTS, INSIDE, NAMES, OTHER, OWN, UPLINK, Vif, World, inside, outside, station};
use smoltcp::wire::EthernetAddress;

/// The router of the world's network.
const WORLD: MacAddr = station(99);
const SECOND: u64 = 1_000_000_000;

impl World {
    /// What is so before hostile things happen: the way to the world is known, and two guests have addresses.
    pub(super) fn begin(&mut self) {
        if self.uplink().is_none() {
            for _ in 0..2 {
                self.now_ns += SECOND;
                self.poll();
                self.answer_dhcp(false);
            }
        }
        self.wire_says(outside(2));
        for n in 0..2 {
            for kind in [1, 3] {
                self.ask_dhcp(n, kind, (Ipv4Addr::UNSPECIFIED, Some(inside(10 + n as u8)), None), &[]);
            }
        }
    }

    /// One thing of any kind.
    pub(super) fn step(&mut self) {
        let n = self.input.below(GUESTS);
        match self.input.below(32) {
            0 => {
                let scale = [SECOND / 1000, SECOND / 10, SECOND, 60 * SECOND][self.input.below(4)];
                self.now_ns += scale * u64::from(self.input.u8());
                self.poll();
            }
            1 => self.replace(n),
            2 => {
                self.rename(n);
            }
            3 => {
                let guest = match self.input.below(4) {
                    3 => inside(10).to_string(),
                    name => NAMES[name].to_string(),
                };
                let protocol = if self.input.below(4) == 0 { protocol::UDP } else { protocol::TCP };
                let (port, to_port) = (8080 + self.input.below(4) as u16, 79 + self.input.below(3) as u16);
                let forward = Forward { protocol, port, guest, to: None, to_port };
                // The port may be taken already.
                let _ = self.gateway.add_forward(self.now_ns, forward);
            }
            4..7 => self.arp(n),
            7..11 => self.dhcp(n),
            11..14 => self.ask_name(n),
            14..20 => self.guest_sends(n),
            20 => self.burst(n),
            21 => self.answer_dhcp(true),
            22 => self.wire_says(outside(self.input.below(4) as u8)),
            23 | 24 => self.answer_name(),
            25..30 => self.world_sends(),
            30 => self.anything(n),
            _ => self.icmpv6(n),
        }
    }

    /// A domain gets a name that nobody has, or says again what it is.
    fn rename(&mut self, n: usize) {
        let (Vif { port, name, fixed, .. }, new) = (self.vifs[n], self.input.below(NAMES.len()));
        if self.vifs.iter().any(|vif| vif.name == new) {
            self.introduce(port, name, fixed);
        } else {
            self.gateway.rename(NAMES[name], NAMES[new]);
            self.vifs.iter_mut().filter(|vif| vif.name == name).for_each(|vif| vif.name = new);
        }
        self.poll();
    }

    /// Another interface takes the place of one that goes.
    fn replace(&mut self, n: usize) {
        if self.made >= 90 {
            return;
        }
        let port = self.vifs[n].port;
        self.gateway.forget(self.now_ns, port);
        self.switch.remove_port(port);
        let (name, fixed) = (self.input.below(NAMES.len()), self.input.below(4) == 0);
        let is_taken = self.vifs.iter().enumerate().any(|(at, vif)| at != n && vif.fixed.is_some());
        self.vifs[n] = self.vif(name, (fixed && !is_taken).then(|| inside(200)));
        self.poll();
    }

    /// An address that means something to somebody.
    fn address(&self) -> Ipv4Addr {
        match self.input.below(24) {
            n @ 0..6 => inside(10 + n as u8),
            n @ 6..9 => inside(50 + n as u8),
            9 => inside(200),
            10 => inside(1),
            11 => Ipv4Addr::new(10, 89, 0, 5),
            12 => Ipv4Addr::new(10, 89, 0, 1),
            13 => self.uplink().unwrap_or(outside(15)),
            n @ 14..18 => outside(n as u8 - 12),
            18 => Ipv4Addr::BROADCAST,
            19 => Ipv4Addr::new(224, 0, 0, 1),
            20 => Ipv4Addr::from_bits(self.input.u32()),
            n => Ipv4Addr::new(1, 1, 1, n as u8 - 20),
        }
    }

    /// Mostly an address that the guest has.
    fn own_address(&self, n: usize) -> Ipv4Addr {
        let vif = &self.vifs[n];
        if self.input.below(8) == 7 {
            return self.address();
        }
        let server = self.gateway.dhcp(self.bridges[INSIDE]).expect("there");
        let leased = || server.address_behind(self.now_ns, vif.port);
        // A guest may take one by itself, which a server may give to another later.
        vif.fixed.or_else(leased).unwrap_or_else(|| inside(10 + self.input.below(8) as u8))
    }

    fn port(&self) -> u16 {
        match self.input.below(16) {
            0 => self.input.u16(),
            n @ 1..8 => 79 + n as u16 % 3,
            n => 4000 + n as u16 % 4,
        }
    }

    /// Now and then a byte is another, and a guest's frame goes to all.
    fn spoil(&self, frame: &mut Vec<u8>) {
        let how = self.input.u8();
        if how >= 0xf8 {
            frame[..6].fill(0xff);
        }
        for _ in 0..(how & 7).saturating_sub(5) {
            let at = usize::from(self.input.u8()) % frame.len();
            frame[at] = self.input.u8();
        }
        if how & 0x38 == 0x38 {
            frame.resize(frame.len() + usize::from(self.input.u16() & 0x7ff), 0);
        }
    }

    fn guest_frame(&mut self, n: usize, mut frame: Vec<u8>, is_partial: bool, segment: Option<u16>) {
        self.spoil(&mut frame);
        // The switch lets no other station speak behind the interface.
        frame[6..12].copy_from_slice(&self.vifs[n].mac.0);
        let network = if self.input.u8() == 0xff { OTHER } else { INSIDE };
        self.hand_over(network, self.vifs[n].port, &frame, is_partial, segment);
    }

    fn world_frame(&mut self, mut frame: Vec<u8>) {
        self.spoil(&mut frame);
        self.hand_over(UPLINK, self.wire, &frame, self.input.u8() == 0xff, None);
    }

    fn macs(&self, n: usize) -> (MacAddr, MacAddr) {
        (self.vifs[n].mac, OWN[INSIDE])
    }

    fn arp(&mut self, n: usize) {
        let macs = self.macs(n);
        let word = (macs.0, self.own_address(n));
        let frame = frames::arp(macs, 1 + self.input.below(2) as u8, word, self.address());
        self.guest_frame(n, frame, false, None);
    }

    fn wire_says(&mut self, address: Ipv4Addr) {
        let frame = frames::arp((WORLD, OWN[UPLINK]), 2, (WORLD, address), outside(15));
        self.hand_over(UPLINK, self.wire, &frame, false, None);
    }

    fn ask_dhcp(
        &mut self,
        n: usize,
        kind: u8,
        asks: (Ipv4Addr, Option<Ipv4Addr>, Option<Ipv4Addr>),
        name: &[u8],
    ) {
        let mac = self.vifs[n].mac;
        let message = frames::dhcp(mac, kind, asks, name);
        let ends = ((asks.0, dhcp::CLIENT_PORT), (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT));
        let frame = frames::datagram((mac, MacAddr::BROADCAST), ends, &message);
        self.hand_over(INSIDE, self.vifs[n].port, &frame, false, None);
    }

    /// A guest does as it should, and has an address.
    fn lease(&mut self, n: usize) {
        self.ask_dhcp(n, 1, (Ipv4Addr::UNSPECIFIED, None, None), &[]);
        if let Some(offered) = self.offered.get(&self.vifs[n].mac).copied() {
            self.ask_dhcp(n, 3, (Ipv4Addr::UNSPECIFIED, Some(offered), None), &[]);
        }
    }

    fn dhcp(&mut self, n: usize) {
        if self.input.below(2) == 0 {
            return self.lease(n);
        }
        let kind = 1 + self.input.below(9) as u8;
        let wanted = (self.input.below(4) != 0).then(|| self.address());
        let server = (self.input.below(4) == 0).then(|| self.address());
        let client = if self.input.below(4) == 0 { self.address() } else { Ipv4Addr::UNSPECIFIED };
        let name = self.input.take(usize::from(self.input.u8() & 15));
        if self.input.below(4) != 0 {
            return self.ask_dhcp(n, kind, (client, wanted, server), &name);
        }
        // Any bytes in it.
        let mut message = frames::dhcp(self.vifs[n].mac, kind, (client, wanted, server), &name);
        let tail = self.input.take(24);
        let keep = message.len() - usize::from(self.input.u8() & 15);
        message.truncate(keep);
        message.extend(tail);
        let ends = ((client, dhcp::CLIENT_PORT), (inside(1), dhcp::SERVER_PORT));
        let frame = frames::datagram(self.macs(n), ends, &message);
        self.guest_frame(n, frame, false, None);
    }

    fn ask_name(&mut self, n: usize) {
        let names = ["web", "db.internal", "10.0.88.10.in-addr.arpa", "example.org", "a.b.internal", "x"];
        let name = names[self.input.below(names.len())];
        let kind = [1, 12, 28, 255][self.input.below(4)];
        let mut message = frames::question(u16::from(self.input.u8()), name, kind);
        if self.input.below(4) == 0 {
            let (at, byte) = (self.input.below(message.len()), self.input.u8());
            message[at] = byte;
        }
        let ends = ((self.own_address(n), self.port()), (inside(1), 53));
        let frame = frames::datagram(self.macs(n), ends, &message);
        self.guest_frame(n, frame, false, None);
    }

    fn answer_name(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let at = self.input.below(self.questions.len().min(256));
        let question = self.questions[at].clone();
        let Some(seen) = super::Seen::of(&question) else { return };
        let mut message = question[42..].to_vec();
        message[2] |= 0x80;
        message.extend(self.input.take(usize::from(self.input.u8() & 63)));
        if self.input.below(8) == 0 {
            message.resize(message.len() + usize::from(self.input.u16() & 0x1fff), 0);
        }
        if self.input.below(4) == 0 {
            let (at, byte) = (usize::from(self.input.u8()) % message.len(), self.input.u8());
            message[at] = byte;
        }
        let server = if self.input.below(8) == 0 { self.address() } else { seen.destination.0 };
        let frame = frames::datagram((WORLD, OWN[UPLINK]), ((server, 53), seen.source), &message);
        self.world_frame(frame);
    }

    /// The world's DHCP server answers, if `hostile` with anything.
    fn answer_dhcp(&mut self, hostile: bool) {
        let Some(request) = self.requests.last().cloned() else { return };
        let mac = EthernetAddress(OWN[UPLINK].0);
        let Some(answer) = self.dhcp.answer(self.now_ns, self.wire, mac, &request[42..]) else { return };
        let mut message = answer.message;
        if hostile && self.input.below(2) == 1 {
            for _ in 0..self.input.below(4) {
                let at = [16, 240][self.input.below(2)] + usize::from(self.input.u8() & 63);
                let bytes = self.address().octets();
                if let Some(place) = message.get_mut(at..at + 4) {
                    place.copy_from_slice(&bytes);
                }
            }
        }
        let ends = ((outside(2), dhcp::SERVER_PORT), (Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT));
        let frame = frames::datagram((WORLD, MacAddr::BROADCAST), ends, &message);
        if hostile {
            self.world_frame(frame);
        } else {
            self.hand_over(UPLINK, self.wire, &frame, false, None);
        }
    }

    /// A packet of one of the protocols between two ends.
    fn packet(&self, macs: (MacAddr, MacAddr), ends: (End, End), is_partial: bool) -> Vec<u8> {
        let ttl = if self.input.below(16) == 0 { self.input.below(3) as u8 } else { 64 };
        let data = vec![7; self.input.below(64)];
        let (number, payload) = match self.input.below(8) {
            0..4 => {
                let flags = [SYN, SYN | ACK, ACK, 1 | ACK, 4, 0, 0xff, SYN][self.input.below(8)];
                (protocol::TCP, frames::tcp(ends, flags, &data, is_partial))
            }
            4 | 5 => (protocol::UDP, frames::udp(ends, &data, is_partial)),
            6 => {
                let kind = [8, 0, 13, 14, 17][self.input.below(5)];
                (protocol::ICMP, frames::icmp([kind, 0], ends.0.1, &data))
            }
            _ => (self.input.u8(), self.input.take(40)),
        };
        frames::ipv4(macs, (ends.0.0, ends.1.0), ttl, number, &payload)
    }

    /// An error that quotes a packet.
    fn error(&self, macs: (MacAddr, MacAddr), ends: (Ipv4Addr, Ipv4Addr), about: &[u8]) -> Vec<u8> {
        let mut quoted = about.get(14..).unwrap_or_default().to_vec();
        quoted.truncate(28 + self.input.below(30));
        let kind = [3, 11, 12, 5, 4][self.input.below(5)];
        frames::ipv4(macs, ends, 64, protocol::ICMP, &frames::icmp([kind, 0], 0, &quoted))
    }

    fn guest_sends(&mut self, n: usize) {
        let is_partial = self.input.below(8) == 0;
        let (source, to) = (self.own_address(n), self.address());
        if self.input.below(8) == 0 {
            let frame = self.error(self.macs(n), (source, to), &self.came);
            return self.guest_frame(n, frame, false, None);
        }
        let ends = ((source, self.port()), (to, self.port()));
        let frame = self.packet(self.macs(n), ends, is_partial);
        let segment = (self.input.below(16) == 0).then(|| self.input.u16());
        self.guest_frame(n, frame, is_partial, segment);
    }

    /// Many connections at once.
    fn burst(&mut self, n: usize) {
        let (source, first) = (self.own_address(n), self.input.u16());
        for more in 0..u16::from(self.input.u8()) * 2 {
            let ends = ((source, first.wrapping_add(more)), (Ipv4Addr::new(1, 1, 1, 1), 80));
            let payload = frames::tcp(ends, SYN, &[], false);
            let frame = frames::ipv4(self.macs(n), (source, ends.1.0), 64, protocol::TCP, &payload);
            self.carry(INSIDE, self.vifs[n].port, &frame, false, None);
        }
        self.poll();
        self.check_bounds();
    }

    fn world_sends(&mut self) {
        let own = self.uplink().unwrap_or(outside(15));
        let macs = (WORLD, OWN[UPLINK]);
        if self.input.below(4) == 0 {
            let frame = self.error(macs, (self.address(), own), &self.left);
            return self.world_frame(frame);
        }
        // Mostly an answer to what was sent last, or a knock at a forward.
        let last = super::Seen::of(&self.left).filter(|_| self.input.below(2) == 0);
        let ends = match last {
            Some(seen) => (seen.destination, seen.source),
            None => ((self.address(), self.port()), (own, 8080 + self.input.below(4) as u16)),
        };
        let frame = self.packet(macs, ends, false);
        self.world_frame(frame);
    }

    /// Bytes.
    fn anything(&mut self, n: usize) {
        let ethertype = [0x0800, 0x0806, 0x86dd, 0x8100][self.input.below(4)];
        let is_guests = self.input.below(2) == 1;
        let bytes = self.input.take(usize::from(self.input.u8()));
        if is_guests {
            self.guest_frame(n, frames::ethernet(self.macs(n), ethertype, &bytes), false, None);
        } else {
            self.world_frame(frames::ethernet((WORLD, OWN[UPLINK]), ethertype, &bytes));
        }
    }

    /// Neighbour discovery and pings, to dom0's link-local address.
    fn icmpv6(&mut self, n: usize) {
        let link_local = |mac: MacAddr| mac.link_local();
        let (own, target) = (link_local(self.vifs[n].mac), link_local(OWN[INSIDE]));
        let kind = 128 + self.input.below(16) as u8;
        let mut body = vec![0; 4];
        body.extend(if self.input.below(4) == 0 { self.input.take(16) } else { target.octets().to_vec() });
        body.extend([1, self.input.below(3) as u8]);
        body.extend(self.vifs[n].mac.0);
        let frame = frames::icmpv6(self.macs(n), (own, target), kind, &body);
        self.guest_frame(n, frame, false, None);
    }
}
