//! The FADT: the PM timer, and the ways to power off and to start again.
//!
//! Registers in I/O ports alone are used, as all machines with a PM timer have them; a machine whose registers lie elsewhere starts
//! again by other ways, and stays on.
#![forbid(unsafe_code)]

use super::{Acpi, field, table};
use crate::boot::multiboot::Physical;

/// In PM1 control: the machine is in ACPI mode.
pub const ACPI_MODE: u16 = 1;
/// In PM1 control: which sleep state.
pub const SLEEP_TYPE: u16 = 7 << 10;
/// In PM1 control: the machine goes into that state.
pub const SLEEP_ENABLE: u16 = 1 << 13;

/// A generic address's space that is I/O ports.
const PORTS: u8 = 1;
/// Flags: the PM timer has 32 bits; the reset register is there.
const LONG_TIMER: u32 = 1 << 8;
const HAS_RESET: u32 = 1 << 10;

/// The port of the generic address at byte `at`, if that is one.
fn generic_port(fadt: &[u8], at: usize) -> Option<u16> {
    let address = field::<u64>(fadt, at + 4).filter(|_| fadt.get(at) == Some(&PORTS));
    address.and_then(|address| u16::try_from(address).ok()).filter(|&port| port != 0)
}

/// Takes what the FADT tells. New firmware may fill in the wider fields of ACPI 2 alone.
pub(super) fn read(memory: &impl Physical, fadt: &[u8], acpi: &mut Acpi) {
    let flags = field::<u32>(fadt, 112).unwrap_or(0);
    let port = |at, wide| {
        let short =
            field::<u32>(fadt, at).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
        short.or_else(|| generic_port(fadt, wide))
    };
    acpi.pm_timer =
        port(76, 208).map(|port| (port, if flags & LONG_TIMER != 0 { 0xffff_ffff } else { 0xff_ffff }));
    if flags & HAS_RESET != 0 {
        acpi.reset = generic_port(fadt, 116).zip(field(fadt, 128));
    }
    acpi.enable = field::<u32>(fadt, 48)
        .and_then(|port| u16::try_from(port).ok())
        .zip(field::<u8>(fadt, 52))
        .filter(|&(port, value)| port != 0 && value != 0);
    let short = field::<u32>(fadt, 40).map(u64::from);
    let dsdt = field(fadt, 140).filter(|&at| at != 0).or(short).and_then(|at| table(memory, at));
    if let (Some(pm1a), Some([a, b])) = (port(64, 172), dsdt.and_then(sleep_type_of_s5)) {
        let value = |kind: u8| u16::from(kind) << 10 & SLEEP_TYPE | SLEEP_ENABLE;
        let pm1b = port(68, 184).map(|pm1b| (pm1b, value(b)));
        acpi.power_off = [(pm1a, value(a))].into_iter().chain(pm1b).collect();
    }
}

/// Looks for `Name (_S5, Package { a, b, ... })` in the DSDT's byte code; other forms of it are not understood.
fn sleep_type_of_s5(dsdt: &[u8]) -> Option<[u8; 2]> {
    const HEADER_BYTES: usize = 36;
    let is_named = |at: usize| dsdt[at - 1] == 0x08 || dsdt[at - 2..at] == *b"\x08\\";
    let at = (HEADER_BYTES..dsdt.len()).find(|&at| dsdt[at..].starts_with(b"_S5_\x12") && is_named(at))?;
    // PkgLength: bits 6-7 of the first byte say how many more bytes it has; then the number of elements.
    let more = usize::from(*dsdt.get(at + 5)? >> 6);
    let mut elements = dsdt.get(at + 5 + 1 + more + 1..)?;
    let mut number = || {
        // Zero, One and Ones are their own bytes; a number of 1, 2 or 4 bytes has a prefix.
        let (&first, rest) = elements.split_first()?;
        let bytes = match first {
            0 | 1 | 0xff => 0,
            0x0a => 1,
            0x0b => 2,
            0x0c => 4,
            _ => return None,
        };
        let (number, rest) = rest.split_at_checked(bytes)?;
        elements = rest;
        Some(number.first().copied().unwrap_or(first))
    };
    Some([number()?, number()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A DSDT with this behind its head.
    fn s5(code: &[u8]) -> Option<[u8; 2]> {
        sleep_type_of_s5(&[&[0; 36], code].concat())
    }

    #[test]
    fn each_form_of_a_number_is_read() {
        for (code, expected) in [
            (&b"\x08_S5_\x12\x06\x04\x0a\x05\x0a\x06\0\0"[..], Some([5, 6])),
            (b"\x08\\_S5_\x12\x06\x04\x0a\x05\0\0\0", Some([5, 0])),
            (b"\x08_S5_\x12\x06\x04\x01\0\0\0", Some([1, 0])),
            (b"\x08_S5_\x12\x06\x04\xff\x01\0\0", Some([0xff, 1])),
            (b"\x08_S5_\x12\x06\x04\x0b\x07\0\x0c\x06\0\0\0\0", Some([7, 6])),
            // A length of two bytes.
            (b"\x08_S5_\x12\x46\x00\x04\x0a\x05\x01\0\0", Some([5, 1])),
            // No name's definition, no package, another object, and code that ends amid it.
            (b"\x10_S5_\x12\x06\x04\x0a\x05\0\0\0", None),
            (b"\x08_S5_\x0a\x05", None),
            (b"\x08_S5_\x12\x06\x04\x0d\x05\0", None),
            (b"\x08_S5_\x12\x06\x04\x0a\x05\x0b\x05", None),
            (b"\x08_S5_\x12\x06\x04\x0a", None),
            (b"\x08_S5_\x12\xc6", None),
            (b"\x08_S5_\x12", None),
        ] {
            assert_eq!(s5(code), expected, "{code:x?}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        /// Whatever stands behind the name: no byte behind the table is read.
        #[test]
        fn any_code_is_read_to_its_end_at_most(code: Vec<u8>) {
            s5(&[b"\x08_S5_\x12", &*code].concat());
        }
    }

    /// Memory with nothing but a DSDT at 0x5000.
    struct Dsdt(Vec<u8>);

    impl Physical for Dsdt {
        fn bytes(&self, range: crate::boot::memory_map::Range) -> Option<&[u8]> {
            self.0.get(
                usize::try_from(range.start.checked_sub(0x5000)?).ok()?
                    ..usize::try_from(range.end - 0x5000).ok()?,
            )
        }
    }

    fn put(fadt: &mut [u8], at: usize, bytes: &[u8]) {
        fadt[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// What is taken of a FADT with these fields.
    fn of(fields: &[(usize, &[u8])]) -> Acpi {
        let mut dsdt = [&b"DSDT"[..], &[0; 32], b"\x08_S5_\x12\x06\x04\x0a\x05\x0a\x06\0\0"].concat();
        dsdt[4] = dsdt.len() as u8;
        dsdt[9] = dsdt.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        let mut fadt = std::vec![0; 244];
        fields.iter().for_each(|(at, bytes)| put(&mut fadt, *at, bytes));
        let mut acpi = Acpi::default();
        read(&Dsdt(dsdt), &fadt, &mut acpi);
        acpi
    }

    #[test]
    fn wide_fields_serve_where_the_short_ones_are_empty() {
        let acpi = of(&[
            (140, &[0, 0x50]),
            (172, &[1, 16, 0, 2, 0x04, 0x06]),
            (184, &[1, 16, 0, 2, 0x14, 0x06]),
            (208, &[1, 32, 0, 3, 0x08, 0x06]),
            (112, &LONG_TIMER.to_le_bytes()),
        ]);
        assert_eq!(acpi.power_off[..], [(0x604, 5 << 10 | SLEEP_ENABLE), (0x614, 6 << 10 | SLEEP_ENABLE)]);
        assert_eq!(acpi.pm_timer, Some((0x608, 0xffff_ffff)));
        let acpi = of(&[(40, &[0, 0x50]), (64, &[4, 6]), (172, &[1, 16, 0, 2, 0x44, 0x06])]);
        assert_eq!(acpi.power_off[..], [(0x604, 5 << 10 | SLEEP_ENABLE)], "the short field first");
    }

    #[test]
    fn registers_that_are_no_ports_are_not_used() {
        let acpi = of(&[
            (140, &[0, 0x50]),
            (172, &[0, 16, 0, 2, 0x04, 0x06]),
            (112, &HAS_RESET.to_le_bytes()),
            (116, &[0, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6]),
        ]);
        assert!(acpi.power_off.is_empty() && acpi.reset.is_none() && acpi.enable.is_none());
        let acpi = of(&[(140, &[0, 0x50]), (172, &[1, 16, 0, 2, 0x04, 0x06, 1])]);
        assert!(acpi.power_off.is_empty(), "no such port");
    }

    #[test]
    fn reset_and_acpi_mode_have_their_port_and_value() {
        let reset = [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6];
        let mode = [0xb2, 0, 0, 0, 0xf1];
        let acpi = of(&[(112, &HAS_RESET.to_le_bytes()), (116, &reset), (48, &mode)]);
        assert_eq!((acpi.reset, acpi.enable), (Some((0xcf9, 6)), Some((0xb2, 0xf1))));
        assert_eq!(of(&[(116, &reset), (48, &mode[..4])]).reset, None, "the flag counts");
        assert_eq!(of(&[(48, &mode[..4])]).enable, None, "a value of 0 stands for always in ACPI mode");
    }
}
