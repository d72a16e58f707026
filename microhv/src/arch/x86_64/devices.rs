//! Ports, device memory, interrupt lines and the power switch: the library's [`Devices`]. What is known of the machine and of the
//! image: the library's [`MachineFacts`].
#![allow(unsafe_code)] // device memory

use microhv::boot::acpi::Acpi;
use microhv::boot::acpi::fadt::{ACPI_MODE, SLEEP_ENABLE, SLEEP_TYPE};
use microhv::platform::{CpuidResult, Devices, MachineFacts, MachineInfo, PowerAction, Vector};
use ring_abi::types::Maddr;

use super::cpu::{self, cpuid, msr};
use super::machine::Machine;
use super::{apic, fpu, heap, paging, panic, percpu, serial, time};

/// How long a machine may take to go off or to start again, in ns.
const POWER_NS: u64 = 1_000_000_000;

impl Devices for Machine {
    fn port_in(&self, port: u16, size: u8) -> u32 {
        match size {
            1 => cpu::port_in::<u8>(port).into(),
            2 => cpu::port_in::<u16>(port).into(),
            _ => cpu::port_in::<u32>(port),
        }
    }

    fn port_out(&self, port: u16, size: u8, value: u32) {
        if panic::DEBUG_EXIT.get() == Some(&Some(port)) {
            // The emulator ends at once, so all earlier output is written first.
            serial::drain();
        }
        match size {
            1 => cpu::port_out::<u8>(port, value as u8),
            2 => cpu::port_out::<u16>(port, value as u16),
            _ => cpu::port_out::<u32>(port, value),
        }
    }

    fn mmio_write(&self, at: Maddr, value: u32) {
        if let Some(va) = paging::device(at.raw()) {
            // SAFETY: `device` maps the page uncached for ever; the caller knows that the page is a device's.
            unsafe { (va as *mut u32).write_volatile(value) };
        }
    }

    fn msi_message(&self, vector: Vector) -> (u64, u32) {
        // Fixed delivery, physical destination, edge: Intel SDM volume 3, 11.11.
        (0xfee0_0000 | u64::from(self.apic_ids[0] & 0xff) << 12, vector.0.into())
    }

    fn route_line(&self, line: u8, vector: Option<Vector>) {
        let wired = self.acpi.isa(line);
        match vector {
            Some(vector) => apic::route(wired, vector.0, self.apic_ids[0]),
            None => apic::set_masked(wired.gsi, true),
        }
    }

    fn mask_line(&self, line: u8, masked: bool) {
        apic::set_masked(self.acpi.isa(line).gsi, masked);
    }

    fn power(&self, action: PowerAction) {
        panic::end_others();
        serial::drain();
        match action {
            PowerAction::Off => {
                panic::debug_exit(panic::EXIT_OFF);
                power_off(self.acpi);
            }
            PowerAction::Reboot if self.no_reboot => {}
            PowerAction::Reboot => {
                panic::debug_exit(panic::EXIT_RESTART);
                restart(self.acpi);
            }
            PowerAction::Crash => {
                panic::debug_exit(panic::EXIT_PANIC);
                panic::restart_if_wanted();
            }
        }
        // The machine goes off in its own time; what follows is for a machine that does not.
        wait_until(|| false);
        if action == PowerAction::Reboot && !self.no_reboot {
            cpu::triple_fault();
        }
        serial::write(b"(microhv) the machine is halted\n");
        serial::drain();
        cpu::halt_for_ever()
    }
}

/// Waits until `is_over`, for [`POWER_NS`] at most.
fn wait_until(is_over: impl Fn() -> bool) {
    let began_ns = time::now_ns();
    while !is_over() && time::now_ns().saturating_sub(began_ns) < POWER_NS {
        core::hint::spin_loop();
    }
}

/// Powers off by ACPI: into ACPI mode, since otherwise the chipset need not heed the register; then the sleep state, alone first, since
/// some machines want the two bits in that order.
fn power_off(acpi: &Acpi) {
    let is_acpi =
        || acpi.power_off.first().is_none_or(|&(port, _)| cpu::port_in::<u16>(port) & ACPI_MODE != 0);
    if let Some((port, value)) = acpi.enable.filter(|_| !is_acpi()) {
        cpu::port_out::<u8>(port, value);
        wait_until(is_acpi);
    }
    for enable in [0, SLEEP_ENABLE] {
        for &(port, value) in &acpi.power_off {
            let others = cpu::port_in::<u16>(port) & !(SLEEP_TYPE | SLEEP_ENABLE);
            cpu::port_out::<u16>(port, others | value & SLEEP_TYPE | enable);
        }
    }
}

/// Resets by ACPI, the chipset's port, the keyboard controller.
fn restart(acpi: &Acpi) {
    if let Some((port, value)) = acpi.reset {
        cpu::port_out::<u8>(port, value);
    }
    cpu::port_out::<u8>(0xcf9, 2);
    cpu::port_out::<u8>(0xcf9, 6);
    cpu::port_out::<u8>(0x64, 0xfe);
}

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
        let (heap_used_bytes, heap_bytes) = heap::used_and_all();
        let cpus = percpu::online().count();
        MachineInfo { cpus, cpu_khz: time::params().tsc_khz, heap_used_bytes, heap_bytes, ..self.info }
    }
}

/// Facts about this CPU for `sysctl`.
pub(crate) fn cpu_info() -> MachineInfo {
    let (one, extended, seven) = (cpuid(1, 0), cpuid(0x8000_0001, 0), cpuid(7, 0));
    let hw_cap = [one.edx, one.ecx, extended.edx, extended.ecx, 0, seven.ebx, seven.ecx, seven.edx];
    MachineInfo { hw_cap, ..MachineInfo::default() }
}
