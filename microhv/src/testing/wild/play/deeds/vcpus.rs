//! Deeds about descriptors, and about contexts, areas and timers of vCPUs.

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::vcpu::*;

use super::*;

pub(super) static DESCRIPTORS: [Deed; 5] = deeds![Descriptor:
    Own "set the gdt" ["unmap"] |wild, stake, at| wild.set_gdt(at, &[stake.page]);
    Own "end the gdt" ["unmap", "set the gdt"] |wild, _, at| wild.set_gdt(at, &[]);
    Own "use an ldt" ["protect"] |wild, _, at| {
        wild.set_ldt(at, 512)?;
        let hv = &wild.hv;
        wild.with(&mut CpuUserRegs::default(), |cur| hv.fault_in_ldt(cur.domain, cur.vcpu, 0))
    };
    Own "end the ldt" ["use an ldt"] |wild, _, at| wild.set_ldt(at, 0);
    Own "write a descriptor" ["unmap", "set the gdt"] |wild, stake, _| {
        wild.done(__HYPERVISOR_UPDATE_DESCRIPTOR, &[stake.page << 12 | 16, 0x00af_9b00_0000_ffff])
    };
];

pub(super) static VCPUS: [Deed; 11] = deeds![Vcpu:
    Own "move vcpu_info" [] |wild, stake, at| {
        let op = VcpuRegisterVcpuInfo { mfn: stake.page, offset: 0x80, rsvd: 0 };
        // Once for each vCPU: the first that still may.
        let (_, own) = wild.loaded()?;
        let has_none = |vcpu: &u32| wild.domain(GUEST).is_some_and(|domain| domain.vcpus[*vcpu as usize].info_frame.get().is_none());
        let vcpu = [own, SPARE, 1 - own].into_iter().find(has_none)?;
        wild.put(at, &op)?;
        wild.done(__HYPERVISOR_VCPU_OP, &[VCPUOP_REGISTER_VCPU_INFO.into(), vcpu.into(), at])
    };
    Own "take a runstate area" [] |wild, _, at| wild.vcpu_op(at, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, &(HOME + 0x200));
    Own "take a time area" [] |wild, _, at| wild.vcpu_op(at, VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, &(HOME + 0x300));
    Own "write the areas" ["take a runstate area", "take a time area"] |wild, _, _| {
        let hv = &wild.hv;
        wild.with(&mut CpuUserRegs::default(), |cur| crate::time::update_areas(&hv.platform, cur.domain, cur.vcpu))?;
        Some(true)
    };
    Own "initialise a vCPU" ["unmap"] |wild, stake, _| wild.initialise(stake, true);
    Own "initialise a vCPU without a gdt" [] |wild, stake, _| wild.initialise(stake, false);
    Own "take a vCPU up" ["initialise a vCPU without a gdt"] |wild, _, at| {
        wild.done(__HYPERVISOR_VCPU_OP, &[VCPUOP_UP.into(), SPARE.into(), at])
    };
    Own "take a vCPU down" ["initialise a vCPU without a gdt", "take a vCPU up"] |wild, _, at| {
        wild.done(__HYPERVISOR_VCPU_OP, &[VCPUOP_DOWN.into(), SPARE.into(), at])
    };
    Own "set a timer" [] |wild, _, at| {
        let op = VcpuSetSingleshotTimer { timeout_abs_ns: 1 << 40, ..VcpuSetSingleshotTimer::default() };
        wild.vcpu_op(at, VCPUOP_SET_SINGLESHOT_TIMER, &op)
    };
    Own "stop a timer" ["set a timer"] |wild, _, at| wild.vcpu_op(at, VCPUOP_STOP_SINGLESHOT_TIMER, &0u64);
    Own "look at a runstate" [] |wild, _, _| wild.vcpu_op(HOME, VCPUOP_GET_RUNSTATE_INFO, &0u64);
];

impl Wild {
    pub(in crate::testing::wild::play) fn set_gdt(&self, at: u64, frames: &[u64]) -> Option<bool> {
        self.put(at, frames)?;
        self.done(__HYPERVISOR_SET_GDT, &[at, frames.len() as u64 * 512])
    }

    pub(in crate::testing::wild::play) fn set_ldt(&self, at: u64, entries: u64) -> Option<bool> {
        let arg1 = if entries == 0 { 0 } else { HOME };
        self.put(at, &MmuextOp { cmd: MMUEXT_SET_LDT, arg1, arg2: entries, ..MmuextOp::default() })?;
        self.done(__HYPERVISOR_MMUEXT_OP, &[at, 1, 0, SELF])
    }

    fn vcpu_op<T: IntoBytes + Immutable>(&self, at: u64, command: u32, op: &T) -> Option<bool> {
        let (_, vcpu) = self.loaded()?;
        self.put(at, op)?;
        self.done(__HYPERVISOR_VCPU_OP, &[command.into(), vcpu.into(), at])
    }

    fn initialise(&self, stake: &Stake, has_gdt: bool) -> Option<bool> {
        let at = self.put_context(&Self::context(stake, has_gdt))?;
        self.done(__HYPERVISOR_VCPU_OP, &[VCPUOP_INITIALISE.into(), SPARE.into(), at])
    }
}
