//! Ports, device memory, interrupt lines and the power switch: the library's [`Devices`].
#![allow(unsafe_code)] // device memory

use microhv::boot::acpi::Acpi;
use microhv::platform::{Devices, PowerAction, Vector};
use ring_abi::types::Maddr;

use super::machine::Machine;
use super::{apic, cpu, paging, panic, serial, time};

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
        if panic::is_debug_exit(port) {
            // The emulator ends at once: what was printed before comes out before.
            serial::drain();
        }
        match size {
            1 => cpu::port_out::<u8>(port, value as u8),
            2 => cpu::port_out::<u16>(port, value as u16),
            _ => cpu::port_out::<u32>(port, value),
        }
    }

    fn mmio_read(&self, at: Maddr) -> u32 {
        // SAFETY: `device` maps the page uncached for ever; the caller knows that the page is a device's.
        paging::device(at.raw()).map_or(u32::MAX, |va| unsafe { (va as *const u32).read_volatile() })
    }

    fn mmio_write(&self, at: Maddr, value: u32) {
        if let Some(va) = paging::device(at.raw()) {
            // SAFETY: as in `mmio_read`.
            unsafe { (va as *mut u32).write_volatile(value) };
        }
    }

    fn msi_message(&self, vector: Vector) -> (u64, u32) {
        // Fixed delivery, physical destination, edge: Intel SDM volume 3, 11.11.
        (0xfee0_0000 | u64::from(apic::id()) << 12, vector.raw().into())
    }

    fn route_line(&self, line: u8, vector: Option<Vector>) {
        let wired = self.acpi.isa(line);
        match vector {
            Some(vector) => apic::route(wired, vector.raw(), apic::id()),
            None => apic::set_masked(wired.gsi, true),
        }
    }

    fn mask_line(&self, line: u8, masked: bool) {
        apic::set_masked(self.acpi.isa(line).gsi, masked);
    }

    fn power(&self, action: PowerAction) {
        serial::drain();
        match action {
            PowerAction::Off => off(self.acpi),
            PowerAction::Reboot if self.no_reboot => {}
            PowerAction::Reboot => restart(self.acpi),
            PowerAction::Crash => panic::debug_exit(panic::EXIT_PANIC),
        }
        // The machine goes off in its own time; the line below is for a machine that does not.
        let asked_ns = time::now_ns();
        while time::now_ns().saturating_sub(asked_ns) < POWER_NS {
            core::hint::spin_loop();
        }
        serial::write(b"(microhv) the machine is halted\n");
        cpu::halt_for_ever()
    }
}

/// Enters ACPI's S5.
fn off(acpi: &Acpi) {
    const SLEEP_ENABLE: u16 = 1 << 13;
    let Some(off) = acpi.power_off else { return };
    cpu::port_out::<u16>(off.pm1a, u16::from(off.sleep_type[0]) << 10 | SLEEP_ENABLE);
    if let Some(pm1b) = off.pm1b {
        cpu::port_out::<u16>(pm1b, u16::from(off.sleep_type[1]) << 10 | SLEEP_ENABLE);
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
