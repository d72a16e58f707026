//! What a paravirtualized guest reads from and may write to model-specific registers.
//!
//! Only the segment bases reach the CPU; everything else is an answer from this table. Registers: AMD APM volume 2,
//! appendix A; Intel SDM volume 4.

use crate::domain::Current;
use crate::frames::pte::is_canonical;
use crate::platform::{Platform, SegmentBase};
use crate::traps::TrapVector;

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const FEATURE_CONTROL: u32 = 0x3a;
const UCODE_REV: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const MISC_FEATURES: u32 = 0x140;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const MC_FIRST: u32 = 0x400;
const MC_LAST: u32 = 0x41f;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const K7_PERF_FIRST: u32 = 0xc001_0000;
const K7_PERF_LAST: u32 = 0xc001_0007;
const HWCR: u32 = 0xc001_0015;
const DE_CFG: u32 = 0xc001_1029;

/// The page attribute table that microhv loads: WB WT UC- UC WC WP UC UC.
pub const PAT_VALUE: u64 = 0x0000_0501_0007_0406;

/// The base that a register holds: the guest's kernel runs, so that `GS_BASE` is the kernel's.
const fn base(msr: u32) -> Option<SegmentBase> {
    match msr {
        FS_BASE => Some(SegmentBase::Fs),
        GS_BASE => Some(SegmentBase::GsKernel),
        KERNEL_GS_BASE => Some(SegmentBase::GsUser),
        _ => None,
    }
}

/// Whether the CPU is AMD's or Hygon's: some registers exist only there, others not.
fn is_amd<P: Platform>(cur: &Current<'_, P>) -> bool {
    cur.hv.platform.cpuid(0, 0).is_amd()
}

/// A kernel without a #GP handler cannot survive a fault, so unknown registers read as zero until it has one.
fn has_no_handler<P: Platform>(cur: &Current<'_, P>) -> bool {
    cur.vcpu.entries.traps[usize::from(TrapVector::PROTECTION.0)].address() == 0
}

/// What `rdmsr(msr)` gives; `None`: #GP(0).
pub fn read<P: Platform>(msr: u32, cur: &Current<'_, P>) -> Option<u64> {
    if let Some(base) = base(msr) {
        return Some(cur.hv.platform.segment_base(base));
    }
    let value = match msr {
        TSC => cur.hv.platform.tsc(),
        // Base, enabled, and the bootstrap bit: Linux checks that an APIC is there before it uses event channels.
        APIC_BASE => 0xfee0_0800 | u64::from(cur.vcpu.id.raw() == 0) << 8,
        FEATURE_CONTROL if !is_amd(cur) => 1, // locked, nothing enabled
        PLATFORM_INFO | MISC_ENABLE if !is_amd(cur) => 0,
        // RDTSCP reads the CPU's own TSC_AUX, which microhv keeps at 0 for everyone.
        UCODE_REV | MISC_FEATURES | MCG_CAP | MCG_STATUS | MC_FIRST..=MC_LAST | TSC_AUX => 0,
        PAT => PAT_VALUE,
        EFER => cur.hv.platform.efer(),
        K7_PERF_FIRST..=K7_PERF_LAST if is_amd(cur) => 0,
        HWCR if is_amd(cur) => 1 << 24, // TscFreqSel: the TSC runs at the P0 frequency
        DE_CFG if is_amd(cur) => 1 << 1, // LFENCE serialises
        FEATURE_CONTROL | PLATFORM_INFO | MISC_ENABLE | K7_PERF_FIRST..=K7_PERF_LAST | HWCR | DE_CFG => {
            return None;
        }
        _ => return has_no_handler(cur).then_some(0),
    };
    Some(value)
}

/// Does `wrmsr(msr, value)`, of which only the segment bases have an effect; `None`: #GP(0).
pub fn write<P: Platform>(msr: u32, value: u64, cur: &Current<'_, P>) -> Option<()> {
    let is_allowed = match (base(msr), msr) {
        (Some(_), _) => is_canonical(value),
        (_, TSC | UCODE_REV | MCG_STATUS | MC_FIRST..=MC_LAST) => true,
        (_, TSC_AUX) => value >> 32 == 0,
        (_, MISC_FEATURES) => value == 0,
        (_, PAT) => value == PAT_VALUE,
        (_, EFER) => value == cur.hv.platform.efer(),
        // A guest registers its entry points as callbacks instead; Linux does not write these MSRs under the
        // ABI.
        (_, STAR..=SFMASK) => false,
        (_, K7_PERF_FIRST..=K7_PERF_LAST | HWCR) => is_amd(cur),
        (_, DE_CFG) => is_amd(cur) && value == 1 << 1,
        _ => has_no_handler(cur),
    };
    if is_allowed && let Some(base) = base(msr) {
        cur.hv.platform.set_segment_base(base, value);
    }
    is_allowed.then_some(())
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use ring_abi::guest_context::CpuUserRegs;
    use ring_abi::types::{DomId, Mfn};

    use super::*;
    use crate::Hypervisor;
    use crate::domain::{Domain, DomainConfig, TrapGate};
    use crate::frames::FrameTable;
    use crate::platform::MachineMemory;
    use crate::testing::TestMachine;

    /// A vCPU of a domain, on a CPU of AMD's or another, with a #GP handler or without.
    #[derive(Clone, Copy)]
    struct Scene {
        vcpu: usize,
        amd: bool,
        has_handler: bool,
    }

    const SCENE: Scene = Scene { vcpu: 0, amd: true, has_handler: true };

    impl Scene {
        fn act<R>(self, act: impl FnOnce(&Current<'_, TestMachine>) -> R) -> R {
            let machine = TestMachine::new(16);
            machine.is_intel.store(!self.amd, Ordering::Relaxed);
            let (mfn, config) = (Mfn::new(1), DomainConfig { max_vcpus: 2, ..DomainConfig::default() });
            let domain = Domain::new(DomId::new(1), config, mfn, machine.shared(mfn));
            let vcpu = &domain.vcpus[self.vcpu];
            let address = u64::from(self.has_handler);
            vcpu.entries.traps[13].set(TrapGate { address, ..TrapGate::default() });
            let (hv, mut regs) = (Hypervisor::new(machine, FrameTable::default()), CpuUserRegs::default());
            act(&Current { hv: &hv, domain: &domain, vcpu, regs: &mut regs })
        }

        fn read(self, msr: u32) -> Option<u64> {
            self.act(|cur| read(msr, cur))
        }

        /// Whether the write is allowed, and the base that is set.
        fn write(self, msr: u32, value: u64) -> (bool, Option<(SegmentBase, u64)>) {
            self.act(|cur| {
                let is_allowed = write(msr, value, cur).is_some();
                (is_allowed, cur.hv.platform.events.lock().segment_bases.pop())
            })
        }
    }

    #[test]
    fn pat_reads_as_the_real_one() {
        assert_eq!(SCENE.read(PAT), Some(0x0000_0501_0007_0406));
        assert_eq!(SCENE.write(PAT, 0x0000_0501_0007_0406), (true, None));
        assert_eq!(SCENE.write(PAT, 0), (false, None));
    }

    #[test]
    fn unknown_registers_fault_once_the_guest_can_take_it() {
        let early = Scene { has_handler: false, ..SCENE };
        assert_eq!((SCENE.read(0x1234), early.read(0x1234)), (None, Some(0)));
        assert_eq!((SCENE.write(0x1234, 1), early.write(0x1234, 1)), ((false, None), (true, None)));
    }

    #[test]
    fn bases_must_be_canonical() {
        let base = 0xffff_8880_0000_0000;
        assert_eq!(SCENE.write(GS_BASE, base), (true, Some((SegmentBase::GsKernel, base))));
        assert_eq!(SCENE.write(GS_BASE, 0x0000_8000_0000_0000), (false, None));
        assert_eq!(SCENE.write(FS_BASE, 0x7000), (true, Some((SegmentBase::Fs, 0x7000))));
    }

    #[test]
    fn vendor_registers_exist_on_their_vendor_only() {
        for has_handler in [false, true] {
            let amd = Scene { has_handler, ..SCENE };
            let intel = Scene { amd: false, ..amd };
            assert_eq!((amd.read(HWCR), intel.read(HWCR)), (Some(1 << 24), None));
            assert_eq!((amd.read(FEATURE_CONTROL), intel.read(FEATURE_CONTROL)), (None, Some(1)));
            assert_eq!((amd.write(HWCR, 7), intel.write(HWCR, 7)), ((true, None), (false, None)));
        }
    }

    #[test]
    fn apic_base_marks_the_bootstrap_processor() {
        assert_eq!(SCENE.read(APIC_BASE), Some(0xfee0_0900));
        assert_eq!(Scene { vcpu: 1, ..SCENE }.read(APIC_BASE), Some(0xfee0_0800));
    }
}
