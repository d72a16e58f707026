//! The network frontend: packets of up to 64 KiB each way, checksum and segmentation offload, one queue or several.
//!
//! ABI: `xen/include/public/io/netif.h`. Every buffer page stays granted for as long as the interface is connected, so a
//! packet costs no change of a grant; the price is one copy between the caller's bytes and the page. The copy is needed
//! in any case for what the backend writes: the backend may change the page at any time. A backend with a control ring is
//! lent all buffers, so that a short packet costs no grant operation at all.

mod connect;
mod control;
mod partial;
mod receive;
mod transmit;

#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Add;

use pvrt::event::{self, Port};
use pvrt::executor::select;
use pvrt::executor::sync::Notify;
use ring_abi::errno::Errno;
pub use ring_abi::io::offload::{Checksum, Gso, GsoKind, Offload, PacketHash};
use ring_abi::io::xenbus::XenbusState;
use spin::Mutex;

use crate::xenbus::{Device, StoreError, Xenstore};
use control::{Control, queue_for};
pub use partial::{header_checksum, set_partial};
use receive::Receiver;
use transmit::Transmitter;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of the longest packet: what an IP packet can be, and an Ethernet header with a VLAN tag.
pub const MAX_PACKET: usize = 65_535 + ETHERNET_HEADER + 4;

/// What the backend says about an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// This end's Ethernet address.
    pub mac: [u8; 6],
    /// Most bytes of an IP packet.
    pub mtu: u16,
    /// Packets longer than a page can be sent, in pieces.
    pub scatter_gather: bool,
    /// The backend takes packets whose TCP or UDP checksum over IPv4 is not complete ([`Checksum::Partial`]).
    pub checksum_ipv4: bool,
    /// The same over IPv6.
    pub checksum_ipv6: bool,
    /// The backend cuts long TCP packets over IPv4 into segments.
    pub gso_tcpv4: bool,
    /// The same over IPv6.
    pub gso_tcpv6: bool,
}

/// What this end arranged with the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrangement {
    /// Queues, each a pair of rings.
    pub queues: usize,
    /// The backend chooses the queue of a packet by a hash that this end set.
    pub hashed: bool,
    /// Buffers that the backend keeps mapped.
    pub lent: usize,
}

/// Why a network operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetError {
    /// There is no room now: [`Interface::ready`] tells when to try again.
    Full,
    /// The packet is longer than the interface can send, empty, or asks for an offload that the backend does not have.
    BadPacket,
    /// The backend broke the protocol, or went away.
    Disconnected,
    /// The backend cannot work with this frontend: the backend lacks the feature.
    Unsupported(&'static str),
    /// No grant, page or port was left.
    Resources(Errno),
    /// Xenstore failed, or says nonsense.
    Store(StoreError),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "no room in the transmit ring"),
            Self::BadPacket => write!(f, "packet cannot be sent"),
            Self::Disconnected => write!(f, "backend is gone"),
            Self::Unsupported(feature) => write!(f, "backend lacks {feature}"),
            Self::Resources(errno) => write!(f, "{errno}"),
            Self::Store(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for NetError {}

impl From<StoreError> for NetError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// How much went through an interface, and what the rings did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets handed to the backend.
    pub sent: u64,
    /// Bytes of these packets.
    pub sent_bytes: u64,
    /// Packets that the backend answered with an error: the network did not get them.
    pub send_errors: u64,
    /// Packets taken from the backend.
    pub received: u64,
    /// Bytes of these packets.
    pub received_bytes: u64,
    /// Packets that the backend announced as failed.
    pub receive_errors: u64,
    /// Events sent to the backend.
    pub notifications: u64,
}

impl Add for Statistics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            send_errors: self.send_errors + other.send_errors,
            received: self.received + other.received,
            received_bytes: self.received_bytes + other.received_bytes,
            receive_errors: self.receive_errors + other.receive_errors,
            notifications: self.notifications + other.notifications,
        }
    }
}

/// What lies in the rings now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Transmit slots whose request the backend has not answered, or whose answer was not taken yet.
    pub transmit_used: u32,
    /// Transmit slots.
    pub transmit_slots: u32,
    /// Receive slots that hold an empty buffer.
    pub receive_posted: u32,
    /// Receive slots.
    pub receive_slots: u32,
}

/// A pair of rings.
struct Queue {
    transmit: Transmitter,
    receive: Receiver,
}

/// All rings. Guarded by a leaf lock.
struct Rings {
    /// At least one.
    queues: Vec<Queue>,
    /// The queue that is looked at first for a received packet.
    next: usize,
    /// Kept, since the backend may use the ring's page at all times.
    control: Option<Control>,
    statistics: Statistics,
}

/// What the interface and the task that follows the backend's state share.
struct Shared {
    /// Of each queue.
    ports: Vec<Port>,
    /// `None` once the interface has ended.
    rings: Mutex<Option<Rings>>,
    /// What had gone through when the interface ended. A leaf lock.
    at_end: Mutex<Statistics>,
    /// The interface ended; wakes [`Interface::ready`] and the task that follows the backend.
    ended: Notify,
    followed: Notify,
}

impl Shared {
    /// Ends the interface. `false`: the interface had ended before. Pages that the backend still uses stay out of use until the
    /// backend lets go of them.
    fn shut(&self) -> bool {
        let rings = self.rings.lock().take();
        if let Some(rings) = &rings {
            *self.at_end.lock() = rings.statistics;
        }
        self.ended.notify_one();
        self.followed.notify_one();
        rings.is_some()
    }
}

/// A connected network interface.
///
/// One task uses an interface. The task sends and receives until there is nothing to do, calls [`Self::flush`], and waits by
/// [`Self::ready`].
pub struct Interface {
    device: Device,
    shared: Arc<Shared>,
    properties: Properties,
    arrangement: Arrangement,
}

impl Interface {
    /// Connects to the interface at `path`, for example `device/vif/0`, with one queue.
    ///
    /// # Errors
    /// [`NetError`]: xenstore refused a request, the backend's nodes make no sense, the backend does not copy received
    /// packets, or this kernel has no page, grant or port left.
    pub async fn connect(store: &Xenstore, path: &str) -> Result<Self, NetError> {
        Self::connect_queues(store, path, 1).await
    }

    /// Connects with as many queues as the backend allows, at most `most`. Packets of one flow go by one queue.
    ///
    /// # Errors
    /// The errors of [`Self::connect`].
    pub async fn connect_queues(store: &Xenstore, path: &str, most: usize) -> Result<Self, NetError> {
        Self::connect_as(store, path, most, true).await
    }

    /// Connects like [`Self::connect_queues`]; `lends`: whether the backend is lent the buffers, if the backend takes them.
    ///
    /// # Errors
    /// The errors of [`Self::connect`].
    pub async fn connect_as(
        store: &Xenstore,
        path: &str,
        most: usize,
        lends: bool,
    ) -> Result<Self, NetError> {
        let device = Device::open(store, path).await?;
        let (shared, properties, arrangement) = connect::connect(&device, most, lends).await?;
        Ok(Self { device, shared, properties, arrangement })
    }

    /// What this end arranged with the backend.
    pub fn arrangement(&self) -> Arrangement {
        self.arrangement
    }

    /// What the backend says about the interface.
    pub fn properties(&self) -> Properties {
        self.properties
    }

    /// What went through since the connection, until now or until the interface ended.
    pub fn statistics(&self) -> Statistics {
        let now = self.shared.rings.lock().as_ref().map(|rings| rings.statistics);
        now.unwrap_or_else(|| *self.shared.at_end.lock())
    }

    /// What lies in the rings; all zero once the interface has ended.
    pub fn ring_state(&self) -> RingState {
        let mut state = RingState::default();
        for Queue { transmit, receive } in self.shared.rings.lock().iter().flat_map(|rings| &rings.queues) {
            let (used, slots) = transmit.used();
            state.transmit_used += used;
            state.transmit_slots += slots;
            let (posted, slots) = receive.posted();
            state.receive_posted += posted;
            state.receive_slots += slots;
        }
        state
    }

    /// Most bytes of a packet, its Ethernet header included, that [`Self::send`] takes without segmentation offload.
    pub fn longest(&self) -> usize {
        usize::from(self.properties.mtu) + ETHERNET_HEADER
    }

    /// Puts a packet, an Ethernet frame without its check sequence, on the ring. The backend sees the packet after
    /// [`Self::flush`].
    ///
    /// # Errors
    /// - [`NetError::Full`]: the backend still has too many packets.
    /// - [`NetError::BadPacket`]: the packet is too long or too short, or asks for an offload that the backend does not
    ///   have.
    /// - [`NetError::Disconnected`]: the backend broke the protocol or is gone.
    pub fn send(&self, packet: &[u8], offload: Offload) -> Result<(), NetError> {
        self.check(packet.len(), &offload)?;
        self.with(|rings| {
            let Rings { queues, statistics, .. } = rings;
            let queue = queue_for(packet, queues.len());
            let transmit = &mut queues[queue].transmit;
            transmit.collect(statistics)?;
            if !transmit.push(packet, &offload)? {
                return Ok(Err(NetError::Full));
            }
            statistics.sent += 1;
            statistics.sent_bytes += packet.len() as u64;
            Ok(Ok(()))
        })?
    }

    /// Whether each queue has room for a packet of `len` bytes.
    ///
    /// # Errors
    /// [`NetError::Disconnected`]: the backend broke the protocol or is gone.
    pub fn has_room(&self, len: usize) -> Result<bool, NetError> {
        self.with(|rings| {
            let Rings { queues, statistics, .. } = rings;
            let mut has_room = true;
            for Queue { transmit, .. } in queues {
                transmit.collect(statistics)?;
                has_room &= transmit.has_room(len, 1);
            }
            Ok(has_room)
        })
    }

    /// Takes a received packet: appends the packet's bytes to `into`. `None`: no whole packet has come.
    ///
    /// The bytes are a copy, which the backend cannot change any more.
    ///
    /// # Errors
    /// [`NetError::Disconnected`]: the backend broke the protocol or is gone.
    pub fn receive(&self, into: &mut Vec<u8>) -> Result<Option<Offload>, NetError> {
        self.with(|rings| {
            let Rings { queues, next, statistics, .. } = rings;
            let before = into.len();
            for _ in 0..queues.len() {
                if let Some(offload) = queues[*next].receive.next(into, statistics)? {
                    statistics.received += 1;
                    statistics.received_bytes += (into.len() - before) as u64;
                    return Ok(Some(offload));
                }
                // A queue is emptied before the next is looked at.
                *next = (*next + 1) % queues.len();
            }
            Ok(None)
        })
    }

    /// Shows the backend the packets sent and the buffers that are free again, with one event for each queue at most.
    ///
    /// # Errors
    /// [`NetError::Disconnected`]: the backend is gone.
    pub fn flush(&self) -> Result<(), NetError> {
        let ports = &self.shared.ports;
        self.with(|Rings { queues, statistics, .. }| {
            for (Queue { transmit, receive }, port) in queues.iter_mut().zip(ports) {
                let sent = transmit.publish();
                let refilled = receive.publish();
                if sent || refilled {
                    statistics.notifications += 1;
                    port.notify();
                }
            }
            Ok(())
        })
    }

    /// Waits until there is something to receive, or until there is room again after [`NetError::Full`]; before that
    /// [`Self::flush`]es. The wait ends at once when the interface ends.
    pub async fn ready(&self) {
        // An error means that the interface has ended: the caller's next operation says so.
        if self.flush().is_err() {
            return;
        }
        let waiting = self.with(|rings| {
            let mut waiting = false;
            for Queue { transmit, receive } in &mut rings.queues {
                waiting = waiting || receive.arm()? || transmit.arm()?;
            }
            Ok(waiting)
        });
        if waiting == Ok(false) {
            select(event::any(&self.shared.ports), self.shared.ended.notified()).await;
        }
    }

    /// Runs `job` on the rings. A breach of the protocol ends the interface.
    fn with<T>(&self, job: impl FnOnce(&mut Rings) -> Result<T, Breach>) -> Result<T, NetError> {
        let result = match &mut *self.shared.rings.lock() {
            Some(rings) => job(rings),
            None => return Err(NetError::Disconnected),
        };
        result.map_err(|Breach(reason)| {
            log::error!("netfront: backend d{}: {reason}; disconnected", self.device.backend_dom());
            self.shared.shut();
            NetError::Disconnected
        })
    }

    fn check(&self, len: usize, offload: &Offload) -> Result<(), NetError> {
        let Properties { gso_tcpv4, gso_tcpv6, checksum_ipv4, checksum_ipv6, .. } = self.properties;
        let possible = match offload.gso {
            None => offload.checksum != Checksum::Partial || checksum_ipv4 || checksum_ipv6,
            Some(Gso { size: 0, .. }) => false,
            Some(Gso { kind: GsoKind::TcpV4, .. }) => gso_tcpv4 && offload.checksum == Checksum::Partial,
            Some(Gso { kind: GsoKind::TcpV6, .. }) => gso_tcpv6 && offload.checksum == Checksum::Partial,
        };
        let longest = if offload.gso.is_some() { MAX_PACKET } else { self.longest() + 4 };
        if possible && (ETHERNET_HEADER..=longest).contains(&len) { Ok(()) } else { Err(NetError::BadPacket) }
    }

    /// Closes the connection in order, and takes the buffers back.
    ///
    /// # Errors
    /// [`NetError`]: xenstore refused to read or write a state, or the connection to xenstore broke.
    pub async fn close(self) -> Result<(), NetError> {
        self.device.set_state(XenbusState::Closing).await?;
        self.device
            .wait_backend(|state| {
                matches!(state, XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown)
            })
            .await?;
        self.shared.shut();
        self.device.set_state(XenbusState::Closed).await?;
        Ok(())
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.shared.shut();
    }
}

/// What the backend did that the protocol forbids. The interface must end.
#[derive(Debug, PartialEq, Eq)]
struct Breach(&'static str);
