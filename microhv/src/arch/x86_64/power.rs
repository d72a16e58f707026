//! The machine's end: power off and restart.
#![forbid(unsafe_code)]

use microhv::boot::acpi::Acpi;

use super::cpu;

/// Enters ACPI's S5.
pub(crate) fn off(acpi: &Acpi) {
    const SLEEP_ENABLE: u16 = 1 << 13;
    let Some(off) = acpi.power_off else { return };
    cpu::outw(off.pm1a, u16::from(off.sleep_type[0]) << 10 | SLEEP_ENABLE);
    if let Some(pm1b) = off.pm1b {
        cpu::outw(pm1b, u16::from(off.sleep_type[1]) << 10 | SLEEP_ENABLE);
    }
}

/// Resets by ACPI, the chipset's port, the keyboard controller.
pub(crate) fn restart(acpi: &Acpi) {
    if let Some((port, value)) = acpi.reset {
        cpu::outb(port, value);
    }
    cpu::outb(0xcf9, 2);
    cpu::outb(0xcf9, 6);
    cpu::outb(0x64, 0xfe);
}
