//! What the hypervisor does against side channels on this CPU, and why the rest is not needed.
//!
//! A CPU counts as affected by whatever it does not deny. Names prove nothing: QEMU calls a model "QEMU Virtual CPU" on
//! silicon too, and a hypervisor below may give the CPU another maker's name.
#![forbid(unsafe_code)]

use alloc::format;
use alloc::string::String;

use crate::emul::cpuid::HYPERVISOR_BASE;
use crate::platform::CpuidResult;

/// In which the CPU tells the faults that it does not have; the MSR is there if leaf 7 says so.
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
/// Leaf 1, ecx: there is a hypervisor below.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 7, edx: IBPB and IBRS; `MSR_ARCH_CAPABILITIES`.
const IBPB: u32 = 1 << 26;
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 0x8000_0008, ebx: IBPB, on AMD's CPUs.
const AMD_IBPB: u32 = 1 << 12;
/// `MSR_ARCH_CAPABILITIES`, RDCL_NO: no reads of the hypervisor's memory by a guest's own instructions (Meltdown), and, as Intel
/// says of such CPUs, none of the first-level cache through entries that are not present (L1TF).
const NO_MELTDOWN_OR_L1TF: u64 = 1 << 0;
/// No reads of what buffers of the CPU hold.
const NO_MDS: u64 = 1 << 5;
/// No such reads behind an abort of a transaction.
const NO_TAA: u64 = 1 << 8;

/// The policy for a CPU by what `cpuid` and `read_msr` tell, as it is printed at boot. An MSR is read only if the CPU enumerates
/// that MSR. `wanted`: `mitigations=off` was not given.
pub fn policy(
    wanted: bool,
    cpuid: impl Fn(u32, u32) -> CpuidResult,
    read_msr: impl Fn(u32) -> u64,
) -> String {
    if !wanted {
        return "side channels: counter-measures off by the command line".into();
    }
    // QEMU's emulator executes one instruction after the other: no side channel of those below.
    if is_emulated(&cpuid) {
        return "side channels: emulated CPU, no speculation: no page-table isolation, barriers or stack filling needed".into();
    }
    let zero = cpuid(0, 0);
    let is_virtual = cpuid(1, 0).ecx & HYPERVISOR != 0;
    let seven = if zero.eax >= 7 { cpuid(7, 0).edx } else { 0 };
    let extended = if cpuid(0x8000_0000, 0).eax >= 0x8000_0008 { cpuid(0x8000_0008, 0).ebx } else { 0 };
    let unaffected = match seven & ARCH_CAPABILITIES {
        // AMD's CPUs have none of these by their design, and need not say so. Below another hypervisor the maker's name
        // may be false.
        _ if zero.is_amd() && !is_virtual => u64::MAX,
        0 => 0,
        _ => read_msr(MSR_ARCH_CAPABILITIES),
    };
    let said = |none: u64| if unaffected & none != 0 { "not affected" } else { "affected" };
    let has_ibpb = seven & IBPB != 0 || extended & AMD_IBPB != 0;
    format!(
        "side channels: NOT MITIGATED on this CPU: Meltdown {0}, L1TF {0}, MDS {1}, TAA {2}, Spectre v2 (IBPB {3})",
        said(NO_MELTDOWN_OR_L1TF),
        said(NO_MDS),
        said(NO_TAA),
        if has_ibpb { "there, unused" } else { "absent" },
    )
}

/// Whether there is a hypervisor below that calls itself `TCGTCGTCGTCG`: QEMU's emulator.
pub fn is_emulated(cpuid: impl Fn(u32, u32) -> CpuidResult) -> bool {
    if cpuid(1, 0).ecx & HYPERVISOR == 0 {
        return false;
    }
    let signature = cpuid(HYPERVISOR_BASE, 0);
    let words = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
    words.as_flattened() == b"TCGTCGTCGTCG"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Leaves as eax, ebx, ecx, edx; those that are not there are 0.
    type Leaves<'a> = &'a [(u32, [u32; 4])];

    const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
    const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

    fn vendor(highest: u32, [ebx, ecx, edx]: [u32; 3]) -> (u32, [u32; 4]) {
        (0, [highest, ebx, ecx, edx])
    }

    fn below(name: [u8; 12]) -> (u32, [u32; 4]) {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        (HYPERVISOR_BASE, [0x4000_0001, word(0), word(4), word(8)])
    }

    /// The policy of a CPU with these leaves and that value of the MSR; `None`: reading the MSR would fault.
    fn of(leaves: Leaves<'_>, capabilities: Option<u64>) -> String {
        let leaves: BTreeMap<u32, [u32; 4]> = leaves.iter().copied().collect();
        let cpuid = |leaf: u32, _| {
            let [eax, ebx, ecx, edx] = leaves.get(&leaf).copied().unwrap_or_default();
            CpuidResult { eax, ebx, ecx, edx }
        };
        policy(true, cpuid, |msr| {
            assert_eq!(msr, MSR_ARCH_CAPABILITIES);
            capabilities.expect("an MSR that the CPU does not have is not read")
        })
    }

    /// QEMU's model `qemu64`: the same under the emulator and on silicon but for the name of what is below.
    fn qemu64(name: [u8; 12]) -> String {
        of(
            &[
                vendor(0xd, AMD),
                (1, [0x0060_0fb1, 0x800, 0x8000_2001, 0x078b_fbfd]),
                below(name),
                (0x8000_0000, [0x8000_000a, AMD[0], AMD[1], AMD[2]]),
                (0x8000_0002, [u32::from_le_bytes(*b"QEMU"), u32::from_le_bytes(*b" Vir"), 0, 0]),
                (0x8000_0008, [0x3028, 0, 0, 0]),
            ],
            None,
        )
    }

    const EMULATED: &str = "side channels: emulated CPU, no speculation";

    /// What is said of a CPU that is affected by what counts as `meltdown` (with L1TF), `mds` and `taa`.
    fn affected([meltdown, mds, taa]: [bool; 3], ibpb: &str) -> String {
        let [meltdown, mds, taa] =
            [meltdown, mds, taa].map(|is| if is { "affected" } else { "not affected" });
        let faults = format!("Meltdown {meltdown}, L1TF {meltdown}, MDS {mds}, TAA {taa}");
        format!("side channels: NOT MITIGATED on this CPU: {faults}, Spectre v2 (IBPB {ibpb})")
    }

    #[test]
    fn the_emulator_needs_nothing() {
        let policy = qemu64(*b"TCGTCGTCGTCG");
        assert!(policy.starts_with(EMULATED), "{policy}");
    }

    #[test]
    fn its_model_on_silicon_is_no_emulator() {
        let policy = qemu64(*b"KVMKVMKVM\0\0\0");
        assert_eq!(policy, affected([true; 3], "absent"), "the maker is what another hypervisor says");
    }

    #[test]
    fn the_emulators_name_counts_only_below_a_hypervisor() {
        let policy = of(&[vendor(0xd, INTEL), (1, [0; 4]), below(*b"TCGTCGTCGTCG")], None);
        assert_eq!(policy, affected([true; 3], "absent"));
    }

    #[test]
    fn a_skylake_is_affected_by_all() {
        // Microcode with IBPB and the L1D flush, without the MSR.
        let policy = of(
            &[
                vendor(0x16, INTEL),
                (1, [0x0005_0654, 0x0010_0800, 0x7ffe_fbff, 0xbfeb_fbff]),
                (7, [0, 0xd39f_fffb, 8, 0x9c00_0000 & !ARCH_CAPABILITIES]),
                (0x8000_0000, [0x8000_0008, 0, 0, 0]),
            ],
            None,
        );
        assert_eq!(policy, affected([true; 3], "there, unused"));
    }

    #[test]
    fn an_ice_lake_says_what_it_has_not() {
        let leaves: Leaves<'_> = &[
            vendor(0x1b, INTEL),
            (1, [0x0006_06a6, 0x0010_0800, 0x7ffe_fbff, 0xbfeb_fbff]),
            (7, [0, 0xf3bf_fbff, 0x4041_7f5e, 0xbc04_0412]),
            (0x8000_0000, [0x8000_0008, 0, 0, 0]),
        ];
        // RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, TSX_CTRL; of TAA it says nothing.
        let policy = of(leaves, Some(0xab));
        assert_eq!(policy, affected([false, false, true], "there, unused"));
        // The same CPU whose MSR says nothing.
        assert_eq!(of(leaves, Some(0)), affected([true; 3], "there, unused"));
    }

    #[test]
    fn an_epyc_is_affected_by_spectre_alone() {
        let leaves = |ecx: u32| {
            [
                vendor(0x10, AMD),
                (1, [0x00a0_0f11, 0x0010_0800, ecx, 0x178b_fbff]),
                (7, [0, 0x219c_97a9, 0x0040_069c, 0x10]),
                below(*b"KVMKVMKVM\0\0\0"),
                (0x8000_0000, [0x8000_0023, AMD[0], AMD[1], AMD[2]]),
                (0x8000_0008, [0x3030, 0x111e_f657, 0, 0]),
            ]
        };
        let policy = of(&leaves(0x7ed8_320b), None);
        assert_eq!(policy, affected([false; 3], "there, unused"));
        let below_kvm = of(&leaves(0xfed8_320b), None);
        assert_eq!(below_kvm, affected([true; 3], "there, unused"));
    }

    #[test]
    fn the_command_line_turns_all_off() {
        let none = |_, _| CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        assert!(policy(false, none, |_| 0).contains("off by the command line"));
    }
}
