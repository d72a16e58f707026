//! GDT, LDT and single descriptors.

use alloc::format;

use ring_abi::errno::Errno::{EBUSY, EFAULT, EINVAL, EPERM};
use ring_abi::hypercall::*;
use ring_abi::mmu::MMUEXT_SET_LDT;

use crate::ground::{KERNEL, probe, space::*};
use crate::report::Report;

/// Descriptors that a guest may not have: with DPL 0, and a gate to the hypervisor's own code selector.
const KERNEL_CODE: u64 = 0x00af_9a00_0000_ffff;
const BAD: [(&str, u64); 9] = [
    ("TSS", 0x0000_8900_0000_0067),
    ("busy TSS", 0x0000_8b00_0000_0067),
    ("LDT", 0x0000_8200_0000_0fff),
    ("interrupt gate", 0x0000_ee00_e008_1000),
    ("trap gate", 0x0000_ef00_e008_1000),
    ("task gate", 0x0000_e500_0000_0000),
    ("16-bit call gate", 0x0000_e400_e008_1000),
    ("16-bit TSS", 0x0000_8100_0000_002b),
    ("reserved system type", 0x0000_8d00_0000_0000),
];

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    let scratch = Scratch::new(2);
    let frames = [scratch.mfn(0)];
    let list = frames.as_ptr() as u64;

    report.refused("a writable page as GDT", set_gdt(list, 512), &[EINVAL, EBUSY]);
    report.refused("too many entries", set_gdt(list, 8193), &[EINVAL]);
    report.refused("-1 entries", set_gdt(list, u64::MAX), &[EINVAL]);
    report.refused("a list in hypervisor space", set_gdt(M2P, 512), &[EFAULT]);
    report.refused("an unmapped list", set_gdt(scratch.at(0), 512), &[EFAULT]);
    let taken = foreign_frames().into_iter().find(|mfn| set_gdt((&raw const *mfn) as u64, 512) >= 0);
    report.case("a foreign GDT", taken.is_none(), taken);
    let table = tables(scratch.at(0))[3];
    report.refused("a page table as GDT", set_gdt((&raw const table) as u64, 512), &[EINVAL, EBUSY]);

    for (name, value) in BAD {
        // In a plain page the guest may write any descriptor. The hypervisor must refuse the page as a table
        // at the latest.
        probe::write(scratch.page(0) + 8, value);
        scratch.protect(0);
        let got = set_gdt(list, 512);
        if got == 0 {
            set_gdt(list, 0);
        }
        let result = descriptor((scratch.mfn(0) << 12) + 8, value);
        report.case(&format!("{name} in a GDT"), got < 0, crate::report::Got(got));
        report.refused(&format!("{name} by update_descriptor"), result, &[EINVAL]);
        scratch.unprotect(0);
        probe::write(scratch.page(0) + 8, 0);
    }
    for (name, at) in [("misaligned", (scratch.mfn(0) << 12) + 4), ("beyond memory", 1 << 50)] {
        report.refused(&format!("update_descriptor {name}"), descriptor(at, 0), &[EINVAL, EPERM]);
    }
    report.refused("update_descriptor in a table", descriptor(table << 12, 0), &[EINVAL, EBUSY]);
    let taken = foreign_frames().into_iter().find(|mfn| descriptor(mfn << 12, 0) >= 0);
    report.case("update_descriptor in a foreign frame", taken.is_none(), taken);
    if KERNEL {
        own_gdt(report, &scratch);
    }
    ldt(report, &scratch);
}

fn set_gdt(list: u64, entries: u64) -> i64 {
    call(__HYPERVISOR_SET_GDT, [list, entries, 0, 0, 0])
}

fn descriptor(at: u64, value: u64) -> i64 {
    call(__HYPERVISOR_UPDATE_DESCRIPTOR, [at, value, 0, 0, 0])
}

/// Tries to write, map and reuse a page while it is the GDT.
fn own_gdt(report: &mut Report, scratch: &Scratch) {
    let frames = [scratch.mfn(0)];
    scratch.protect(0);
    report.succeeds("an empty GDT", set_gdt(frames.as_ptr() as u64, 512));
    report.refused("a GDT is not writable", scratch.unprotect(0), &[EBUSY]);
    let trap = probe::write(scratch.page(0) + 16, KERNEL_CODE);
    report.case("nor by instruction", trap.is_some_and(|trap| trap.vector == 14), trap);
    report.succeeds("code of level 0", descriptor((scratch.mfn(0) << 12) + 16, KERNEL_CODE));
    let value = probe::read(scratch.page(0) + 16).unwrap_or(0);
    report.case("becomes code of level 3", value == 0 || value >> 45 & 3 == 3, value);
    report.succeeds("no GDT", set_gdt(0, 0));
    report.succeeds("the page is plain again", scratch.unprotect(0));
}

fn set_ldt(at: u64, entries: u64) -> i64 {
    extended(MMUEXT_SET_LDT, at, entries)
}

fn ldt(report: &mut Report, scratch: &Scratch) {
    report.refused("an LDT off a page", set_ldt(scratch.page(0) + 8, 16), &[EINVAL]);
    report.refused("too large an LDT", set_ldt(scratch.page(0), 8193), &[EINVAL]);
    report.refused("a non-canonical LDT", set_ldt(1 << 63, 16), &[EINVAL]);
    if KERNEL {
        used_ldt(report, scratch);
    }
    report.case("an LDT in hypervisor space", set_ldt(M2P, 16) <= 0, ());
    report.succeeds("no LDT", set_ldt(0, 0));
}

/// Loads selectors from an LDT that the hypervisor must not accept.
fn used_ldt(report: &mut Report, scratch: &Scratch) {
    // The hypervisor checks an LDT page when a selector is first loaded from it, and refuses a page that is
    // mapped writable.
    let got = set_ldt(scratch.page(1), 16);
    probe::write(scratch.page(1), KERNEL_CODE);
    // SAFETY: a selector that must not load; a trap is caught.
    #[allow(unsafe_code)]
    let trap = probe::attempt(|| unsafe { core::arch::asm!("mov es, {0:e}", in(reg) 7u32) });
    report.case("a selector from a writable LDT", trap.is_some(), (got, trap));
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let trap = probe::attempt(|| unsafe { core::arch::asm!("mov es, {0:e}", in(reg) 15 * 8 + 7u32) });
    report.case("an empty slot of it", trap.is_some(), trap);
    set_ldt(M2P, 16);
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let trap = probe::attempt(|| unsafe { core::arch::asm!("mov es, {0:e}", in(reg) 7u32) });
    report.case("a selector from hypervisor space", trap.is_some(), trap);
}
