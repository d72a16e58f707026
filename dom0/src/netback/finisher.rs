//! Packets whose receiver does not take what their sender left to others: dom0 copies the bytes, and finishes the packets.

use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
use backends::net::{Checksum, Copier, CopyOp, HEAD_BYTES, MAX_PACKET, Offload, Packet, Part, Place};
use pvrt::grant::CopyPages;
use pvrt::mem::OutOfMemory;
use ring_abi::types::PAGE_SIZE;

use super::copier::Hypervisor;
use super::sender::Frame;
use super::way::{Sent, Way};
use crate::net::Head;
use crate::net::segment::{Cut, MAX_SEGMENTS, Sum, complete_head, rest_of};
use crate::net::switch::{PortId, Reason};

/// Pages for a packet's bytes, and behind those for the headers of its segments.
const BODY_PAGES: usize = MAX_PACKET.div_ceil(PAGE_SIZE);
const HEADER_PAGES: usize = MAX_SEGMENTS as usize * HEAD_BYTES / PAGE_SIZE;
/// Most parts of a finished packet: a header, and a part for each page.
const MAX_PARTS: usize = BODY_PAGES + 1;
/// Bytes that are summed at a time.
const CHUNK: usize = 1024;

/// Memory of dom0's for one packet at a time.
pub(super) struct Finisher {
    pages: CopyPages,
    copies: Vec<CopyOp>,
}

impl Finisher {
    pub(super) fn new() -> Result<Self, OutOfMemory> {
        let pages = CopyPages::new(BODY_PAGES + HEADER_PAGES)?;
        Ok(Self { pages, copies: Vec::with_capacity(backends::net::MAX_PARTS + BODY_PAGES) })
    }

    /// Sends a packet to one vif: as it is, or what comes of the packet when dom0 finishes it. When a later part of that finds no
    /// room, the rest is dropped.
    pub(super) fn send(&mut self, way: &mut Way, packet: &Packet<'_>, to: PortId, frame: &Frame<'_>) -> Sent {
        let sent = way.send(packet, to, frame);
        if sent != Sent::Unfinished {
            return sent;
        }
        // What comes of the packet has heads of its own.
        let frame = &Frame { head: &[], ..*frame };
        let takes_gso = way.takes_gso(to, packet, frame.kind.is_ipv6);
        let (mut last, mut is_first) = (Sent::Yes, true);
        let is_finished = self.finish(packet, takes_gso, |part| {
            last = match way.send(part, to, frame) {
                Sent::NoRoom { .. } if !is_first => Sent::Dropped(Reason::NoRoom),
                Sent::Unfinished => Sent::Dropped(Reason::TooBig),
                sent => sent,
            };
            is_first = false;
            last == Sent::Yes
        });
        way.count(self.copies.len());
        // The finisher's memory is for the next packet.
        way.deliver(&mut self.copier());
        if is_finished { last } else { Sent::Dropped(Reason::Malformed) }
    }

    /// The hypervisor, which copies from these pages.
    fn copier(&self) -> impl Copier {
        Hypervisor(&self.pages)
    }

    /// Finishes a packet: `each` gets the packets that come of it, one after the other, until `each` says no. What `each` gets
    /// stays in this memory until the next call. False: the packet cannot be finished.
    fn finish(
        &mut self,
        packet: &Packet<'_>,
        takes_gso: bool,
        mut each: impl FnMut(&Packet<'_>) -> bool,
    ) -> bool {
        if !self.fetch(packet) {
            return false;
        }
        let len = packet.len as usize;
        let mut bytes = [0; HEAD_BYTES];
        let head = &mut bytes[..len.min(HEAD_BYTES)];
        self.read(0, head);
        match packet.offload.gso.filter(|_| !takes_gso) {
            Some(gso) => {
                let cut = Head::parse(head, packet.len).and_then(|head| Cut::new(&head, gso.size));
                let Some(cut) = cut else { return false };
                for n in 0..cut.segments() {
                    let header = cut.header(n, self.sum(cut.bytes(n), Sum::default()));
                    if !self.hand_out(
                        n,
                        &header[..cut.header_len()],
                        cut.bytes(n),
                        packet.offload.hash,
                        &mut each,
                    ) {
                        break;
                    }
                }
            }
            None => {
                let Some(parsed) = Head::parse(head, packet.len) else { return false };
                let Some(at) = parsed.transport_at() else { return false };
                let end = at + parsed.transport_len() as usize;
                let rest = self.sum(head.len()..end.max(head.len()), rest_of(head.len(), at));
                if !complete_head(head, packet.len, rest) {
                    return false;
                }
                let head_len = head.len();
                self.hand_out(0, &bytes[..head_len], head_len..len, packet.offload.hash, &mut each);
            }
        }
        true
    }

    /// Copies all of a packet to the first pages.
    fn fetch(&mut self, packet: &Packet<'_>) -> bool {
        self.copies.clear();
        let mut at = 0;
        for &Part { place, len } in packet.parts {
            let mut done = 0;
            while done < len {
                let piece = (len - done).min((PAGE_SIZE - at % PAGE_SIZE) as u16);
                if at + usize::from(piece) > BODY_PAGES * PAGE_SIZE {
                    return false;
                }
                self.copies.push(CopyOp::new(place.after(done), self.place(at), piece));
                at += usize::from(piece);
                done += piece;
            }
        }
        Hypervisor(&self.pages).copy(&mut self.copies);
        at == packet.len as usize && self.copies.iter().all(CopyOp::ok)
    }

    fn place(&self, at: usize) -> Place {
        Place::Own { frame: self.pages.frames()[at / PAGE_SIZE], offset: (at % PAGE_SIZE) as u16 }
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        if let Some(bytes) = self.pages.pages().bytes().slice(at, out.len()) {
            bytes.read(0, out);
        }
    }

    fn sum(&self, range: Range<usize>, mut sum: Sum) -> Sum {
        let mut bytes = [0; CHUNK];
        for at in range.clone().step_by(CHUNK) {
            let piece = &mut bytes[..(range.end - at).min(CHUNK)];
            self.read(at, piece);
            sum.add(piece);
        }
        sum
    }

    /// Hands a packet out: a header of its own, and bytes of the whole packet.
    fn hand_out(
        &self,
        n: u32,
        header: &[u8],
        body: Range<usize>,
        hash: Option<backends::net::PacketHash>,
        each: &mut impl FnMut(&Packet<'_>) -> bool,
    ) -> bool {
        let at = BODY_PAGES * PAGE_SIZE + n as usize * HEAD_BYTES;
        self.pages.pages().bytes().write(at, header);
        let mut parts = ArrayVec::<Part, MAX_PARTS>::new();
        parts.push(Part { place: self.place(at), len: header.len() as u16 });
        let mut from = body.start;
        while from < body.end {
            let piece = (body.end - from).min(PAGE_SIZE - from % PAGE_SIZE);
            parts.push(Part { place: self.place(from), len: piece as u16 });
            from += piece;
        }
        let len = (header.len() + body.len()) as u32;
        let offload = Offload { checksum: Checksum::Complete, gso: None, hash };
        each(&Packet { len, offload: &offload, parts: &parts })
    }
}
