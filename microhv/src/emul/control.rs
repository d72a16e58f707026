//! Control and debug registers of a guest kernel.

use super::state::{XCR0_AVX, XCR0_AVX512};
use super::{Emulated, edx_eax, shown};
use crate::Hypervisor;
use crate::domain::{Current, Domain, GuestCpu};
use crate::mem::MemError;
use crate::nospec::Wrapped;
use crate::platform::Platform;
use ring_abi::types::Maddr;

/// `vcpu_info.arch.cr2`.
const INFO_CR2: usize = 16;
/// CR4 bits that a guest sees set: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4_SHOWN: u64 = 0x660;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4 bits that a guest may change: TSD, DE, and what CPUID shows.
const CR4_GUEST: u64 = 1 << 2 | 1 << 3 | GuestCpu::CR4_FSGSBASE | CR4_OSXSAVE;
/// Leaf 7, ebx.
const FSGSBASE: u32 = 1 << 0;

pub(super) fn read_cr<P: Platform>(cur: &mut Current<'_, P>, cr: u8, number: u8) -> Emulated {
    let value = match cr {
        0 => cur.vcpu.cpu.lock().cr0,
        2 => cur.vcpu.info.get().map_or(0, |info| info.load_u64(INFO_CR2)),
        // The machine address, as the guest's own tables hold it.
        3 => cur.vcpu.cr3_kernel.get().map_or(0, |mfn| mfn.maddr().raw()),
        4 => CR4_SHOWN | cur.vcpu.cpu.lock().cr4 & CR4_GUEST,
        _ => return Emulated::NotEmulated,
    };
    *cur.regs.general(number) = value;
    Emulated::Done
}

pub(super) fn write_cr<P: Platform>(cur: &mut Current<'_, P>, cr: u8, number: u8) -> Emulated {
    let value = *cur.regs.general(number);
    match cr {
        0 => {
            if (value ^ cur.vcpu.cpu.lock().cr0) & !GuestCpu::CR0_TS != 0 {
                return Emulated::NotEmulated;
            }
            cur.set_task_switched(value & GuestCpu::CR0_TS != 0);
        }
        2 => {
            if let Some(info) = cur.vcpu.info.get() {
                info.store_u64(INFO_CR2, value);
            }
        }
        // The value is a machine address, as above.
        3 => match cur.hv.new_base(cur.domain, cur.vcpu, Maddr::new(value).mfn()) {
            Ok(()) => {}
            Err(MemError::Restart) => return Emulated::Again,
            Err(_) => return Emulated::NotEmulated,
        },
        4 => {
            // Other bits belong to the hypervisor; kernels write back what they read.
            let value = cr4_of_guest(cur.hv, cur.domain, value);
            cur.vcpu.cpu.lock().cr4 = value;
            cur.hv.platform.set_base_instructions(value & GuestCpu::CR4_FSGSBASE != 0);
        }
        _ => return Emulated::NotEmulated,
    }
    Emulated::Done
}

/// The bits of `value` that a guest may set in CR4: others belong to the hypervisor, or are of what CPUID does not show.
pub(crate) fn cr4_of_guest<P: Platform>(hv: &Hypervisor<P>, domain: &Domain, value: u64) -> u64 {
    let has_bases = shown(hv, domain, 0, 7, 0)[1].ebx & FSGSBASE != 0;
    let has_xcr0 = domain.levels.states(hv.platform.xcr0_mask()) != 0;
    let hidden = [(has_xcr0, CR4_OSXSAVE), (has_bases, GuestCpu::CR4_FSGSBASE)];
    let hidden = hidden.iter().filter(|(is_shown, _)| !is_shown).fold(0, |all, (_, bit)| all | bit);
    value & CR4_GUEST & !hidden
}

pub(super) fn read_dr<P: Platform>(cur: &mut Current<'_, P>, dr: u8, number: u8) -> Emulated {
    let Some(dr) = debug_register(cur, dr) else { return Emulated::NotEmulated };
    let value = *cur.vcpu.cpu.lock().debug.wrapped(usize::from(dr));
    *cur.regs.general(number) = value;
    Emulated::Done
}

pub(super) fn write_dr<P: Platform>(cur: &mut Current<'_, P>, dr: u8, number: u8) -> Emulated {
    let value = *cur.regs.general(number);
    let Some(dr) = debug_register(cur, dr) else { return Emulated::NotEmulated };
    match cur.vcpu.cpu.lock().set_debug_register(&cur.hv.platform, dr.into(), value) {
        Ok(()) => Emulated::Done,
        Err(_) => Emulated::NotEmulated,
    }
}

/// Without CR4.DE, registers 4 and 5 are other names of 6 and 7; with CR4.DE they do not exist.
fn debug_register<P: Platform>(cur: &Current<'_, P>, dr: u8) -> Option<u8> {
    match dr {
        0..=3 | 6 | 7 => Some(dr),
        4 | 5 if cur.vcpu.cpu.lock().cr4 & GuestCpu::CR4_DE == 0 => Some(dr + 2),
        _ => None,
    }
}

/// Sets XCR0: x87 always, SSE with AVX, and only what microhv switches and no policy hides.
pub(super) fn xsetbv<P: Platform>(cur: &mut Current<'_, P>) -> Emulated {
    let value = edx_eax(cur.regs);
    let mask = cur.xcr0_mask();
    if cur.regs.rcx as u32 != 0 || mask == 0 || !valid_xcr0(value, mask) {
        return Emulated::NotEmulated;
    }
    cur.hv.platform.set_xcr0(value);
    Emulated::Done
}

/// Whether XCR0 may be `value` where guests may set the components of `mask`.
pub(crate) fn valid_xcr0(value: u64, mask: u64) -> bool {
    let needs = |part: u64, whole: u64| value & part == 0 || value & whole == whole;
    value & 1 == 1 && value & !mask == 0 && needs(1 << 2, XCR0_AVX) && needs(7 << 5, XCR0_AVX512 | XCR0_AVX)
}

#[cfg(test)]
mod tests {
    use super::valid_xcr0;

    #[test]
    fn xcr0_combinations() {
        for (value, good) in
            [(0, false), (1, true), (3, true), (5, false), (7, true), (0xe7, true), (0x67, false)]
        {
            assert_eq!(valid_xcr0(value, 0xe7), good, "{value:#x}");
        }
        assert!(!valid_xcr0(0xe7, 7), "not what microhv does not switch");
    }
}
