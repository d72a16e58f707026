//! What of this CPU can be read by side channels of speculation, and what is done against each.
//!
//! A CPU counts as affected by whatever it does not deny. Names prove nothing: QEMU calls a model "QEMU Virtual CPU" on
//! silicon too, and a hypervisor below may give the CPU another maker's name and model. So the maker and the model deny a
//! fault only on a CPU without a hypervisor below. What each fault is: `docs/SPECULATION.md`.
#![forbid(unsafe_code)]

mod choices;
mod faults;
mod measures;
#[cfg(test)]
mod tests;

use crate::emul::cpuid::HYPERVISOR_BASE;
use crate::platform::CpuidResult;

pub use choices::Choices;
pub use faults::{Row, State, table};
pub use measures::Measures;

/// In which the CPU tells the faults that it does not have; the MSR is there if leaf 7 says so.
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
/// In which microcode's own counter-measures are turned off, if [`Facts`] say that there are any.
const MSR_MCU_OPT_CTRL: u32 = 0x123;
/// Leaf 1, ecx: there is a hypervisor below.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, ebx.
const SMEP: u32 = 1 << 7;
const SMAP: u32 = 1 << 20;
/// Leaf 7, edx.
const SRBDS_CTRL: u32 = 1 << 9;
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// `MSR_ARCH_CAPABILITIES`.
const EIBRS: u64 = 1 << 1;
const GDS_CTRL: u64 = 1 << 25;

/// What the CPU's registers say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Leaf 0: the maker.
    pub maker: CpuidResult,
    /// Leaf 1: family, model and stepping in eax.
    pub one: CpuidResult,
    /// Leaf 0x4000_0000: the name of the hypervisor below, if there is one.
    pub below: CpuidResult,
    /// Leaf 7.
    pub seven: CpuidResult,
    /// Leaf 7, sub-leaf 2.
    pub seven_two: CpuidResult,
    /// Leaf 0x8000_0008.
    pub extended_8: CpuidResult,
    /// Leaf 0x8000_0021.
    pub extended_21: CpuidResult,
    /// `MSR_ARCH_CAPABILITIES`; 0: there is none.
    pub capabilities: u64,
    /// `MSR_MCU_OPT_CTRL`; 0: there is none.
    pub microcode: u64,
}

/// The maker of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Intel,
    Amd,
    /// Another maker, or a hypervisor below, which may say what is not so.
    Unknown,
}

impl Facts {
    /// Reads the registers. An MSR is read only if the CPU enumerates that MSR.
    pub fn read(cpuid: impl Fn(u32, u32) -> CpuidResult, read_msr: impl Fn(u32) -> u64) -> Self {
        let nothing = CpuidResult::default();
        let (maker, one) = (cpuid(0, 0), cpuid(1, 0));
        let below = if one.ecx & HYPERVISOR != 0 { cpuid(HYPERVISOR_BASE, 0) } else { nothing };
        let seven = if maker.eax >= 7 { cpuid(7, 0) } else { nothing };
        let seven_two = if seven.eax >= 2 { cpuid(7, 2) } else { nothing };
        let last = cpuid(0x8000_0000, 0).eax;
        let extended = |leaf| if last >= leaf { cpuid(leaf, 0) } else { nothing };
        let msr = |is_there: bool, msr| if is_there { read_msr(msr) } else { 0 };
        let capabilities = msr(seven.edx & ARCH_CAPABILITIES != 0, MSR_ARCH_CAPABILITIES);
        let has_microcode = seven.edx & SRBDS_CTRL != 0 || capabilities & GDS_CTRL != 0;
        Self {
            maker,
            one,
            below,
            seven,
            seven_two,
            extended_8: extended(0x8000_0008),
            extended_21: extended(0x8000_0021),
            capabilities,
            microcode: msr(has_microcode, MSR_MCU_OPT_CTRL),
        }
    }

    /// The same CPU without what the command line turns off.
    const fn as_chosen(&self, choices: &Choices) -> Self {
        let mut facts = *self;
        if let Some(false) = choices.smep {
            facts.seven.ebx &= !SMEP;
        }
        if let Some(false) = choices.smap {
            facts.seven.ebx &= !SMAP;
        }
        facts
    }

    /// Ring 0 can be kept from executing guests' pages.
    pub const fn has_smep(&self) -> bool {
        self.seven.ebx & SMEP != 0
    }

    /// Ring 0 can be kept from reading and writing guests' pages.
    pub const fn has_smap(&self) -> bool {
        self.seven.ebx & SMAP != 0
    }

    /// Whether `MSR_ARCH_CAPABILITIES` has all of `bits`.
    const fn says(&self, bits: u64) -> bool {
        self.capabilities & bits == bits
    }

    const fn has_eibrs(&self) -> bool {
        self.says(EIBRS)
    }

    const fn has_bhi_dis_s(&self) -> bool {
        self.seven_two.edx & 1 << 4 != 0
    }

    /// `MSR_PRED_CMD` with IBPB: Intel's bit, AMD's bit.
    const fn has_ibpb(&self) -> bool {
        self.seven.edx & 1 << 26 != 0 || self.extended_8.ebx & 1 << 12 != 0
    }

    /// IBPB forgets predicted returns too.
    const fn has_ibpb_ret(&self) -> bool {
        self.seven.edx & 1 << 26 != 0 || self.extended_8.ebx & 1 << 30 != 0
    }

    /// IBPB forgets where branches of any kind are; Zen1 and Zen2 do so without the bit.
    fn has_ibpb_brtype(&self) -> bool {
        self.extended_21.eax & 1 << 28 != 0
            || self.maker() == Maker::Amd && matches!(self.family(), 0x17 | 0x18)
    }

    /// `MSR_SPEC_CTRL` with IBRS.
    const fn has_ibrs(&self) -> bool {
        self.seven.edx & 1 << 26 != 0 || self.extended_8.ebx & 1 << 14 != 0
    }

    const fn has_ssbd(&self) -> bool {
        self.seven.edx & 1 << 31 != 0 || self.extended_8.ebx & 1 << 24 != 0
    }

    const fn has_psfd(&self) -> bool {
        self.seven_two.edx & 1 != 0 || self.extended_8.ebx & 1 << 28 != 0
    }

    /// `MSR_SPEC_CTRL`: IBRS, STIBP or SSBD of Intel's, or of AMD's.
    const fn has_control(&self) -> bool {
        self.seven.edx & (1 << 26 | 1 << 27 | 1 << 31) != 0
            || self.extended_8.ebx & (1 << 14 | 1 << 15 | 1 << 24) != 0
    }

    /// Whether AMD's LFENCE orders loads alone, unless a bit of `MSR_DE_CFG` is set: from family 0x10 on, but 0x11, until the CPU
    /// says otherwise.
    fn lets_lfence_pass(&self) -> bool {
        self.family() >= 0x10 && self.family() != 0x11 && self.extended_21.eax & 1 << 2 == 0
    }

    const fn is_virtual(&self) -> bool {
        self.one.ecx & HYPERVISOR != 0
    }

    /// Whether QEMU's emulator is below, which executes one instruction after the other.
    pub fn is_emulated(&self) -> bool {
        let words = [self.below.ebx, self.below.ecx, self.below.edx].map(u32::to_le_bytes);
        self.is_virtual() && words.as_flattened() == b"TCGTCGTCGTCG"
    }

    fn maker(&self) -> Maker {
        match self.maker.ebx {
            _ if self.is_virtual() => Maker::Unknown,
            0x756e_6547 => Maker::Intel,
            _ if self.maker.is_amd() => Maker::Amd,
            _ => Maker::Unknown,
        }
    }

    const fn family(&self) -> u32 {
        let family = self.one.eax >> 8 & 0xf;
        if family == 0xf { family + (self.one.eax >> 20 & 0xff) } else { family }
    }

    const fn model(&self) -> u32 {
        self.one.eax >> 4 & 0xf | self.one.eax >> 12 & 0xf0
    }

    /// Whether the CPU is one of Intel's of family 6, and among `models`, or not among them.
    fn is_model(&self, models: &[u32], among: bool) -> bool {
        self.maker() == Maker::Intel && self.family() == 6 && models.contains(&self.model()) == among
    }

    /// Whether the CPU is AMD's or Hygon's, and of another family than those.
    fn is_no_family(&self, families: &[u32]) -> bool {
        self.maker() == Maker::Amd && !families.contains(&self.family())
    }
}

/// Whether there is a hypervisor below that calls itself `TCGTCGTCGTCG`: QEMU's emulator.
pub fn is_emulated(cpuid: impl Fn(u32, u32) -> CpuidResult) -> bool {
    Facts { one: cpuid(1, 0), below: cpuid(HYPERVISOR_BASE, 0), ..Facts::default() }.is_emulated()
}
