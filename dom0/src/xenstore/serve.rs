//! Serving connections: bytes to and from rings, events for clients within dom0.

use core::task::{Context, Poll};

use ring_abi::ring::bytes::ByteRing;
use ring_abi::ring::{RingError, RingPage};

use super::connection::{ConnId, Connection, Failure};
use super::deferred::kept_by;
use super::error::XsError;
use super::server::{Server, WatchEvent};
use super::stream::Outgoing;

/// Number of messages of one connection that are handled before another connection gets its turn.
const BATCH: usize = 4;

/// Work, in bytes moved ([`Store::spend`](super::store::Store::spend)), after which another connection gets its turn.
/// The request that goes beyond this limit is still handled whole.
const BATCH_WORK: usize = 4 * 1024;

/// A domain's ring, as [`Server::exchange`] uses the ring.
pub trait Ring {
    /// Takes bytes that the domain sent. The result is the number of bytes, 0 if there are none.
    ///
    /// # Errors
    /// [`Failure::RingIndex`]: producer and consumer are further apart than the ring is long.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure>;

    /// Puts bytes into the ring for the domain. The result is the number of bytes that fitted.
    ///
    /// # Errors
    /// The errors of [`Ring::read`].
    fn write(&mut self, from: &[u8]) -> Result<usize, Failure>;
}

/// How a round of [`Server::exchange`] went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Exchange {
    /// Bytes moved: the domain must be notified.
    pub notify: bool,
    /// The turn ended before the work did: the caller lets others run, then calls again.
    pub again: bool,
}

/// The server's end of a xenstore page: `ring_abi::io::xs_wire::server`.
impl<M: RingPage> Ring for ByteRing<M> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        ByteRing::read(self, into).map_err(|_: RingError| Failure::RingIndex)
    }

    fn write(&mut self, from: &[u8]) -> Result<usize, Failure> {
        ByteRing::write(self, from).map_err(|_: RingError| Failure::RingIndex)
    }
}

impl Server {
    /// A connection that is served.
    ///
    /// # Errors
    /// `EIO`: the connection has failed or is gone.
    pub(super) fn serving(&self, conn: ConnId) -> Result<&Connection, XsError> {
        self.connections.get(&conn).filter(|connection| connection.failed.is_none()).ok_or(XsError::Io)
    }

    /// Moves bytes between a domain's ring and the domain's connection, and handles the messages that came, up to a
    /// bound.
    ///
    /// This call drops the waker that [`Server::poll_output`] kept: the caller polls anew before the caller sleeps.
    ///
    /// # Errors
    /// [`Failure`] says why the connection serves no more. The caller writes [`Failure::ring_error`] into the ring
    /// page, and lets the page and the port go when [`Effect::Released`] comes.
    pub fn exchange(&mut self, conn: ConnId, ring: &mut impl Ring) -> Result<Exchange, Failure> {
        // The caller looks at what is queued meanwhile, so waking the caller would cost one poll for nothing.
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.waker = None;
        }
        let result = self.turn(conn, ring);
        if let Err(failure) = result
            && let Some(connection) = self.connections.get(&conn)
            && connection.failed.is_none()
        {
            self.fail(conn, failure);
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.kicked = false;
            // What waits in the connection is charged: see `Server::kept_for`.
            let kept = kept_by(connection);
            if kept != connection.counted {
                connection.counted = kept;
                self.store.note_change();
            }
        }
        result
    }

    fn turn(&mut self, conn: ConnId, ring: &mut impl Ring) -> Result<Exchange, Failure> {
        let mut done = Exchange::default();
        let mut budget = BATCH;
        let start = self.store.work();
        let mut buffer = [0; 256];
        loop {
            let connection = self.connections.get_mut(&conn).ok_or(Failure::Gone)?;
            if let Some(failure) = connection.failed {
                return Err(failure);
            }
            loop {
                let bytes = connection.output.bytes();
                let count = if bytes.is_empty() { 0 } else { ring.write(bytes)? };
                if count == 0 {
                    break;
                }
                connection.output.consume(count);
                done.notify = true;
            }
            if !connection.left.is_empty() {
                if self.store.work() != start || self.settle_connection(conn) {
                    done.again = true;
                    return Ok(done);
                }
                continue;
            }
            let may_ask = connection.output.replies() < self.quotas.outstanding;
            let is_ready = may_ask && connection.input.is_ready();
            // The commit's own connection goes on with the commit, and so does each connection that has a request.
            if self.committing.as_ref().is_some_and(|(_, owner, _)| is_ready || *owner == conn) {
                if self.store.work() != start || self.settle_commit(self.step_work) {
                    done.again = true;
                    return Ok(done);
                }
                continue;
            }
            if !may_ask {
                return Ok(done);
            }
            if is_ready {
                if budget == 0 || self.store.work().wrapping_sub(start) >= BATCH_WORK {
                    done.again = true;
                    return Ok(done);
                }
                budget -= 1;
                match connection.input.take() {
                    Ok(Some(message)) => self.handle(conn, &message),
                    Ok(None) => {}
                    Err(error) => return Err(Failure::PayloadTooLong(error.len)),
                }
                continue;
            }
            let room = connection.input.room().min(buffer.len());
            let count = ring.read(&mut buffer[..room])?;
            if count == 0 {
                return Ok(done);
            }
            connection.input.push(&buffer[..count.min(room)]);
            done.notify = true;
        }
    }

    /// Ready when something was queued for the connection, or the connection failed, since [`Server::exchange`] last
    /// ran.
    pub fn poll_output(&mut self, conn: ConnId, context: &mut Context<'_>) -> Poll<()> {
        match self.connections.get_mut(&conn) {
            Some(connection) if !connection.kicked && connection.failed.is_none() => {
                connection.waker = Some(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Takes the next event of a client within dom0.
    pub fn take_event(&mut self, conn: ConnId) -> Option<WatchEvent> {
        let connection = self.connections.get_mut(&conn)?;
        loop {
            match connection.output.pop()? {
                Outgoing::Event(watch, path) => {
                    let text = |bytes: &[u8]| alloc::string::String::from_utf8_lossy(bytes).into_owned();
                    return Some(WatchEvent {
                        path: text(&watch.event_text(&path)),
                        token: text(&watch.token),
                    });
                }
                // A client within dom0 asks by calls, and gets no replies.
                Outgoing::Reply(_) => {}
            }
        }
    }

    /// Like [`Server::take_event`], for a task that waits for an event.
    pub fn poll_event(&mut self, conn: ConnId, context: &mut Context<'_>) -> Poll<WatchEvent> {
        if let Some(event) = self.take_event(conn) {
            return Poll::Ready(event);
        }
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}
