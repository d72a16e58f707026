//! Copies of the engine's, by hypercall.

use alloc::vec::Vec;

use backends::net::{Copier, CopyOp, Place, Stage, copy_rest};
use pvrt::grant::{CopyPages, GrantPage};
use ring_abi::grant::GnttabCopy;
use zerocopy::{FromBytes, IntoBytes};

/// The hypervisor copies; of dom0's own memory nothing is written but these pages.
pub(super) struct Hypervisor<'a>(pub(super) &'a CopyPages);

impl Copier for Hypervisor<'_> {
    fn copy(&mut self, ops: &mut [CopyOp]) {
        // A `CopyOp` is a `GnttabCopy`, so the bytes always fit.
        match <[GnttabCopy]>::mut_from_bytes(ops.as_mut_bytes()) {
            Ok(list) => self.0.copy(list),
            Err(_) => unreachable!("an operation is what the hypervisor reads"),
        }
    }
}

/// Heads come by the processor from pages that the sender lends, and by the hypervisor from all others.
pub(super) struct Fetcher<'a> {
    pub(super) heads: &'a CopyPages,
    pub(super) stage: &'a Stage<GrantPage>,
    /// Room for the list of those that the hypervisor does.
    pub(super) rest: &'a mut Vec<CopyOp>,
}

impl Copier for Fetcher<'_> {
    fn copy(&mut self, ops: &mut [CopyOp]) {
        let mut hypervisor = Hypervisor(self.heads);
        if self.stage.is_empty() {
            return hypervisor.copy(ops);
        }
        let done = self.stage.fetch(ops, |place, bytes| {
            let Place::Own { frame, offset } = place else { return false };
            let Some(page) = self.heads.frames().iter().position(|own| *own == frame) else { return false };
            self.heads.pages().page(page).write(offset.into(), bytes);
            true
        });
        copy_rest(ops, done, &mut hypervisor, self.rest);
    }
}
