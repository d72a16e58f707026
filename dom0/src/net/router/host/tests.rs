//! Connections of two stations on a wire that loses.

use core::net::SocketAddrV4;

use proptest::prelude::*;
use smoltcp::socket::tcp::State;

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const PORT: u16 = 8002;
const FROM: u16 = 20000;

/// Two stations, and what is lost of the frames between them: of so many frames one.
struct Wire {
    hosts: [Box<Host>; 2],
    now_ns: u64,
    lost_of: u64,
    random: u64,
    is_cut: bool,
    /// The second station looks so seldom: each time after so many milliseconds.
    idle_ms: u64,
}

impl Wire {
    fn new(lost_of: u64, random: u64) -> Self {
        let host = |index: usize| {
            let mac = MacAddr([2, 0, 0, 0, 0, index as u8 + 1]);
            let mut host = Host::new(0, mac, 1500, 7 + index as u64);
            host.set_address(Some(Ipv4Cidr::new(ADDRESSES[index], 24)), None);
            host
        };
        Self { hosts: [host(0), host(1)], now_ns: 0, lost_of, random: random | 1, is_cut: false, idle_ms: 1 }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A millisecond passes. A station sleeps until a frame comes, its owner does something, or the time comes that the station named.
    fn pass(&mut self) {
        self.now_ns += MS;
        for from in 0..2 {
            let now_ns = self.now_ns;
            let host = &mut self.hosts[from];
            let is_due = host.next_ns(now_ns).is_some_and(|at_ns| at_ns <= now_ns);
            let is_idle = from == 1 && !now_ns.is_multiple_of(self.idle_ms * MS);
            if !is_idle && (is_due || !host.device.received.is_empty()) {
                host.poll(now_ns);
            }
            let sent: Vec<Vec<u8>> = self.hosts[from].take_sent().collect();
            for frame in sent {
                if !self.is_cut && (self.lost_of == 0 || !self.draw().is_multiple_of(self.lost_of)) {
                    self.hosts[1 - from].receive(frame);
                }
            }
        }
    }

    /// The owner of a connection lets it go, and has the station look.
    fn let_go(&mut self, host: usize, socket: SocketHandle) {
        self.hosts[host].let_go(socket);
        self.hosts[host].poll(self.now_ns);
    }

    fn pass_until(&mut self, at_most_ns: u64, is_it: impl Fn(&mut Self) -> bool) {
        let end_ns = self.now_ns + at_most_ns;
        while !is_it(self) {
            assert!(self.now_ns < end_ns, "not within {} s", at_most_ns / SECOND);
            self.pass();
        }
    }

    fn state(&mut self, host: usize, socket: SocketHandle) -> State {
        self.hosts[host].connection(socket).state()
    }

    fn connected(&mut self) -> [SocketHandle; 2] {
        let server = self.hosts[1].listen(PORT).unwrap();
        let client = self.hosts[0].connect(SocketAddrV4::new(ADDRESSES[1], PORT), FROM).unwrap();
        self.pass_until(20 * SECOND, |wire| {
            wire.state(0, client) == State::Established && wire.state(1, server) == State::Established
        });
        [client, server]
    }
}

/// Carries bytes; gives how long that takes.
fn carries(mut wire: Wire, bytes: usize) -> u64 {
    let [client, server] = wire.connected();
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 >> 3) as u8).collect();
    let (mut done, mut got) = (0, Vec::new());
    let begun_ns = wire.now_ns;
    let end_ns = begun_ns + 600 * SECOND;
    while got.len() < sent.len() {
        assert!(wire.now_ns < end_ns, "{} of {} bytes came", got.len(), sent.len());
        done += wire.hosts[0].connection(client).send_slice(&sent[done..]).unwrap();
        wire.pass();
        let mut room = alloc::vec![0; 100_000];
        let count = wire.hosts[1].connection(server).recv_slice(&mut room).unwrap();
        got.extend_from_slice(&room[..count]);
    }
    assert!(got == sent, "what came is what was sent");
    let took_ns = wire.now_ns - begun_ns;
    // Both end, and nothing is left of either.
    for (host, socket) in [(0, client), (1, server)] {
        wire.hosts[host].connection(socket).close();
        wire.let_go(host, socket);
    }
    wire.pass_until(60 * SECOND, |wire| wire.hosts.iter().all(|host| host.connections.all.is_empty()));
    took_ns
}

#[test]
fn bytes_arrive_in_order() {
    carries(Wire::new(0, 1), 3 << 20);
}

/// What a peer may have under way the station keeps until it looks: whatever is lost comes again only after long.
#[test]
fn a_station_that_looks_seldom_loses_nothing() {
    let mut wire = Wire::new(0, 1);
    wire.idle_ms = 40;
    let took_ns = carries(wire, 3 << 20);
    // A window each time that the station looks; what is lost costs pauses.
    assert!(took_ns < 2400 * MS, "{} ms", took_ns / MS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn bytes_arrive_in_order_by_a_wire_that_loses(lost_of in 30u64..300, random: u64) {
        carries(Wire::new(lost_of, random), 200_000);
    }
}

#[test]
fn a_peer_that_is_gone_is_noticed() {
    let mut wire = Wire::new(0, 1);
    let [client, server] = wire.connected();
    wire.is_cut = true;
    // One waits for an answer, the other for nothing.
    wire.hosts[0].connection(client).send_slice(b"?").unwrap();
    wire.pass_until(45 * SECOND, |wire| wire.state(0, client) == State::Closed);
    wire.pass_until(60 * SECOND, |wire| wire.state(1, server) == State::Closed);
}

#[test]
fn one_that_is_let_go_is_reset() {
    let mut wire = Wire::new(0, 1);
    let [client, server] = wire.connected();
    wire.let_go(0, client);
    wire.pass_until(SECOND, |wire| wire.state(1, server) == State::Closed);
    assert!(wire.hosts[0].connections.all.is_empty());
    wire.let_go(1, server);
    wire.pass();
    assert!(wire.hosts[1].connections.all.is_empty());
}

#[test]
fn where_nobody_listens_a_connection_is_refused() {
    let mut wire = Wire::new(0, 1);
    let client = wire.hosts[0].connect(SocketAddrV4::new(ADDRESSES[1], PORT), FROM).unwrap();
    wire.pass_until(SECOND, |wire| wire.state(0, client) == State::Closed);
    let nobody =
        wire.hosts[0].connect(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), PORT), FROM + 1).unwrap();
    wire.pass_until(45 * SECOND, |wire| wire.state(0, nobody) == State::Closed);
    wire.let_go(0, client);
    wire.let_go(0, nobody);
    wire.pass_until(6 * SECOND, |wire| wire.hosts[0].connections.all.is_empty());
}

#[test]
fn connections_are_counted() {
    let mut wire = Wire::new(0, 1);
    assert!(wire.hosts[0].listen(PORT).is_ok());
    assert_eq!(wire.hosts[0].listen(PORT), Err(TcpError::PortTaken));
    let others: Vec<_> = (1..8).map(|port| wire.hosts[0].listen(PORT + port).unwrap()).collect();
    assert_eq!(wire.hosts[0].listen(80), Err(TcpError::TooMany));
    wire.let_go(0, others[0]);
    wire.pass();
    assert!(wire.hosts[0].listen(80).is_ok());
    assert!(wire.hosts[0].is_listening(80) && !wire.hosts[0].is_listening(PORT + 1));
}
