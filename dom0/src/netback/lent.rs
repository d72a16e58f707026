//! Copies that dom0 itself makes, between pages that frontends lend and from the heads of packets: no hypercall.
//!
//! A frontend may change its pages at any time. What dom0 has read of a packet is in its head, which is dom0's own; nothing else
//! of the bytes that are copied is looked at.

use backends::net::{AtOnce, CopyIn, Place, Stage};
use pvrt::grant::GrantPage;
use ring_abi::shared::{SharedBytes, SharedMemory};
use ring_abi::types::PAGE_SIZE;

/// The bytes of a packet's head.
pub(super) enum Bytes<'a> {
    /// In the page of dom0's at `page_at`, which has all of dom0's own bytes of the packet.
    Page { bytes: SharedBytes<'a>, page_at: usize },
    /// The first of the bytes at `place`.
    Own { place: Place, bytes: &'a [u8] },
}

/// Copies into a receiver's pages at once: a packet's head, and what lies in a page of the sender's, if both pages are lent.
pub(super) struct Lent<'a> {
    from: Option<&'a Stage<GrantPage>>,
    to: &'a Stage<GrantPage>,
    head: Bytes<'a>,
    /// Copies that were done.
    done: usize,
}

impl<'a> Lent<'a> {
    /// Copies from the pages `from` and the head to the pages `to`.
    #[inline(always)]
    pub(super) fn new(from: Option<&'a Stage<GrantPage>>, to: &'a Stage<GrantPage>, head: Bytes<'a>) -> Self {
        Self { from, to, head, done: 0 }
    }

    /// Copies that were done.
    #[inline(always)]
    pub(super) fn done(&self) -> usize {
        self.done
    }
}

impl AtOnce for Lent<'_> {
    #[inline(always)]
    fn copy(&mut self, copy: &CopyIn) -> bool {
        let &CopyIn { source, gref, offset: to, len } = copy;
        let Some(page) = self.to.writable(gref) else { return false };
        let target = page.shared();
        let len = usize::from(len);
        let (bytes, from) = match (source, &self.head) {
            (Place::Grant { gref, offset, .. }, _) => {
                let from = usize::from(offset);
                match self.from.and_then(|stage| stage.readable(gref)) {
                    Some(page) if from + len <= PAGE_SIZE => (page.shared(), from),
                    // If the page ends before the bytes do, the hypervisor's answer is an error.
                    _ => return false,
                }
            }
            (Place::Own { offset, .. }, Bytes::Page { bytes, page_at }) => {
                (*bytes, page_at + usize::from(offset))
            }
            (Place::Own { .. }, Bytes::Own { place, bytes }) => {
                let at = source.bytes_behind(place);
                let Some(piece) = at.and_then(|at| bytes.get(at..at + len)) else { return false };
                target.write(to.into(), piece);
                self.done += 1;
                return true;
            }
        };
        bytes.copy_to(from, &target, to.into(), len);
        self.done += 1;
        true
    }
}
