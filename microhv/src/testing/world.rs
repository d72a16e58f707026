//! A hypervisor on a [`TestMachine`], and calls into it as a guest makes them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::TestMachine;
use crate::Hypervisor;
use crate::domain::Current;
use crate::domain::{Domain, DomainConfig, PauseFlags, VcpuRef};
use crate::frames::FrameTable;
use crate::hypercall::{HypercallError, HypercallResult, Outcome, call};
use crate::platform::{Clock, CpuId, MachineMemory, SOFTIRQ_SCHEDULE, SOFTIRQ_TIMER};
use crate::sched::Decision;

/// First machine address that tests use for arguments: guest addresses are machine addresses until tables are loaded.
pub const ARGS: u64 = 0x1000;
/// Frames that the allocator does not have.
const RESERVED_FRAMES: u64 = 16;

/// A hypervisor with dom0, whose vCPU 0 is up.
pub struct World {
    /// The hypervisor.
    pub hv: Box<Hypervisor<TestMachine>>,
    /// The privileged domain.
    pub dom0: Arc<Domain>,
}

impl World {
    /// A machine of `frames` frames.
    pub fn new(frames: usize) -> Self {
        let hv = Box::new(Hypervisor::new(
            TestMachine::new(frames),
            FrameTable::for_tests(frames, RESERVED_FRAMES),
        ));
        hv.platform.watch(&hv.frames);
        hv.set_wall_clock(1_700_000_000_000_000_000, 0);
        let config = DomainConfig { privileged: true, ..DomainConfig::default() };
        let dom0 = hv.create_domain(Some(DomId::new(0)), config).expect("dom0");
        let world = Self { hv, dom0 };
        world.start(&world.dom0);
        world
    }

    /// A domain with `vcpus` vCPUs, all up, not paused.
    pub fn guest(&self, vcpus: u32) -> Arc<Domain> {
        let config = DomainConfig { max_vcpus: vcpus, ..DomainConfig::default() };
        let domain = self.hv.create_domain(None, config).expect("a domain");
        self.start(&domain);
        domain
    }

    /// Brings all vCPUs up and lets the domain run.
    pub fn start(&self, domain: &Arc<Domain>) {
        for vcpu in &domain.vcpus {
            vcpu.initialised.store(true, Ordering::Release);
            self.hv.wake(domain, vcpu, PauseFlags::DOWN);
        }
        if domain.controller_pause_count.swap(0, Ordering::AcqRel) > 0 {
            self.hv.unpause_domain(domain);
        }
    }

    /// Hypercall `number` by vCPU `vcpu` of `domain`.
    pub fn raw(&self, domain: &Arc<Domain>, vcpu: u32, number: u32, args: &[u64]) -> HypercallResult {
        let mut regs = CpuUserRegs::default();
        let vcpu = domain.vcpu(vcpu).expect("a vCPU");
        let mut cur = Current { hv: &*self.hv, domain, vcpu, regs: &mut regs };
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let result = call(&mut cur, number.into(), &all);
        self.hv.platform.settle_tlb();
        result
    }

    /// Makes the call of [`World::raw`] on vCPU 0, follows continuations, and returns rax as the guest sees
    /// it.
    pub fn call(&self, domain: &Arc<Domain>, number: u32, args: &[u64]) -> i64 {
        let mut args = args.to_vec();
        loop {
            match self.raw(domain, 0, number, &args) {
                Ok(Outcome::Done(value)) => return value as i64,
                Ok(Outcome::Continue) => args = domain.vcpus[0].continuation().to_vec(),
                Ok(Outcome::NoReturn) => return 0,
                Err(HypercallError::Again) => {}
                Err(error) => return error.errno(),
            }
        }
    }

    /// A call with a structure as second argument; the structure as it is afterwards.
    pub fn op<T: IntoBytes + FromBytes + Immutable>(
        &self,
        domain: &Arc<Domain>,
        number: u32,
        command: u32,
        op: &mut T,
    ) -> i64 {
        self.put(ARGS, op);
        let result = self.call(domain, number, &[command.into(), ARGS]);
        *op = self.get(ARGS);
        result
    }

    /// Writes a structure at a machine address.
    pub fn put<T: IntoBytes + Immutable>(&self, at: u64, value: &T) {
        self.hv.platform.write_bytes(ring_abi::types::Maddr::new(at), value.as_bytes());
    }

    /// Reads a structure at a machine address.
    pub fn get<T: IntoBytes + FromBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        self.hv.platform.read_bytes(ring_abi::types::Maddr::new(at), value.as_mut_bytes());
        value
    }

    /// Moves time on.
    pub fn pass(&self, ns: u64) {
        self.hv.platform.now.fetch_add(ns, Ordering::Relaxed);
        let now = self.hv.platform.now_ns();
        for (timer, cpu) in self.hv.platform.timers.iter().zip((0..).filter_map(CpuId::new)) {
            if timer.load(Ordering::Relaxed) <= now {
                self.hv.raise_softirq(cpu, SOFTIRQ_TIMER);
            }
        }
    }

    /// What the way back to a guest does: softirqs, then a decision who runs. The vCPU that runs then.
    pub fn settle(&self) -> Option<VcpuRef> {
        self.settle_on(CpuId::BOOT)
    }

    /// The same on `cpu`.
    pub fn settle_on(&self, cpu: CpuId) -> Option<VcpuRef> {
        self.hv.platform.on_cpu(cpu.index());
        let mut runs = true;
        loop {
            self.hv.do_softirqs(cpu);
            if self.hv.sched.pending(cpu).load(Ordering::Acquire) & SOFTIRQ_SCHEDULE == 0 {
                return self.hv.sched.running(cpu).filter(|_| runs);
            }
            if let Decision::Switch(next) = self.hv.schedule(cpu, runs) {
                let next = next.filter(|next| !self.hv.must_leave(next.domain()));
                runs = next.is_some();
                if let Some(next) = next {
                    self.hv.switched_in(next.domain(), &next);
                }
            }
        }
    }
}

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("World")
    }
}
