//! TCP streams of dom0's own, over its networks.

use alloc::sync::Arc;
use core::future::poll_fn;
use core::net::SocketAddrV4;
use core::task::{Context, Poll};

use arrayvec::ArrayVec;
use pvrt::Account;
use pvrt::executor::sync::Notify;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use spin::Mutex;

use super::Network;
use crate::net::router::{Connection, Gateway, MAX_CONNECTIONS, TcpError};

/// Streams that are dropped before the gateway's task looks: no more than there are connections, on two networks.
const MOST_DROPPED: usize = 2 * MAX_CONNECTIONS;

/// A TCP connection. Dropped without [`TcpStream::end`], the connection is reset.
pub struct TcpStream {
    network: Arc<Network>,
    connection: Connection,
}

/// A port at which dom0 waits for one connection from the world at a time.
pub struct TcpListener {
    network: Arc<Network>,
    port: u16,
}

impl TcpListener {
    /// At `port` of the uplink. Guests do not get there. One connection is taken at a time, so others hear a refusal.
    #[must_use]
    pub fn new(network: &Arc<Network>, port: u16) -> Self {
        Self { network: network.clone(), port }
    }

    /// Waits for a connection; gives also the peer's address.
    ///
    /// # Errors
    /// See [`TcpError`]. A peer that goes before it is connected is none.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddrV4), TcpError> {
        loop {
            let connection = self.network.open(|gateway| gateway.listen(self.port))?;
            let stream = TcpStream { network: self.network.clone(), connection };
            let is_there = stream.until(|socket| match socket.state() {
                State::Listen | State::SynReceived => None,
                _ => Some(socket.may_send()),
            });
            if is_there.await == Ok(true)
                && let Some(peer) = stream.peer()
            {
                return Ok((stream, peer));
            }
        }
    }
}

impl TcpStream {
    /// Connects to a peer.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub async fn connect(network: &Arc<Network>, to: SocketAddrV4) -> Result<Self, TcpError> {
        let connection = network.open(|gateway| gateway.connect(to))?;
        let stream = Self { network: network.clone(), connection };
        let is_there = stream.until(|socket| (socket.state() != State::SynSent).then(|| socket.may_send()));
        if is_there.await? { Ok(stream) } else { Err(TcpError::Refused) }
    }

    /// Reads up to `bytes.len()` bytes, and at least one. 0: the peer has ended.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize, TcpError> {
        self.until_with(|socket, context| match socket.recv_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_recv_waker(context.waker());
                Poll::Pending
            }
            Ok(count) => Poll::Ready(Ok(count)),
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => Poll::Ready(Err(TcpError::Broken)),
        })
        .await
    }

    /// Hands all of `bytes` over to be sent.
    ///
    /// # Errors
    /// See [`TcpError`]. A peer that has ended takes nothing more.
    pub async fn write_all(&self, bytes: &[u8]) -> Result<(), TcpError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.until_with(|socket, context| match socket.send_slice(rest) {
                _ if socket.state() == State::CloseWait => Poll::Ready(Err(TcpError::Broken)),
                Ok(0) => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                Ok(count) => Poll::Ready(Ok(count)),
                Err(_) => Poll::Ready(Err(TcpError::Broken)),
            });
            rest = &rest[sent.await?..];
        }
        Ok(())
    }

    /// Waits until the peer has all that was written.
    ///
    /// # Errors
    /// See [`TcpError`].
    pub async fn flush(&self) -> Result<(), TcpError> {
        let is_open = self.until(|socket| match socket.send_queue() {
            0 => Some(true),
            _ => (!socket.may_send()).then_some(false),
        });
        if is_open.await? { Ok(()) } else { Err(TcpError::Broken) }
    }

    /// Says that nothing more comes. What was written is still sent, even if the stream is dropped.
    pub fn end(&self) {
        self.with(Socket::close);
        self.network.1.task.notify_one();
    }

    fn peer(&self) -> Option<SocketAddrV4> {
        let remote = self.with(|socket| socket.remote_endpoint())??;
        let smoltcp::wire::IpAddress::Ipv4(address) = remote.addr else { return None };
        Some(SocketAddrV4::new(address, remote.port))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Socket<'static>) -> T) -> Option<T> {
        let outside = &mut self.network.0.lock().outside;
        outside.as_mut()?.gateway.connection(self.connection).map(look)
    }

    /// Waits until `look` has done something, after which there may be something to send.
    async fn until_with<T>(
        &self,
        mut look: impl FnMut(&mut Socket<'static>, &mut Context<'_>) -> Poll<Result<T, TcpError>>,
    ) -> Result<T, TcpError> {
        let seen = poll_fn(|context| {
            let seen = self.with(|socket| look(socket, context));
            seen.unwrap_or(Poll::Ready(Err(TcpError::NoWay)))
        });
        let seen = seen.await;
        self.network.1.task.notify_one();
        seen
    }

    /// Waits until `look` sees something, at each change of the connection.
    async fn until<T>(&self, mut look: impl FnMut(&Socket<'static>) -> Option<T>) -> Result<T, TcpError> {
        self.until_with(|socket, context| match look(socket) {
            Some(seen) => Poll::Ready(Ok(seen)),
            None => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for TcpStream {
    /// The network's lock is not taken: the stack holds wakers of tasks, and may drop the last trace of a task that owns a stream.
    fn drop(&mut self) {
        self.network.1.dropped.lock().push(self.connection);
        self.network.1.task.notify_one();
    }
}

/// What streams reach without the network's lock.
#[derive(Default)]
pub(super) struct Streams {
    /// Connections whose streams were dropped. A leaf lock.
    dropped: Mutex<ArrayVec<Connection, MOST_DROPPED>>,
    /// Wakes the gateway's task.
    pub(super) task: Arc<Notify>,
}

impl Network {
    /// Begins a connection or waits for one. dom0 itself pays for the buffers, whichever task asks.
    fn open(
        &self,
        begin: impl FnOnce(&mut Gateway) -> Result<Connection, TcpError>,
    ) -> Result<Connection, TcpError> {
        let outside = &mut self.0.lock().outside;
        let outside = outside.as_mut().ok_or(TcpError::NoWay)?;
        self.let_go(&mut outside.gateway);
        let connection = Account::own().charge(|| begin(&mut outside.gateway))?;
        self.1.task.notify_one();
        Ok(connection)
    }

    /// Takes down the connections whose streams were dropped.
    pub(super) fn let_go(&self, gateway: &mut Gateway) {
        let dropped = core::mem::take(&mut *self.1.dropped.lock());
        dropped.into_iter().for_each(|connection| gateway.let_go(connection));
    }
}
