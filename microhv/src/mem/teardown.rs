//! Taking everything from a dying domain, in pieces.

use core::sync::atomic::Ordering;

use ring_abi::types::Mfn;

use crate::Hypervisor;
use crate::domain::Domain;
use crate::frames::info::TypeWord;
use crate::frames::regions::REGION_FRAMES;
use crate::platform::Platform;

/// Pages that are given back between two looks at what waits.
const LOOK_EVERY: u32 = 64;

/// How far a long operation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To the end.
    Done,
    /// Something else waits for the CPU: the caller repeats the call.
    More,
}

impl<P: Platform> Hypervisor<P> {
    /// Gives back all memory of a dying domain whose vCPUs run nowhere and whose tables no CPU has loaded. Pages to
    /// which others still refer follow with the last reference.
    ///
    /// The hypervisor owns the pages of `shared_info` and of the grant table and lends them to the domain: this
    /// function leaves those pages alone; `reap` and `release_grant_table` take them back.
    pub fn relinquish_memory(&self, dom: &Domain) -> Progress {
        // A session of another CPU that found the domain alive is over once the lock was free here, and what the session took is
        // found below. A later session finds the domain dying. (I50)
        drop(dom.mm.tables.lock());
        dom.mm.close();
        self.drop_claim(dom);
        if !self.drop_cleaning(dom) {
            return Progress::More;
        }
        // Each vCPU may hold the last references on 30 pages.
        for vcpu in &dom.vcpus {
            if self.drop_descriptors(dom, vcpu) && self.platform.work_pending() {
                return Progress::More;
            }
        }
        let mut mm = self.lock_tables(dom);
        if !mm.drain() {
            return Progress::More;
        }
        for vcpu in &dom.vcpus {
            // One base is taken out at a time: a second would be lost if the teardown stopped here.
            for slot in [&vcpu.cr3_kernel, &vcpu.cr3_user] {
                let Some(base) = slot.replace(None) else { continue };
                mm.put_table(base);
                if !mm.drain() || self.platform.work_pending() {
                    return Progress::More;
                }
            }
        }
        while let Some(region) = dom.mm.region_from(dom.mm.teardown_at.load(Ordering::Relaxed)) {
            let first = u64::from(region) * REGION_FRAMES;
            let mut given = 0;
            for (n, info) in self.frames.slice(first, REGION_FRAMES).iter().enumerate() {
                let mfn = Mfn::new(first + n as u64);
                if !info.load_use().is_owned_by(dom.id) || info.is_lent() {
                    continue;
                }
                let kind = info.load_kind();
                if kind.has(TypeWord::PARTIAL) {
                    mm.take_partial(mfn);
                }
                if kind.has(TypeWord::PINNED) {
                    let unpinned = mm.unpin(mfn);
                    debug_assert!(unpinned.is_ok(), "it was pinned");
                }
                if info.end_ownership() {
                    self.put_page(mfn);
                    given += 1;
                }
                // The walk of the region begins again, and passes over pages that were given back before.
                if !mm.drain() || (given == LOOK_EVERY && self.platform.work_pending()) {
                    return Progress::More;
                }
                given %= LOOK_EVERY;
            }
            dom.mm.teardown_at.store(region + 1, Ordering::Relaxed);
            if self.platform.work_pending() {
                return Progress::More;
            }
        }
        Progress::Done
    }
}
