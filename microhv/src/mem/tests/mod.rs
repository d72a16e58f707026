//! Page tables on the test machine, with the invariants checked after every step.

use crate::platform::MachineMemory;
mod absent;
mod basics;
mod calls;
mod copies;
mod cpus;
mod descriptors;
mod dirty;
mod exchange;
mod frames;
mod guesses;
mod guest;
mod memory;
mod owed;
mod pieces;
mod random;
mod remembered;
mod sets;
mod time;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{DomId, Mfn};

use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::{Domain, DomainConfig};
use crate::frames::{FrameTable, pte};
use crate::testing::TestMachine;

/// A hypervisor on a test machine.
pub(super) struct World {
    pub(super) hv: Box<Hypervisor<TestMachine>>,
}

impl World {
    /// A machine of `frames` frames.
    pub(super) fn new(frames: usize) -> Self {
        let hv = Box::new(Hypervisor::new(TestMachine::new(frames), FrameTable::for_tests(frames, 1)));
        hv.platform.watch(&hv.frames);
        Self { hv }
    }

    /// A domain that may own `max` pages.
    pub(super) fn domain(&self, id: u16, privileged: bool, max: u64) -> Arc<Domain> {
        self.domain_of(id, DomainConfig { privileged, ..DomainConfig::default() }, max)
    }

    pub(super) fn domain_of(&self, id: u16, config: DomainConfig, max: u64) -> Arc<Domain> {
        let mfn = self.hv.alloc_zeroed().expect("a frame");
        let shared = self.hv.platform.shared(mfn);
        let dom = Domain::new(DomId::new(id), config, mfn, shared);
        self.hv.share_with_guest(mfn, dom.id, false);
        dom.mm.set_max_pages(max);
        assert!(self.hv.domains.insert(&dom), "a new id");
        dom
    }

    /// `N` pages for the domain.
    pub(super) fn pages<const N: usize>(&self, dom: &Domain) -> [Mfn; N] {
        core::array::from_fn(|_| self.hv.populate(dom, 0, 0).expect("memory"))
    }

    /// Writes an entry without any check, as a guest does before a frame is a table.
    pub(super) fn poke(&self, table: Mfn, slot: usize, entry: u64) {
        self.hv.platform.table(table)[slot].store(entry, Ordering::Relaxed);
    }

    pub(super) fn peek(&self, table: Mfn, slot: usize) -> u64 {
        self.hv.platform.table(table)[slot].load(Ordering::Relaxed)
    }

    /// Tables L4, L3, L2, L1 for addresses from 0. The L1 maps just these four, read-only, from slot 0.
    pub(super) fn address_space(&self, dom: &Domain) -> [Mfn; 4] {
        let tables = self.pages::<4>(dom);
        for pair in tables.windows(2) {
            self.poke(pair[0], 0, entry(pair[1], pte::P | pte::RW | pte::US));
        }
        for (slot, &table) in tables.iter().enumerate() {
            self.poke(tables[3], slot, entry(table, pte::P));
        }
        tables
    }

    /// Checks all invariants.
    pub(super) fn check(&self) {
        let wrong = self.hv.check_frames();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Runs `f` as the domain's vCPU 0 on loaded tables.
    pub(super) fn run<R>(&self, dom: &Arc<Domain>, f: impl FnOnce(&mut Current<'_, TestMachine>) -> R) -> R {
        let mut regs: CpuUserRegs = zerocopy::FromZeros::new_zeroed();
        self.run_with(dom, &mut regs, f)
    }

    pub(super) fn run_with<R>(
        &self,
        dom: &Arc<Domain>,
        regs: &mut CpuUserRegs,
        f: impl FnOnce(&mut Current<'_, TestMachine>) -> R,
    ) -> R {
        match dom.vcpus[0].cr3_kernel.get() {
            Some(l4) => self.hv.platform.switch_to(l4),
            None => self.hv.platform.identity(),
        }
        let result = f(&mut Current { hv: &self.hv, domain: dom, vcpu: &dom.vcpus[0], regs });
        self.hv.platform.settle_tlb();
        result
    }

    /// Destroys the domain's memory, interrupted at every opportunity if `interrupted`.
    pub(super) fn destroy(&self, dom: &Arc<Domain>, interrupted: bool) {
        self.hv.platform.identity();
        dom.set_dying(crate::domain::DyingState::Dying);
        self.hv.platform.pending.store(interrupted, Ordering::Relaxed);
        let mut calls = 0;
        while self.hv.relinquish_memory(dom) == super::Progress::More {
            calls += 1;
            assert!(calls < 100_000, "teardown makes no progress");
        }
        self.hv.platform.pending.store(false, Ordering::Relaxed);
        self.hv.unshare(dom.shared_info_mfn);
        dom.set_dying(crate::domain::DyingState::Dead);
    }
}

/// An entry for `mfn` with `flags`.
pub(super) fn entry(mfn: Mfn, flags: u64) -> u64 {
    mfn.raw() << 12 | flags
}
