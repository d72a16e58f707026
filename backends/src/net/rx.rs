//! From packets to a frontend's receive ring.
//!
//! A frontend expects the response to a request in the request's own slot of the ring, because extra information has no
//! tag. So a packet's responses are written while the packet takes its requests, before the bytes are copied, and are
//! published after.

use alloc::vec::Vec;

use ring_abi::io::netif::{
    NETIF_RSP_ERROR, NETRXF_CSUM_BLANK, NETRXF_DATA_VALIDATED, NETRXF_EXTRA_INFO, NETRXF_MORE_DATA,
    NetifExtraGso, NetifExtraHash, NetifExtraInfo, NetifRxRequest, NetifRxResponse, NetifRxRing,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, XEN_NETIF_EXTRA_FLAG_MORE, XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
};
use ring_abi::ring::{BackRing, RingPage};
use ring_abi::types::{DomId, GrantRef, PAGE_SIZE};

use super::error::Disconnect;
use super::packet::{Checksum, CopyOp, Packet, Part, Place};
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
    /// Bytes of the packet.
    len: u32,
    /// The first of the copies in the caller's list.
    first: u32,
    /// Number of copies.
    ops: u8,
    /// Responses with data.
    slots: u8,
    /// Responses with extra information, which stand behind the first.
    extras: u8,
}

/// A copy into a page of the frontend's.
#[derive(Clone, Copy, Debug)]
pub struct CopyIn {
    /// Where the bytes come from.
    pub source: Place,
    /// The frontend's page.
    pub gref: GrantRef,
    /// First byte within the page.
    pub offset: u16,
    /// Number of bytes, which stay in the page.
    pub len: u16,
}

impl CopyIn {
    #[inline(always)]
    fn new(source: Place, slot: &NetifRxRequest, offset: u16, len: u16) -> Self {
        Self { source, gref: GrantRef::new(slot.gref), offset, len }
    }
}

/// Does copies at once.
pub trait AtOnce {
    /// Does a copy; false: the copy is for the hypervisor.
    fn copy(&mut self, copy: &CopyIn) -> bool;
}

/// Leaves all copies to the hypervisor.
struct Never;

impl AtOnce for Never {
    fn copy(&mut self, _: &CopyIn) -> bool {
        false
    }
}

impl Planned {
    /// Whether the packet's bytes are there: all copies were done at once.
    #[inline(always)]
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.ops == 0
    }
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
    #[inline]
    pub fn plan(&mut self, packet: &Packet<'_>, ops: &mut Vec<CopyOp>) -> Result<Planned, Refused> {
        self.plan_with(packet, ops, &mut Never)
    }

    /// Like [`Self::plan`], and offers each copy to `now`: a copy that `now` does at once is not added to `ops`.
    ///
    /// # Errors
    /// As [`Self::plan`] says. Bytes that were copied before that do no harm either.
    #[inline(always)]
    pub fn plan_with(
        &mut self,
        packet: &Packet<'_>,
        ops: &mut Vec<CopyOp>,
        now: &mut impl AtOnce,
    ) -> Result<Planned, Refused> {
        debug_assert_eq!(packet.len, packet.parts.iter().map(|part| u32::from(part.len)).sum());
        match (packet.parts, packet.offload.gso, packet.offload.hash) {
            (&[part], None, None) if usize::from(part.len) <= PAGE_SIZE => {
                self.plan_plain(packet.offload.checksum, part, None, ops, now)
            }
            (&[head, rest], None, None) if usize::from(head.len) + usize::from(rest.len) <= PAGE_SIZE => {
                self.plan_plain(packet.offload.checksum, head, Some(rest), ops, now)
            }
            _ => self.plan_other(packet, ops, now),
        }
    }

    /// Plans a packet for one slot, of one part or two and without extra information, as most packets are.
    #[inline(always)]
    fn plan_plain(
        &mut self,
        checksum: Checksum,
        head: Part,
        rest: Option<Part>,
        ops: &mut Vec<CopyOp>,
        now: &mut impl AtOnce,
    ) -> Result<Planned, Refused> {
        let Some(slot) = self.ring.next_in_batch().map_err(Disconnect::Ring)? else {
            return Err(Refused::NoRoom { needed: 1 });
        };
        let (response, first) = (self.ring.next_response(), ops.len() as u32);
        let mut count = self.copy(CopyIn::new(head.place, &slot, 0, head.len), ops, now);
        let mut len = head.len;
        if let Some(rest) = rest {
            count += self.copy(CopyIn::new(rest.place, &slot, head.len, rest.len), ops, now);
            len += rest.len;
        }
        self.answer(&slot, flags(checksum), len);
        self.unfinished = self.unfinished.wrapping_add(1);
        let ops = count;
        Ok(Planned { response, len: len.into(), first, ops, slots: 1, extras: 0 })
    }

    #[inline(never)]
    fn plan_other(
        &mut self,
        packet: &Packet<'_>,
        ops: &mut Vec<CopyOp>,
        now: &mut impl AtOnce,
    ) -> Result<Planned, Refused> {
        let offload = packet.offload;
        let extras = u32::from(offload.gso.is_some()) + u32::from(offload.hash.is_some());
        let (whole, dense) = (whole_slots(packet.parts), packet.len.div_ceil(PAGE_SIZE as u32));
        let room = self.ring.waiting(whole + extras).map_err(Disconnect::Ring)?;
        let (response, first) = (self.ring.next_response(), ops.len());
        let slots = if whole <= MAX_RX_SLOTS && whole + extras <= room {
            self.fill_whole(packet, ops, now);
            whole
        } else if dense + extras <= room {
            self.fill_dense(packet, ops, now);
            dense
        } else {
            return Err(Refused::NoRoom { needed: dense + extras });
        };
        self.unfinished += 1;
        let count = ops.len() - first;
        let (first, slots, extras) = (first as u32, slots as u8, extras as u8);
        Ok(Planned { response, len: packet.len, first, ops: count as u8, slots, extras })
    }

    /// Puts each part into a slot as a whole, behind the part before if there is room: a copy for each part.
    #[inline(always)]
    fn fill_whole(&mut self, packet: &Packet<'_>, ops: &mut Vec<CopyOp>, now: &mut impl AtOnce) {
        let (mut filling, mut used) = (Filling::new(packet), 0);
        let mut slot = self.ring.next_known();
        for part in packet.parts {
            if usize::from(used) + usize::from(part.len) > PAGE_SIZE {
                self.end_slot(&mut filling, &slot, used, true);
                (slot, used) = (self.ring.next_known(), 0);
            }
            let copy = CopyIn::new(part.place, &slot, used, part.len);
            if !now.copy(&copy) {
                self.list(copy, ops);
            }
            used += part.len;
        }
        self.end_slot(&mut filling, &slot, used, false);
    }

    /// Fills every slot but the last, and cuts parts for that.
    #[inline(never)]
    fn fill_dense(&mut self, packet: &Packet<'_>, ops: &mut Vec<CopyOp>, now: &mut impl AtOnce) {
        let (mut filling, mut used) = (Filling::new(packet), 0);
        let mut slot = self.ring.next_known();
        for part in packet.parts {
            let mut done = 0;
            while done < part.len {
                if usize::from(used) == PAGE_SIZE {
                    self.end_slot(&mut filling, &slot, used, true);
                    (slot, used) = (self.ring.next_known(), 0);
                }
                let piece = (part.len - done).min(PAGE_SIZE as u16 - used);
                self.copy(CopyIn::new(part.place.after(done), &slot, used, piece), ops, now);
                (used, done) = (used + piece, done + piece);
            }
        }
        self.end_slot(&mut filling, &slot, used, false);
    }

    /// Does a copy, or adds it to `ops`: how many were added.
    #[inline(always)]
    fn copy(&self, copy: CopyIn, ops: &mut Vec<CopyOp>, now: &mut impl AtOnce) -> u8 {
        if now.copy(&copy) {
            return 0;
        }
        let CopyIn { source, gref, offset, len } = copy;
        ops.push(CopyOp::new(source, Place::Grant { domain: self.domain, gref, offset }, len));
        1
    }

    /// Adds a copy to `ops`: out of the way of those that are done at once.
    #[inline(never)]
    fn list(&self, copy: CopyIn, ops: &mut Vec<CopyOp>) {
        let CopyIn { source, gref, offset, len } = copy;
        ops.push(CopyOp::new(source, Place::Grant { domain: self.domain, gref, offset }, len));
    }

    #[inline(always)]
    fn answer(&mut self, slot: &NetifRxRequest, flags: u16, bytes: u16) {
        let response = NetifRxResponse { id: slot.id, offset: 0, flags, status: bytes as i16 };
        self.ring.push_response(&response);
    }

    /// Answers a slot that is full, and after the first slot the extra information.
    #[inline(always)]
    fn end_slot(&mut self, filling: &mut Filling, slot: &NetifRxRequest, used: u16, more: bool) {
        let flags = core::mem::take(&mut filling.flags);
        self.answer(slot, flags | if more { NETRXF_MORE_DATA } else { 0 }, used);
        if flags & NETRXF_EXTRA_INFO != 0 {
            self.answer_extras(filling);
        }
    }

    #[inline(never)]
    fn answer_extras(&mut self, filling: &Filling) {
        for extra in [&filling.gso, &filling.hash].into_iter().flatten() {
            let _ = self.ring.next_known();
            self.ring.push_response(&NetifRxResponse::from_extra(extra));
        }
    }

    /// Ends what [`Self::plan`] began, after the copies in `ops` were done. False: a copy failed, and the frontend sees
    /// an error in the packet's place.
    #[inline(always)]
    pub fn finish(&mut self, planned: Planned, ops: &[CopyOp]) -> bool {
        self.unfinished = self.unfinished.wrapping_sub(1);
        let ops = &ops[planned.first as usize..];
        let ok = ops[..planned.ops.into()].iter().all(CopyOp::ok);
        if ok {
            self.stats.packets = self.stats.packets.wrapping_add(1);
            self.stats.bytes = self.stats.bytes.wrapping_add(planned.len.into());
        } else {
            self.fail(&planned);
        }
        ok
    }

    #[inline(never)]
    fn fail(&mut self, planned: &Planned) {
        self.stats.errors += 1;
        for slot in 0..u32::from(planned.slots) {
            let behind = if slot == 0 { 0 } else { slot + u32::from(planned.extras) };
            let index = planned.response.wrapping_add(behind);
            self.ring.amend_response(index, |response| response.status = NETIF_RSP_ERROR);
        }
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
    /// `true`: so many requests wait already.
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

/// What the next slot of a packet is to say beside its bytes.
struct Filling {
    flags: u16,
    gso: Option<NetifExtraInfo>,
    hash: Option<NetifExtraInfo>,
}

impl Filling {
    fn new(packet: &Packet<'_>) -> Self {
        let (gso, hash) = (packet.offload.gso, packet.offload.hash);
        let gso = gso.map(|gso| {
            let gso_type = gso.kind.number();
            let flags = if hash.is_some() { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
            let (r#type, size) = (XEN_NETIF_EXTRA_TYPE_GSO, gso.size);
            NetifExtraInfo::from(NetifExtraGso { r#type, flags, size, gso_type, ..Default::default() })
        });
        let hash = hash.map(|hash| {
            NetifExtraInfo::from(NetifExtraHash {
                r#type: XEN_NETIF_EXTRA_TYPE_HASH,
                flags: 0,
                hash_type: hash.kind,
                algorithm: XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ as u8,
                value: hash.value.to_le_bytes(),
            })
        });
        let extra = if gso.is_some() || hash.is_some() { NETRXF_EXTRA_INFO } else { 0 };
        Self { flags: flags(packet.offload.checksum) | extra, gso, hash }
    }
}

/// What the first slot of a packet says of the checksum.
#[inline]
const fn flags(checksum: Checksum) -> u16 {
    match checksum {
        Checksum::Partial => NETRXF_CSUM_BLANK | NETRXF_DATA_VALIDATED,
        Checksum::Verified => NETRXF_DATA_VALIDATED,
        Checksum::Complete => 0,
    }
}
