//! A frontend domain's grants, by hypercalls in batches.

use alloc::vec::Vec;

use backends::blk::BUDGET_INDIRECT;
use backends::{GrantRead, Grants, ReadSink};
use pvrt::Account;
use pvrt::grant::{CopyBatch, DeviceGrant, GrantStatus, device_map, device_unmap};
use pvrt::mem::Pages;
use ring_abi::types::{DomId, GrantRef, Maddr, PAGE_SIZE};

use alloc::sync::Arc;
use spin::Mutex;

/// Pages into which indirect pages are copied. All connections share one stage, since a connection needs the stage for
/// one batch at a time; the first batch takes the pages. A batch holds the stage's lock from begin to end, and the lock
/// is the last in any order.
#[derive(Default)]
pub(super) struct Stage {
    /// A page for each read of a batch.
    pages: Option<Pages>,
    /// One page of ordinary memory, from which the engine reads what was copied.
    copy: Vec<u8>,
}

/// The stage, as connections share the stage.
pub(super) type SharedStage = Arc<Mutex<Stage>>;

impl Stage {
    /// Makes sure of `count` pages and of the copy; false: there is no memory.
    fn reserve(&mut self, count: usize) -> bool {
        if self.pages.as_ref().is_none_or(|pages| pages.count() < count) {
            self.pages = Pages::zeroed(count.max(BUDGET_INDIRECT)).ok();
        }
        let room = self.copy.try_reserve_exact(PAGE_SIZE - self.copy.len());
        if room.is_ok() {
            self.copy.resize(PAGE_SIZE, 0);
        }
        self.pages.is_some() && room.is_ok()
    }
}

/// The grants of one domain.
pub(super) struct DomainGrants {
    domain: DomId,
    stage: SharedStage,
}

impl DomainGrants {
    pub(super) fn new(domain: DomId, stage: SharedStage) -> Self {
        Self { domain, stage }
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
        let mut stage = self.stage.lock();
        // All connections use the pages, whosever read is the first.
        let ready = Account::own().charge(|| stage.reserve(reads.len()));
        let Stage { pages: Some(pages), copy } = &mut *stage else {
            return (0..reads.len()).for_each(|index| sink(index, None));
        };
        if !ready {
            return (0..reads.len()).for_each(|index| sink(index, None));
        }
        let mut batch = CopyBatch::new();
        // A read that does not even fit a page is refused here, and takes no place in the batch.
        let added: Vec<bool> = reads
            .iter()
            .enumerate()
            .map(|(index, read)| {
                let target = pages.page(index).slice(0, read.len.into());
                target.is_some_and(|target| batch.from_grant(domain, read.gref, 0, target).is_ok())
            })
            .collect();
        let mut results = batch.run();
        for (index, (read, added)) in reads.iter().zip(added).enumerate() {
            let len = usize::from(read.len);
            if added && results.next().is_some_and(|result| result.is_ok()) {
                pages.page(index).read(0, &mut copy[..len]);
                sink(index, Some(&copy[..len]));
            } else {
                sink(index, None);
            }
        }
    }
}
