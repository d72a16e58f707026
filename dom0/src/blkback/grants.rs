//! A frontend domain's grants, by hypercalls in batches.

use alloc::vec::Vec;

use backends::{GrantRead, Grants, Notifier, ReadSink};
use pvrt::event::Port;
use pvrt::grant::{CopyBatch, DeviceGrant, GrantStatus, device_map, device_unmap};
use pvrt::mem::Pages;
use ring_abi::types::{DomId, GrantRef, Maddr, PAGE_SIZE};

use alloc::sync::Arc;

/// The grants of one domain.
pub(super) struct DomainGrants {
    domain: DomId,
    /// Where indirect pages are copied to, a page for each of a batch; taken when first needed.
    stage: Option<Pages>,
    /// One page, for looking at what was copied.
    copy: Vec<u8>,
}

impl DomainGrants {
    pub(super) fn new(domain: DomId) -> Self {
        Self { domain, stage: None, copy: Vec::new() }
    }

    /// Pages to copy to, at least `count`.
    fn stage(&mut self, count: usize) -> Option<&Pages> {
        if self.stage.as_ref().is_none_or(|pages| pages.count() < count) {
            self.stage = Pages::zeroed(count).ok();
        }
        self.stage.as_ref()
    }
}

impl Grants for DomainGrants {
    type Grant = DeviceGrant;
    type Error = GrantStatus;

    fn map_device(&mut self, requests: &[(GrantRef, bool)], out: &mut Vec<Result<DeviceGrant, GrantStatus>>) {
        device_map(self.domain, requests, out);
    }

    fn maddr(grant: &DeviceGrant) -> Maddr {
        grant.maddr()
    }

    fn unmap_device(&mut self, held: &mut Vec<DeviceGrant>) {
        device_unmap(held.drain(..));
    }

    fn read(&mut self, reads: &[GrantRead], sink: &mut ReadSink<'_>) {
        let domain = self.domain;
        let mut copy = core::mem::take(&mut self.copy);
        copy.resize(PAGE_SIZE, 0);
        let Some(stage) = self.stage(reads.len()) else {
            (0..reads.len()).for_each(|index| sink(index, None));
            return;
        };
        let mut batch = CopyBatch::new();
        // A read that does not even fit a page is refused here and takes no place in the batch.
        let added: Vec<bool> = reads
            .iter()
            .enumerate()
            .map(|(index, read)| {
                let target = stage.page(index).slice(0, read.len.into());
                target.is_some_and(|target| batch.from_grant(domain, read.gref, 0, target).is_ok())
            })
            .collect();
        let mut results = batch.run();
        for (index, (read, added)) in reads.iter().zip(added).enumerate() {
            let len = usize::from(read.len);
            if added && results.next().is_some_and(|result| result.is_ok()) {
                stage.page(index).read(0, &mut copy[..len]);
                sink(index, Some(&copy[..len]));
            } else {
                sink(index, None);
            }
        }
        drop(results);
        self.copy = copy;
    }
}

/// Raises a frontend's event channel.
pub(super) struct Bell(pub(super) Arc<Port>);

impl Notifier for Bell {
    fn notify(&mut self) {
        self.0.notify();
    }
}
