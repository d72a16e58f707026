//! Page tables: entries to frames that are not the guest's, writable tables, superpages, pins of garbage,
//! base pointers.

use alloc::format;

use ring_abi::errno::Errno::{EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH};
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};
use ring_abi::vm_assist::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_WRITABLE_PAGETABLES};

use crate::ground::{KERNEL, probe, pte, space::*};
use crate::report::Report;

const PSE: u64 = 1 << 7;
const US: u64 = pte::US;

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    if KERNEL {
        assist(VMASST_CMD_DISABLE);
    }
    frames(report);
    own_tables(report);
    upper_levels(report);
    requests(report);
    pins(report);
    bases(report);
    if KERNEL {
        direct_writes(report);
    }
}

/// Tries L1 entries that name frames which the guest may not map.
fn frames(report: &mut Report) {
    let scratch = Scratch::new(1);
    let foreign = foreign_frames();
    report.case("foreign frames exist", foreign.len() > 8, foreign.len());
    for (access, bits) in [("readable", RO), ("writable", RW), ("user", RW | US)] {
        for (way, by_address) in [("update_va_mapping", true), ("mmu_update", false)] {
            let set = |mfn: u64| {
                if by_address {
                    map(scratch.at(0), mfn << 12 | bits)
                } else {
                    update(scratch.entry_address(0), mfn << 12 | bits)
                }
            };
            // The control domain may map device memory, so such frames do not count.
            let taken = foreign.iter().find(|mfn| {
                map(scratch.at(0), 0);
                let result = set(**mfn);
                let refused = [EINVAL, EPERM, EBUSY].iter().any(|errno| errno.negated() == result);
                !(refused && leaf(scratch.at(0)) & pte::P == 0 || report.privileged && **mfn < 0x100)
            });
            report.case(&format!("{access} foreign frame by {way}"), taken.is_none(), taken);
            map(scratch.at(0), 0);
        }
    }
    if !report.privileged {
        let end = end_of_memory();
        for mfn in [end + 1, 0xfee00, 0xfec00, (1 << 40) - 1] {
            let got = map(scratch.at(0), mfn << 12 | RW);
            report.refused(&format!("frame {mfn:#x}, no memory"), got, &[EPERM, EINVAL]);
        }
        for (name, bit) in [("PWT", pte::PWT), ("PCD", pte::PCD), ("PAT", PSE)] {
            let got = map(scratch.at(0), scratch.mfn(0) << 12 | RW | bit);
            report.refused(&format!("cache attribute {name}"), got, &[EINVAL]);
        }
    }
    for bit in [51, 47] {
        let got = map(scratch.at(0), scratch.mfn(0) << 12 | RW | 1 << bit);
        report.refused(&format!("address bit {bit}"), got, &[EINVAL, EPERM]);
    }
    for (name, va) in [
        ("the M2P", M2P),
        ("hypervisor space", 0xffff_8300_0000_0000),
        ("the end of hypervisor space", 0xffff_87ff_ffff_f000),
        ("a non-canonical address", 0x0000_8000_0000_0000),
        ("another one", 0x8000_0000_0000_0000),
        ("an address without tables", 0x0000_5555_5555_5000),
    ] {
        let got = map(va, scratch.mfn(0) << 12 | RW);
        report.refused(&format!("mapping at {name}"), got, &[EINVAL, EFAULT]);
    }
    report.succeeds("own frame", map(scratch.at(0), scratch.mfn(0) << 12 | RW));
    report.case("and it works", probe::write(scratch.at(0), 7).is_none(), probe::read(scratch.at(0)));
}

/// Checks that the guest can read its page tables but not write them.
fn own_tables(report: &mut Report) {
    let scratch = Scratch::new(1);
    for (level, mfn) in [4, 3, 2, 1].into_iter().zip(tables(scratch.at(0))) {
        let got = map(scratch.at(0), mfn << 12 | RW);
        report.refused(&format!("writable mapping of an L{level}"), got, &[EBUSY]);
        let got = update(scratch.entry_address(0), mfn << 12 | RW | US);
        report.refused(&format!("the same by mmu_update, L{level}"), got, &[EBUSY]);
        report.succeeds(&format!("readable mapping of an L{level}"), map(scratch.at(0), mfn << 12 | RO));
        // The case writes the value that is there already: some versions of Xen emulate writes to L1 tables
        // whether the assist is on or not.
        let trap = probe::write(scratch.at(0), probe::read(scratch.at(0)).unwrap_or(0));
        let emulated = level == 1 && trap.is_none();
        report.case(&format!("a write to an L{level}"), emulated || is_write_fault(trap), trap);
        map(scratch.at(0), 0);
    }
    // A change of flags alone must not make a table's mapping writable.
    let table = tables(scratch.at(0))[3];
    map(scratch.at(0), table << 12 | RO);
    let got = map(scratch.at(0), table << 12 | RW);
    report.refused("from readable to writable", got, &[EBUSY]);
    let now = leaf(scratch.at(0));
    report.case("it stays readable", now & pte::RW == 0, now);
}

fn is_write_fault(trap: Option<probe::Trap>) -> bool {
    trap.is_some_and(|trap| trap.vector == 14 && trap.error & 3 == 3)
}

/// L2 to L4 entries.
fn upper_levels(report: &mut Report) {
    let scratch = Scratch::new(1);
    let [l4, l3, l2, l1] = tables(scratch.at(0));
    // The slots are empty, since the end of the window is never used.
    let l2_slot = (l2 << 12) + 200 * 8;
    let table = pte::P | pte::RW | US | pte::A | pte::D;
    let own = scratch.mfn(0) << 12;
    for (name, bits) in [("PSE", PSE), ("PWT", pte::PWT), ("PCD", pte::PCD), ("G", 1 << 8)] {
        report.refused(&format!("L2 entry with {name}"), update(l2_slot, own | table | bits), &[EINVAL]);
    }
    // A superpage of 2 MiB at address 0 would map the hypervisor or other domains.
    report.refused("superpage from 0", update(l2_slot, table | PSE), &[EINVAL]);
    report.refused("a writable page as an L1", update(l2_slot, own | table), &[EINVAL, EBUSY]);
    report.refused("an L2 as an L1", update(l2_slot, l2 << 12 | table), &[EINVAL, EBUSY]);
    report.refused("the L4 as an L1", update(l2_slot, l4 << 12 | table), &[EINVAL, EBUSY]);
    for mfn in foreign_frames().into_iter().take(24) {
        let got = update(l2_slot, mfn << 12 | table);
        if ![EINVAL, EPERM, EBUSY].iter().any(|errno| errno.negated() == got) {
            report.refused(&format!("foreign frame {mfn:#x} as an L1"), got, &[EINVAL, EPERM, EBUSY]);
        }
    }
    report.case("the slot is empty", entry(l2, 200) == 0, entry(l2, 200));

    let l3_slot = (l3 << 12) + 100 * 8;
    report.refused("a page of 1 GiB", update(l3_slot, table | PSE), &[EINVAL]);
    report.refused("an L1 as an L2", update(l3_slot, l1 << 12 | table), &[EINVAL, EBUSY]);
    report.refused("the L3 in itself, writable", update(l3_slot, l3 << 12 | table), &[EINVAL, EBUSY]);

    for slot in [256, 257, 258, 260, 262, 271] {
        let at = (l4 << 12) + slot * 8;
        report.refused(&format!("L4 slot {slot}"), update(at, 0), &[EINVAL]);
        report.refused(&format!("L4 slot {slot} to own table"), update(at, l3 << 12 | table), &[EINVAL]);
    }
    let l4_slot = (l4 << 12) + 300 * 8;
    report.refused("the L4 in itself, writable", update(l4_slot, l4 << 12 | table), &[EINVAL, EBUSY]);
    report.refused("L4 entry with PSE", update(l4_slot, l3 << 12 | table | PSE), &[EINVAL]);
    // Even a read-only entry to a top table would show the hypervisor's tables at the guest's own addresses.
    report.refused(
        "the L4 in itself, readable",
        update(l4_slot, l4 << 12 | (table & !pte::RW)),
        &[EINVAL, EBUSY],
    );
}

/// Makes malformed requests.
fn requests(report: &mut Report) {
    let scratch = Scratch::new(2);
    let at = scratch.entry_address(0);
    let own = scratch.mfn(0) << 12 | RW;
    for command in [4, 5, 6, 7] {
        report.refused(&format!("mmu_update command {command}"), update(at | command, own), &[ENOSYS]);
    }
    report.refused("a table beyond memory", update(1 << 50, own), &[EINVAL, EPERM]);
    report.refused("a table of nobody", update(!7, own), &[EINVAL, EPERM]);
    let foreign = foreign_frames();
    let taken = foreign.iter().find(|mfn| update(**mfn << 12, own) >= 0);
    report.case("an entry in a foreign frame", taken.is_none(), taken);
    let taken = foreign.iter().find(|mfn| update(**mfn << 12 | MMU_MACHPHYS_UPDATE, 1) >= 0);
    report.case("the M2P of a foreign frame", taken.is_none(), taken);
    if !report.privileged {
        for (name, whose) in
            [("dom0's frames", 0), ("dom0's tables", 1 << 16 | 0x7ff0), ("DOMID_XEN", 0x7ff2)]
        {
            report.refused(name, update_as(at, own, whose), &[EPERM, ESRCH]);
        }
        report.refused("pins in dom0", extended_as(MMUEXT_PIN_L4_TABLE, base(), 0, 0), &[EPERM, ESRCH]);
    }
    for whose in [0x7ff4, 0x7fff, 12345, 0xffff] {
        report.refused(&format!("domain {whose:#x}"), update_as(at, own, whose), &[ESRCH, EPERM, EINVAL]);
    }
    // The array runs into unmapped memory. The hypervisor must do and count the requests that it could read,
    // and report a fault for the rest.
    map(scratch.at(0), scratch.mfn(0) << 12 | RW);
    map(scratch.at(1), 0);
    let last = scratch.at(0) + PAGE_SIZE as u64 - 16;
    probe::write(last, scratch.mfn(1) << 12 | MMU_MACHPHYS_UPDATE);
    probe::write(last + 8, 77);
    let mut done = 0u32;
    let got = call(__HYPERVISOR_MMU_UPDATE, [last, 3, (&raw mut done) as u64, DOMID_SELF.into(), 0]);
    report.refused("an array into unmapped memory", got, &[EFAULT]);
    report.case("what came before is counted", done == 1, done);
    let pfn = scratch.pages.pfn(1).raw();
    update(scratch.mfn(1) << 12 | MMU_MACHPHYS_UPDATE, pfn);
    let got = call(__HYPERVISOR_MMU_UPDATE, [last + 8, 1, 0, DOMID_SELF.into(), 0]);
    report.refused("a request over the edge", got, &[EFAULT]);
    let got = call(__HYPERVISOR_MMU_UPDATE, [last, 0x7fff_ffff, 0, DOMID_SELF.into(), 0]);
    report.refused("two thousand million requests", got, &[EFAULT]);
    update(scratch.mfn(1) << 12 | MMU_MACHPHYS_UPDATE, pfn);
}

/// Pins.
fn pins(report: &mut Report) {
    let scratch = Scratch::new(2);
    let mfn = scratch.mfn(0);
    let all = [MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE];
    for cmd in all {
        let level = cmd + 1;
        report.refused(
            &format!("pin of a writable page as L{level}"),
            extended(cmd, mfn, 0),
            &[EINVAL, EBUSY],
        );
    }
    for slot in 0..512 {
        probe::write(scratch.page(0) + slot * 8, 0xa5a5_5a5a_a5a5_5a5b ^ slot << 20);
    }
    report.succeeds("read-only", scratch.protect(0));
    for cmd in all {
        report.refused(
            &format!("pin of garbage as L{}", cmd + 1),
            extended(cmd, mfn, 0),
            &[EINVAL, EPERM, EBUSY],
        );
    }
    report.refused("unpin of the unpinned", extended(MMUEXT_UNPIN_TABLE, mfn, 0), &[EINVAL]);
    report.succeeds("writable after garbage", scratch.unprotect(0));
    // One bad entry at the end of a table: the hypervisor must give back all references that it took before.
    for slot in 0..511 {
        probe::write(scratch.page(0) + slot * 8, scratch.mfn(1) << 12 | RW);
    }
    probe::write(scratch.page(0) + 511 * 8, base() << 12 | RW);
    scratch.protect(0);
    let got = extended(MMUEXT_PIN_L1_TABLE, mfn, 0);
    report.refused("pin with a writable table at its end", got, &[EINVAL, EBUSY]);
    scratch.unprotect(0);
    probe::write(scratch.page(0) + 511 * 8, 0);
    scratch.protect(0);
    report.succeeds("pin", extended(MMUEXT_PIN_L1_TABLE, mfn, 0));
    report.refused("pin twice", extended(MMUEXT_PIN_L1_TABLE, mfn, 0), &[EINVAL]);
    report.refused("pin as another level", extended(MMUEXT_PIN_L2_TABLE, mfn, 0), &[EINVAL, EBUSY]);
    report.refused("writable while pinned", scratch.unprotect(0), &[EBUSY]);
    report.succeeds("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0));
    report.refused("unpin twice", extended(MMUEXT_UNPIN_TABLE, mfn, 0), &[EINVAL]);
    report.succeeds("writable after the pin", scratch.unprotect(0));
    for foreign in foreign_frames().into_iter().take(16).chain([end_of_memory() + 1, 1 << 40, u64::MAX]) {
        let got = extended(MMUEXT_PIN_L1_TABLE, foreign, 0);
        if got >= 0 {
            report.refused(&format!("pin of foreign {foreign:#x}"), got, &[EINVAL, EPERM]);
        }
        let got = extended(MMUEXT_UNPIN_TABLE, foreign, 0);
        if got >= 0 {
            report.refused(&format!("unpin of foreign {foreign:#x}"), got, &[EINVAL, EPERM]);
        }
    }
}

/// Base pointers and other operations on whole tables.
fn bases(report: &mut Report) {
    let scratch = Scratch::new(1);
    let [_, l3, _, l1] = tables(scratch.at(0));
    for (name, cmd) in [("kernel", MMUEXT_NEW_BASEPTR), ("user", MMUEXT_NEW_USER_BASEPTR)] {
        report.refused(&format!("a page as {name} base"), extended(cmd, scratch.mfn(0), 0), &[EINVAL, EBUSY]);
        report.refused(&format!("an L3 as {name} base"), extended(cmd, l3, 0), &[EINVAL, EBUSY]);
        let got = extended(cmd, end_of_memory() + 1, 0);
        report.refused(&format!("no memory as {name} base"), got, &[EINVAL, EPERM]);
        let taken = foreign_frames().into_iter().find(|mfn| *mfn != 0 && extended(cmd, *mfn, 0) >= 0);
        report.case(&format!("a foreign {name} base"), taken.is_none(), taken);
    }
    report.refused("clearing a table", extended(MMUEXT_CLEAR_PAGE, l1, 0), &[EINVAL, EBUSY, EPERM]);
    report.refused("copying to a table", extended(MMUEXT_COPY_PAGE, l1, scratch.mfn(0)), &[EINVAL, EBUSY]);
    let taken =
        foreign_frames().into_iter().find(|mfn| extended(MMUEXT_COPY_PAGE, scratch.mfn(0), *mfn) >= 0);
    report.case("copying from a foreign frame", taken.is_none(), taken);
    for cmd in [14, 21, 255, u32::MAX] {
        report.refused(&format!("mmuext {cmd:#x}"), extended(cmd, 0, 0), &[ENOSYS, EINVAL]);
    }
    for va in [M2P, 0xffff_8300_0000_0000, 1 << 63, 0x1000] {
        let got = extended(MMUEXT_INVLPG_LOCAL, va, 0);
        report.case(&format!("INVLPG of {va:#x}"), got <= 0, got);
    }
    report.case("the tables are those they were", tables(scratch.at(0))[3] == l1, base());
}

/// Switches the emulation of writes to tables.
fn assist(command: u32) -> i64 {
    call(__HYPERVISOR_VM_ASSIST, [command.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into(), 0, 0, 0])
}

/// Writes to L1 tables by instruction, without and with the assist.
fn direct_writes(report: &mut Report) {
    let scratch = Scratch::new(2);
    map(scratch.at(0), scratch.mfn(0) << 12 | RW);
    let [l4, _, l2, l1] = tables(scratch.at(0));
    let at = linear(l1) + (scratch.at(0) >> 12 & 511) * 8;
    let before = probe::read(at).unwrap_or(0);
    let trap = probe::write(at, before);
    report.case("without the assist", trap.is_none() || is_write_fault(trap), trap);
    report.case("the entry is as it was", probe::read(at) == Ok(before), probe::read(at));
    report.succeeds("vm_assist", assist(VMASST_CMD_ENABLE));
    let trap = probe::write(at, 0);
    report.case("with it an entry is cleared", trap.is_none() && probe::read(at) == Ok(0), trap);
    let trap = probe::write(at, scratch.mfn(1) << 12 | RW);
    report.case("and set", trap.is_none() && leaf(scratch.at(0)) & pte::P != 0, trap);
    let now = probe::read(at);
    let mut taken = None;
    for mfn in foreign_frames().into_iter().filter(|mfn| !report.privileged || *mfn >= 0x100) {
        let trap = probe::write(at, mfn << 12 | RW);
        let now = probe::read(at).unwrap_or(0);
        if now & pte::P != 0 && (now & pte::FRAME) >> 12 == mfn {
            taken = Some((mfn, trap));
        }
    }
    report.case("a foreign frame", taken.is_none(), taken);
    let _ = probe::write(at, l1 << 12 | RW);
    let set = probe::read(at).unwrap_or(0);
    let bad = set & (pte::P | pte::RW) == pte::P | pte::RW && (set & pte::FRAME) >> 12 == l1;
    report.case("a writable table", !bad, set);
    let _ = probe::write(at, now.unwrap_or(0));
    for offset in [1u64, 4, 7] {
        // The write crosses two entries, or changes a part of one so that it would name another frame.
        let _ = probe::write(at + offset, u64::MAX);
        let set = probe::read(at).unwrap_or(0);
        let frame = (set & pte::FRAME) >> 12;
        let own = set & pte::P == 0 || frame == scratch.mfn(0) || frame == scratch.mfn(1);
        report.case(&format!("a write {offset} bytes off"), own, set);
        update(scratch.entry_address(0), now.unwrap_or(0));
    }
    for (name, table, slot) in [("L2", l2, 201), ("L4", l4, 301)] {
        let trap = probe::write(linear(table) + slot * 8, l1 << 12 | RW | US);
        let now = entry(table, slot as usize);
        report.case(&format!("an {name} is not emulated"), trap.is_some() && now == 0, (trap, now));
    }
    report.succeeds("vm_assist off", assist(VMASST_CMD_DISABLE));
}
