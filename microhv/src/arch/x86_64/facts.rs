//! What is known of the machine and of the image: the library's [`MachineFacts`].
#![forbid(unsafe_code)]

use microhv::platform::{CpuidResult, MachineFacts, MachineInfo};

use super::cpu::{self, cpuid, msr};
use super::machine::Machine;
use super::{fpu, heap, panic, time};

impl MachineFacts for Machine {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        cpuid(leaf, subleaf)
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
    let (one, extended, seven) = (cpuid(1, 0), cpuid(0x8000_0001, 0), cpuid(7, 0));
    let hw_cap = [one.edx, one.ecx, extended.edx, extended.ecx, 0, seven.ebx, seven.ecx, seven.edx];
    MachineInfo { cpus: 1, hw_cap, ..MachineInfo::default() }
}
