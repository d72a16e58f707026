//! A client of another guest like this one: asks for bytes again and again, over one connection while that lasts, and checks
//! every byte. What the client did meanwhile is reported once in a second.

use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;

use smoltcp::iface::{Context, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::content::pattern;

/// Bytes of one answer's body.
pub const BODY_BYTES: u64 = 64 << 10;
/// The request for [`BODY_BYTES`].
const REQUEST: &[u8] = b"GET /bytes/65536 HTTP/1.1\r\nHost: peer\r\n\r\n";
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 1024;
/// Bytes of the receive buffer.
const RECEIVE_BYTES: usize = 32 << 10;
/// How long the peer may send nothing before the client begins a new connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause between a connection that was lost and the next.
const PAUSE: Duration = Duration::from_millis(50);
/// The time that a report is about.
const REPORT: Duration = Duration::from_secs(1);
/// The first of the client's own ports.
const FIRST_PORT: u16 = 49_152;

/// What the client did since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whole answers.
    pub answers: u64,
    /// Connections that were lost, or refused.
    pub lost: u64,
    /// Answers that were not what the peer should give.
    pub wrong: u64,
    /// The longest time from one answer to the next, or to now.
    pub longest: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, lost, wrong, longest } = self;
        write!(f, "{answers} answers, {lost} lost, {wrong} wrong, longest wait {} ms", longest.total_millis())
    }
}

/// Where the client is with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none before then.
    Pausing { until: Instant },
    /// Nothing is asked for; the connection may still be on its way.
    Idle,
    /// The request is sent, and the answer's head is awaited.
    Asked,
    /// So many bytes of the body have come.
    Reading { at: u64 },
}

/// A client of the server at one address.
pub struct Client {
    socket: SocketHandle,
    peer: Ipv4Addr,
    next_port: u16,
    state: State,
    /// When the peer must have sent something.
    deadline: Instant,
    last_answer: Instant,
    report: Report,
    report_at: Instant,
}

impl Client {
    /// Makes a client of the server at port 80 of `peer`.
    pub fn new(sockets: &mut SocketSet<'_>, peer: Ipv4Addr, now: Instant) -> Self {
        let buffer = |len| tcp::SocketBuffer::new(alloc::vec![0; len]);
        let socket = sockets.add(tcp::Socket::new(buffer(RECEIVE_BYTES), buffer(REQUEST.len())));
        Self {
            socket,
            peer,
            next_port: FIRST_PORT,
            state: State::Pausing { until: now },
            deadline: now,
            last_answer: now,
            report: Report::default(),
            report_at: now + REPORT,
        }
    }

    /// Begins anew: the network is another.
    pub fn restart(&mut self, sockets: &mut SocketSet<'_>, now: Instant) {
        sockets.get_mut::<tcp::Socket<'_>>(self.socket).abort();
        self.state = State::Pausing { until: now };
        (self.last_answer, self.report, self.report_at) = (now, Report::default(), now + REPORT);
    }

    /// Goes on. The result is a report, where one is due.
    pub fn serve(
        &mut self,
        sockets: &mut SocketSet<'_>,
        context: &mut Context,
        now: Instant,
    ) -> Option<Report> {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        while self.step(socket, context, now) {}
        if now < self.report_at {
            return None;
        }
        self.report_at = now + REPORT;
        let longest = self.report.longest.max(now - self.last_answer);
        Some(Report { longest, ..core::mem::take(&mut self.report) })
    }

    /// When [`Self::serve`] must be called at the latest.
    pub fn next_deadline(&self) -> Instant {
        let next = if let State::Pausing { until } = self.state { until } else { self.deadline };
        next.min(self.report_at)
    }

    /// One step; `true`: there may be another to make now.
    fn step(&mut self, socket: &mut tcp::Socket<'_>, context: &mut Context, now: Instant) -> bool {
        if let State::Pausing { until } = self.state {
            return now >= until && self.connect(socket, context, now);
        }
        if !socket.is_active() || now >= self.deadline {
            return self.give_up(socket, now);
        }
        match self.state {
            State::Pausing { .. } => false,
            State::Idle if socket.can_send() => {
                // The buffer has room for one request, and is empty while there is none.
                let _ = socket.send_slice(REQUEST);
                self.state = State::Asked;
                true
            }
            State::Idle => false,
            State::Asked => self.read_head(socket, now),
            State::Reading { at } => self.read_body(socket, at, now),
        }
    }

    fn connect(&mut self, socket: &mut tcp::Socket<'_>, context: &mut Context, now: Instant) -> bool {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        self.deadline = now + PATIENCE;
        if socket.connect(context, (self.peer, 80), self.next_port).is_err() {
            // This end has no address yet.
            self.state = State::Pausing { until: now + PAUSE };
            return false;
        }
        self.state = State::Idle;
        true
    }

    fn give_up(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> bool {
        socket.abort();
        self.report.lost += 1;
        self.state = State::Pausing { until: now + PAUSE };
        false
    }

    fn read_head(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> bool {
        let mut bytes: Vec<u8> = alloc::vec![0; socket.recv_queue().min(MAX_HEAD)];
        let len = socket.peek_slice(&mut bytes).unwrap_or(0);
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(&bytes[..len]) {
            Ok(httparse::Status::Complete(head)) if response.code == Some(200) => {
                // Head and body may lie in two pieces of the buffer: what is peeked at is also taken.
                let taken = socket.recv_slice(&mut bytes[..head]);
                self.deadline = now + PATIENCE;
                self.state = State::Reading { at: 0 };
                taken == Ok(head) || self.is_wrong(socket, now)
            }
            Ok(httparse::Status::Partial) if len < MAX_HEAD => false,
            _ => self.is_wrong(socket, now),
        }
    }

    fn read_body(&mut self, socket: &mut tcp::Socket<'_>, at: u64, now: Instant) -> bool {
        let taken = socket.recv(|bytes| {
            let len = bytes.len().min((BODY_BYTES - at) as usize);
            let right = bytes[..len].iter().zip(at..).all(|(byte, at)| *byte == pattern(at));
            (len, (len, right))
        });
        match taken {
            Ok((0, _)) => false,
            Ok((len, true)) => {
                self.deadline = now + PATIENCE;
                self.state = State::Reading { at: at + len as u64 };
                if at + len as u64 == BODY_BYTES {
                    self.report.answers += 1;
                    self.report.longest = self.report.longest.max(now - self.last_answer);
                    self.last_answer = now;
                    self.state = State::Idle;
                }
                true
            }
            Ok((_, false)) => self.is_wrong(socket, now),
            Err(_) => self.give_up(socket, now),
        }
    }

    fn is_wrong(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> bool {
        self.report.wrong += 1;
        self.give_up(socket, now)
    }
}
