//! The receive ring and its buffers.

use alloc::vec::Vec;

use pvrt::grant::Granted;
use ring_abi::io::netif::*;
use ring_abi::ring::FrontRing;
use ring_abi::types::PAGE_SIZE;

use super::{Breach, Checksum, ETHERNET_HEADER, Gso, GsoKind, MAX_PACKET, Offload, PacketHash, Statistics};

/// Buffer pages, as many as the ring has slots.
pub(super) const BUFFERS: usize = ring::RX_SLOTS as usize;

/// The first part of a packet has come, the rest has not.
struct Begun {
    offload: Offload,
    /// The backend reported an error for a part.
    failed: bool,
}

/// Receives packets.
pub(super) struct Receiver {
    ring: FrontRing<NetifRxRing, Granted>,
    /// A page for each id. The backend may write to all pages at all times.
    buffers: Granted,
    /// The id in each slot of the ring. Answers come in the slots' order, and extra information takes a slot without
    /// naming the slot's id.
    posted: [u16; BUFFERS],
    /// Slots filled so far, wrapping.
    filled: u32,
    /// Slots answered so far, wrapping.
    answered: u32,
    begun: Option<Begun>,
    /// The bytes of the packet that `begun` describes.
    bytes: Vec<u8>,
}

impl Receiver {
    /// Posts all buffers.
    pub(super) fn new(ring: FrontRing<NetifRxRing, Granted>, buffers: Granted) -> Result<Self, Breach> {
        let mut receiver = Self {
            ring,
            buffers,
            posted: [0; BUFFERS],
            filled: 0,
            answered: 0,
            begun: None,
            bytes: Vec::new(),
        };
        for id in 0..BUFFERS as u16 {
            receiver.post(id)?;
        }
        Ok(receiver)
    }

    /// Slots that hold an empty buffer, and all slots.
    pub(super) fn posted(&self) -> (u32, u32) {
        (self.filled.wrapping_sub(self.answered), self.ring.size())
    }

    fn post(&mut self, id: u16) -> Result<(), Breach> {
        let gref = self.buffers.gref(id.into()).raw();
        let request = NetifRxRequest { id, gref, ..Default::default() };
        self.ring.push_request(&request).map_err(|_| Breach("the receive ring is full"))?;
        self.posted[self.filled as usize % BUFFERS] = id;
        self.filled = self.filled.wrapping_add(1);
        Ok(())
    }

    /// The next answer, and the id of its slot.
    fn answer(&mut self) -> Result<Option<(NetifRxResponse, u16)>, Breach> {
        let Some(response) = self.ring.next_response().map_err(|_| Breach("receive ring overrun"))? else {
            return Ok(None);
        };
        let id = self.posted[self.answered as usize % BUFFERS];
        self.answered = self.answered.wrapping_add(1);
        Ok(Some((response, id)))
    }

    /// Takes the next whole packet: appends the packet's bytes to `into`.
    pub(super) fn next(
        &mut self,
        into: &mut Vec<u8>,
        statistics: &mut Statistics,
    ) -> Result<Option<Offload>, Breach> {
        while let Some((response, id)) = self.answer()? {
            if response.id != id {
                return Err(Breach("answer for another buffer"));
            }
            let mut begun = match self.begun.take() {
                Some(begun) => begun,
                None => {
                    self.bytes.clear();
                    Begun { offload: self.offload(&response)?, failed: false }
                }
            };
            let len = usize::try_from(response.status).ok();
            match len {
                Some(len) => self.append(id, response.offset.into(), len)?,
                None => begun.failed = true,
            }
            self.post(id)?;
            if response.flags & NETRXF_MORE_DATA != 0 {
                self.begun = Some(begun);
                continue;
            }
            if begun.failed || self.bytes.len() < ETHERNET_HEADER {
                statistics.receive_errors += 1;
                continue;
            }
            into.extend_from_slice(&self.bytes);
            return Ok(Some(begun.offload));
        }
        Ok(None)
    }

    fn append(&mut self, id: u16, offset: usize, len: usize) -> Result<(), Breach> {
        if offset + len > PAGE_SIZE {
            return Err(Breach("a part crosses its page"));
        }
        let before = self.bytes.len();
        if before + len > MAX_PACKET {
            return Err(Breach("a packet without end"));
        }
        self.bytes.resize(before + len, 0);
        self.buffers.memory().page(id.into()).read(offset, &mut self.bytes[before..]);
        Ok(())
    }

    /// What the first answer of a packet says, and the extra information after the answer.
    fn offload(&mut self, first: &NetifRxResponse) -> Result<Offload, Breach> {
        let checksum = if first.flags & NETRXF_CSUM_BLANK != 0 {
            Checksum::Partial
        } else if first.flags & NETRXF_DATA_VALIDATED != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let mut offload = Offload { checksum, ..Offload::default() };
        let mut more = first.flags & NETRXF_EXTRA_INFO != 0;
        while more {
            // The backend publishes a packet with its extra information in one step.
            let Some((slot, id)) = self.answer()? else { return Err(Breach("extra information is missing")) };
            let extra = slot.as_extra();
            self.post(id)?;
            match extra.r#type {
                XEN_NETIF_EXTRA_TYPE_GSO => {
                    let gso = extra.as_gso();
                    let kind = GsoKind::from_number(gso.gso_type);
                    let (Some(kind), 1..) = (kind, gso.size) else {
                        return Err(Breach("segmentation of no known kind"));
                    };
                    offload.gso = Some(Gso { kind, size: gso.size });
                }
                XEN_NETIF_EXTRA_TYPE_HASH => {
                    let hash = extra.as_hash();
                    let value = u32::from_le_bytes(hash.value);
                    offload.hash = Some(PacketHash { kind: hash.hash_type, value });
                }
                _ => return Err(Breach("extra information of an unknown kind")),
            }
            more = extra.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0;
        }
        Ok(offload)
    }

    /// Shows the backend the free buffers; `true` when the backend must get an event.
    pub(super) fn publish(&mut self) -> bool {
        self.ring.publish_requests()
    }

    /// Asks for an event with the next answer. `true`: an answer is there already.
    pub(super) fn arm(&mut self) -> Result<bool, Breach> {
        self.ring.arm_and_recheck().map_err(|_| Breach("receive ring overrun"))
    }
}
