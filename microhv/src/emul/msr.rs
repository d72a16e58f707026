//! What a paravirtualized guest reads from and may write to model-specific registers.
//!
//! Only the segment bases reach the CPU; everything else is an answer from this table. Registers: AMD APM volume 2,
//! appendix A; Intel SDM volume 4.

use crate::frames::pte::is_canonical;
use crate::platform::SegmentBase;

/// What a vCPU's answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct MsrContext {
    /// vCPU 0 is the bootstrap processor.
    pub bootstrap: bool,
    /// The CPU is AMD's or Hygon's (some registers exist only there).
    pub amd: bool,
    /// A kernel without a #GP handler cannot survive a fault, so unknown registers read as zero until it has one.
    pub has_gp_handler: bool,
    /// IA32_EFER as the guest sees it.
    pub efer: u64,
}

/// What to do for `rdmsr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value is known.
    Value(u64),
    /// The guest's time-stamp counter.
    Tsc,
    /// A segment base of the running vCPU.
    Base(SegmentBase),
    /// #GP(0).
    Fault,
}

/// What to do for `wrmsr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing happens, without a fault.
    Ignore,
    /// Set a segment base of the running vCPU.
    Base(SegmentBase),
    /// #GP(0).
    Fault,
}

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

/// Decides `rdmsr(msr)`.
pub fn read(msr: u32, cx: &MsrContext) -> Read {
    if let Some(base) = base(msr) {
        return Read::Base(base);
    }
    let only_if = |there, value| if there { Read::Value(value) } else { Read::Fault };
    match msr {
        TSC => Read::Tsc,
        // Base, enabled, and the bootstrap bit: Linux checks that an APIC is there before it uses event channels.
        APIC_BASE => Read::Value(0xfee0_0800 | u64::from(cx.bootstrap) << 8),
        FEATURE_CONTROL => only_if(!cx.amd, 1), // locked, nothing enabled
        PLATFORM_INFO | MISC_ENABLE => only_if(!cx.amd, 0),
        // RDTSCP reads the CPU's own TSC_AUX, which microhv keeps at 0 for everyone.
        UCODE_REV | MISC_FEATURES | MCG_CAP | MCG_STATUS | MC_FIRST..=MC_LAST | TSC_AUX => Read::Value(0),
        PAT => Read::Value(PAT_VALUE),
        EFER => Read::Value(cx.efer),
        K7_PERF_FIRST..=K7_PERF_LAST => only_if(cx.amd, 0),
        HWCR => only_if(cx.amd, 1 << 24), // TscFreqSel: the TSC runs at the P0 frequency
        DE_CFG => only_if(cx.amd, 1 << 1), // LFENCE serialises
        _ => only_if(!cx.has_gp_handler, 0),
    }
}

/// Decides `wrmsr(msr, value)`.
pub fn write(msr: u32, value: u64, cx: &MsrContext) -> Write {
    if let Some(base) = base(msr) {
        return if is_canonical(value) { Write::Base(base) } else { Write::Fault };
    }
    let is_harmless = match msr {
        TSC | UCODE_REV | MCG_STATUS | MC_FIRST..=MC_LAST => true,
        TSC_AUX => value >> 32 == 0,
        MISC_FEATURES => value == 0,
        PAT => value == PAT_VALUE,
        EFER => value == cx.efer,
        // The entry points are the callbacks' business; Linux does not write these under the ABI.
        STAR..=SFMASK => false,
        K7_PERF_FIRST..=K7_PERF_LAST | HWCR => cx.amd,
        DE_CFG => cx.amd && value == 1 << 1,
        _ => !cx.has_gp_handler,
    };
    if is_harmless { Write::Ignore } else { Write::Fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CX: MsrContext = MsrContext { bootstrap: true, amd: true, has_gp_handler: true, efer: 0xd01 };

    #[test]
    fn pat_reads_as_the_real_one() {
        assert_eq!(read(PAT, &CX), Read::Value(0x0000_0501_0007_0406));
        assert_eq!(write(PAT, 0x0000_0501_0007_0406, &CX), Write::Ignore);
        assert_eq!(write(PAT, 0, &CX), Write::Fault);
    }

    #[test]
    fn unknown_registers_fault_once_the_guest_can_take_it() {
        assert_eq!(read(0x1234, &CX), Read::Fault);
        assert_eq!(read(0x1234, &MsrContext { has_gp_handler: false, ..CX }), Read::Value(0));
        assert_eq!(write(0x1234, 1, &CX), Write::Fault);
    }

    #[test]
    fn bases_must_be_canonical() {
        assert_eq!(write(GS_BASE, 0xffff_8880_0000_0000, &CX), Write::Base(SegmentBase::GsKernel));
        assert_eq!(write(GS_BASE, 0x0000_8000_0000_0000, &CX), Write::Fault);
        assert_eq!(write(FS_BASE, 0x7fff_ffff_f000, &CX), Write::Base(SegmentBase::Fs));
    }

    #[test]
    fn vendor_registers_exist_on_their_vendor_only() {
        assert_eq!(read(HWCR, &CX), Read::Value(1 << 24));
        assert_eq!(read(HWCR, &MsrContext { amd: false, ..CX }), Read::Fault);
        assert_eq!(read(FEATURE_CONTROL, &CX), Read::Fault);
    }

    #[test]
    fn apic_base_marks_the_bootstrap_processor() {
        assert_eq!(read(APIC_BASE, &CX), Read::Value(0xfee0_0900));
        assert_eq!(read(APIC_BASE, &MsrContext { bootstrap: false, ..CX }), Read::Value(0xfee0_0800));
    }
}
