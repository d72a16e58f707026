//! `mmu_update` and `update_va_mapping`: entries of page tables, and what the hypervisor lets into them.

hypercall_cases! {
    "mmu.normal" = normal {
        title: "an entry is set, and maps",
        rule: "MMU_NORMAL_PT_UPDATE writes val to the entry at the machine address ptr.",
        source: "xen.h, MMU_NORMAL_PT_UPDATE",
    }
    "mmu.batch-counts" = batch_counts {
        title: "what was done is counted",
        rule: "mmu_update does its requests in order and writes the number done to success_count.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.batch-stops" = batch_stops {
        title: "a refused request ends the list",
        rule: "At a refused request mmu_update stops, with its error; those before stay done and are counted, those behind are not done.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.empty" = empty {
        title: "no requests",
        rule: "mmu_update of no requests gives 0.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.fault" = fault {
        title: "requests that cannot be read",
        rule: "mmu_update gives EFAULT where it cannot read a request.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.preserve-ad" = preserve_ad {
        title: "accessed and dirty bits are kept",
        rule: "MMU_PT_UPDATE_PRESERVE_AD sets an entry and keeps the accessed and dirty bits that the old one has.",
        source: "xen.h, MMU_PT_UPDATE_PRESERVE_AD",
    }
    "mmu.normal-ad" = normal_ad {
        title: "accessed and dirty bits are written as given",
        rule: "MMU_NORMAL_PT_UPDATE writes accessed and dirty bits as val has them.",
        source: "xen.h, MMU_NORMAL_PT_UPDATE",
    }
    "mmu.no-translate" = no_translate {
        title: "an update without translation",
        rule: "MMU_PT_UPDATE_NO_TRANSLATE does in a PV domain what MMU_NORMAL_PT_UPDATE does.",
        source: "xen.h, MMU_PT_UPDATE_NO_TRANSLATE",
    }
    "mmu.machphys" = machphys {
        title: "an entry of the M2P",
        rule: "MMU_MACHPHYS_UPDATE writes val to the M2P entry of the frame at machine address ptr.",
        source: "xen.h, MMU_MACHPHYS_UPDATE",
    }
    "mmu.machphys-not-own" = machphys_not_own {
        title: "the M2P entry of no frame",
        rule: "MMU_MACHPHYS_UPDATE is refused for a frame that the domain does not own.",
        source: "xen.h, MMU_MACHPHYS_UPDATE",
    }
    "mmu.software-bits" = software_bits {
        title: "bits that are the guest's",
        rule: "Bits 9 to 11 and 53 to 58 of an entry are the guest's own and kept.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.readonly" = readonly {
        title: "an entry without the writable bit",
        rule: "A page mapped read-only can be read, and a write faults with error code 3 and its address in cr2.",
        source: "arch-x86/xen.h, struct arch_vcpu_info",
    }
    "mmu.no-execute" = no_execute {
        title: "an entry with the no-execute bit",
        rule: "Code of a page mapped with bit 63 faults when it is fetched.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.table-not-writable" = table_not_writable {
        title: "a page table is not mapped writable",
        rule: "A writable mapping of a frame that is a page table is refused.",
        source: "xen.h, HYPERVISOR_mmu_update(); arch-x86/xen.h",
    }
    "mmu.table-readable" = table_readable {
        title: "a page table can be mapped read-only",
        rule: "A read-only mapping of the domain's own page table is allowed, and shows its entries.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.link-table" = link_table {
        title: "a page becomes an L1, and a page again",
        rule: "A frame that an L2 entry points to is a page table while the entry stands: it cannot be writable then, and can afterwards.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.link-writable" = link_writable {
        title: "a page that is writable does not become a table",
        rule: "An L2 entry that points to a frame mapped writable is refused.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.link-wrong-level" = link_wrong_level {
        title: "an L1 where an L2 belongs",
        rule: "A frame is a table of one level at a time.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.superpage" = superpage {
        title: "a large page",
        rule: "An L2 entry with the page-size bit is refused in a domain without superpages.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.hypervisor-slots" = hypervisor_slots {
        title: "the hypervisor's slots of an L4",
        rule: "L4 entries 256 to 271 are the hypervisor's and cannot be updated.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END",
    }
    "mmu.not-a-table" = not_a_table {
        title: "an entry in a page that is no table",
        rule: "mmu_update of a word in a plain page of the domain writes the word.",
        source: "xen.h, HYPERVISOR_mmu_update()",
    }
    "mmu.no-such-domain" = no_such_domain {
        title: "frames of a domain that there is not",
        rule: "mmu_update on behalf of a domain that does not exist gives ESRCH, or EPERM to a domain without privileges.",
        source: "xen.h, HYPERVISOR_mmu_update(), foreigndom",
    }
    "mmu.va-mapping" = va_mapping {
        title: "the entry of an address",
        rule: "update_va_mapping sets the L1 entry that maps an address, and UVMF_INVLPG makes it count at once.",
        source: "xen.h, 'Commands to HYPERVISOR_update_va_mapping()', UVMF_INVLPG",
    }
    "mmu.va-mapping-flushes" = va_mapping_flushes {
        title: "every kind of flush",
        rule: "UVMF_INVLPG and UVMF_TLB_FLUSH, each with UVMF_LOCAL, UVMF_ALL or a set of vCPUs, make the new entry count at once.",
        source: "xen.h, UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_MULTI, UVMF_LOCAL, UVMF_ALL",
    }
    "mmu.va-mapping-no-table" = va_mapping_no_table {
        title: "an address without a page table",
        rule: "update_va_mapping of an address without an L1 gives EINVAL.",
        source: "xen.h, HYPERVISOR_update_va_mapping()",
    }
    "mmu.va-mapping-hypervisor" = va_mapping_hypervisor {
        title: "an address of the hypervisor's",
        rule: "update_va_mapping of an address between HYPERVISOR_VIRT_START and HYPERVISOR_VIRT_END is refused.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START",
    }
    "mmu.va-mapping-self" = va_mapping_self {
        title: "frames of the domain itself, by name",
        rule: "update_va_mapping_otherdomain with DOMID_SELF does what update_va_mapping does.",
        source: "xen.h, HYPERVISOR_update_va_mapping_otherdomain()",
    }
    "mmu.va-mapping-other" = va_mapping_other {
        title: "frames of a domain that there is not, or not for this one",
        rule: "update_va_mapping_otherdomain gives ESRCH for a domain that does not exist, and EPERM or ESRCH to a domain that may not.",
        source: "xen.h, HYPERVISOR_update_va_mapping_otherdomain()",
    }
    "mmu.direct-write" = direct_write {
        title: "an L1 entry written by an instruction",
        rule: "With VMASST_TYPE_writable_pagetables a write to an L1 that is mapped read-only is done as mmu_update would do it.",
        source: "xen.h, VMASST_TYPE_writable_pagetables",
    }
    "mmu.direct-write-refused" = direct_write_refused {
        title: "an L1 entry written by an instruction, and refused",
        rule: "A write by instruction that mmu_update would refuse leaves the entry without the refused mapping.",
        source: "xen.h, VMASST_TYPE_writable_pagetables",
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // instructions on page tables, code of one byte

    use super::super::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::mmu::*;
    use ring_abi::vm_assist::*;

    /// Two pages that hold 1 and 2, and an address where neither is mapped.
    fn two() -> Verdict<Scratch> {
        let scratch = Scratch::new(2);
        store("page 0", scratch.page(0), 1)?;
        store("page 1", scratch.page(1), 2)?;
        Ok(scratch)
    }

    fn requests(list: &[MmuUpdate], done: &mut u32) -> i64 {
        let args = [list.as_ptr() as u64, list.len() as u64, (&raw mut *done) as u64, DOMID_SELF.into(), 0];
        call(__HYPERVISOR_MMU_UPDATE, args)
    }

    pub(super) fn normal(_: &Env) -> Verdict {
        let scratch = two()?;
        let at = scratch.entry_address(0);
        done("mmu_update", update(at, scratch.mfn(1) << 12 | RW))?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        ensure_eq!((leaf(scratch.at(0)) & pte::ADDRESS) >> 12, scratch.mfn(1), "the frame in the entry");
        done("mmu_update", update(at, 0))?;
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry");
        done("flush", extended(MMUEXT_TLB_FLUSH_LOCAL, 0, 0))?;
        ensure!(probe::read(scratch.at(0)).is_err(), "it is still mapped");
        Ok(())
    }

    pub(super) fn batch_counts(_: &Env) -> Verdict {
        let scratch = two()?;
        let (first, second) = (scratch.entry_address(0), scratch.entry_address(1));
        let list = [
            MmuUpdate { ptr: first, val: scratch.mfn(1) << 12 | RW },
            MmuUpdate { ptr: second, val: scratch.mfn(1) << 12 | RW },
            MmuUpdate { ptr: first, val: scratch.mfn(0) << 12 | RW },
        ];
        let mut count = 0x5555;
        done("mmu_update", requests(&list, &mut count))?;
        ensure_eq!(count, 3, "success_count");
        ensure_eq!(load("the first", scratch.at(0))?, 1, "the first address");
        ensure_eq!(load("the second", scratch.at(1))?, 2, "the second address");
        done(
            "without a count",
            call(__HYPERVISOR_MMU_UPDATE, [list.as_ptr() as u64, 3, 0, DOMID_SELF.into(), 0]),
        )
    }

    pub(super) fn batch_stops(_: &Env) -> Verdict {
        let scratch = two()?;
        let table = tables(scratch.at(0))[3];
        let list = [
            MmuUpdate { ptr: scratch.entry_address(0), val: scratch.mfn(0) << 12 | RW },
            MmuUpdate { ptr: scratch.entry_address(1), val: table << 12 | RW },
            MmuUpdate { ptr: scratch.entry_address(0), val: scratch.mfn(1) << 12 | RW },
        ];
        let mut count = 0x5555;
        let got = requests(&list, &mut count);
        refused("mmu_update", got, &[EBUSY, EINVAL, EPERM])?;
        ensure_eq!(count, 1, "success_count");
        ensure_eq!(load("the first", scratch.at(0))?, 1, "the first address");
        ensure_eq!(leaf(scratch.at(1)), 0, "the refused entry");
        Ok(())
    }

    pub(super) fn empty(_: &Env) -> Verdict {
        done("mmu_update", call(__HYPERVISOR_MMU_UPDATE, [0x1000, 0, 0, DOMID_SELF.into(), 0]))
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused(
            "mmu_update",
            call(__HYPERVISOR_MMU_UPDATE, [scratch.at(0), 1, 0, DOMID_SELF.into(), 0]),
            &[EFAULT],
        )
    }

    pub(super) fn preserve_ad(_: &Env) -> Verdict {
        let scratch = two()?;
        let at = scratch.entry_address(0);
        done("mmu_update", update(at, scratch.mfn(0) << 12 | pte::P | pte::RW))?;
        done("flush", extended(MMUEXT_TLB_FLUSH_LOCAL, 0, 0))?;
        store("touch", scratch.at(0), 1)?;
        let touched = leaf(scratch.at(0));
        ensure!(touched & (pte::A | pte::D) == pte::A | pte::D, "not touched: {touched:#x}");
        let read_only = scratch.mfn(0) << 12 | pte::P;
        done("preserve_ad", update(at | MMU_PT_UPDATE_PRESERVE_AD, read_only))?;
        let kept = leaf(scratch.at(0));
        ensure!(kept & pte::RW == 0, "the new entry does not stand: {kept:#x}");
        ensure!(kept & (pte::A | pte::D) == pte::A | pte::D, "bits are lost: {kept:#x}");
        Ok(())
    }

    pub(super) fn normal_ad(_: &Env) -> Verdict {
        let scratch = two()?;
        let at = scratch.entry_address(0);
        for bits in [0, pte::A, pte::A | pte::D, 0] {
            done("mmu_update", update(at, scratch.mfn(0) << 12 | pte::P | pte::RW | bits))?;
            ensure_eq!(leaf(scratch.at(0)) & (pte::A | pte::D), bits, "accessed and dirty");
        }
        Ok(())
    }

    pub(super) fn no_translate(_: &Env) -> Verdict {
        let scratch = two()?;
        let at = scratch.entry_address(0);
        done("mmu_update", update(at | MMU_PT_UPDATE_NO_TRANSLATE, scratch.mfn(1) << 12 | RW))?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        Ok(())
    }

    pub(super) fn machphys(_: &Env) -> Verdict {
        let scratch = two()?;
        let (mfn, pfn) = (scratch.mfn(0), scratch.pages.pfn(0).raw());
        let got = update(mfn << 12 | MMU_MACHPHYS_UPDATE, 0x1234);
        let shown = load("the M2P", M2P + mfn * 8);
        done("putting it back", update(mfn << 12 | MMU_MACHPHYS_UPDATE, pfn))?;
        done("mmu_update", got)?;
        ensure_eq!(shown?, 0x1234, "the entry");
        ensure_eq!(load("the M2P", M2P + mfn * 8)?, pfn, "the entry put back");
        Ok(())
    }

    pub(super) fn machphys_not_own(_: &Env) -> Verdict {
        let at = (end_of_memory() + 0x1000) << 12 | MMU_MACHPHYS_UPDATE;
        refused("mmu_update", update(at, 1), &[EINVAL, EPERM])
    }

    pub(super) fn software_bits(_: &Env) -> Verdict {
        let scratch = two()?;
        let own = 7 << 9 | 0x3f << 53;
        done("mmu_update", update(scratch.entry_address(0), scratch.mfn(1) << 12 | RW | own))?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        ensure_eq!(leaf(scratch.at(0)) & own, own, "the bits");
        // An entry that is not present is the guest's altogether.
        let absent = 0x7edc_ba98_7654_3210 & !pte::P;
        done("mmu_update", update(scratch.entry_address(0), absent))?;
        ensure_eq!(leaf(scratch.at(0)), absent, "an entry that is not present");
        done("mmu_update", update(scratch.entry_address(0), 0))
    }

    pub(super) fn readonly(_: &Env) -> Verdict {
        let scratch = two()?;
        done("mapping", map(scratch.at(0), scratch.mfn(1) << 12 | RO))?;
        ensure_eq!(load("reading", scratch.at(0))?, 2, "what it shows");
        let trap = trapped("a write", probe::write(scratch.at(0) + 8, 3), 14)?;
        ensure_eq!((trap.error, trap.cr2), (3, scratch.at(0) + 8), "error code and cr2");
        ensure_eq!(load("reading", scratch.page(1) + 8)?, 0, "what was not written");
        Ok(())
    }

    pub(super) fn no_execute(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        // ret
        store("code", scratch.page(0), 0xc3)?;
        // SAFETY: code of one instruction, which returns; a trap is caught.
        let run =
            || attempt(|| unsafe { core::arch::asm!("call {}", in(reg) scratch.at(0), clobber_abi("C")) });
        done("mapping", map(scratch.at(0), scratch.mfn(0) << 12 | RO))?;
        untrapped("running it", run())?;
        done("mapping", map(scratch.at(0), scratch.mfn(0) << 12 | RO | pte::NX))?;
        let trap = trapped("running it", run(), 14)?;
        ensure_eq!((trap.rip, trap.cr2), (scratch.at(0), scratch.at(0)), "rip and cr2");
        ensure!(trap.error & 0x11 == 0x11, "error code {:#x}", trap.error);
        Ok(())
    }

    pub(super) fn table_not_writable(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for (level, mfn) in [4, 3, 2, 1].into_iter().zip(tables(scratch.at(0))) {
            let got = map(scratch.at(0), mfn << 12 | RW);
            ensure!(got < 0, "a writable L{level}");
            refused("a writable table", got, &[EBUSY, EINVAL, EPERM])?;
            ensure_eq!(leaf(scratch.at(0)), 0, "the entry");
        }
        Ok(())
    }

    pub(super) fn table_readable(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.at(0);
        for mfn in tables(at) {
            done("mapping", map(at, mfn << 12 | RO))?;
            let slot = at >> 12 & 511;
            ensure_eq!(load("the table", at + slot * 8)?, entry(mfn, slot as usize), "its entry");
        }
        Ok(())
    }

    /// An address in the same L2 whose slot is free, and the machine address of that slot.
    fn free_slot(scratch: &Scratch) -> Verdict<(u64, u64)> {
        let l2 = tables(scratch.at(0))[2];
        let slot = (0..500).rev().find(|slot| entry(l2, *slot) == 0);
        let slot = slot.ok_or_else(|| Problem::Error("no free slot".into()))? as u64;
        Ok(((scratch.at(0) & !0x3fff_ffff) + (slot << 21), (l2 << 12) + slot * 8))
    }

    pub(super) fn link_table(_: &Env) -> Verdict {
        let scratch = two()?;
        let (va, slot) = free_slot(&scratch)?;
        store("no entries", scratch.page(0), 0)?;
        store("an entry", scratch.page(0) + 7 * 8, scratch.mfn(1) << 12 | RW)?;
        done("read-only", scratch.protect(0))?;
        done("linking", update(slot, scratch.mfn(0) << 12 | RW | pte::US))?;
        let shown = load("through the new table", va + 7 * PAGE_SIZE as u64);
        let writable = scratch.unprotect(0);
        let entry_set = update((scratch.mfn(0) << 12) + 8 * 8, scratch.mfn(1) << 12 | RO);
        let set = load("through the entry set", va + 8 * PAGE_SIZE as u64);
        done("unlinking", update(slot, 0))?;
        ensure_eq!(shown?, 2, "through the new table");
        refused("writable while it is a table", writable, &[EBUSY, EINVAL])?;
        done("an entry in it", entry_set)?;
        ensure_eq!(set?, 2, "through the entry set");
        done("flush", extended(MMUEXT_TLB_FLUSH_LOCAL, 0, 0))?;
        done("writable again", scratch.unprotect(0))?;
        store("writing to it", scratch.page(0), 5)
    }

    pub(super) fn link_writable(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let (_, slot) = free_slot(&scratch)?;
        refused("linking", update(slot, scratch.mfn(0) << 12 | RW | pte::US), &[EBUSY, EINVAL])?;
        store("the page", scratch.page(0), 1)
    }

    pub(super) fn link_wrong_level(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let (_, slot) = free_slot(&scratch)?;
        let [l4, l3, _, _] = tables(scratch.at(0));
        for mfn in [l4, l3] {
            refused("a higher table", update(slot, mfn << 12 | RW | pte::US), &[EBUSY, EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn superpage(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let (_, slot) = free_slot(&scratch)?;
        let large = (scratch.mfn(0) & !511) << 12 | RW | pte::US | 1 << 7;
        refused("a large page", update(slot, large), &[EINVAL])
    }

    pub(super) fn hypervisor_slots(_: &Env) -> Verdict {
        let l3 = tables(M2P - 4096)[1];
        for slot in [256, 257, 261, 271] {
            for value in [0, l3 << 12 | RW | pte::US] {
                refused("an update", update((base() << 12) + slot * 8, value), &[EINVAL, EPERM])?;
            }
        }
        load("the M2P", M2P).map(|_| ())
    }

    pub(super) fn not_a_table(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        done("mmu_update", update((scratch.mfn(0) << 12) + 64, 0x1234_5678_9abc_def0))?;
        ensure_eq!(load("the word", scratch.page(0) + 64)?, 0x1234_5678_9abc_def0, "the word");
        Ok(())
    }

    pub(super) fn no_such_domain(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.entry_address(0);
        let got = update_as(at, scratch.mfn(0) << 12 | RW, NO_DOMAIN.into());
        refused("frames of no domain", got, &[ESRCH, EPERM])?;
        let got =
            update_as(at, scratch.mfn(0) << 12 | RW, u64::from(NO_DOMAIN + 1) << 16 | u64::from(DOMID_SELF));
        refused("tables of no domain", got, &[ESRCH, EPERM, EINVAL])
    }

    pub(super) fn va_mapping(_: &Env) -> Verdict {
        let scratch = two()?;
        for n in [0, 1, 0] {
            done("update_va_mapping", map(scratch.at(0), scratch.mfn(n) << 12 | RW))?;
            ensure_eq!(load("the address", scratch.at(0))?, n as u64 + 1, "what it shows");
        }
        done("update_va_mapping", map(scratch.at(0), 0))?;
        let trap = probe::read(scratch.at(0)).err();
        let trap = trapped("what is not mapped", trap, 14)?;
        ensure_eq!((trap.error, trap.cr2), (0, scratch.at(0)), "error code and cr2");
        Ok(())
    }

    pub(super) fn va_mapping_flushes(_: &Env) -> Verdict {
        let scratch = two()?;
        let everyone = u64::MAX;
        let set = (&raw const everyone) as u64;
        let kinds = [
            ("INVLPG LOCAL", UVMF_INVLPG | UVMF_LOCAL),
            ("INVLPG ALL", UVMF_INVLPG | UVMF_ALL),
            ("INVLPG MULTI", UVMF_INVLPG | set),
            ("TLB_FLUSH LOCAL", UVMF_TLB_FLUSH | UVMF_LOCAL),
            ("TLB_FLUSH ALL", UVMF_TLB_FLUSH | UVMF_ALL),
            ("TLB_FLUSH MULTI", UVMF_TLB_FLUSH | set),
        ];
        for (name, flags) in kinds {
            for n in [0, 1] {
                let entry = scratch.mfn(n) << 12 | RW;
                done(name, call(__HYPERVISOR_UPDATE_VA_MAPPING, [scratch.at(0), entry, flags, 0, 0]))?;
                ensure_eq!(load(name, scratch.at(0))?, n as u64 + 1, "after {name}");
            }
        }
        Ok(())
    }

    pub(super) fn va_mapping_no_table(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for va in [0x0000_5555_5555_5000, 0xffff_c000_0000_0000] {
            refused("update_va_mapping", map(va, scratch.mfn(0) << 12 | RW), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn va_mapping_hypervisor(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for va in [M2P, 0xffff_82d0_8000_0000, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_f000] {
            refused("update_va_mapping", map(va, scratch.mfn(0) << 12 | RW), &[EINVAL, EPERM])?;
        }
        Ok(())
    }

    fn map_other(va: u64, entry: u64, domain: u16) -> i64 {
        call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, [va, entry, UVMF_INVLPG, domain.into(), 0])
    }

    pub(super) fn va_mapping_self(_: &Env) -> Verdict {
        let scratch = two()?;
        done(
            "update_va_mapping_otherdomain",
            map_other(scratch.at(0), scratch.mfn(1) << 12 | RW, DOMID_SELF),
        )?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        Ok(())
    }

    pub(super) fn va_mapping_other(env: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let entry = scratch.mfn(0) << 12 | RW;
        refused("a domain that is not", map_other(scratch.at(0), entry, NO_DOMAIN), &[ESRCH, EPERM])?;
        if !env.privileged {
            refused("the control domain", map_other(scratch.at(0), entry, 0), &[ESRCH, EPERM])?;
        }
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry");
        Ok(())
    }

    /// The assist, switched off on drop.
    struct Assist;

    impl Assist {
        fn new() -> Verdict<Self> {
            given(
                "vm_assist",
                call(
                    __HYPERVISOR_VM_ASSIST,
                    [VMASST_CMD_ENABLE.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into(), 0, 0, 0],
                ),
            )?;
            Ok(Self)
        }
    }

    impl Drop for Assist {
        fn drop(&mut self) {
            call(
                __HYPERVISOR_VM_ASSIST,
                [VMASST_CMD_DISABLE.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into(), 0, 0, 0],
            );
        }
    }

    /// Where the linear map has the L1 entry of address 0.
    fn entry_va(scratch: &Scratch) -> u64 {
        let at = scratch.entry_address(0);
        linear(at >> 12) + (at & 0xfff)
    }

    pub(super) fn direct_write(_: &Env) -> Verdict {
        let scratch = two()?;
        let assist = Assist::new()?;
        let at = entry_va(&scratch);
        store("mov", at, scratch.mfn(1) << 12 | RW)?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows after mov");
        let mut old = 0u64;
        // SAFETY: an entry of an address that is this case's.
        let trap = attempt(|| unsafe { core::arch::asm!("xchg [{}], {}", in(reg) at, inout(reg) old) });
        untrapped("xchg", trap)?;
        ensure_eq!((old & pte::ADDRESS) >> 12, scratch.mfn(1), "what xchg gives");
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry after xchg");
        store("mov again", at, scratch.mfn(0) << 12 | RW)?;
        // SAFETY: as above: clears the writable bit.
        let trap = attempt(|| unsafe { core::arch::asm!("lock and byte ptr [{}], 0xfd", in(reg) at) });
        untrapped("lock and", trap)?;
        ensure_eq!(leaf(scratch.at(0)) & (pte::P | pte::RW), pte::P, "the entry after and");
        let now = leaf(scratch.at(0));
        let mut seen = now;
        // SAFETY: as above.
        let trap = attempt(|| unsafe {
            core::arch::asm!("lock cmpxchg [{}], {}", in(reg) at, in(reg) 0u64, inout("rax") seen);
        });
        untrapped("cmpxchg", trap)?;
        ensure_eq!((seen, leaf(scratch.at(0))), (now, 0), "what cmpxchg gives, and the entry");
        drop(assist);
        Ok(())
    }

    pub(super) fn direct_write_refused(_: &Env) -> Verdict {
        let scratch = two()?;
        let _assist = Assist::new()?;
        let at = entry_va(&scratch);
        let table = tables(scratch.at(0))[3];
        let _ = probe::write(at, table << 12 | RW);
        let now = leaf(scratch.at(0));
        let writable = now & (pte::P | pte::RW) == pte::P | pte::RW && (now & pte::ADDRESS) >> 12 == table;
        let _ = probe::write(at, 0);
        ensure!(!writable, "the table is writable: {now:#x}");
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry cleared");
        Ok(())
    }
}
