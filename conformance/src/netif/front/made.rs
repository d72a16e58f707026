//! A frame in granted pages, and the slots that name its pieces.

use alloc::vec;
use alloc::vec::Vec;

use ring_abi::io::netif::*;
use ring_abi::types::{DomId, PAGE_SIZE};

use super::frames::Mac;
use crate::Verdict;
use crate::shared::Granted;

/// A frame to send.
pub struct Made {
    /// A page for each piece.
    pub pages: Granted,
    /// The slots of the pieces. The case may change all of it.
    pub slots: Vec<NetifTxRequest>,
    /// Extra information behind the first slot. The flag that more follows is set as the slots are written.
    pub extras: Vec<NetifExtraInfo>,
    /// The frame.
    pub bytes: Vec<u8>,
}

impl Made {
    /// The frame `bytes` cut into pieces that begin at `offsets` of a page each; all but the last have `size` bytes.
    ///
    /// # Errors
    /// [`crate::Problem::Error`]: no memory or grant is left.
    pub fn cut(dom: DomId, bytes: &[u8], size: usize, offsets: &[u16]) -> Verdict<Self> {
        let count = offsets.len();
        let mut sizes = vec![size; count];
        sizes[count - 1] = bytes.len().saturating_sub(size * (count - 1));
        let pieces: Vec<_> = offsets.iter().copied().zip(sizes).collect();
        Self::pieces(dom, bytes, &pieces)
    }

    /// The frame `bytes` in `pieces`: offset within the page, and bytes.
    ///
    /// # Errors
    /// [`crate::Problem::Error`]: no memory or grant is left.
    pub fn pieces(dom: DomId, bytes: &[u8], pieces: &[(u16, usize)]) -> Verdict<Self> {
        let pages = Granted::new(dom, pieces.len(), true)?;
        let (mut slots, mut at) = (Vec::new(), 0);
        for (page, &(offset, size)) in pieces.iter().enumerate() {
            let end = (at + size).min(bytes.len());
            let here = &bytes[at..end];
            let fits = here.len().min(PAGE_SIZE - usize::from(offset).min(PAGE_SIZE));
            pages.bytes().write(page * PAGE_SIZE + usize::from(offset).min(PAGE_SIZE), &here[..fits]);
            let flags = if page + 1 < pieces.len() { NETTXF_MORE_DATA } else { 0 };
            let id = 0x100 + page as u16;
            slots.push(NetifTxRequest { gref: pages.gref(page), offset, flags, id, size: size as u16 });
            at = end;
        }
        slots[0].size = bytes.len() as u16;
        Ok(Self { pages, slots, extras: Vec::new(), bytes: bytes.to_vec() })
    }

    /// The frame `bytes` from the front of as many pages as it fills.
    ///
    /// # Errors
    /// [`crate::Problem::Error`]: no memory or grant is left.
    pub fn whole(dom: DomId, bytes: &[u8]) -> Verdict<Self> {
        let count = bytes.len().div_ceil(PAGE_SIZE).max(1);
        Self::cut(dom, bytes, PAGE_SIZE, &vec![0; count])
    }

    /// The same with extra information.
    pub fn with(mut self, extra: impl Into<NetifExtraInfo>) -> Self {
        self.extras.push(extra.into());
        self.slots[0].flags |= NETTXF_EXTRA_INFO;
        self
    }

    /// The same with these flags in the first slot.
    pub fn flags(mut self, flags: u16) -> Self {
        self.slots[0].flags |= flags;
        self
    }

    /// All slots, in the order of the ring.
    pub fn wire(&self) -> Vec<NetifTxRequest> {
        let mut wire = vec![self.slots[0]];
        for (at, extra) in self.extras.iter().enumerate() {
            let more = if at + 1 < self.extras.len() { XEN_NETIF_EXTRA_FLAG_MORE } else { 0 };
            wire.push(NetifTxRequest::from_extra(&NetifExtraInfo { flags: extra.flags | more, ..*extra }));
        }
        wire.extend_from_slice(&self.slots[1..]);
        wire
    }
}

/// Extra information: segments of `size` bytes of payload.
pub fn gso(gso_type: u8, size: u16) -> NetifExtraInfo {
    NetifExtraGso { r#type: XEN_NETIF_EXTRA_TYPE_GSO, size, gso_type, ..Default::default() }.into()
}

/// Extra information: an address for the backend's filter, to add or to remove.
pub fn multicast(add: bool, addr: Mac) -> NetifExtraInfo {
    let r#type = if add { XEN_NETIF_EXTRA_TYPE_MCAST_ADD } else { XEN_NETIF_EXTRA_TYPE_MCAST_DEL };
    NetifExtraMcast { r#type, addr, ..Default::default() }.into()
}

/// Extra information: a flow's hash.
pub fn hash(hash_type: u8, value: u32) -> NetifExtraInfo {
    let (r#type, value) = (XEN_NETIF_EXTRA_TYPE_HASH, value.to_le_bytes());
    NetifExtraHash { r#type, hash_type, algorithm: 1, value, ..Default::default() }.into()
}
