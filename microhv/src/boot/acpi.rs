//! The few ACPI tables that a hypervisor without AML needs.
//!
//! Shape: ACPI Specification 6.4: RSDP 5.2.5, FADT 5.2.9, MADT 5.2.12; IA-PC HPET Specification 3.2.4. Firmware is
//! trusted; a table whose length or checksum is wrong is taken for absent.
#![forbid(unsafe_code)]

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
            b"FACP" => read_fadt(memory, found, &mut acpi),
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

/// In PM1 control: the machine goes into the sleep state of bits 10-12.
const SLEEP_ENABLE: u16 = 1 << 13;

fn read_fadt(memory: &impl Physical, fadt: &[u8], acpi: &mut Acpi) {
    let flags = field::<u32>(fadt, 112).unwrap_or(0);
    let port = |at| u16::try_from(field::<u32>(fadt, at)?).ok().filter(|&port| port != 0);
    acpi.pm_timer = port(76).map(|port| (port, if flags & 1 << 8 != 0 { 0xffff_ffff } else { 0xff_ffff }));
    if flags & 1 << 10 != 0 && fadt.get(116) == Some(&1) {
        acpi.reset = field::<u64>(fadt, 120).and_then(|at| u16::try_from(at).ok()).zip(field(fadt, 128));
    }
    let dsdt = field::<u32>(fadt, 40).and_then(|at| table(memory, at.into()));
    if let (Some(pm1a), Some([a, b])) = (port(64), dsdt.and_then(sleep_type_of_s5)) {
        let value = |kind: u8| u16::from(kind) << 10 | SLEEP_ENABLE;
        acpi.power_off =
            [(pm1a, value(a))].into_iter().chain(port(68).map(|pm1b| (pm1b, value(b)))).collect();
    }
}

/// Looks for `Name (_S5, Package { a, b, ... })` in the DSDT's byte code; other forms of it are not understood.
fn sleep_type_of_s5(dsdt: &[u8]) -> Option<[u8; 2]> {
    const HEADER_BYTES: usize = 36;
    let is_named = |at: usize| dsdt[at - 1] == 0x08 || dsdt[at - 2..at] == *b"\x08\\";
    let at = (HEADER_BYTES..dsdt.len()).find(|&at| dsdt[at..].starts_with(b"_S5_\x12") && is_named(at))?;
    // PkgLength: bits 6-7 of the first byte say how many more bytes it has; then the number of elements.
    let more = usize::from(*dsdt.get(at + 5)? >> 6);
    let mut elements = dsdt.get(at + 5 + 1 + more + 1..)?.iter().copied();
    let mut number = || match elements.next()? {
        0x0a => elements.next(),
        value @ (0 | 1) => Some(value),
        _ => None,
    };
    Some([number()?, number()?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Memory(Vec<u8>);

    impl Physical for Memory {
        fn bytes(&self, range: Range) -> Option<&[u8]> {
            self.0.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
        }
    }

    fn put(memory: &mut Memory, at: usize, bytes: &[u8]) {
        memory.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn seal(memory: &mut Memory, at: usize, length: usize, checksum: usize) {
        memory.0[at + checksum] = 0;
        memory.0[at + checksum] = 0u8.wrapping_sub(sum(&memory.0[at..at + length]));
    }

    fn put_table(memory: &mut Memory, at: usize, name: &[u8; 4], body: &[u8]) {
        put(memory, at, name);
        put(memory, at + 4, &(36 + body.len() as u32).to_le_bytes());
        put(memory, at + 36, body);
        seal(memory, at, 36 + body.len(), 9);
    }

    fn machine() -> Memory {
        let mut memory = Memory(std::vec![0; 0x10_0000]);
        put(&mut memory, 0xe0010, b"RSD PTR ");
        put(&mut memory, 0xe0020, &0x1000u32.to_le_bytes());
        seal(&mut memory, 0xe0010, 20, 8);
        let mut root = Vec::new();
        for at in [0x2000u32, 0x3000, 0x4000, 0xffff_0000] {
            root.extend(at.to_le_bytes());
        }
        put_table(&mut memory, 0x1000, b"RSDT", &root);
        let mut madt = Vec::new();
        madt.extend(0xfee0_0000u32.to_le_bytes());
        madt.extend([1, 0, 0, 0]);
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        madt.extend([0, 8, 1, 1, 0, 0, 0, 0]);
        madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        put_table(&mut memory, 0x2000, b"APIC", &madt);
        let mut fadt = std::vec![0; 244 - 36];
        fadt[4..8].copy_from_slice(&0x5000u32.to_le_bytes());
        fadt[64 - 36..66 - 36].copy_from_slice(&0x604u16.to_le_bytes());
        fadt[76 - 36..78 - 36].copy_from_slice(&0x608u16.to_le_bytes());
        put_table(&mut memory, 0x3000, b"FACP", &fadt);
        let mut hpet = std::vec![0; 20];
        hpet[8..16].copy_from_slice(&0xfed0_0000u64.to_le_bytes());
        put_table(&mut memory, 0x4000, b"HPET", &hpet);
        let dsdt = *b"xx_S5_yyyy\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00";
        put_table(&mut memory, 0x5000, b"DSDT", &dsdt);
        memory
    }

    #[test]
    fn reads_all_that_is_used() {
        let acpi = read(&machine(), None);
        assert_eq!(acpi.local_apic, Some(0xfee0_0000));
        assert_eq!(acpi.cpus[..], [0]);
        assert_eq!(acpi.io_apics[..], [IoApic { address: 0xfec0_0000, gsi_base: 0 }]);
        assert_eq!(acpi.isa(9), IsaOverride { isa: 9, gsi: 9, active_low: false, level: true });
        assert_eq!(acpi.isa(0).gsi, 2);
        assert_eq!(acpi.isa(4), IsaOverride { isa: 4, gsi: 4, active_low: false, level: false });
        assert_eq!(acpi.pm_timer, Some((0x608, 0xff_ffff)));
        assert_eq!(acpi.hpet, Some(0xfed0_0000));
        assert_eq!(acpi.power_off[..], [(0x604, 5 << 10 | SLEEP_ENABLE)]);
        assert_eq!(acpi.reset, None);
    }

    #[test]
    fn a_cpu_of_two_entries_is_one_and_those_too_many_are_counted() {
        let mut acpi = Acpi::default();
        let mut madt = std::vec![0u8; 44];
        for id in 0..70 {
            madt.extend([0, 8, id, id, 1, 0, 0, 0]);
        }
        madt.extend([9, 16, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        read_madt(&madt, &mut acpi);
        assert_eq!(acpi.cpus[..], std::array::from_fn::<u32, 64, _>(|n| n as u32));
        assert_eq!(acpi.cpus_too_many, 6);
    }

    #[test]
    fn ids_of_x2apic_entries_have_32_bits_and_the_id_of_all_is_no_cpus() {
        let mut acpi = Acpi::default();
        let mut madt = std::vec![0u8; 44];
        madt.extend([0, 8, 7, 255, 1, 0, 0, 0]);
        for (id, flags) in [(255u32, 1u8), (0x1_0002, 1), (3, 0), (3, 2), (u32::MAX, 1), (0x1_0002, 1)] {
            madt.extend([9, 16, 0, 0]);
            madt.extend(id.to_le_bytes());
            madt.extend([flags, 0, 0, 0, 5, 0, 0, 0]);
        }
        madt.extend([9, 8, 0, 0, 4, 0, 0, 0]); // too short for its flags
        madt.extend([0, 8, 0, 2, 1, 0, 0, 0]);
        read_madt(&madt, &mut acpi);
        assert_eq!(acpi.cpus[..], [255, 0x1_0002, 2]);
    }

    #[test]
    fn a_wrong_checksum_is_an_absent_table() {
        let mut memory = machine();
        memory.0[0x2024] ^= 1;
        assert_eq!(read(&memory, None).local_apic, None);
        memory.0[0x1024] ^= 1;
        assert_eq!(read(&memory, None).pm_timer, None);
        memory.0[0xe0011] ^= 1;
        assert!(root(&memory, None).is_none());
    }

    #[test]
    fn a_madt_entry_of_no_length_ends_the_walk() {
        let mut acpi = Acpi::default();
        let mut madt = std::vec![0u8; 44];
        madt.extend([0, 0, 0, 0]);
        read_madt(&madt, &mut acpi);
        assert!(acpi.cpus.is_empty());
        madt.truncate(44);
        madt.extend([1, 4, 0, 0]); // an I/O APIC entry that is too short
        read_madt(&madt, &mut acpi);
        assert!(acpi.io_apics.is_empty());
    }

    /// A root pointer of ACPI 2 at 0x8000, as a loader copies it, with this root table of 8-byte entries.
    fn with_new_root(xsdt: u64) -> Memory {
        let mut memory = machine();
        put(&mut memory, 0x8000, b"RSD PTR ");
        memory.0[0x800f] = 2;
        put(&mut memory, 0x8010, &0x1000u32.to_le_bytes());
        put(&mut memory, 0x8014, &36u32.to_le_bytes());
        put(&mut memory, 0x8018, &xsdt.to_le_bytes());
        seal(&mut memory, 0x8000, 20, 8);
        seal(&mut memory, 0x8000, 36, 32);
        memory
    }

    #[test]
    fn the_loaders_root_pointer_is_believed_as_far_as_it_reaches() {
        let mut memory = with_new_root(0x9000);
        let given = |bytes| Some(Range::sized(0x8000, bytes));
        assert_eq!(root(&memory, given(36)), Some((0x9000, true)));
        assert_eq!(root(&memory, given(20)), Some((0x1000, false)), "the copy of ACPI 1 has no more");
        assert_eq!(root(&memory, given(35)), Some((0x1000, false)));
        // Too short for any: the one in the BIOS area stands in, which leads to the same table.
        assert_eq!(root(&memory, given(19)), Some((0x1000, false)));
        memory.0[0x8020] ^= 1;
        assert_eq!(root(&memory, given(36)), Some((0x1000, false)), "a wrong second sum");
        assert_eq!(root(&with_new_root(0), given(36)), Some((0x1000, false)));
    }

    #[test]
    fn without_bios_areas_the_loaders_root_pointer_is_the_only_one() {
        let mut memory = with_new_root(0x9000);
        memory.0[0xe0010] = 0;
        let mut root = Vec::new();
        for at in [0x2000u64, 0x3000, u64::MAX - 2] {
            root.extend(at.to_le_bytes());
        }
        put_table(&mut memory, 0x9000, b"XSDT", &root);
        assert_eq!(read(&memory, Some(Range::sized(0x8000, 36))).local_apic, Some(0xfee0_0000));
        assert_eq!(read(&memory, None).local_apic, None);
    }

    #[test]
    fn a_tables_length_beyond_reason_is_not_followed() {
        let mut memory = machine();
        memory.0.resize(MOST_TABLE_BYTES as usize + 0x3000, 0);
        put(&mut memory, 0x2004, &(MOST_TABLE_BYTES + 1).to_le_bytes());
        memory.0[0x2009] = 0;
        memory.0[0x2009] = 0u8.wrapping_sub(sum(&memory.0[0x2000..][..MOST_TABLE_BYTES as usize + 1]));
        assert_eq!(read(&memory, None).local_apic, None);
    }
}
