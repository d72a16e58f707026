//! The transmit ring and its buffers.

use alloc::vec::Vec;

use pvrt::grant::Granted;
use ring_abi::io::netif::*;
use ring_abi::ring::FrontRing;
use ring_abi::types::PAGE_SIZE;

use super::{Breach, Checksum, Offload, Statistics};

/// Buffer pages for packets on their way: room for seven of the longest packets.
pub(super) const BUFFERS: usize = 128;
/// Most slots of one packet: what every backend must accept (`XEN_NETIF_NR_SLOTS_MIN`).
const MAX_SLOTS: usize = XEN_NETIF_NR_SLOTS_MIN as usize;

/// Sends packets.
pub(super) struct Transmitter {
    ring: FrontRing<NetifTxRing, Granted>,
    /// A page for each id. The backend may read all pages at all times.
    buffers: Granted,
    /// Ids without a request.
    free: Vec<u16>,
    /// Whether the backend has a request with this id.
    busy: [bool; BUFFERS],
    /// [`Self::push`] found no room, and no answer was taken since.
    full: bool,
}

impl Transmitter {
    pub(super) fn new(ring: FrontRing<NetifTxRing, Granted>, buffers: Granted) -> Self {
        let free = (0..BUFFERS as u16).rev().collect();
        Self { ring, buffers, free, busy: [false; BUFFERS], full: false }
    }

    /// Slots with a request whose answer was not taken, and all slots.
    pub(super) fn used(&self) -> (u32, u32) {
        (self.ring.size() - self.ring.free_requests(), self.ring.size())
    }

    /// Whether a packet of `len` bytes fits, with so many slots of extra information.
    pub(super) fn has_room(&self, len: usize, extras: usize) -> bool {
        let slots = len.div_ceil(PAGE_SIZE);
        slots <= self.free.len() && slots + extras <= self.ring.free_requests() as usize
    }

    /// Puts a packet on the ring. `false`: there is no room.
    pub(super) fn push(&mut self, packet: &[u8], offload: &Offload) -> Result<bool, Breach> {
        let slots = packet.len().div_ceil(PAGE_SIZE);
        if slots > MAX_SLOTS || !self.has_room(packet.len(), usize::from(offload.gso.is_some())) {
            self.full = true;
            return Ok(false);
        }
        for (index, piece) in packet.chunks(PAGE_SIZE).enumerate() {
            // There are as many free ids as slots: `has_room` has looked.
            let Some(id) = self.free.pop() else { break };
            self.busy[usize::from(id)] = true;
            self.buffers.memory().page(usize::from(id)).write(0, piece);
            let mut request = NetifTxRequest {
                gref: self.buffers.gref(id.into()).raw(),
                offset: 0,
                flags: if index + 1 < slots { NETTXF_MORE_DATA } else { 0 },
                id,
                size: piece.len() as u16,
            };
            if index == 0 {
                request.size = size_of_packet(packet.len());
                request.flags |= match offload.checksum {
                    Checksum::Complete => 0,
                    Checksum::Verified => NETTXF_DATA_VALIDATED,
                    Checksum::Partial => NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED,
                };
                if offload.gso.is_some() {
                    request.flags |= NETTXF_EXTRA_INFO;
                }
            }
            self.put(&request)?;
            if let (0, Some(gso)) = (index, offload.gso) {
                let extra = NetifExtraGso {
                    r#type: XEN_NETIF_EXTRA_TYPE_GSO,
                    size: gso.size,
                    gso_type: gso.kind.number(),
                    ..Default::default()
                };
                self.put(&NetifTxRequest::from_extra(&extra.into()))?;
            }
        }
        Ok(true)
    }

    fn put(&mut self, request: &NetifTxRequest) -> Result<(), Breach> {
        self.ring.push_request(request).map_err(|_| Breach("the transmit ring is full"))
    }

    /// Takes the backend's answers: their buffers are free again.
    pub(super) fn collect(&mut self, statistics: &mut Statistics) -> Result<(), Breach> {
        while let Some(response) = self.ring.next_response().map_err(|_| Breach("transmit ring overrun"))? {
            // The answer to a slot of extra information, which has no id.
            if response.status == NETIF_RSP_NULL {
                continue;
            }
            match self.busy.get_mut(usize::from(response.id)) {
                Some(busy) if *busy => *busy = false,
                _ => return Err(Breach("answer to no packet")),
            }
            self.free.push(response.id);
            self.full = false;
            statistics.send_errors += u64::from(response.status != NETIF_RSP_OKAY);
        }
        Ok(())
    }

    /// Shows the backend what was put on the ring; `true` when the backend must get an event.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish_requests()
    }

    /// If a packet found no room: asks for an event with the next answer. `true`: an answer is there already.
    pub(super) fn arm(&mut self) -> Result<bool, Breach> {
        if !self.full {
            return Ok(false);
        }
        self.ring.arm_and_recheck().map_err(|_| Breach("transmit ring overrun"))
    }
}

/// The first request's size: the whole packet's, as far as the field can say.
fn size_of_packet(len: usize) -> u16 {
    len.min(XEN_NETIF_MAX_TX_SIZE as usize) as u16
}
