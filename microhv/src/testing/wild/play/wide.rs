//! Steps of grant tables of version 2, and of copies with bounds. What a copy may use is worked out here once more.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use ring_abi::grant::*;
use ring_abi::hypercall::*;
use ring_abi::types::{DOMID_SELF, Maddr};

use super::*;
use crate::gnttab::state::Version;
use crate::testing::wild::step::Pick;

const PAGE: Range<u64> = 0..4096;
const IN_USE: u64 = (GTF_READING | GTF_WRITING) as u64;

/// What an entry lends: a frame and the bytes of it; `None`: nothing.
type Lent = Option<(u64, Range<u64>)>;

impl Wild {
    pub(super) fn wide(&self, what: u8, granted: (u8, u8), frame: Pick, at: [u8; 2], len: u8) -> Option<()> {
        let (dom, domain) = self.me()?;
        match what & 7 {
            0 => {
                let version = if at[0] & 3 == 0 { 1 } else { 2 };
                self.put(ARGS, &GnttabSetVersion { version })?;
                self.table(GNTTABOP_SET_VERSION)
            }
            1 => {
                let op = GnttabGetStatusFrames {
                    nr_frames: u32::from(len & 1) + 1,
                    dom: self.whose(granted.0),
                    frame_list: ARGS + 64,
                    ..GnttabGetStatusFrames::default()
                };
                self.put(ARGS, &op)?;
                self.table(GNTTABOP_GET_STATUS_FRAMES)?;
                let done: GnttabGetStatusFrames = self.get(ARGS)?;
                if done.status == GNTST_OKAY {
                    let status: u64 = self.get(ARGS + 64)?;
                    self.note(status);
                }
                Some(())
            }
            2 => {
                // The guest writes marks of its own.
                let status = domain.grants.status_frame()?;
                let marks = [at[0] & 3, 0, at[1] & 3, 0];
                self.hv.platform.write_bytes(status.maddr().add(u64::from(granted.1 & 2) * 2), &marks);
                Some(())
            }
            _ => {
                // Parts are of version 2, so most domains are to have that.
                if domain.grants.version() == Version::One && len & 3 != 0 {
                    self.put(ARGS, &GnttabSetVersion { version: 2 })?;
                    self.table(GNTTABOP_SET_VERSION);
                }
                let (granter, gref) = granted;
                // Mostly the entry was just written, and half of those are the caller's own.
                let granter = if granter & 0x40 != 0 { dom } else { usize::from(granter) % DOMAINS };
                if what & 0x30 != 0 {
                    self.lend(granter, gref, dom, frame.wrapping_mul(37) ^ gref);
                }
                self.copy_part(dom, (granter, u64::from(gref & 3)), frame, at, len, what & 8 != 0)
            }
        }
    }

    /// A domain lends a page of its own, a part of one, or what another lends to it, to a domain.
    fn lend(&self, granter: usize, gref: u8, to: usize, flags: u8) -> Option<()> {
        let domain = self.domain(granter)?;
        let frame = self.owned(granter, false, flags.into())?;
        self.write_entry(&domain, gref, frame, to as u8, flags);
        if flags >> 2 & 3 == 3 {
            let owner = usize::from(flags >> 4) % DOMAINS;
            let frame = self.owned(owner, false, gref.into())?;
            self.write_entry(&*self.domain(owner)?, flags >> 6, frame, granter as u8, gref & 0xf8);
        }
        Some(())
    }

    fn table(&self, op: u32) -> Option<()> {
        self.call(__HYPERVISOR_GRANT_TABLE_OP, &[op.into(), ARGS, 1]).map(|_| ())
    }

    /// Copies some bytes from a grant to a frame of the caller's, or `back`, and looks whether the grant allows that, and
    /// whether the bytes are the right ones.
    fn copy_part(
        &self,
        dom: usize,
        (granter, gref): (usize, u64),
        frame: Pick,
        [there, here]: [u8; 2],
        len: u8,
        back: bool,
    ) -> Option<()> {
        self.hv.platform.set_adversary(0);
        let own = if frame & 0xc0 == 0 { self.pick(frame) } else { self.owned(dom, false, frame.into())? };
        let lent = self.lent(granter, gref, dom, back, true);
        // Mostly what is lent, or a byte beside.
        let (there, len) = match &lent {
            Some(Some((_, bytes))) if len & 0xc0 != 0 => {
                let start = (bytes.start + u64::from(there & 1)).saturating_sub(u64::from(there & 2 == 2));
                (start as u16, (bytes.end + u64::from(len % 3)).saturating_sub(start + 1) as u16)
            }
            _ => (u16::from(there) * 16, u16::from(len) * 8),
        };
        let here = u16::from(here) * 16 % (4097 - len.min(4096));
        let granted =
            GnttabCopyPtr { u: gref, domid: granter as u16, offset: there, ..GnttabCopyPtr::default() };
        let ours = GnttabCopyPtr { u: own, domid: DOMID_SELF, offset: here, ..GnttabCopyPtr::default() };
        let (source, dest) = if back { (ours, granted) } else { (granted, ours) };
        let flags = if back { GNTCOPY_DEST_GREF } else { GNTCOPY_SOURCE_GREF };
        let args = self.hv.platform.translate(ARGS, true)?.raw() >> 12;
        self.put(ARGS, &GnttabCopy { source, dest, len, flags, ..GnttabCopy::default() })?;
        let expected = match &lent {
            Some(Some((lent, _))) if !back => self.bytes(*lent, there, len),
            _ => self.bytes(own, here, len),
        };
        self.table(GNTTABOP_COPY)?;
        let done: GnttabCopy = self.get(ARGS)?;
        let Some(lent) = lent.filter(|_| self.is_alone) else { return Some(()) };
        // A copy over its own arguments leaves no status.
        if done.status != GNTST_OKAY || own == args || lent.as_ref().is_some_and(|(frame, _)| *frame == args)
        {
            return Some(());
        }
        let span = u64::from(there)..u64::from(there) + u64::from(len);
        let Some((frame, bytes)) = lent.filter(|(_, lent)| lent.start <= span.start && span.end <= lent.end)
        else {
            self.tell(format!("d{dom} copied {span:?} of what entry {gref} of d{granter} does not lend"));
            return Some(());
        };
        let got = if back { self.bytes(frame, there, len) } else { self.bytes(own, here, len) };
        if frame != own && got != expected {
            self.tell(format!("d{dom} copied other bytes than entry {gref} of d{granter} lends: {bytes:?}"));
        }
        Some(())
    }

    /// Some bytes of a frame, as far as the page goes.
    fn bytes(&self, frame: u64, offset: u16, len: u16) -> Vec<u8> {
        let end = usize::from(offset).saturating_add(len.into()).min(4096);
        let mut bytes = alloc::vec![0; end.saturating_sub(offset.into())];
        if frame < FRAMES as u64 {
            self.hv.platform.read_bytes(Maddr::new(frame << 12 | u64::from(offset & 4095)), &mut bytes);
        }
        bytes
    }

    /// What entry `gref` of a domain lends to `to`. `None`: the entry is in use, and lends what it did when that began.
    fn lent(&self, dom: usize, gref: u64, to: usize, writes: bool, onwards: bool) -> Option<Lent> {
        let Some(domain) = self.domain(dom) else { return Some(None) };
        let Ok(table) = self.hv.grant_table_frame(&domain, 0) else { return Some(None) };
        let word = |at: u64| self.hv.platform.load(table.maddr().add(at));
        let is_wide = domain.grants.version() == Version::Two;
        let first = word(if is_wide { gref * 16 } else { gref * 8 });
        let marks = if is_wide {
            let status = domain.grants.status_frame()?;
            self.hv.platform.load(status.maddr()) >> (gref * 16)
        } else {
            first
        };
        if marks & IN_USE != 0 {
            return None;
        }
        let (flags, grantee) = (first as u16, (first >> 16) as u16);
        if grantee != to as u16 || writes && flags & GTF_READONLY != 0 {
            return Some(None);
        }
        let beside = first >> 32;
        match flags & GTF_TYPE_MASK {
            GTF_PERMIT_ACCESS if !is_wide => Some(Some((beside, PAGE))),
            GTF_PERMIT_ACCESS => {
                let part = (beside & 0xffff)..(beside & 0xffff) + (beside >> 16);
                let bytes = if flags & GTF_SUB_PAGE == 0 { PAGE } else { part };
                Some(Some((word(gref * 16 + 8), bytes)))
            }
            GTF_TRANSITIVE if is_wide && onwards => {
                let (owner, other) = (usize::from(beside as u16), word(gref * 16 + 8) as u32);
                if owner == dom || owner >= DOMAINS || other > 3 {
                    return Some(None);
                }
                self.lent(owner, other.into(), dom, writes, false)
            }
            _ => Some(None),
        }
    }
}
