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
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // code of one byte

    use super::super::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::mmu::*;

    fn requests(list: &[MmuUpdate], done: &mut u32) -> i64 {
        let args = [list.as_ptr() as u64, list.len() as u64, (&raw mut *done) as u64, DOMID_SELF.into(), 0];
        call(__HYPERVISOR_MMU_UPDATE, args)
    }

    pub(super) fn normal(_: &Env) -> Verdict {
        let scratch = two()?;
        let at = scratch.entry_address(0);
        done("mmu_update", update(at, scratch.mfn(1) << 12 | RW))?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        ensure_eq!((leaf(scratch.at(0)) & pte::FRAME) >> 12, scratch.mfn(1), "the frame in the entry");
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
        // In an entry that is not present, the guest may set all other bits as it likes.
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

    /// Finds an address below the same L2 whose L2 slot is free, and the machine address of that slot.
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
}
