//! What the hypervisor does against side channels on this CPU, and why the rest is not needed.
#![forbid(unsafe_code)]

use core::fmt;

use crate::emul::cpuid::CpuidResult;

/// The policy for a CPU, as it is printed at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `mitigations=off` was given.
    pub is_off: bool,
    /// The CPU is an emulator's model, or says itself that it does not leak kernel memory (RDCL_NO, AMD).
    pub meltdown_safe: bool,
    /// The CPU predicts no indirect branch across privileges that a guest could train: an emulated model.
    pub is_emulated: bool,
    /// IBPB is there.
    pub has_ibpb: bool,
}

/// What `cpuid` says about a CPU.
pub fn policy(wanted: bool, cpuid: impl Fn(u32, u32) -> CpuidResult) -> Policy {
    let (zero, one) = (cpuid(0, 0), cpuid(1, 0));
    let is_amd = matches!(zero.ebx, 0x6874_7541 | 0x6f67_7948);
    // QEMU's own models: the name begins with "QEMU".
    let is_emulated =
        cpuid(0x8000_0000, 0).eax >= 0x8000_0002 && cpuid(0x8000_0002, 0).eax.to_le_bytes() == *b"QEMU";
    let seven = if zero.eax >= 7 { cpuid(7, 0).edx } else { 0 };
    let has_hypervisor = one.ecx & 1 << 31 != 0;
    Policy {
        is_off: !wanted,
        meltdown_safe: is_amd || (is_emulated && has_hypervisor),
        is_emulated: is_emulated && has_hypervisor,
        has_ibpb: seven & 1 << 26 != 0,
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("side channels: ")?;
        match self {
            Self { is_off: true, .. } => f.write_str("counter-measures off by the command line"),
            Self { is_emulated: true, .. } => f.write_str(
                "emulated CPU, no speculation: no page-table isolation, barriers or stack filling needed",
            ),
            Self { meltdown_safe, has_ibpb, .. } => write!(
                f,
                "NOT MITIGATED on this CPU: Meltdown {}, Spectre v2 (IBPB {}), MDS",
                if *meltdown_safe { "not affected" } else { "affected" },
                if *has_ibpb { "there, unused" } else { "absent" },
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn cpu(vendor: u32, name: [u8; 4]) -> impl Fn(u32, u32) -> CpuidResult {
        move |leaf, _| match leaf {
            0 => CpuidResult { eax: 1, ebx: vendor, ecx: 0, edx: 0 },
            1 => CpuidResult { eax: 0, ebx: 0, ecx: 1 << 31, edx: 0 },
            0x8000_0000 => CpuidResult { eax: 0x8000_0008, ebx: 0, ecx: 0, edx: 0 },
            0x8000_0002 => CpuidResult { eax: u32::from_le_bytes(name), ebx: 0, ecx: 0, edx: 0 },
            _ => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        }
    }

    #[test]
    fn emulated_cpus_need_nothing() {
        let policy = policy(true, cpu(0x6874_7541, *b"QEMU"));
        assert!(policy.is_emulated && policy.meltdown_safe);
        assert!(policy.to_string().contains("emulated"));
    }

    #[test]
    fn what_is_missing_is_said() {
        let intel = policy(true, cpu(0x756e_6547, *b"Inte"));
        assert!(!intel.meltdown_safe);
        assert!(intel.to_string().contains("NOT MITIGATED"));
        assert!(policy(false, cpu(0, [0; 4])).to_string().contains("off by the command line"));
    }
}
