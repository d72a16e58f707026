//! Tables as firmware makes them, and damaged ones.

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
    assert_eq!(acpi.power_off[..], [(0x604, 5 << 10 | fadt::SLEEP_ENABLE)]);
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
