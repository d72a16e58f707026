//! From packets to a frontend's receive ring.
//!
//! A frontend expects the response to a request in the request's own slot of the ring, because extra information has no
//! tag. So a packet's responses are written while the packet takes its requests, before the bytes are copied, and are
//! published after.

use alloc::vec::Vec;
use core::ops::Range;

use ring_abi::io::netif::{
    NETIF_RSP_ERROR, NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA,
    NetifExtraGso, NetifExtraHash, NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifRxRing,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, XEN_NETIF_EXTRA_FLAG_MORE, XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH, XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6,
};
use ring_abi::ring::{BackRing, RingPage};
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};

use super::error::Disconnect;
use super::packet::{Checksum, CopyOp, GsoKind, Packet, Part, Place};
use crate::traits::Notifier;

/// Most slots that a packet takes with each part in one slot. Linux's netfront keeps no more pages for one packet.
const MAX_RX_SLOTS: u32 = 17;

/// The copies of one packet into one frontend's pages, on their way. The caller has the copies done, and then gives the
/// value to [`RxQueue::finish`].
#[must_use]
#[derive(Debug)]
pub struct Planned {
    /// Index of the first response.
    response: u32,
    /// Responses with data.
    slots: u32,
    /// Responses with extra information, which stand behind the first.
    extras: u32,
    /// Bytes of the packet.
    len: u32,
    /// The copies, within the caller's list.
    ops: Range<usize>,
}

/// Why a packet was not planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The frontend has posted too few requests; nothing was taken. The packet fits when so many wait.
    NoRoom {
        /// Requests that the packet needs.
        needed: u32,
    },
    /// The frontend ruined the ring.
    Ruined(Disconnect),
}

impl From<Disconnect> for Refused {
    fn from(error: Disconnect) -> Self {
        Self::Ruined(error)
    }
}

/// What a queue has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxStats {
    /// Packets that reached the frontend.
    pub packets: u64,
    /// Bytes of the packets.
    pub bytes: u64,
    /// Packets whose copies failed: the frontend saw an error in their place.
    pub errors: u64,
}

/// One receive ring.
pub struct RxQueue<P, N> {
    ring: BackRing<NetifRxRing, P>,
    notifier: N,
    domain: DomId,
    /// Packets planned and not finished.
    unfinished: u32,
    stats: RxStats,
}

/// How a packet's parts go into slots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// A part is never cut, so that each part costs one copy.
    Whole,
    /// Every slot but the last is full.
    Dense,
}

impl<P: RingPage, N: Notifier> RxQueue<P, N> {
    /// Serves `ring` of `domain`.
    pub fn new(ring: BackRing<NetifRxRing, P>, notifier: N, domain: DomId) -> Self {
        Self { ring, notifier, domain, unfinished: 0, stats: RxStats::default() }
    }

    /// Receive requests that wait.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring.
    pub fn room(&self) -> Result<usize, Disconnect> {
        Ok(self.ring.unconsumed()? as usize)
    }

    /// Takes requests for `packet`, and adds to `ops` the copies of the packet's bytes into the frontend's pages. The
    /// hash in the packet's offload is what the frontend is told; `None` for a frontend that has not asked for hashes.
    ///
    /// # Errors
    /// [`Refused::NoRoom`]: nothing was taken. [`Refused::Ruined`]: the caller ends the connection of this frontend; the
    /// copies added to `ops` do no harm, but need not be done.
    pub fn plan(&mut self, packet: &Packet<'_>, ops: &mut Vec<CopyOp>) -> Result<Planned, Refused> {
        let extras = extras(packet);
        let count = extras.iter().flatten().count() as u32;
        debug_assert_eq!(packet.len, packet.parts.iter().map(|part| u32::from(part.len)).sum());
        let room = self.ring.unconsumed().map_err(Disconnect::Ring)?;
        let (mut fill, mut slots) = (Fill::Whole, whole_slots(packet.parts));
        if slots > MAX_RX_SLOTS || slots + count > room {
            (fill, slots) = (Fill::Dense, packet.len.div_ceil(PAGE_SIZE as u32));
        }
        if slots + count > room {
            return Err(Refused::NoRoom { needed: slots + count });
        }
        let (response, first) = (self.ring.next_response(), ops.len());
        self.fill(packet, fill, &extras, ops)?;
        self.unfinished += 1;
        Ok(Planned { response, slots, extras: count, len: packet.len, ops: first..ops.len() })
    }

    fn fill(
        &mut self,
        packet: &Packet<'_>,
        fill: Fill,
        extras: &[Option<NetifExtraInfo>; 2],
        ops: &mut Vec<CopyOp>,
    ) -> Result<(), Disconnect> {
        let mut flags = match packet.offload.checksum {
            Checksum::Partial => NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED,
            Checksum::Verified => NETRXF_DATA_VALIDATED,
            Checksum::Complete => 0,
        };
        if extras[0].is_some() {
            flags |= NETRXF_EXTRA_INFO;
        }
        let mut slot = self.request()?;
        let mut extras = Some(extras);
        let mut used = 0;
        for &Part { mut place, mut len } in packet.parts {
            while len > 0 {
                let left = PAGE_SIZE as u16 - used;
                if left == 0 || (fill == Fill::Whole && len > left) {
                    self.answer(&slot, flags | NETRXF_MORE_DATA, used);
                    self.answer_extras(extras.take())?;
                    (slot, used, flags) = (self.request()?, 0, 0);
                    continue;
                }
                let piece = len.min(left);
                let gref = GrantRef::new(slot.gref);
                let dest = Place::Grant { domain: self.domain, gref, offset: used };
                ops.push(CopyOp::new(place, dest, piece));
                used += piece;
                len -= piece;
                if len > 0 {
                    place = place.after(piece);
                }
            }
        }
        self.answer(&slot, flags, used);
        self.answer_extras(extras)
    }

    fn request(&mut self) -> Result<NetifRxRequest, Disconnect> {
        // The requests were counted before: a frontend that takes one back has ruined the ring.
        self.ring.next_request()?.ok_or(Disconnect::Unfinished)
    }

    fn answer(&mut self, slot: &NetifRxRequest, flags: u16, bytes: u16) {
        let response = NetifRxResponse { id: slot.id, offset: 0, flags, status: bytes as i16 };
        self.ring.push_response(&response);
    }

    fn answer_extras(&mut self, extras: Option<&[Option<NetifExtraInfo>; 2]>) -> Result<(), Disconnect> {
        for extra in extras.into_iter().flatten().flatten() {
            self.request()?;
            self.ring.push_response(&NetifRxResponse::from_extra(extra));
        }
        Ok(())
    }

    /// Ends what [`Self::plan`] began, after the copies in `ops` were done. False: a copy failed, and the frontend sees
    /// an error in the packet's place.
    pub fn finish(&mut self, planned: Planned, ops: &[CopyOp]) -> bool {
        self.unfinished -= 1;
        let ok = ops[planned.ops].iter().all(CopyOp::ok);
        if ok {
            self.stats.packets += 1;
            self.stats.bytes += u64::from(planned.len);
            return true;
        }
        self.stats.errors += 1;
        for slot in 0..planned.slots {
            let behind = if slot == 0 { 0 } else { slot + planned.extras };
            let index = planned.response.wrapping_add(behind);
            self.ring.amend_response(index, |response| response.status = NETIF_RSP_ERROR);
        }
        false
    }

    /// Shows the frontend the packets so far, and notifies the frontend if it asked for that.
    ///
    /// # Panics
    /// If a planned packet is not finished: the frontend would take the packet before its bytes are there.
    pub fn publish(&mut self) {
        assert!(self.unfinished == 0, "a packet is published before its bytes");
        if self.ring.publish_responses() {
            self.notifier.notify();
        }
    }

    /// Asks the frontend to notify when `needed` requests wait ([`Refused::NoRoom`] says how many), then looks again.
    /// `true`: they wait already.
    ///
    /// # Errors
    /// [`Disconnect`]: the frontend ruined the ring.
    pub fn arm(&mut self, needed: u32) -> Result<bool, Disconnect> {
        Ok(self.ring.arm_for(needed)?)
    }

    /// What the queue has done so far.
    #[must_use]
    pub const fn stats(&self) -> RxStats {
        self.stats
    }
}

/// Slots that `parts` take if no part is cut.
fn whole_slots(parts: &[Part]) -> u32 {
    let (mut slots, mut used) = (1, 0);
    for part in parts {
        used += usize::from(part.len);
        if used > PAGE_SIZE {
            (slots, used) = (slots + 1, part.len.into());
        }
    }
    slots
}

/// The extra information that a packet carries, in order.
fn extras(packet: &Packet<'_>) -> [Option<NetifExtraInfo>; 2] {
    let gso = packet.offload.gso.map(|gso| {
        let gso_type = match gso.kind {
            GsoKind::TcpV4 => XEN_NETIF_GSO_TYPE_TCPV4,
            GsoKind::TcpV6 => XEN_NETIF_GSO_TYPE_TCPV6,
        };
        let flags = if packet.offload.hash.is_some() { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
        let (r#type, size) = (XEN_NETIF_EXTRA_TYPE_GSO, gso.size);
        NetifExtraInfo::from(NetifExtraGso { r#type, flags, size, gso_type, ..Default::default() })
    });
    let hash = packet.offload.hash.map(|hash| {
        NetifExtraInfo::from(NetifExtraHash {
            r#type: XEN_NETIF_EXTRA_TYPE_HASH,
            flags: 0,
            hash_type: hash.kind,
            algorithm: XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ as u8,
            value: hash.value.to_le_bytes(),
        })
    });
    if gso.is_none() { [hash, None] } else { [gso, hash] }
}
