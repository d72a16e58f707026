//! What a paravirtualized guest may see of the CPU.
//!
//! A guest sees a feature only if a list here names the feature and the CPU has it. So a new CPU cannot offer a guest state
//! that microhv does not switch, or an instruction that a guest must not run.
//! Leaves: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E. Leaves at 0x40000000:
//! `xen/include/public/arch-x86/cpuid.h`.

pub use super::state::HYPERVISOR_BASE;
use super::state::{HYPERVISOR, OSXSAVE, XCR0_AVX, XCR0_AVX512, XCR0_SSE, XSAVE};
use crate::platform::CpuidResult;

impl CpuidResult {
    /// Whether leaf 0 says "AuthenticAMD" or "HygonGenuine".
    pub(crate) const fn is_amd(&self) -> bool {
        matches!(self.ebx, 0x6874_7541 | 0x6f67_7948)
    }
}

/// What the answer depends on besides the CPU.
#[derive(Clone, Copy, Debug)]
pub struct CpuidContext {
    /// The vCPU that asks: its number stands for the APIC id.
    pub vcpu: u32,
    /// The hardware domain is also shown MTRR.
    pub hardware_domain: bool,
    /// XCR0 bits that a guest may enable; 0: microhv does not switch by XSAVE.
    pub xcr0_mask: u64,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    /// `tsc_mode` of the domain (0 default, 1 always emulate, 2 never emulate).
    pub tsc_mode: u32,
    /// Bits in a machine address.
    pub machine_address_bits: u8,
}

const HYPERVISOR_LAST: u32 = HYPERVISOR_BASE + 5;

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// Features of a register that guests see: always, where they may enable AVX, where they may enable AVX-512.
type Features = [u32; 3];

const L1_ECX: Features = [
    // SSE3 PCLMUL SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES RDRAND. Not XSAVE, OSXSAVE, HYPERVISOR: set by hand.
    bits(&[0, 1, 9, 13, 19, 20, 22, 23, 25, 30]),
    bits(&[12, 28, 29]), // FMA AVX F16C
    0,
];
// Leaf 1 edx: FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFLUSH MMX FXSR SSE SSE2 HTT. PAT is safe to show: its MSR
// reads as the value that microhv loads, and the page attributes it selects need I/O rights.
const L1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26, 28]);
const MTRR: u32 = 1 << 12;

const L7_EBX: Features = [
    // FSGSBASE BMI1 FDP_EXCPTN BMI2 ERMS NO_FPU_SEL RDSEED ADX CLFLUSHOPT CLWB SHA
    bits(&[0, 3, 6, 8, 9, 13, 18, 19, 23, 24, 29]),
    bits(&[5]),                      // AVX2
    bits(&[16, 17, 21, 28, 30, 31]), // AVX512 F DQ IFMA CD BW VL
];
const L7_ECX: Features = [
    bits(&[8, 25, 27, 28]),    // GFNI CLDEMOTE MOVDIRI MOVDIR64B
    bits(&[9, 10]),            // VAES VPCLMUL
    bits(&[1, 6, 11, 12, 14]), // AVX512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ
];
// FSRM MD_CLEAR SERIALIZE; AVX512 4VNNIW 4FMAPS VP2INTERSECT.
const L7_EDX: Features = [bits(&[4, 10, 14]), 0, bits(&[2, 3, 8])];

// LAHF CMP_LEGACY ABM SSE4A MISALIGNSSE 3DNOWPREFETCH TBM; XOP FMA4.
const E1_ECX: Features = [bits(&[0, 1, 5, 6, 7, 8, 21]), bits(&[11, 16]), 0];
// 0x80000001 edx: SYSCALL NX MMXEXT FFXSR RDTSCP LM 3DNOWEXT 3DNOW, and AMD's copies of leaf 1.
const E1_EDX: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 20, 22, 23, 24, 25, 27, 29, 30, 31]);

impl CpuidContext {
    /// Whether a guest may enable all of `states`.
    const fn switches(&self, states: u64) -> bool {
        self.xcr0_mask & states == states
    }

    /// What the guest sees of a register.
    fn shown(&self, register: u32, [always, avx, avx512]: Features) -> u32 {
        let avx = if self.switches(XCR0_AVX) { avx } else { 0 };
        let avx512 = if self.switches(XCR0_AVX512) { avx512 } else { 0 };
        register & (always | avx | avx512)
    }

    /// Bits that only the hardware domain sees in the features of leaf 1, and in AMD's copies.
    const fn mtrr(&self) -> u32 {
        if self.hardware_domain { MTRR } else { 0 }
    }
}

/// The CPU's own answer to a leaf and sub-leaf.
trait Host: Fn(u32, u32) -> CpuidResult {}
impl<F: Fn(u32, u32) -> CpuidResult> Host for F {}

/// Answers `cpuid(leaf, subleaf)`; `host` gives the CPU's own answer to a leaf and sub-leaf.
#[inline(always)]
pub fn query(
    leaf: u32,
    subleaf: u32,
    cx: &CpuidContext,
    host: impl Fn(u32, u32) -> CpuidResult,
) -> CpuidResult {
    match leaf {
        HYPERVISOR_BASE..=0x4fff_ffff => hypervisor_leaf(leaf, subleaf, cx, &host),
        0..=0x3fff_ffff => basic_leaf(leaf, subleaf, cx, &host),
        0x8000_0000..=0x8000_ffff => extended_leaf(leaf, cx, &host),
        _ => CpuidResult::default(),
    }
}

#[inline(always)]
fn basic_leaf(leaf: u32, subleaf: u32, cx: &CpuidContext, host: &impl Host) -> CpuidResult {
    let zero = CpuidResult::default();
    if leaf > max_basic(host) {
        return zero;
    }
    match leaf {
        0 => CpuidResult { eax: max_basic(host), ..host(0, 0) },
        1 => {
            let h = host(1, 0);
            let mut ecx = cx.shown(h.ecx, L1_ECX) | HYPERVISOR;
            if h.ecx & XSAVE != 0 && cx.switches(XCR0_SSE) {
                // The CPU has CR4.OSXSAVE set where microhv owns XSAVE; Linux takes the feature only if it sees the bit.
                ecx |= XSAVE | OSXSAVE;
            }
            // [31:24] APIC id, [23:16] logical processors in the package, [15:8] cache line, [7:0] brand.
            let ebx = h.ebx & 0x00ff_ffff | (cx.vcpu * 2 & 0xff) << 24;
            CpuidResult { eax: h.eax, ebx, ecx, edx: h.edx & (L1_EDX | cx.mtrr()) }
        }
        // Cache descriptors and, in leaf 4, cache geometry: harmless facts about the machine.
        2 | 4 => host(leaf, subleaf),
        7 if subleaf == 0 => {
            let h = host(7, 0);
            CpuidResult {
                eax: 0,
                ebx: cx.shown(h.ebx, L7_EBX),
                ecx: cx.shown(h.ecx, L7_ECX),
                edx: cx.shown(h.edx, L7_EDX),
            }
        }
        0xd if cx.switches(XCR0_SSE) => match subleaf {
            0 => {
                let h = host(0xd, 0);
                CpuidResult {
                    eax: h.eax & cx.xcr0_mask as u32,
                    edx: h.edx & (cx.xcr0_mask >> 32) as u32,
                    ..h
                }
            }
            // XSAVEOPT, XSAVEC and XGETBV1; no supervisor state, so XSAVES is not there.
            1 => CpuidResult { eax: host(0xd, 1).eax & 0x7, ..zero },
            2..=62 if cx.xcr0_mask >> subleaf & 1 == 1 => host(0xd, subleaf),
            _ => zero,
        },
        // MONITOR (5), thermal (6), PMU (0xa), topology (0xb, 0x1f), QoS, SGX, PT: none of it is a guest's.
        _ => zero,
    }
}

#[inline(always)]
fn extended_leaf(leaf: u32, cx: &CpuidContext, host: &impl Host) -> CpuidResult {
    let zero = CpuidResult::default();
    let max = host(0x8000_0000, 0).eax.clamp(0x8000_0000, 0x8000_0008);
    if leaf > max {
        return zero;
    }
    let h = host(leaf, 0);
    match leaf {
        0x8000_0000 => CpuidResult { eax: max, ..h },
        0x8000_0001 => CpuidResult { ecx: cx.shown(h.ecx, E1_ECX), edx: h.edx & (E1_EDX | cx.mtrr()), ..h },
        0x8000_0002..=0x8000_0006 => h,
        // Only the invariant TSC bit.
        0x8000_0007 => CpuidResult { edx: h.edx & 1 << 8, ..zero },
        // Address widths; the rest speaks of cores and speculation controls.
        0x8000_0008 => CpuidResult { eax: h.eax & 0xffff, ..zero },
        _ => zero,
    }
}

fn hypervisor_leaf(leaf: u32, subleaf: u32, cx: &CpuidContext, host: &impl Host) -> CpuidResult {
    let zero = CpuidResult::default();
    match leaf - HYPERVISOR_BASE {
        // "XenVMMXenVMM"
        0 => CpuidResult { eax: HYPERVISOR_LAST, ebx: 0x566e_6558, ecx: 0x6558_4d4d, edx: 0x4d4d_566e },
        1 => CpuidResult { eax: 0x0004_0011, ..zero }, // 4.17
        // One hypercall page, the MSR for it (HVM's), MMU_PT_UPDATE_PRESERVE_AD there.
        2 => CpuidResult { eax: 1, ebx: HYPERVISOR_BASE, ecx: 1, ..zero },
        3 => match subleaf {
            0 => {
                let rdtscp = host(0x8000_0001, 0).edx >> 27 & 1;
                let reliable = host(0x8000_0007, 0).edx >> 8 & 1;
                CpuidResult {
                    eax: reliable << 1 | rdtscp << 2, // bit 0, `rdtsc` is emulated, stays clear
                    ebx: cx.tsc_mode,
                    ecx: cx.tsc_khz,
                    edx: 0,
                }
            }
            2 => CpuidResult { eax: cx.tsc_khz, ..zero },
            _ => zero,
        },
        5 => CpuidResult { ebx: u32::from(cx.machine_address_bits), ..zero },
        _ => zero, // 4 is HVM's
    }
}

fn max_basic(host: &impl Host) -> u32 {
    host(0, 0).eax.min(0xd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CX: CpuidContext = CpuidContext {
        vcpu: 0,
        hardware_domain: false,
        xcr0_mask: 0,
        tsc_khz: 1_000_000,
        tsc_mode: 0,
        machine_address_bits: 36,
    };

    fn all_ones(leaf: u32, _: u32) -> CpuidResult {
        match leaf {
            0 => CpuidResult { eax: 0x20, ..CpuidResult::default() },
            0x8000_0000 => CpuidResult { eax: 0x8000_0021, ..CpuidResult::default() },
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        }
    }

    #[test]
    fn what_pv_guests_must_not_see_is_hidden() {
        let r = query(1, 0, &CX, all_ones);
        for bit in [3, 5, 6, 17, 21, 24, 26, 27, 12, 28] {
            assert_eq!(r.ecx >> bit & 1, 0, "leaf 1 ecx bit {bit}");
        }
        for bit in [1, 3, 12, 13, 17, 21, 22] {
            assert_eq!(r.edx >> bit & 1, 0, "leaf 1 edx bit {bit}");
        }
        let r = query(7, 0, &CX, all_ones);
        for bit in [1, 2, 7, 10, 12, 14, 15, 20, 25, 5, 16] {
            assert_eq!(r.ebx >> bit & 1, 0, "leaf 7 ebx bit {bit}");
        }
        for bit in [2, 3, 4, 16] {
            assert_eq!(r.ecx >> bit & 1, 0, "leaf 7 ecx bit {bit}");
        }
        let r = query(0x8000_0001, 0, &CX, all_ones);
        for bit in [2, 10, 15, 22] {
            assert_eq!(r.ecx >> bit & 1, 0, "0x80000001 ecx bit {bit}");
        }
        for bit in [3, 13, 17, 26] {
            assert_eq!(r.edx >> bit & 1, 0, "0x80000001 edx bit {bit}");
        }
        assert_eq!(query(0xb, 0, &CX, all_ones), CpuidResult::default());
        assert_eq!(query(0x8000_000a, 0, &CX, all_ones), CpuidResult::default());
    }

    #[test]
    fn what_pv_guests_need_is_shown() {
        let r = query(1, 0, &CX, all_ones);
        for bit in [7, 9, 11, 14, 16, 28] {
            assert_eq!(r.edx >> bit & 1, 1, "leaf 1 edx bit {bit}");
        }
        assert_eq!(r.ecx >> 31, 1);
        let r = query(0x8000_0001, 0, &CX, all_ones);
        for bit in [11, 20, 27, 29] {
            assert_eq!(r.edx >> bit & 1, 1, "0x80000001 edx bit {bit}");
        }
    }

    #[test]
    fn nothing_is_shown_that_the_cpu_lacks() {
        let none =
            |leaf: u32, _| CpuidResult { eax: if leaf == 0 { 0xd } else { 0 }, ..CpuidResult::default() };
        let r = query(1, 0, &CX, none);
        assert_eq!((r.ecx, r.edx), (HYPERVISOR, 0));
    }

    #[test]
    fn xsave_is_shown_with_osxsave_only_when_microhv_switches_it() {
        let cx = CpuidContext { xcr0_mask: 7, ..CX };
        let r = query(1, 0, &cx, all_ones);
        assert_eq!(r.ecx & (XSAVE | OSXSAVE), XSAVE | OSXSAVE);
        assert_eq!(query(0xd, 0, &cx, all_ones).eax, 7);
        assert_eq!(query(0xd, 1, &cx, all_ones).eax, 7, "no XSAVES");
        assert_eq!(query(0xd, 9, &cx, all_ones), CpuidResult::default(), "PKRU is not a guest's");
        assert_eq!(query(7, 0, &cx, all_ones).ebx & L7_EBX[2], 0);
    }

    #[test]
    fn hypervisor_leaves() {
        let r = query(HYPERVISOR_BASE, 0, &CX, all_ones);
        let mut name = [0; 12];
        name[..4].copy_from_slice(&r.ebx.to_le_bytes());
        name[4..8].copy_from_slice(&r.ecx.to_le_bytes());
        name[8..].copy_from_slice(&r.edx.to_le_bytes());
        assert_eq!(&name, b"XenVMMXenVMM");
        assert_eq!(r.eax, HYPERVISOR_BASE + 5);
        assert_eq!(query(HYPERVISOR_BASE + 1, 0, &CX, all_ones).eax, 0x40011);
        assert_eq!(query(HYPERVISOR_BASE + 5, 0, &CX, all_ones).ebx, 36);
        assert_eq!(query(HYPERVISOR_BASE + 0x100, 0, &CX, all_ones), CpuidResult::default());
    }

    #[test]
    fn leaves_beyond_the_maximum_are_zero() {
        let old =
            |leaf: u32, _| CpuidResult { eax: if leaf == 0 { 1 } else { !0 }, ..CpuidResult::default() };
        assert_eq!(query(7, 0, &CX, old), CpuidResult::default());
        assert_eq!(query(0x9000_0000, 0, &CX, all_ones), CpuidResult::default());
    }
}
