//! The server and a client in one process, each with a stack, over a wire that can lose packets.

use super::*;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::RefCell;
use core::net::Ipv4Addr;

use crate::client::{Client, Report};

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of the wire.
struct End {
    incoming: Queue,
    outgoing: Queue,
    /// Of so many packets sent one is lost; 0: none.
    lose: usize,
    sent: usize,
    /// Each connection's first packet with FIN is lost, by port.
    lose_fins: bool,
    lost_fins: Vec<u16>,
}

struct Packet(Vec<u8>);

impl phy::RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'a>(&'a mut End);

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = alloc::vec![0; len];
        let result = f(&mut packet);
        self.0.sent += 1;
        if self.0.lose_fins && len >= 54 && packet[23] == 6 && packet[47] & 1 != 0 {
            let port = u16::from_be_bytes([packet[36], packet[37]]);
            if !self.0.lost_fins.contains(&port) {
                self.0.lost_fins.push(port);
                return result;
            }
        }
        if self.0.lose == 0 || !self.0.sent.is_multiple_of(self.0.lose) {
            self.0.outgoing.borrow_mut().push_back(packet);
        }
        result
    }
}

impl phy::Device for End {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Packet, Room<'_>)> {
        let packet = self.incoming.borrow_mut().pop_front()?;
        Some((Packet(packet), Room(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Host {
    device: End,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Host {
    fn new(number: u8, incoming: Queue, outgoing: Queue, lose: usize) -> Self {
        let mut device = End { incoming, outgoing, lose, sent: 0, lose_fins: false, lost_fins: Vec::new() };
        let mac = EthernetAddress([2, 0, 0, 0, 0, number]);
        let config = Config::new(HardwareAddress::Ethernet(mac));
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let cidr = IpCidr::new(IpAddress::Ipv4(Ipv4Addr::new(10, 0, 0, number)), 24);
            addresses.push(cidr).expect("room for one");
        });
        Self { device, interface, sockets: SocketSet::new(Vec::new()) }
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }
}

struct World {
    now: Instant,
    guest: Host,
    server: Server,
    client: Host,
    next_port: u16,
}

impl World {
    fn new(connections: usize, lose: usize) -> Self {
        let (there, back) = (Queue::default(), Queue::default());
        let mut guest = Host::new(1, there.clone(), back.clone(), lose);
        let client = Host::new(2, back, there, lose);
        let server = Server::new(&mut guest.sockets, 80, connections);
        Self { now: Instant::ZERO, guest, server, client, next_port: 40_000 }
    }

    /// Lets a millisecond pass.
    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        self.client.poll(self.now);
        self.guest.poll(self.now);
        let figures = |counters: &Counters, open| Figures {
            requests: counters.requests,
            open: open as u64,
            ..Default::default()
        };
        self.server.serve(&mut self.guest.sockets, self.now, &figures);
        self.guest.poll(self.now);
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// A client's connection to the server.
    fn connect(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(alloc::vec![0; 32 << 10]);
        let handle = self.client.sockets.add(tcp::Socket::new(buffer(), buffer()));
        self.next_port += 1;
        let socket = self.client.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let server = (IpAddress::Ipv4(Ipv4Addr::new(10, 0, 0, 1)), 80);
        socket.connect(self.client.interface.context(), server, self.next_port).expect("a free port");
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.client.sockets.get_mut(handle)
    }

    /// Takes what has come; `None` once the server has closed and all was taken.
    fn take(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let socket = self.socket(handle);
        let mut bytes = alloc::vec![0; socket.recv_queue()];
        match socket.recv_slice(&mut bytes) {
            Ok(_) => Some(bytes),
            Err(_) if matches!(socket.state(), tcp::State::SynSent) => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// Sends `text` and gives all that comes until the server closes.
    fn exchange(&mut self, text: &str) -> Vec<u8> {
        let handle = self.connect();
        let mut sent = 0;
        let mut all = Vec::new();
        for _ in 0..2_000_000 {
            self.step();
            if self.socket(handle).can_send() && sent < text.len() {
                sent += self.socket(handle).send_slice(&text.as_bytes()[sent..]).expect("open");
            }
            match self.take(handle) {
                Some(bytes) => all.extend(bytes),
                None => break,
            }
        }
        self.socket(handle).close();
        self.pass(Duration::from_millis(10));
        self.client.sockets.remove(handle);
        all
    }
}

/// Status and body of the response with which `bytes` begins, and what follows.
fn response(bytes: &[u8]) -> (u16, Vec<u8>, Vec<u8>) {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else {
        panic!("no response: {:?}", String::from_utf8_lossy(bytes))
    };
    let field = response.headers.iter().find(|field| field.name == "Content-Length").expect("a length");
    let len: usize = core::str::from_utf8(field.value).expect("text").parse().expect("a number");
    let rest = &bytes[head..];
    (response.code.expect("there"), rest[..len].to_vec(), rest[len..].to_vec())
}

const CLOSE: &str = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

#[test]
fn a_page_and_long_bodies_arrive_whole_also_over_a_bad_wire() {
    for lose in [0, 7] {
        let mut world = World::new(4, lose);
        let (status, page, rest) = response(&world.exchange(&alloc::format!("GET / {CLOSE}")));
        assert_eq!((status, rest.len()), (200, 0));
        assert!(page.starts_with(b"<!doctype html>"));
        let len = 300_000;
        let (status, body, _) = response(&world.exchange(&alloc::format!("GET /bytes/{len} {CLOSE}")));
        assert_eq!(status, 200);
        assert!(body.iter().enumerate().all(|(at, byte)| *byte == content::pattern(at as u64)));
        assert_eq!(body.len(), len);
        let (status, json, _) = response(&world.exchange(&alloc::format!("GET /status.json {CLOSE}")));
        assert_eq!(status, 200);
        let json = String::from_utf8(json).expect("text");
        assert!(json.contains("\"requests\":2,") && json.contains("\"open\":1,"), "{json}");
    }
}

#[test]
fn several_requests_on_one_connection() {
    let mut world = World::new(2, 0);
    let text = alloc::format!(
        "GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET /none {CLOSE}"
    );
    let all = world.exchange(&text);
    let (status, body, rest) = response(&all);
    assert_eq!((status, body), (200, (0..10).map(content::pattern).collect()));
    // The answer to HEAD has the length of a body that does not come.
    let at = rest.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    assert!(rest.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let (status, _, rest) = response(&rest[at..]);
    assert_eq!((status, rest.len()), (404, 0));
    assert_eq!((world.server.counters().requests, world.server.counters().refused), (3, 1));
    // And many, whose heads cross the end of the receive buffer.
    let many = alloc::format!("GET /bytes/1 HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(700)).repeat(40);
    let mut rest = world.exchange(&alloc::format!("{many}GET /bytes/2 {CLOSE}"));
    for index in 0..41 {
        let (status, body, left) = response(&rest);
        assert_eq!((status, body.len()), (200, if index < 40 { 1 } else { 2 }));
        rest = left;
    }
    assert!(rest.is_empty());
}

#[test]
fn all_connections_serve_at_a_time_and_one_after_the_other() {
    let mut world = World::new(8, 0);
    for round in 0..5 {
        let handles: Vec<SocketHandle> = (0..8).map(|_| world.connect()).collect();
        world.pass(Duration::from_millis(20));
        assert_eq!(world.server.open(), 8, "round {round}");
        for handle in &handles {
            let text = alloc::format!("GET /bytes/5000 {CLOSE}");
            world.socket(*handle).send_slice(text.as_bytes()).expect("open");
        }
        let mut received = [0; 8];
        for _ in 0..300 {
            world.step();
            for (index, handle) in handles.iter().enumerate() {
                if let Some(bytes) = world.take(*handle) {
                    received[index] += bytes.len();
                }
            }
        }
        assert!(received.iter().all(|len| *len > 5000), "{received:?}");
        for handle in handles {
            world.socket(handle).close();
            world.client.poll(world.now);
            world.step();
        }
        // The server closed first: its sockets wait for stray packets, and listen all the same.
        world.pass(Duration::from_millis(50));
        assert_eq!(world.server.open(), 0, "round {round}");
    }
    assert_eq!(world.server.counters().connections, 40);
    assert_eq!(world.server.counters().most, 8);
}

#[test]
fn slow_clients_lose_their_place() {
    let mut world = World::new(3, 0);
    // One says nothing, one begins a head, and one takes nothing of a long response.
    let silent = world.connect();
    let begins = world.connect();
    let deaf = world.connect();
    world.pass(Duration::from_millis(20));
    world.socket(begins).send_slice(b"GET / HT").expect("open");
    let text = alloc::format!("GET /bytes/1000000 {CLOSE}");
    world.socket(deaf).send_slice(text.as_bytes()).expect("open");
    world.pass(Duration::from_millis(100));
    assert_eq!(world.server.open(), 3);
    let deadline = world.server.next_deadline().expect("of the first two");
    assert!(deadline <= world.now + HEAD_TIME);
    world.pass(HEAD_TIME + Duration::from_millis(100));
    assert_eq!(world.server.counters().timeouts, 2);
    let (status, ..) = response(&world.take(begins).expect("an answer"));
    assert_eq!(status, 408);
    assert_eq!(world.take(silent), None, "closed without a word");
    // A client that does not close either is cut off.
    world.pass(HEAD_TIME + Duration::from_millis(100));
    assert_eq!(world.server.open(), 1, "the third still has its window closed");
    let counters = world.server.counters();
    assert_eq!((counters.requests, counters.refused), (2, 1));
    // The client vanishes: nobody acknowledges any more.
    world.client.device.lose = 1;
    world.pass(SEND_TIME + SEND_TIME + Duration::from_secs(5));
    assert_eq!(world.server.open(), 0);
}

#[test]
fn nonsense_is_answered_and_ends_the_connection() {
    let mut world = World::new(2, 0);
    for (text, expected) in [
        ("\x16\x03\x01\x02\x00hello".to_string(), 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_string(), 405),
        (alloc::format!("GET /{}", "a".repeat(20_000)), 431),
    ] {
        let all = world.exchange(&text);
        let (status, _, rest) = response(&all);
        assert_eq!((status, rest.len()), (expected, 0));
    }
}

/// The guest sleeps until the stack or the server names a time, or a packet comes: so lost packets must name a time.
#[test]
fn a_sleeping_guest_sends_again_what_was_lost() {
    for lose in [3, 5, 11] {
        let mut world = World::new(2, lose);
        let handle = world.connect();
        let text = alloc::format!("GET /bytes/20000 {CLOSE}");
        let (mut sent, mut received, mut sleeps) = (0, 0, 0);
        loop {
            world.step();
            if world.socket(handle).can_send() && sent < text.len() {
                sent += world.socket(handle).send_slice(&text.as_bytes()[sent..]).expect("open");
            }
            match world.take(handle) {
                Some(bytes) => received += bytes.len(),
                None => break,
            }
            let quiet = world.client.device.incoming.borrow().is_empty()
                && world.guest.device.incoming.borrow().is_empty();
            if quiet && sent == text.len() {
                let Host { interface, sockets, .. } = &mut world.guest;
                let guest = interface.poll_at(world.now, sockets);
                let Host { interface, sockets, .. } = &mut world.client;
                let client = interface.poll_at(world.now, sockets);
                let next = [guest, client, world.server.next_deadline()].into_iter().flatten().min();
                let next = next.expect("somebody waits for something");
                sleeps += 1;
                assert!(sleeps < 2000, "{received} bytes after {:?}, guest {guest:?}", world.now);
                world.now = world.now.max(next);
            }
        }
        assert!(received > 20_000, "{received}");
    }
}

#[test]
fn the_end_of_an_answer_is_sent_again() {
    let mut world = World::new(50, 0);
    world.guest.device.lose_fins = true;
    let handles: Vec<SocketHandle> = (0..50).map(|_| world.connect()).collect();
    world.pass(Duration::from_millis(20));
    for handle in &handles {
        let text = alloc::format!("GET /bytes/6000 {CLOSE}");
        world.socket(*handle).send_slice(text.as_bytes()).expect("open");
    }
    let mut received = [0; 50];
    for _ in 0..5000 {
        world.step();
        for (index, handle) in handles.iter().enumerate() {
            if let Some(bytes) = world.take(*handle) {
                received[index] += bytes.len();
            }
        }
    }
    assert_eq!(world.guest.device.lost_fins.len(), 50);
    assert!(received.iter().all(|len| *len > 6000), "{received:?}");
}

impl World {
    /// Lets time pass for a client of this crate, until the client reports.
    fn report(&mut self, client: &mut Client, server_is_there: bool) -> Report {
        loop {
            if server_is_there {
                self.step();
            } else {
                self.now += Duration::from_millis(1);
                self.client.poll(self.now);
            }
            let Host { interface, sockets, .. } = &mut self.client;
            if let Some(report) = client.serve(sockets, interface.context(), self.now) {
                return report;
            }
        }
    }
}

#[test]
fn the_client_checks_answers_and_begins_anew_when_the_server_is_gone() {
    let mut world = World::new(2, 0);
    let mut client = Client::new(&mut world.client.sockets, Ipv4Addr::new(10, 0, 0, 1), world.now);
    let report = world.report(&mut client, true);
    assert!(report.answers > 10 && report.longest < Duration::from_millis(100), "{report}");
    assert_eq!((report.lost, report.wrong), (0, 0));
    // The server's network is another: connections are gone, and the server says so when asked.
    world.server.restart(&mut world.guest.sockets);
    assert_eq!(world.server.open(), 0);
    let report = world.report(&mut client, true);
    assert!(report.answers > 10, "{report}");
    assert_eq!((report.lost, report.wrong), (1, 0));
    // Nobody answers for three seconds, and then somebody does.
    let silent: Vec<Report> = (0..3).map(|_| world.report(&mut client, false)).collect();
    assert!(silent[2].answers == 0 && silent[2].longest > Duration::from_secs(2), "{}", silent[2]);
    assert!(silent.iter().any(|report| report.lost > 0));
    world.report(&mut client, true);
    let report = world.report(&mut client, true);
    assert!(report.answers > 10 && report.wrong == 0, "{report}");
    // This end's network is another.
    client.restart(&mut world.client.sockets, world.now);
    let report = world.report(&mut client, true);
    assert!(report.answers > 10 && report.wrong == 0, "{report}");
}
