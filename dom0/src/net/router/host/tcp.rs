//! TCP connections of the control domain's own.

use core::fmt;
use core::net::SocketAddrV4;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{ConnectError, Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use super::Host;

/// Bytes that wait in each direction of a connection, at most: what a wire of a gigabit holds in a millisecond. The stack has no congestion
/// control that works (with smoltcp's Reno a connection that has lost something may stand still), and is slow to send again.
pub(super) const BUFFER_BYTES: usize = 128 << 10;
/// Connections of a station at a time, those that are being taken down included.
pub const MAX_CONNECTIONS: usize = 8;
/// How long a peer may say nothing to what it should answer.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a reset waits for the peer's Ethernet address.
const RESET_NS: u64 = 5_000_000_000;
/// How often a peer that need not say anything is asked whether it is there.
const ASK: Duration = Duration::from_secs(10);

/// Why there is no connection, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpError {
    /// dom0 is on no network with a way there, or has no address yet.
    NoWay,
    /// dom0 has as many connections as it may have.
    TooMany,
    /// Somebody else listens at the port, or the port is forwarded to a guest.
    PortTaken,
    /// The peer refused, or did not answer.
    Refused,
    /// The peer reset the connection, or has not answered for half a minute.
    Broken,
}

impl fmt::Display for TcpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoWay => "there is no way there",
            Self::TooMany => "dom0 has as many connections as it may have",
            Self::PortTaken => "the port is taken",
            Self::Refused => "the peer refused the connection, or did not answer",
            Self::Broken => "the peer broke the connection, or has not answered for half a minute",
        })
    }
}

/// The owner of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Here,
    Gone,
    /// The owner is gone, and so is the connection, but for a reset.
    ClosedSince(u64),
}

/// The station's connections.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) all: arrayvec::ArrayVec<(SocketHandle, Owner), MAX_CONNECTIONS>,
}

impl Host {
    /// Begins a connection from `port`.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub(in crate::net::router) fn connect(
        &mut self,
        to: SocketAddrV4,
        port: u16,
    ) -> Result<SocketHandle, TcpError> {
        let handle = self.add_connection()?;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), to, port).map_err(|error| {
            self.let_go(handle);
            match error {
                ConnectError::InvalidState => TcpError::PortTaken,
                ConnectError::Unaddressable => TcpError::NoWay,
            }
        })?;
        Ok(handle)
    }

    /// Waits for a connection to `port`.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub(in crate::net::router) fn listen(&mut self, port: u16) -> Result<SocketHandle, TcpError> {
        if self.is_listening(port) {
            return Err(TcpError::PortTaken);
        }
        let handle = self.add_connection()?;
        let listening = self.connection(handle).listen(port);
        listening.map(|()| handle).map_err(|_| {
            self.let_go(handle);
            TcpError::PortTaken
        })
    }

    /// Whether a connection to `port` would be taken.
    pub(in crate::net::router) fn is_listening(&self, port: u16) -> bool {
        self.connections().any(|socket| socket.is_listening() && socket.listen_endpoint().port == port)
    }

    /// Whether a connection has this port of the station's.
    pub(in crate::net::router) fn has_port(&self, port: u16) -> bool {
        self.connections().any(|socket| socket.local_endpoint().is_some_and(|local| local.port == port))
    }

    /// All sockets.
    pub(in crate::net::router) fn connections(&self) -> impl Iterator<Item = &Socket<'static>> {
        self.connections.all.iter().map(|(handle, _)| self.sockets.get::<Socket<'static>>(*handle))
    }

    fn add_connection(&mut self) -> Result<SocketHandle, TcpError> {
        if self.connections.all.is_full() {
            return Err(TcpError::TooMany);
        }
        let buffer = || SocketBuffer::new(alloc::vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(ASK));
        // The owner writes what belongs together at once.
        socket.set_nagle_enabled(false);
        let handle = self.sockets.add(socket);
        self.connections.all.push((handle, Owner::Here));
        Ok(handle)
    }

    /// A connection that the owner has not let go.
    pub(in crate::net::router) fn connection(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// The owner is done with a connection. What the owner had written is still sent, if the owner ended it; else the peer sees
    /// a reset.
    pub(in crate::net::router) fn let_go(&mut self, handle: SocketHandle) {
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        if socket.may_send() || matches!(socket.state(), State::SynSent | State::SynReceived | State::Listen)
        {
            socket.abort();
        }
        if let Some(connection) = self.connections.all.iter_mut().find(|(other, _)| *other == handle) {
            connection.1 = Owner::Gone;
        }
    }

    /// Forgets connections that were let go, and of which nothing is left to say.
    pub(super) fn sweep_connections(&mut self, now_ns: u64) {
        let sockets = &mut self.sockets;
        self.connections.all.retain(|(handle, owner)| {
            let socket = sockets.get::<Socket<'_>>(*handle);
            let is_over = match (socket.state(), *owner) {
                (_, Owner::Here) => false,
                (State::TimeWait, _) => true,
                // A reset that is still to be sent has the peer's address. A peer that answers no ARP never gets one.
                (State::Closed, Owner::Gone) => {
                    *owner = Owner::ClosedSince(now_ns);
                    socket.remote_endpoint().is_none()
                }
                (State::Closed, Owner::ClosedSince(since_ns)) => {
                    socket.remote_endpoint().is_none() || now_ns - since_ns >= RESET_NS
                }
                _ => false,
            };
            if is_over {
                sockets.remove(*handle);
            }
            !is_over
        });
    }
}
