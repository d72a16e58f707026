//! The connections: each has a TCP socket, which listens, reads requests and writes responses, one after the other.

use alloc::vec::Vec;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};

use crate::content::{self, Body, Figures};
use crate::http::{self, Read, Status};

/// Connections at a time. A client beyond these is refused by its SYN and tries again.
pub const CONNECTIONS: usize = 160;
/// Bytes of a connection's receive buffer: a request's head and the next one's beginning.
const RECEIVE_BYTES: usize = http::MAX_HEAD + 1024;
/// Bytes of a connection's send buffer: what is under way to a client without an acknowledgement.
const SEND_BYTES: usize = 32 << 10;
/// Most bytes that a connection puts into its send buffer before the next connection's turn.
const TURN_BYTES: usize = 16 << 10;
/// How long a client may take for the head of a request, the time between two requests included.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long a client may take no byte of a response.
const SEND_TIME: Duration = Duration::from_secs(30);

enum State {
    /// For a request, whose head must be there by then.
    Reading { until: Instant },
    /// Head and body of a response, and how much of both together has been handed to the socket.
    Writing { head: Vec<u8>, body: Body, sent: u64, keep_alive: bool },
    /// All is handed over; the client closes, too, by then.
    Closing { until: Instant },
}

struct Connection {
    socket: SocketHandle,
    /// `None`: the socket listens.
    state: Option<State>,
}

/// What the server has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Of these with an error.
    pub refused: u64,
    /// Bytes of heads and bodies handed to the sockets.
    pub bytes: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Most connections at a time.
    pub most: u64,
    /// Connections that the server ended since the client took too long.
    pub timeouts: u64,
}

/// A web server on one port.
pub struct Server {
    port: u16,
    connections: Vec<Connection>,
    counters: Counters,
}

impl Server {
    /// Makes `count` sockets in `sockets` that listen on `port`.
    pub fn new(sockets: &mut SocketSet<'_>, port: u16, count: usize) -> Self {
        let connections = (0..count)
            .map(|_| {
                let buffer = |len| tcp::SocketBuffer::new(alloc::vec![0; len]);
                let mut socket = tcp::Socket::new(buffer(RECEIVE_BYTES), buffer(SEND_BYTES));
                // A response is written in one go: waiting for more to send would only delay its end.
                socket.set_nagle_enabled(false);
                socket.set_timeout(Some(SEND_TIME));
                Connection { socket: sockets.add(socket), state: None }
            })
            .collect();
        Self { port, connections, counters: Counters::default() }
    }

    /// Ends all connections, none of which the client is told: the network that the clients are on is gone.
    pub fn restart(&mut self, sockets: &mut SocketSet<'_>) {
        for Connection { socket, state } in &mut self.connections {
            *state = None;
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
            socket.abort();
            // The port is not 0, and the socket is not open.
            let _ = socket.listen(self.port);
        }
    }

    /// What the server has done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.connections.iter().filter(|connection| connection.state.is_some()).count()
    }

    /// Goes on with every connection. `figures` is asked for the figures that a response shows.
    pub fn serve(
        &mut self,
        sockets: &mut SocketSet<'_>,
        now: Instant,
        figures: &dyn Fn(&Counters, usize) -> Figures,
    ) {
        let mut open = self.open();
        for Connection { socket, state } in &mut self.connections {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
            let mut turn = Turn { socket, now, counters: &mut self.counters };
            if !turn.socket.is_open() {
                open -= usize::from(state.take().is_some());
                // The port is not 0, and the socket is not open.
                let _ = turn.socket.listen(self.port);
            } else if state.is_none()
                && turn.socket.is_active()
                && turn.socket.state() != tcp::State::SynReceived
            {
                turn.counters.connections += 1;
                open += 1;
                turn.counters.most = turn.counters.most.max(open as u64);
                *state = Some(State::Reading { until: now + HEAD_TIME });
            }
            if let Some(running) = state.take() {
                *state = Some(turn.run(running, &|counters| figures(counters, open)));
            }
        }
    }

    /// When a client's time is over, at the earliest: [`Self::serve`] must be called then.
    pub fn next_deadline(&self) -> Option<Instant> {
        let until = |connection: &Connection| match connection.state {
            Some(State::Reading { until } | State::Closing { until }) => Some(until),
            _ => None,
        };
        self.connections.iter().filter_map(until).min()
    }
}

/// One connection's turn.
struct Turn<'t, 's> {
    socket: &'t mut tcp::Socket<'s>,
    now: Instant,
    counters: &'t mut Counters,
}

impl Turn<'_, '_> {
    fn run(&mut self, mut state: State, figures: &dyn Fn(&Counters) -> Figures) -> State {
        // A client may send several requests at once: they are answered while the send buffer takes the answers.
        let mut left = TURN_BYTES;
        loop {
            state = match state {
                State::Reading { until } => match self.read(until, figures) {
                    Some(next) => next,
                    None => return State::Reading { until },
                },
                State::Writing { .. } => match self.write(state, &mut left) {
                    (next, true) => next,
                    (next, false) => return next,
                },
                State::Closing { until } => {
                    if self.now >= until {
                        self.socket.abort();
                    }
                    // What a client still sends is of no use; read, it does not close the window.
                    let _ = self.socket.recv(|bytes| (bytes.len(), ()));
                    return State::Closing { until };
                }
            };
        }
    }

    /// Looks for a request; `None`: there is no whole one yet.
    fn read(&mut self, until: Instant, figures: &dyn Fn(&Counters) -> Figures) -> Option<State> {
        if self.socket.recv_queue() == 0 && self.socket.may_recv() && self.now < until {
            return None;
        }
        let read = match self.socket.peek(RECEIVE_BYTES) {
            Ok(bytes) => http::read(bytes),
            // The client has closed, and has sent nothing more.
            Err(_) => return Some(self.close()),
        };
        // The buffer's content may lie in two pieces, of which `peek` shows the first.
        let read = if read == Read::More { self.read_whole() } else { read };
        match read {
            Read::More if self.now >= until => {
                self.counters.timeouts += 1;
                // A client that has sent nothing expects no answer.
                if self.socket.recv_queue() == 0 {
                    Some(self.close())
                } else {
                    Some(self.refuse(Status::Timeout))
                }
            }
            Read::More if !self.socket.may_recv() => Some(self.close()),
            Read::More => None,
            Read::Refused(status) => Some(self.refuse(status)),
            Read::Request(request, taken) => {
                self.discard(taken);
                let (status, kind, body) = content::find(&request.path, || figures(self.counters));
                self.counters.requests += 1;
                self.counters.refused += u64::from(status != Status::Ok);
                let head = http::head(status, kind, body.len(), request.keep_alive);
                let body = if request.head_only { Body::Static(&[]) } else { body };
                Some(State::Writing { head, body, sent: 0, keep_alive: request.keep_alive })
            }
        }
    }

    fn read_whole(&mut self) -> Read {
        let mut bytes = alloc::vec![0; self.socket.recv_queue()];
        match self.socket.peek_slice(&mut bytes) {
            Ok(len) => http::read(&bytes[..len]),
            Err(_) => Read::More,
        }
    }

    fn discard(&mut self, mut count: usize) {
        while count > 0 {
            let taken = self.socket.recv(|bytes| {
                let taken = bytes.len().min(count);
                (taken, taken)
            });
            match taken {
                Ok(taken) if taken > 0 => count -= taken,
                _ => return,
            }
        }
    }

    fn refuse(&mut self, status: Status) -> State {
        self.counters.requests += 1;
        self.counters.refused += 1;
        let (status, kind, body) = content::refusal(status);
        let head = http::head(status, kind, body.len(), false);
        State::Writing { head, body, sent: 0, keep_alive: false }
    }

    /// Hands on what the send buffer takes. `true`: the response is handed over, and the next state may run.
    fn write(&mut self, state: State, left: &mut usize) -> (State, bool) {
        let State::Writing { head, body, mut sent, keep_alive } = state else { return (state, true) };
        let total = head.len() as u64 + body.len();
        while sent < total {
            let taken = self.socket.send(|buffer| {
                let room = buffer.len().min(*left);
                let taken = fill(&head, &body, sent, &mut buffer[..room]);
                (taken, taken)
            });
            match taken {
                Ok(0) => return (State::Writing { head, body, sent, keep_alive }, false),
                Ok(taken) => {
                    sent += taken as u64;
                    *left -= taken;
                    self.counters.bytes += taken as u64;
                }
                // The client has gone.
                Err(_) => return (self.close(), true),
            }
        }
        if keep_alive { (State::Reading { until: self.now + HEAD_TIME }, true) } else { (self.close(), true) }
    }

    fn close(&mut self) -> State {
        self.socket.close();
        State::Closing { until: self.now + HEAD_TIME }
    }
}

/// Copies what begins at byte `from` of head and body to `to`.
fn fill(head: &[u8], body: &Body, from: u64, to: &mut [u8]) -> usize {
    let in_head = usize::try_from(from).ok().and_then(|from| head.get(from..)).unwrap_or_default();
    let len = in_head.len().min(to.len());
    to[..len].copy_from_slice(&in_head[..len]);
    let begun = (from + len as u64).saturating_sub(head.len() as u64);
    if len < in_head.len() { len } else { len + body.copy(begun, &mut to[len..]) }
}

#[cfg(test)]
mod tests;
