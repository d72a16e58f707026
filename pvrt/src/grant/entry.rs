//! An entry of the table, in either format.

use ring_abi::grant::{GTF_READING, GTF_WRITING, GrantEntryV1, GrantEntryV2};
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, Mfn};

/// Marks of uses.
const MARKS: u16 = GTF_READING | GTF_WRITING;
/// Offset of `domid` in an entry of either format.
const DOMID: usize = core::mem::offset_of!(GrantEntryV1, domid);
/// Offset of `frame` in an entry of version 1.
const FRAME: usize = core::mem::offset_of!(GrantEntryV1, frame);
/// Offset of `frame` in an entry of version 2.
const WIDE_FRAME: usize = core::mem::offset_of!(GrantEntryV2, frame);

/// Where the words of an entry are.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) bytes: SharedBytes<'a>,
    pub(super) at: usize,
    /// Of version 2: where its status word is.
    pub(super) status: Option<(SharedBytes<'a>, usize)>,
}

impl Entry<'_> {
    /// Permits access.
    pub(super) fn permit(&self, dom: DomId, mfn: Mfn, flags: u16) {
        match self.status {
            None => self.bytes.store_u32(self.at + FRAME, mfn.raw() as u32),
            Some(_) => self.bytes.store_u64(self.at + WIDE_FRAME, mfn.raw()),
        }
        self.bytes.store_u16(self.at + DOMID, dom.raw());
        // Last: from here on the entry counts.
        self.bytes.store_u16(self.at, flags);
    }

    /// Whether the other side uses the frame just now.
    pub(super) fn in_use(&self) -> bool {
        let marks = match self.status {
            None => self.bytes.load_u16(self.at),
            Some((status, at)) => status.load_u16(at),
        };
        marks & MARKS != 0
    }

    /// Ends access; false while the other side uses the frame.
    pub(super) fn revoke(&self) -> bool {
        match self.status {
            None => {
                revoke(self.bytes.load_u16(self.at), |old| self.bytes.compare_exchange_u16(self.at, old, 0))
            }
            // The hypervisor marks the status before it looks at the flags for good: once they are cleared, which is a full
            // barrier, a use either shows in the status or does not come about. (I20)
            Some(_) => {
                self.bytes.swap_u16(self.at, 0);
                !self.in_use()
            }
        }
    }
}

/// Ends access by an entry whose flags were `flags` a moment ago; false while the other side uses the frame. `clear`
/// sets the flags to 0 if they are as told, and returns what they were.
///
/// The look and the end are one step: after a look alone the other side may map the frame, and would keep a page that
/// is free. (I20)
pub(super) fn revoke(mut flags: u16, mut clear: impl FnMut(u16) -> Result<u16, u16>) -> bool {
    loop {
        if flags & MARKS != 0 {
            return false;
        }
        match clear(flags) {
            Ok(_) => return true,
            Err(now) => flags = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use ring_abi::grant::GTF_PERMIT_ACCESS;
    use ring_abi::shared::leaked_pages;

    use super::*;

    #[test]
    fn an_entry_of_version_2_comes_back_when_its_status_word_shows_no_use() {
        let (bytes, status) = (leaked_pages(1), leaked_pages(1));
        let entry = Entry { bytes, at: 32, status: Some((status, 4)) };
        entry.permit(DomId::new(3), Mfn::new(1 << 40), GTF_PERMIT_ACCESS);
        assert_eq!([bytes.load_u64(32), bytes.load_u64(40)], [0x3_0001, 1 << 40]);
        assert!(!entry.in_use());
        for marks in [GTF_READING, MARKS] {
            status.store_u16(4, marks);
            assert!(entry.in_use() && !entry.revoke());
            assert_eq!(bytes.load_u16(32), 0, "there is no further use");
        }
        status.store_u16(4, 0);
        assert!(entry.revoke());
        assert_eq!(status.load_u64(0), 0);
    }
}
