//! By which way the local APICs are driven: by registers in memory (xAPIC), or by MSRs (x2APIC).
//!
//! Source: Intel SDM volume 3, "Extended XAPIC (x2APIC)".
#![forbid(unsafe_code)]

use crate::platform::CpuidResult;

/// Leaf 1, ecx: the local APIC has the x2APIC mode; there is a hypervisor below.
const X2APIC: u32 = 1 << 21;
const HYPERVISOR: u32 = 1 << 31;
/// `IA32_APIC_BASE`: the local APIC is on, and in x2APIC mode.
const ON: u64 = 1 << 11;
const IN_X2APIC_MODE: u64 = 1 << 10;

/// The highest id by which an xAPIC reaches a CPU, and by which a device's interrupt does: 255 means all.
pub const LAST_SHORT_ID: u32 = 254;

/// The way to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// xAPIC: registers in memory, ids of 8 bits.
    Memory,
    /// x2APIC: MSRs, ids of 32 bits.
    Msr,
}

/// Chooses the way, and says in words for the boot log why. `asked` is the command line's `x2apic=`; `leaf_1` what CPUID answers; `base`
/// what `IA32_APIC_BASE` holds, as firmware left that register.
///
/// The manual wants interrupt remapping for devices' interrupts to CPUs in x2APIC mode, which microhv does not drive. So on a bare
/// machine the mode is taken only if firmware chose it or the command line asks. Hypervisors deliver without remapping, up to
/// [`LAST_SHORT_ID`].
pub fn access(asked: Option<bool>, leaf_1: CpuidResult, base: u64) -> (Access, &'static str) {
    let is_virtual = leaf_1.ecx & HYPERVISOR != 0;
    if leaf_1.ecx & X2APIC == 0 {
        return (Access::Memory, "xAPIC, since this CPU offers no x2APIC");
    }
    match asked {
        // Firmware may have locked the mode, and a CPU with a long id has no other.
        _ if base & IN_X2APIC_MODE != 0 => (Access::Msr, "x2APIC, as firmware left it"),
        Some(false) => (Access::Memory, "xAPIC, by the command line"),
        Some(true) => (Access::Msr, "x2APIC, by the command line"),
        None if is_virtual => (Access::Msr, "x2APIC, which this virtual CPU offers"),
        None => (Access::Memory, "xAPIC: without interrupt remapping, x2APIC only by x2apic=true"),
    }
}

/// The values to be written to `IA32_APIC_BASE`, which holds `base`, so that the local APIC is on and driven by `access`: each is a
/// change that processors allow. From "off" to x2APIC the way leads over xAPIC, and out of x2APIC over "off".
pub fn ways_to(access: Access, base: u64) -> impl Iterator<Item = u64> {
    let address = base & !(ON | IN_X2APIC_MODE);
    let is_msr = base & IN_X2APIC_MODE != 0;
    match access {
        Access::Memory => [is_msr.then_some(address), Some(address | ON)],
        Access::Msr => [(!is_msr).then_some(address | ON), Some(address | ON | IN_X2APIC_MODE)],
    }
    .into_iter()
    .flatten()
}

/// Why a CPU with this id cannot be started by `access`, if that is so.
pub fn unreachable(access: Access, id: u32) -> Option<&'static str> {
    (access == Access::Memory && id > LAST_SHORT_ID).then_some("has an APIC id over 254")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: X2APIC, edx: 0 };
    const VIRTUAL: CpuidResult = CpuidResult { ecx: X2APIC | HYPERVISOR, ..OFFERED };
    const ABSENT: CpuidResult = CpuidResult { ecx: HYPERVISOR, ..OFFERED };
    const BASE: u64 = 0xfee0_0100;

    fn chosen(asked: Option<bool>, leaf_1: CpuidResult, mode: u64) -> Access {
        access(asked, leaf_1, BASE | mode).0
    }

    #[test]
    fn only_what_is_offered_is_used() {
        for asked in [None, Some(false), Some(true)] {
            assert_eq!(chosen(asked, ABSENT, ON), Access::Memory);
            assert_eq!(chosen(asked, VIRTUAL, ON) == Access::Msr, asked != Some(false));
        }
    }

    #[test]
    fn a_bare_machine_is_asked_or_has_chosen_itself() {
        assert_eq!(chosen(None, OFFERED, ON), Access::Memory);
        assert_eq!(chosen(Some(true), OFFERED, ON), Access::Msr);
        for asked in [None, Some(false), Some(true)] {
            assert_eq!(
                chosen(asked, OFFERED, ON | IN_X2APIC_MODE),
                Access::Msr,
                "firmware may have locked it"
            );
        }
    }

    /// The SDM's states: (on, x2APIC). A write of another than these changes is a fault.
    fn is_allowed(from: u64, to: u64) -> bool {
        let state = |base: u64| (base & ON != 0, base & IN_X2APIC_MODE != 0);
        match (state(from), state(to)) {
            (from, to) if from == to => true,
            ((false, false), (true, false)) | ((true, false), (true, true) | (false, false)) => true,
            ((true, true), (false, false)) => true,
            _ => false,
        }
    }

    #[test]
    fn each_step_to_a_mode_is_one_that_processors_allow() {
        for access in [Access::Memory, Access::Msr] {
            for mode in [0, ON, ON | IN_X2APIC_MODE] {
                let mut base = BASE | mode;
                for next in ways_to(access, base) {
                    assert!(is_allowed(base, next), "{base:#x} to {next:#x}");
                    base = next;
                }
                let wanted = if access == Access::Msr { ON | IN_X2APIC_MODE } else { ON };
                assert_eq!(base, BASE | wanted);
            }
        }
    }

    #[test]
    fn long_ids_are_reached_by_msr_alone() {
        for id in [255, 256, 0xffff_fffe] {
            assert_eq!(unreachable(Access::Memory, id), Some("has an APIC id over 254"));
            assert_eq!(unreachable(Access::Msr, id), None);
        }
        assert_eq!(unreachable(Access::Memory, LAST_SHORT_ID), None);
    }
}
