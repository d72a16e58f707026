//! What is known of the machine and of the image: the library's [`MachineFacts`].
#![forbid(unsafe_code)]

use microhv::platform::{CpuidResult, MachineFacts, MachineInfo};

use super::cpu::{self, msr};
use super::machine::Machine;
use super::{fpu, heap, panic, time};

impl MachineFacts for Machine {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    }

    fn xcr0_mask(&self) -> u64 {
        fpu::components()
    }

    fn efer(&self) -> u64 {
        cpu::read_msr(msr::EFER)
    }

    fn heap_has_room(&self, bytes: usize) -> bool {
        heap::has_room(bytes)
    }

    fn command_line(&self) -> &str {
        self.command_line
    }

    fn build_id(&self) -> &[u8] {
        panic::build_id()
    }

    fn machine_info(&self) -> MachineInfo {
        MachineInfo {
            cpu_khz: time::params().tsc_khz,
            heap_used_bytes: heap::used_bytes(),
            heap_bytes: heap::bytes(),
            ..self.info
        }
    }
}

/// Facts about this CPU for `sysctl`.
pub(crate) fn cpu_info() -> MachineInfo {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    let (one, extended, seven) = (__cpuid(1), __cpuid(0x8000_0001), __cpuid_count(7, 0));
    let hw_cap = [one.edx, one.ecx, extended.edx, extended.ecx, 0, seven.ebx, seven.ecx, seven.edx];
    MachineInfo { cpus: 1, hw_cap, ..MachineInfo::default() }
}
