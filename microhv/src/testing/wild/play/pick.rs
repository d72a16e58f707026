//! What the small numbers of a step mean in the present state.

use ring_abi::types::{DOMID_SELF, DomId, Maddr, Mfn};

use super::*;
use crate::frames::PageType;
use crate::frames::pte::{A, D, G, NX, P, PSE, RW, US};
use crate::testing::wild::step::{Entry, Page, Pick};

/// How many frames are preferred: those that were used last.
const RECENT: usize = 5;

const FLAGS: [u64; 15] = [
    0,
    0,
    0,
    0,
    P | RW | US,
    P | RW,
    P | RW | US,
    P | US,
    P,
    P | RW | US | A | D,
    P | RW | NX | US,
    0,
    P | RW | US | G,
    P | RW | 0xe00,
    P | PSE | RW | US,
];

impl Wild {
    pub(super) fn note(&self, frame: u64) {
        let recent = &mut self.state().recent;
        if frame < FRAMES as u64 && recent.front() != Some(&frame) {
            recent.truncate(RECENT - 1);
            recent.push_front(frame);
        }
    }

    pub(super) fn owned(&self, dom: usize, tables: bool, n: usize) -> Option<u64> {
        let id = DomId::new(dom as u16);
        let infos = (0..FRAMES as u64).filter(|frame| {
            let info = self.hv.frames.held(Mfn::new(*frame));
            let (page_type, count) = info.page_type();
            info.owner() == Some(id) && !info.is_lent() && (!tables || (page_type.level() > 0 && count > 0))
        });
        let count = infos.clone().count();
        infos.clone().nth(n.checked_rem(count)?)
    }

    /// One of the frames that were used last, a later one more often.
    pub(super) fn latest(&self, n: usize) -> Option<u64> {
        let recent = &self.state().recent;
        let n = n.checked_rem(recent.len())?.min(n / 8 % recent.len());
        Some(recent[n])
    }

    pub(super) fn pick(&self, pick: Pick) -> u64 {
        let dom = self.loaded().map_or(0, |(dom, _)| dom);
        let n = usize::from(pick & 63);
        let chosen = match pick >> 6 {
            0 => self.latest(n),
            1 => self.owned(dom, false, n),
            2 => self.owned(dom, true, n),
            _ if pick & 32 == 0 => self.latest(n),
            _ if pick & 16 == 0 => self.owned(n % DOMAINS, false, n / DOMAINS),
            _ => None,
        };
        chosen.unwrap_or((usize::from(pick) * 7 % (FRAMES + 2)) as u64)
    }

    pub(super) fn entry(&self, (pick, flags): Entry) -> u64 {
        match FLAGS[usize::from(flags) % FLAGS.len()] {
            0 => 0,
            flags => self.pick(pick) << 12 | flags,
        }
    }

    pub(super) fn va(page: Page) -> u64 {
        let (region, mut n) = (u64::from(page >> 4 & 3), u64::from(page & 15));
        if region == 0 && n == ARGS_PAGE && page >> 6 != 3 {
            n += 1;
        }
        (region << 9 | n) << 12
    }

    /// A slot of a table of that level. The first leads to the tables and arguments that all other steps need, so it is
    /// seldom meant.
    pub(super) fn slot(level: u8, slot: u8) -> u64 {
        match (level, slot) {
            (_, 0xf0..) => [255, 256, 271, 511][usize::from(slot & 3)],
            (1, _) if slot >> 4 != 3 && u64::from(slot & 15) == ARGS_PAGE => ARGS_PAGE + 1,
            (0 | 1, _) => u64::from(slot & 15),
            (_, 0xe0..) => 0,
            _ => u64::from(slot % 3 + 1),
        }
    }

    pub(super) fn whose(&self, whose: u8) -> u16 {
        // Mostly the caller itself.
        if whose & 3 == 3 { u16::from(whose >> 2) % (DOMAINS as u16 + 1) } else { DOMID_SELF }
    }

    /// The frame that an entry in memory names, if the entry is present.
    pub(super) fn named(&self, table: u64, slot: u64) -> Option<u64> {
        let at = Maddr::new((table << 12) + slot * 8);
        let entry = (table < FRAMES as u64).then(|| self.hv.platform.load(at))?;
        (entry & P != 0).then_some((entry & crate::frames::pte::FRAME) >> 12)
    }

    /// The page at `va` is about to change: its frame is preferred from now on.
    pub(super) fn note_at(&self, va: u64) {
        if let Some(at) = self.hv.platform.translate(va, false) {
            self.note(at.raw() >> 12);
        }
    }

    /// An entry that names one of the caller's tables, of the level below.
    pub(super) fn below(&self, level: u8, (pick, flags): Entry) -> Option<u64> {
        if pick & 0xc0 != 0x80 {
            return None;
        }
        let (dom, _) = self.loaded()?;
        let wanted = PageType::table(level - 1);
        let tables = (0..FRAMES as u64).filter(|frame| {
            let info = self.hv.frames.held(Mfn::new(*frame));
            info.owner() == Some(DomId::new(dom as u16)) && info.page_type().0 == wanted
        });
        let n = usize::from(pick & 63).checked_rem(tables.clone().count())?;
        let flags = FLAGS[usize::from(flags) % FLAGS.len()];
        tables.clone().nth(n).map(|frame| frame << 12 | flags)
    }
}
