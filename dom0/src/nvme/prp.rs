//! Physical region pages: how a command names the memory of a transfer.
//!
//! A PRP entry is the machine address of a page. The first entry may lie within its page; all others are whole pages, so
//! every piece but the first begins at a page's start, and every piece but the last ends at a page's end. A command has
//! two entries; where a transfer has more pages, the second entry names a list of the others. A list here never crosses
//! a page, so that no list leads to a further one.
//!
//! Source: NVM Express Base Specification 2.0, section 4.1.1.

use crate::blkqueue::Part;

const PAGE: u64 = 4096;

/// Most entries of a list, and so most whole pages of a transfer.
pub(super) const LIST_ENTRIES: usize = 128;
/// Bytes of a list.
pub(super) const LIST_BYTES: usize = 8 * LIST_ENTRIES;
/// Most bytes that a command transfers, whatever the offset of the first byte in its page.
pub(super) const MOST_BYTES: u64 = LIST_ENTRIES as u64 * PAGE;

/// Whether a command's memory may go on from `last` to `next`.
pub(super) fn continues(last: &Part, next: &Part) -> bool {
    let end = last.maddr + u64::from(last.len);
    end == next.maddr || end.is_multiple_of(PAGE) && next.maddr.is_multiple_of(PAGE)
}

/// The pages of a transfer, in order.
pub(super) struct Pages {
    entries: [u64; LIST_ENTRIES + 1],
    count: usize,
}

/// What of a transfer one command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Parts.
    pub(super) parts: usize,
    /// Bytes.
    pub(super) bytes: u64,
}

impl Pages {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self { entries: [0; LIST_ENTRIES + 1], count: 0 }
    }

    /// Takes as many of `parts` as one command can do with at most `most_bytes` bytes ([`MOST_BYTES`] or less), so that their
    /// bytes are whole blocks of `block` bytes. `None`: no command can do even the first block.
    pub(super) fn fill(&mut self, parts: &[Part], most_bytes: u64, block: u64) -> Option<Extent> {
        self.count = 0;
        let mut bytes = 0;
        let mut whole = None;
        for (index, part) in parts.iter().enumerate() {
            let follows = index == 0 || continues(&parts[index - 1], part);
            bytes += u64::from(part.len);
            if !follows || bytes > most_bytes {
                break;
            }
            // The part's first page is that of the part before, where one ends within a page.
            let known = index > 0 && !part.maddr.is_multiple_of(PAGE);
            let end = part.maddr + u64::from(part.len);
            let mut page = if known { part.maddr - part.maddr % PAGE + PAGE } else { part.maddr };
            while page < end {
                *self.entries.get_mut(self.count)? = page;
                self.count += 1;
                page = page - page % PAGE + PAGE;
            }
            if bytes.is_multiple_of(block) {
                whole = Some((Extent { parts: index + 1, bytes }, self.count));
            }
        }
        let (extent, count) = whole?;
        self.count = count;
        Some(extent)
    }

    /// The pages behind the first: the list, if a command needs one.
    pub(super) fn list(&self) -> &[u64] {
        if self.count > 2 { &self.entries[1..self.count] } else { &[] }
    }

    /// The two entries of the command; `list` is the machine address of the list.
    pub(super) fn entries(&self, list: u64) -> [u64; 2] {
        let second = match self.count {
            0 | 1 => 0,
            2 => self.entries[1],
            _ => list,
        };
        [self.entries[0], second]
    }
}
