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
}

impl Wire {
    fn new(lost_of: u64, random: u64) -> Self {
        let host = |index: usize| {
            let mac = MacAddr([2, 0, 0, 0, 0, index as u8 + 1]);
            let mut host = Host::new(0, mac, 1500, 7 + index as u64);
            host.set_address(Some(Ipv4Cidr::new(ADDRESSES[index], 24)), None);
            host
        };
        Self { hosts: [host(0), host(1)], now_ns: 0, lost_of, random: random | 1, is_cut: false }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A millisecond passes.
    fn pass(&mut self) {
        self.now_ns += MS;
        for from in 0..2 {
            self.hosts[from].poll(self.now_ns);
            let sent: Vec<Vec<u8>> = self.hosts[from].take_sent().collect();
            for frame in sent {
                if !self.is_cut && (self.lost_of == 0 || !self.draw().is_multiple_of(self.lost_of)) {
                    self.hosts[1 - from].receive(frame);
                }
            }
        }
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

fn carries(lost_of: u64, random: u64, bytes: usize) {
    let mut wire = Wire::new(lost_of, random);
    let [client, server] = wire.connected();
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 >> 3) as u8).collect();
    let (mut done, mut got) = (0, Vec::new());
    let end_ns = wire.now_ns + 600 * SECOND;
    while got.len() < sent.len() {
        assert!(wire.now_ns < end_ns, "{} of {} bytes came", got.len(), sent.len());
        done += wire.hosts[0].connection(client).send_slice(&sent[done..]).unwrap();
        wire.pass();
        let mut room = alloc::vec![0; 100_000];
        let count = wire.hosts[1].connection(server).recv_slice(&mut room).unwrap();
        got.extend_from_slice(&room[..count]);
    }
    assert!(got == sent, "what came is what was sent");
    // Both end, and nothing is left of either.
    for (host, socket) in [(0, client), (1, server)] {
        wire.hosts[host].connection(socket).close();
        wire.hosts[host].let_go(socket);
    }
    wire.pass_until(60 * SECOND, |wire| wire.hosts.iter().all(|host| host.connections.all.is_empty()));
}

#[test]
fn bytes_arrive_in_order() {
    carries(0, 1, 3 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn bytes_arrive_in_order_by_a_wire_that_loses(lost_of in 12u64..200, random: u64) {
        carries(lost_of, random, 200_000);
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
    wire.hosts[0].let_go(client);
    wire.pass_until(SECOND, |wire| wire.state(1, server) == State::Closed);
    assert!(wire.hosts[0].connections.all.is_empty());
    wire.hosts[1].let_go(server);
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
    wire.hosts[0].let_go(client);
    wire.hosts[0].let_go(nobody);
    wire.pass_until(6 * SECOND, |wire| wire.hosts[0].connections.all.is_empty());
}

#[test]
fn connections_are_counted() {
    let mut wire = Wire::new(0, 1);
    assert!(wire.hosts[0].listen(PORT).is_ok());
    assert_eq!(wire.hosts[0].listen(PORT), Err(TcpError::PortTaken));
    let others: Vec<_> = (1..8).map(|port| wire.hosts[0].listen(PORT + port).unwrap()).collect();
    assert_eq!(wire.hosts[0].listen(80), Err(TcpError::TooMany));
    wire.hosts[0].let_go(others[0]);
    wire.pass();
    assert!(wire.hosts[0].listen(80).is_ok());
    assert!(wire.hosts[0].is_listening(80) && !wire.hosts[0].is_listening(PORT + 1));
}
