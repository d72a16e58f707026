//! Connections of the control domain's own.

use core::net::SocketAddrV4;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::Socket;

use super::{BridgeId, Gateway, is_station};
use crate::net::router::TcpError;

/// The ports from which the control domain connects. Those from 32768 on are for guests' connections.
const OWN_PORTS: core::ops::Range<u16> = 16384..32768;
/// How often a free port is looked for.
const TRIES: usize = 64;

/// A connection of the control domain's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    network: BridgeId,
    handle: SocketHandle,
}

impl Gateway {
    /// Begins a connection, by the network that has the address, or else by the uplink.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub fn connect(&mut self, to: SocketAddrV4) -> Result<Connection, TcpError> {
        if !is_station(*to.ip()) {
            return Err(TcpError::NoWay);
        }
        let network = self.way_to(*to.ip()).ok_or(TcpError::NoWay)?;
        let own = self.router.network(network).and_then(|network| network.address).ok_or(TcpError::NoWay)?;
        if own.address() == *to.ip() {
            return Err(TcpError::NoWay);
        }
        let span = u64::from(OWN_PORTS.end - OWN_PORTS.start);
        for _ in 0..TRIES {
            let port = OWN_PORTS.start + (self.random.draw() % span) as u16;
            if !self.router.is_forwarded(port) && !self.is_own_port(port) {
                let segment = self.segments.get_mut(&network).ok_or(TcpError::NoWay)?;
                let handle = segment.host.connect(to, port)?;
                return Ok(Connection { network, handle });
            }
        }
        Err(TcpError::PortTaken)
    }

    /// Waits for a connection from the world to `port`. Guests do not get there.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub fn listen(&mut self, port: u16) -> Result<Connection, TcpError> {
        if self.router.is_forwarded(port) {
            return Err(TcpError::PortTaken);
        }
        let network = self.uplink_id().ok_or(TcpError::NoWay)?;
        let segment = self.segments.get_mut(&network).ok_or(TcpError::NoWay)?;
        let handle = segment.host.listen(port)?;
        Ok(Connection { network, handle })
    }

    /// The socket of a connection that was not let go.
    pub fn connection(&mut self, connection: Connection) -> Option<&mut Socket<'static>> {
        Some(self.segments.get_mut(&connection.network)?.host.connection(connection.handle))
    }

    /// The owner is done with the connection. What the owner wrote before is still sent if the owner has closed the connection;
    /// otherwise the peer sees a reset.
    pub fn let_go(&mut self, connection: Connection) {
        if let Some(segment) = self.segments.get_mut(&connection.network) {
            segment.host.let_go(connection.handle);
        }
    }

    /// All connections and ports of the control domain's own, those included that are being taken down.
    pub fn connections(&self) -> impl Iterator<Item = &Socket<'static>> {
        self.segments.values().flat_map(|segment| segment.host.connections())
    }

    /// Whether the control domain's own connections have a TCP port.
    pub(super) fn is_own_port(&self, port: u16) -> bool {
        let mut hosts = self.segments.values().map(|segment| &segment.host);
        hosts.any(|host| host.has_port(port) || host.is_listening(port))
    }
}
