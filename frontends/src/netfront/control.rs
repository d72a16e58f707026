//! The control ring: this end has the backend hash packets to several queues, and lends the backend its buffers.
//!
//! ABI: the section "Control messages" of `xen/include/public/io/netif.h`. All of it is the backend's to refuse: what the
//! backend does not have, or does not answer, leaves the interface as it is without.

use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::time;
use pvrt::grant::Granted;
use ring_abi::io::netif::*;
use ring_abi::ring::FrontRing;
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::connect::{buffers, ring};
use super::{Arrangement, Breach, NetError};

/// How long the backend may take for all answers.
const PATIENCE_NS: u64 = 1_000_000_000;
/// Bytes of a key, the most that Linux's netback takes.
const KEY_BYTES: usize = 40;
/// Entries of the table of queues, at most; Linux's netback has as many.
const MAX_MAPPING: u32 = 128;
/// Entries of a list of pages, as many as a page holds.
const MAX_LIST: usize = PAGE_SIZE / size_of::<XenNetifGref>();

/// The pages of one queue that may be lent: those to receive in, and those to send from.
pub(super) type Buffers = [Vec<GrantRef>; 2];

/// This end of the control ring.
pub(super) struct Control {
    ring: FrontRing<NetifCtrlRing, Granted>,
    gref: u32,
    port: Port,
    /// What requests name lies here.
    page: Granted,
    next_id: u16,
    until_ns: u64,
}

/// Why there is no answer.
enum Failed {
    /// The backend broke the protocol, or is silent: the ring is of no use any more.
    Ring(Breach),
    /// The backend's answer is no.
    Refused,
}

impl From<Breach> for Failed {
    fn from(breach: Breach) -> Self {
        Self::Ring(breach)
    }
}

impl Control {
    pub(super) fn new(dom: DomId) -> Result<Self, NetError> {
        let (ring, gref) = ring(dom)?;
        let port = Port::alloc_unbound(dom).map_err(NetError::Resources)?;
        Ok(Self { ring, gref, port, page: buffers(dom, 1, false)?, next_id: 0, until_ns: 0 })
    }

    /// The nodes that name the ring.
    pub(super) fn nodes(&self) -> [(&'static str, u32); 2] {
        [("ctrl-ring-ref", self.gref), ("event-channel-ctrl", self.port.number().raw())]
    }

    /// Arranges with a connected backend what there is to arrange. The ring stays this end's until the interface ends, since
    /// the backend may use it at all times.
    pub(super) async fn arrange(&mut self, queues: &[Buffers], lends: bool) -> Arrangement {
        self.until_ns = time::now_ns().saturating_add(PATIENCE_NS);
        let mut arrangement = Arrangement { queues: queues.len(), ..Arrangement::default() };
        if let Err(Breach(reason)) = self.arrange_all(queues, lends, &mut arrangement).await {
            log::warn!("netfront: control ring: {reason}; it is used no more");
        }
        arrangement
    }

    async fn arrange_all(
        &mut self,
        queues: &[Buffers],
        lends: bool,
        arrangement: &mut Arrangement,
    ) -> Result<(), Breach> {
        if queues.len() > 1 {
            arrangement.hashed = match self.hash(queues.len() as u32).await {
                Ok(()) => true,
                Err(Failed::Ring(breach)) => return Err(breach),
                Err(Failed::Refused) => {
                    // What was set so far shall not count; whether the backend can do that is its matter.
                    let none = [XEN_NETIF_CTRL_HASH_ALGORITHM_NONE, 0, 0];
                    self.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, none).await?;
                    false
                }
            };
        }
        for (number, queue) in queues.iter().enumerate().filter(|_| lends) {
            match self.lend(number as u32, queue, &mut arrangement.lent).await {
                Err(Failed::Ring(breach)) => return Err(breach),
                Err(Failed::Refused) => break,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Has the backend spread flows over all queues.
    async fn hash(&mut self, queues: u32) -> Result<(), Failed> {
        let toeplitz = [XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, 0, 0];
        self.need(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, toeplitz).await?;
        let kinds = self.need(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3]).await?;
        self.page.memory().page(0).write(0, &key());
        let key = [self.page.gref(0).raw(), KEY_BYTES as u32, 0];
        self.need(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, key).await?;
        let most = self.need(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?.min(MAX_MAPPING);
        // Each queue has as many entries as any other. Without a table the backend divides by the number of queues.
        let size = most / queues * queues;
        self.need(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [size, 0, 0]).await?;
        if size > 0 {
            let table: Vec<u32> = (0..size).map(|entry| entry % queues).collect();
            self.page.memory().page(0).write(0, table.as_bytes());
            let table = [self.page.gref(0).raw(), size, 0];
            self.need(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, table).await?;
        }
        // Last: from here on packets are hashed.
        self.need(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [kinds, 0, 0]).await?;
        Ok(())
    }

    /// Lends the buffers of a queue: first those to receive in, as many as the backend keeps.
    async fn lend(
        &mut self,
        number: u32,
        [receive, transmit]: &Buffers,
        lent: &mut usize,
    ) -> Result<(), Failed> {
        let size = self.need(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [number, 0, 0]).await?;
        let mut room = size as usize;
        for (grefs, flags) in [(receive, 0), (transmit, XEN_NETIF_CTRLF_GREF_READONLY)] {
            let entry = |gref: &GrantRef| XenNetifGref { r#ref: gref.raw(), flags, status: 0 };
            let list: Vec<_> = grefs.iter().take(room.min(MAX_LIST)).map(entry).collect();
            if list.is_empty() {
                continue;
            }
            self.page.memory().page(0).write(0, list.as_bytes());
            let data = [number, self.page.gref(0).raw(), list.len() as u32];
            self.need(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, data).await?;
            room -= list.len();
            *lent += list.len();
        }
        Ok(())
    }

    /// Asks for what must succeed; gives the answer's data.
    async fn need(&mut self, kind: u16, data: [u32; 3]) -> Result<u32, Failed> {
        match self.ask(kind, data).await? {
            (XEN_NETIF_CTRL_STATUS_SUCCESS, data) => Ok(data),
            _ => Err(Failed::Refused),
        }
    }

    /// One request, and its answer's status and data. Nothing else is under way.
    async fn ask(&mut self, r#type: u16, data: [u32; 3]) -> Result<(u32, u32), Breach> {
        const OVERRUN: Breach = Breach("ring overrun");
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.ring.push_request(&XenNetifCtrlRequest { id, r#type, data }).map_err(|_| OVERRUN)?;
        if self.ring.publish_requests() {
            self.port.notify();
        }
        loop {
            if let Some(answer) = self.ring.next_response().map_err(|_| OVERRUN)? {
                if (answer.id, answer.r#type) != (id, r#type) {
                    return Err(Breach("an answer to another request"));
                }
                return Ok((answer.status, answer.data));
            }
            if self.ring.arm_and_recheck().map_err(|_| OVERRUN)? {
                continue;
            }
            let left_ns = self.until_ns.saturating_sub(time::now_ns());
            if left_ns == 0 || time::timeout(left_ns, self.port.wait()).await.is_err() {
                return Err(Breach("no answer"));
            }
        }
    }
}

/// A key that differs from connection to connection (splitmix64, from the clock): nobody shall know which flows meet in a
/// queue.
fn key() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    let mut state = time::tsc() ^ time::wall_ns().rotate_left(32);
    for word in key.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
    }
    key
}

/// The queue, of `queues`, for a packet to send: packets of one flow keep their order. That is a sum over the addresses, and
/// over the ports of a packet that is not in fragments.
pub(super) fn queue_for(packet: &[u8], queues: usize) -> usize {
    if queues == 1 {
        return 0;
    }
    let at = |from: usize, to: usize| packet.get(from..to).unwrap_or_default();
    let (addresses, ports) = match at(12, 14) {
        [0x08, 0x00] => {
            let (is_plain, is_whole) =
                (at(14, 15) == [0x45], matches!(at(20, 22), [high, 0] if high & 0x3f == 0));
            let has_ports = is_plain && is_whole && matches!(at(23, 24), [6 | 17]);
            (at(26, 34), if has_ports { at(34, 38) } else { &[] })
        }
        [0x86, 0xdd] => (at(22, 54), if matches!(at(20, 21), [6 | 17]) { at(54, 58) } else { &[] }),
        _ => (at(0, 12), &[][..]),
    };
    let sum = addresses
        .iter()
        .chain(ports)
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    // The low bits of a product know of the low bits of the last bytes alone.
    (sum ^ sum >> 15) as usize % queues
}
