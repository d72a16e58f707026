//! Copies of the engine's, by hypercall.

use backends::net::{Copier, CopyOp};
use pvrt::grant::CopyPages;
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
