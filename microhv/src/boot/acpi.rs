//! The few ACPI tables that a hypervisor without AML needs.
//!
//! Shape: ACPI Specification 6.4: RSDP 5.2.5, FADT 5.2.9, MADT 5.2.12; IA-PC HPET Specification 3.2.4. Firmware is
//! trusted; a table whose length or checksum is wrong is taken for absent.
#![forbid(unsafe_code)]

pub mod fadt;

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use super::memory_map::Range;
use super::multiboot::Physical;

/// A legacy interrupt line that is wired otherwise than one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaOverride {
    /// ISA line, 0-15.
    pub isa: u8,
    /// Global system interrupt that it is wired to.
    pub gsi: u32,
    /// Active low.
    pub active_low: bool,
    /// Level triggered.
    pub level: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Where the I/O APIC's registers are.
    pub address: u64,
    /// The interrupt of its first pin.
    pub gsi_base: u32,
}

/// Everything that is used of ACPI.
#[derive(Clone, Debug, Default)]
pub struct Acpi {
    /// Local APIC registers.
    pub local_apic: Option<u64>,
    /// Ids of the CPUs that can be used.
    pub cpus: ArrayVec<u32, 64>,
    /// How many more there are.
    pub cpus_too_many: u32,
    /// I/O APICs.
    pub io_apics: ArrayVec<IoApic, 8>,
    /// Lines that differ from one to one.
    pub overrides: ArrayVec<IsaOverride, 16>,
    /// The PM timer, a counter of 3,579,545 Hz: its I/O port, and the bits that count.
    pub pm_timer: Option<(u16, u64)>,
    /// HPET registers.
    pub hpet: Option<u64>,
    /// What S5 takes to be written, to PM1a's control port and to PM1b's, if there is one; empty: no way to power off is known.
    pub power_off: ArrayVec<(u16, u16), 2>,
    /// What a machine that is not in ACPI mode takes to be written to go there: an I/O port and the byte.
    pub enable: Option<(u16, u8)>,
    /// Reset register: an I/O port and the byte to write there.
    pub reset: Option<(u16, u8)>,
}

impl Acpi {
    /// Where ISA line `isa` arrives, and how.
    pub fn isa(&self, isa: u8) -> IsaOverride {
        let same = IsaOverride { isa, gsi: u32::from(isa), active_low: false, level: false };
        self.overrides.iter().find(|entry| entry.isa == isa).copied().unwrap_or(same)
    }
}

/// The most bytes of a table: a length beyond has been damaged, and would lead the sum over devices' memory.
const MOST_TABLE_BYTES: u32 = 4 << 20;
/// Bytes of the RSDP of ACPI 1 and of ACPI 2.
const RSDP_BYTES: [u64; 2] = [20, 36];

/// The root table's address by the RSDP in `area`, and whether its entries have 8 bytes.
fn root_of(memory: &impl Physical, area: Range) -> Option<(u64, bool)> {
    let bytes = |count| memory.bytes(Range::sized(area.start, count)).filter(|_| count <= area.bytes());
    let [first, second] = RSDP_BYTES.map(bytes);
    let first = first.filter(|bytes| bytes.starts_with(b"RSD PTR ") && sum(bytes) == 0)?;
    // The fields of ACPI 2 count only with their own sum, and an address of 0 stands for none.
    let second = second.filter(|bytes| first[15] >= 2 && sum(bytes) == 0);
    match second.and_then(|bytes| field::<u64>(bytes, 24)).unwrap_or(0) {
        0 => field::<u32>(first, 16).filter(|&at| at != 0).map(|at| (at.into(), false)),
        xsdt => Some((xsdt, true)),
    }
}

/// Finds the RSDP: `given` by the loader, or in the BIOS areas, where UEFI puts none. The result is that of [`root_of`].
fn root(memory: &impl Physical, given: Option<Range>) -> Option<(u64, bool)> {
    if let Some(found) = given.and_then(|range| root_of(memory, range)) {
        return Some(found);
    }
    let ebda = u64::from(memory.read::<u16>(0x40e).unwrap_or(0)) << 4;
    let areas =
        [Range::sized(ebda, if ebda == 0 { 0 } else { 1024 }), Range { start: 0xe0000, end: 0x10_0000 }];
    let places = |area: Range| (area.start..area.end).step_by(16).map(move |start| Range { start, ..area });
    areas.into_iter().flat_map(places).find_map(|place| root_of(memory, place))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// The bytes of the table at `at`, if its length and checksum are right.
fn table(memory: &impl Physical, at: u64) -> Option<&[u8]> {
    let length = memory.read::<u32>(at.checked_add(4)?)?;
    let is_sound = (36..=MOST_TABLE_BYTES).contains(&length);
    let bytes = memory.bytes(Range::sized(at, u64::from(length))).filter(|_| is_sound)?;
    (sum(bytes) == 0).then_some(bytes)
}

/// The field at byte `at` of a table or entry, if that reaches so far.
fn field<T: FromBytes>(bytes: &[u8], at: usize) -> Option<T> {
    Some(T::read_from_prefix(bytes.get(at..)?).ok()?.0)
}

/// Reads the tables; what is missing is absent in the result.
pub fn read(memory: &impl Physical, rsdp: Option<Range>) -> Acpi {
    let mut acpi = Acpi::default();
    let Some((root, wide)) = root(memory, rsdp) else { return acpi };
    let Some(bytes) = table(memory, root) else { return acpi };
    let entries = bytes.get(36..).unwrap_or(&[]);
    for entry in entries.chunks_exact(if wide { 8 } else { 4 }) {
        let address = if wide { field(entry, 0) } else { field::<u32>(entry, 0).map(u64::from) };
        let Some(found) = address.and_then(|at| table(memory, at)) else { continue };
        match &found[..4] {
            b"APIC" => read_madt(found, &mut acpi),
            b"FACP" => fadt::read(memory, found, &mut acpi),
            b"HPET" => acpi.hpet = field(found, 44),
            _ => {}
        }
    }
    acpi
}

fn read_madt(madt: &[u8], acpi: &mut Acpi) {
    acpi.local_apic = field::<u32>(madt, 36).map(u64::from);
    let mut rest = madt.get(44..).unwrap_or(&[]);
    while rest.len() >= 2 {
        let length = usize::from(rest[1]);
        let Some(entry) = rest.get(..length).filter(|_| length >= 2) else { break };
        read_madt_entry(entry, acpi);
        rest = &rest[length..];
    }
}

fn read_madt_entry(entry: &[u8], acpi: &mut Acpi) -> Option<()> {
    match entry[0] {
        0 if field::<u32>(entry, 4)? & 1 != 0 => add_cpu(acpi, entry[3].into(), u8::MAX.into()),
        1 => {
            let (address, gsi_base) = (field::<u32>(entry, 4)?.into(), field(entry, 8)?);
            acpi.io_apics.try_push(IoApic { address, gsi_base }).ok()?;
        }
        2 => {
            let (isa, gsi, flags) = (field(entry, 3)?, field(entry, 4)?, field::<u16>(entry, 8)?);
            // 0 means "as the bus specifies": ISA is edge triggered, active high.
            let found = IsaOverride { isa, gsi, active_low: flags & 3 == 3, level: flags >> 2 & 3 == 3 };
            acpi.overrides.try_push(found).ok()?;
        }
        5 => acpi.local_apic = Some(field(entry, 4)?),
        9 if field::<u32>(entry, 8)? & 1 != 0 => add_cpu(acpi, field(entry, 4)?, u32::MAX),
        _ => {}
    }
    Some(())
}

/// Firmware may name a CPU by an entry of either kind, or by both. `all` is the id that means all CPUs, and stands in entries
/// that are no CPU's.
fn add_cpu(acpi: &mut Acpi, id: u32, all: u32) {
    if id != all && !acpi.cpus.contains(&id) && acpi.cpus.try_push(id).is_err() {
        acpi.cpus_too_many += 1;
    }
}

#[cfg(test)]
mod tests;
