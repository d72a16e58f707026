//! Frames that the frontend sends, and frames that it is given.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use pvrt::executor::time;
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::netif::*;
use ring_abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{GrantRef, PAGE_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Attached, Back, PATIENCE_NS, SILENCE_NS, Side};
use crate::{Problem, Verdict};

/// A frame that the frontend sent.
#[derive(Debug)]
pub struct Taken {
    /// The requests.
    pub slots: Vec<NetifTxRequest>,
    /// Extra information.
    pub extras: Vec<NetifExtraInfo>,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// The slots of either ring, which both have as many.
const COUNT: u32 = ring::TX_SLOTS;

impl Side {
    fn bytes(&self) -> SharedBytes<'_> {
        self.map.bytes()
    }

    fn at(index: u32, slot_bytes: usize) -> usize {
        SLOTS + (index % COUNT) as usize * slot_bytes
    }

    fn waiting(&self) -> u32 {
        self.bytes().load_u32(REQ_PROD).wrapping_sub(self.cons)
    }

    /// Looks that there are no more requests than the ring has slots.
    fn look(&self) -> Verdict {
        let (waiting, open) = (self.waiting(), self.cons.wrapping_sub(self.prod));
        ensure!(waiting + open <= COUNT, "{waiting} new requests and {open} open ones on a ring of {COUNT}");
        Ok(())
    }

    fn take<T: FromBytes + IntoBytes>(&mut self, slot_bytes: usize) -> T {
        let at = Self::at(self.cons, slot_bytes);
        self.cons = self.cons.wrapping_add(1);
        self.bytes().read_value(at)
    }

    fn push<T: IntoBytes + Immutable>(&mut self, slot_bytes: usize, response: &T) {
        self.bytes().write(Self::at(self.prod, slot_bytes), response.as_bytes());
        self.prod = self.prod.wrapping_add(1);
    }

    /// Shows the frontend all responses, and notifies it where its `rsp_event` asks.
    fn publish(&self) -> bool {
        let old = self.bytes().swap_u32(RSP_PROD, self.prod);
        let event = self.bytes().load_u32(RSP_EVENT);
        let wanted = self.prod.wrapping_sub(event) < self.prod.wrapping_sub(old);
        if wanted {
            self.port.notify();
        }
        wanted
    }

    fn claim(&self, ahead: u32) {
        self.bytes().store_u32(RSP_PROD, self.prod.wrapping_add(ahead));
        self.port.notify();
    }

    fn indices(&self) -> [u32; 4] {
        [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].map(|offset| self.bytes().load_u32(offset))
    }
}

impl Back {
    fn rings(&mut self) -> &mut Attached {
        self.attached.as_mut().expect("a connected case")
    }

    /// The transmit ring's `req_prod`, `req_event`, `rsp_prod` and `rsp_event`.
    pub fn tx_indices(&mut self) -> [u32; 4] {
        self.rings().tx.indices()
    }

    /// The same of the receive ring.
    pub fn rx_indices(&mut self) -> [u32; 4] {
        self.rings().rx.indices()
    }

    /// Overwrites the frontend's own index of the transmit ring.
    pub fn overwrite_req_prod(&mut self, value: u32) {
        self.rings().tx.bytes().store_u32(REQ_PROD, value);
    }

    /// Fills all slots of both rings with `byte`.
    pub fn overwrite_slots(&mut self, byte: u8) {
        let Attached { tx, rx } = self.rings();
        tx.bytes().fill(SLOTS, COUNT as usize * ring::TX_SLOT_BYTES, byte);
        rx.bytes().fill(SLOTS, COUNT as usize * ring::RX_SLOT_BYTES, byte);
    }

    fn map(&self, gref: u32, writable: bool) -> Verdict<GrantMap> {
        map_grants(self.dom, &[GrantRef::new(gref)], writable).map_err(|status| {
            Problem::Fail(format!("a page of a request ({gref}) cannot be mapped: {status}"))
        })
    }

    /// Looks that a buffer's page can be written.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the ring does not allow that.
    pub fn writes(&self, gref: u32) -> Verdict {
        self.map(gref, true)?.bytes().fill(0, PAGE_SIZE, 0x5a);
        Ok(())
    }

    /// Transmit requests that wait.
    pub fn waiting(&mut self) -> u32 {
        self.rings().tx.waiting()
    }

    /// Looks that the frontend sends nothing.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what must not happen happens.
    pub async fn silent(&mut self) -> Verdict {
        time::sleep(SILENCE_NS).await;
        ensure_eq!(self.waiting(), 0, "requests of a frontend that has nothing to send");
        Ok(())
    }

    /// The next slot of the transmit ring. The wait is for the event that `req_event` asks for.
    async fn tx_slot(&mut self) -> Verdict<NetifTxRequest> {
        let end = time::now_ns() + PATIENCE_NS;
        while self.waiting() == 0 {
            let tx = &mut self.rings().tx;
            tx.bytes().store_u32(REQ_EVENT, tx.cons.wrapping_add(1));
            fence(Ordering::SeqCst);
            if tx.waiting() > 0 {
                break;
            }
            let (left, port) = (end.saturating_sub(time::now_ns()), tx.port.clone());
            if time::timeout(left, port.wait()).await.is_err() {
                ensure!(self.waiting() == 0, "there is a request, but no event though req_event asked");
                return Err(Problem::Fail("the frontend sends nothing".into()));
            }
        }
        let tx = &mut self.rings().tx;
        tx.look()?;
        Ok(tx.take(ring::TX_SLOT_BYTES))
    }

    /// The next frame that the frontend sends, looked at closely, and read from its pages.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none comes, or it is not as the protocol says.
    pub async fn packet(&mut self) -> Verdict<Taken> {
        let first = self.tx_slot().await?;
        let (mut slots, mut extras) = (vec![first], Vec::new());
        let mut more = first.flags & NETTXF_EXTRA_INFO != 0;
        while more {
            ensure!(self.waiting() > 0, "extra information that was not published with its frame");
            let extra = self.tx_slot().await?.as_extra();
            let kind = extra.r#type;
            ensure!(
                (XEN_NETIF_EXTRA_TYPE_GSO..XEN_NETIF_EXTRA_TYPE_MAX).contains(&kind),
                "extra information of type {kind}"
            );
            more = extra.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0;
            extras.push(extra);
        }
        let mut flags = first.flags;
        while flags & NETTXF_MORE_DATA != 0 {
            ensure!(self.waiting() > 0, "a piece that was not published with its frame");
            let slot = self.tx_slot().await?;
            flags = slot.flags;
            slots.push(slot);
        }
        self.look(&slots)?;
        let bytes = self.read(&slots)?;
        Ok(Taken { slots, extras, bytes })
    }

    /// Looks at a frame's requests.
    fn look(&mut self, slots: &[NetifTxRequest]) -> Verdict {
        let known = NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED | NETTXF_MORE_DATA | NETTXF_EXTRA_INFO;
        ensure!(slots.len() <= XEN_NETIF_NR_SLOTS_MIN as usize, "a frame of {} slots", slots.len());
        ensure!(slots[0].flags & !known == 0, "flags {:#x} of a request", slots[0].flags);
        for slot in &slots[1..] {
            ensure_eq!(slot.flags & !NETTXF_MORE_DATA, 0, "flags of a piece behind the first");
        }
        for slot in slots {
            ensure!(!self.open.contains(&slot.id), "the id {} is in use already", slot.id);
            self.open.push(slot.id);
        }
        Ok(())
    }

    /// The bytes of a frame.
    fn read(&self, slots: &[NetifTxRequest]) -> Verdict<Vec<u8>> {
        let rest: usize = slots[1..].iter().map(|slot| usize::from(slot.size)).sum();
        let total = slots[0].size;
        let Some(own) = usize::from(total).checked_sub(rest) else {
            return Err(Problem::Fail(format!("{rest} bytes in the other pieces of a frame of {total}")));
        };
        let mut bytes = Vec::new();
        for (at, slot) in slots.iter().enumerate() {
            let (offset, size) = (usize::from(slot.offset), if at == 0 { own } else { slot.size.into() });
            ensure!(size > 0 && offset + size <= PAGE_SIZE, "{size} bytes at offset {offset} of a page");
            let before = bytes.len();
            bytes.resize(before + size, 0);
            self.map(slot.gref, false)?.bytes().read(offset, &mut bytes[before..]);
        }
        Ok(bytes)
    }

    /// The bytes of a frame that was taken, as its pages have them now.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the pages are no more granted.
    pub fn read_again(&self, taken: &Taken) -> Verdict<Vec<u8>> {
        self.read(&taken.slots)
    }

    /// Asks for an event when `ahead` more requests are there.
    pub fn want_requests(&mut self, ahead: u32) {
        let tx = &self.rings().tx;
        tx.bytes().store_u32(REQ_EVENT, tx.cons.wrapping_add(ahead));
    }

    /// Forgets the events that have come.
    pub fn drain_events(&mut self) {
        while self.rings().tx.port.take_event() {}
    }

    /// Waits for an event of the transmit ring, at most `ms`; whether one came.
    pub async fn tx_event(&mut self, ms: u64) -> bool {
        let port = self.rings().tx.port.clone();
        time::timeout(ms * 1_000_000, port.wait()).await.is_ok()
    }

    /// Answers a frame's slots, and shows the frontend; whether it wanted an event.
    pub fn answer(&mut self, taken: &Taken, status: i16) -> bool {
        for slot in &taken.slots {
            self.push_tx(slot.id, status);
        }
        for _ in &taken.extras {
            self.push_tx(0, NETIF_RSP_NULL);
        }
        self.publish_tx()
    }

    /// Writes an answer to a transmit request, unseen as yet.
    pub fn push_tx(&mut self, id: u16, status: i16) {
        if status != NETIF_RSP_NULL {
            self.open.retain(|open| *open != id);
        }
        self.rings().tx.push(ring::TX_SLOT_BYTES, &NetifTxResponse { id, status });
    }

    /// Shows the frontend the answers to what it sent; whether it wanted an event.
    pub fn publish_tx(&mut self) -> bool {
        self.rings().tx.publish()
    }

    /// Claims `ahead` answers more than there are, and notifies.
    pub fn claim_tx(&mut self, ahead: u32) {
        self.rings().tx.claim(ahead);
    }

    /// The same on the receive ring.
    pub fn claim_rx(&mut self, ahead: u32) {
        self.rings().rx.claim(ahead);
    }

    /// Sends events on both rings.
    pub fn notify(&mut self) {
        let Attached { tx, rx } = self.rings();
        tx.port.notify();
        rx.port.notify();
    }

    /// Receive requests that wait.
    pub fn room(&mut self) -> u32 {
        self.rings().rx.waiting()
    }

    /// The next receive request.
    ///
    /// # Errors
    /// [`Problem::Fail`]: there is none.
    pub async fn buffer(&mut self) -> Verdict<NetifRxRequest> {
        let end = time::now_ns() + PATIENCE_NS;
        while self.room() == 0 {
            ensure!(time::now_ns() < end, "the frontend posts no buffers");
            time::sleep(100_000).await;
        }
        let rx = &mut self.rings().rx;
        rx.look()?;
        Ok(rx.take(ring::RX_SLOT_BYTES))
    }

    /// Takes a buffer and puts bytes there; gives the response that says so.
    ///
    /// # Errors
    /// [`Problem::Fail`]: there is no buffer, or it cannot be written.
    pub async fn fill(&mut self, offset: u16, bytes: &[u8], flags: u16) -> Verdict<NetifRxResponse> {
        let NetifRxRequest { id, gref, .. } = self.buffer().await?;
        self.map(gref, true)?.bytes().write(offset.into(), bytes);
        Ok(NetifRxResponse { id, offset, flags, status: bytes.len() as i16 })
    }

    /// Writes a response on the receive ring, unseen as yet.
    pub fn push_rx(&mut self, response: &NetifRxResponse) {
        self.rings().rx.push(ring::RX_SLOT_BYTES, response);
    }

    /// Writes extra information into the next slot, whose buffer is given up.
    ///
    /// # Errors
    /// [`Problem::Fail`]: there is no buffer.
    pub async fn push_extra(&mut self, extra: &NetifExtraInfo) -> Verdict {
        self.buffer().await?;
        self.push_rx(&NetifRxResponse::from_extra(extra));
        Ok(())
    }

    /// Shows the frontend what came; whether it wanted an event.
    pub fn publish_rx(&mut self) -> bool {
        self.rings().rx.publish()
    }

    /// Gives a frame in parts (offset and bytes), with flags in the first and extra information behind it; unseen as yet.
    ///
    /// # Errors
    /// [`Problem::Fail`]: there are no buffers, or they cannot be written.
    pub async fn put(&mut self, parts: &[(u16, &[u8])], flags: u16, extras: &[NetifExtraInfo]) -> Verdict {
        for (at, (offset, bytes)) in parts.iter().enumerate() {
            let more = if at + 1 < parts.len() { NETRXF_MORE_DATA } else { 0 };
            let (own, extras) = if at == 0 { (flags, extras) } else { (0, &[][..]) };
            let told = if extras.is_empty() { 0 } else { NETRXF_EXTRA_INFO };
            let response = self.fill(*offset, bytes, more | own | told).await?;
            self.push_rx(&response);
            for (at, extra) in extras.iter().enumerate() {
                let more = if at + 1 < extras.len() { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
                self.push_extra(&NetifExtraInfo { flags: extra.flags | more, ..*extra }).await?;
            }
        }
        Ok(())
    }

    /// Gives a frame that fills page after page.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn give(&mut self, frame: &[u8]) -> Verdict {
        let parts: Vec<_> = frame.chunks(PAGE_SIZE).map(part).collect();
        self.put(&parts, 0, &[]).await?;
        self.publish_rx();
        Ok(())
    }
}

/// A part of a frame, at the front of its buffer.
pub fn part(bytes: &[u8]) -> (u16, &[u8]) {
    (0, bytes)
}
