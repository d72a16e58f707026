//! `memory_op`: the place of the M2P, and the memory maps.

hypercall_cases! {
    "memory.maximum-ram-page" = maximum_ram_page {
        title: "no page of this domain lies beyond the last of the machine",
        rule: "XENMEM_maximum_ram_page gives the number of the highest frame of the machine.",
        source: "memory.h, XENMEM_maximum_ram_page",
    }
    "memory.maximum-gpfn" = maximum_gpfn {
        title: "the highest page number is what the guest says in shared_info",
        rule: "XENMEM_maximum_gpfn of a PV domain is one less than arch.max_pfn of its shared_info.",
        source: "memory.h, XENMEM_maximum_gpfn; arch-x86/xen.h, struct arch_shared_info",
    }
    "memory.machphys-mapping" = machphys_mapping {
        title: "where the M2P is",
        rule: "XENMEM_machphys_mapping gives the first address, the end and the highest frame of the M2P that the guest can read.",
        source: "memory.h, struct xen_machphys_mapping; arch-x86/xen-x86_64.h, MACH2PHYS_VIRT_START",
    }
    "memory.m2p" = m2p {
        title: "the M2P and the guest's own tables agree",
        rule: "machine_to_phys_mapping[mfn] is the page number of each frame of the domain.",
        source: "arch-x86/xen.h, machine_to_phys_mapping",
    }
    "memory.m2p-readonly" = m2p_readonly {
        title: "the M2P cannot be written",
        rule: "The guest's view of the M2P is read-only.",
        source: "arch-x86/xen-x86_64.h, 'Virtual address space layout'",
    }
    "memory.memory-map" = memory_map {
        title: "the domain's memory map, if it has one",
        rule: "XENMEM_memory_map gives the map that the toolstack set, at most as many entries as asked for, or ENOSYS if there is none.",
        source: "memory.h, XENMEM_memory_map",
    }
    "memory.machine-memory-map" = machine_memory_map {
        title: "the machine's memory map has RAM",
        rule: "XENMEM_machine_memory_map gives the control domain the machine's map, and with a null buffer the number of its entries.",
        source: "memory.h, XENMEM_machine_memory_map",
        also: [Dom0],
    }
    "memory.machine-memory-map-unprivileged" = machine_memory_map_unprivileged {
        title: "the machine's memory map is not a guest's to see",
        rule: "XENMEM_machine_memory_map gives EPERM to a domain without privileges.",
        source: "memory.h, XENMEM_machine_memory_map",
        also: [DomU],
    }
    "memory.add-to-physmap" = add_to_physmap {
        title: "a physmap is not a PV guest's",
        rule: "XENMEM_add_to_physmap is refused for a domain that is not auto-translated.",
        source: "memory.h, XENMEM_add_to_physmap",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::memory::*;
    use ring_abi::shared_info::ARCH_OFFSET;

    fn ask<T>(command: u32, arg: &mut T) -> i64 {
        op(__HYPERVISOR_MEMORY_OP, command, arg)
    }

    pub(super) fn maximum_ram_page(_: &Env) -> Verdict {
        let last = value(
            "maximum_ram_page",
            call(__HYPERVISOR_MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE.into(), 0, 0, 0, 0]),
        )?;
        let scratch = Scratch::new(4);
        ensure!((0..4).all(|n| scratch.mfn(n) <= last), "a page beyond {last:#x}");
        ensure!(last < 1 << 40, "{last:#x}");
        Ok(())
    }

    pub(super) fn maximum_gpfn(_: &Env) -> Verdict {
        let info = pvrt::shared_info();
        let arg = &mut XenMemoryDomain { domid: DOMID_SELF };
        let before = info.load_u64(ARCH_OFFSET);
        info.store_u64(ARCH_OFFSET, 0x1235);
        let got = ask(XENMEM_MAXIMUM_GPFN, arg);
        info.store_u64(ARCH_OFFSET, before);
        ensure_eq!(value("maximum_gpfn", got)?, 0x1234, "the highest page number");
        Ok(())
    }

    fn m2p_of(mfn: u64) -> Verdict<u64> {
        load("the M2P", M2P + mfn * 8)
    }

    pub(super) fn machphys_mapping(_: &Env) -> Verdict {
        let mut arg = XenMachphysMapping::default();
        done("machphys_mapping", ask(XENMEM_MACHPHYS_MAPPING, &mut arg))?;
        ensure_eq!(arg.v_start, M2P, "v_start");
        ensure!(arg.v_end > arg.v_start && arg.v_end <= 0xffff_8040_0000_0000, "v_end {:#x}", arg.v_end);
        ensure!(
            arg.max_mfn < (arg.v_end - arg.v_start) / 8,
            "max_mfn {:#x} beyond {:#x}",
            arg.max_mfn,
            arg.v_end
        );
        let scratch = Scratch::new(1);
        ensure!(scratch.mfn(0) <= arg.max_mfn, "a page beyond max_mfn {:#x}", arg.max_mfn);
        Ok(())
    }

    pub(super) fn m2p(_: &Env) -> Verdict {
        let scratch = Scratch::new(8);
        for n in 0..8 {
            ensure_eq!(m2p_of(scratch.mfn(n))?, scratch.pages.pfn(n).raw(), "page {n}");
        }
        let tables = tables(scratch.at(0));
        for mfn in tables {
            ensure!(m2p_of(mfn)? < u64::from(u32::MAX), "a table without a page number: {mfn:#x}");
        }
        Ok(())
    }

    pub(super) fn m2p_readonly(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = M2P + scratch.mfn(0) * 8;
        let before = load("the M2P", at)?;
        let trap = trapped("a write", probe::write(at, 0), 14)?;
        ensure_eq!(trap.cr2, at, "cr2");
        ensure_eq!(load("the M2P", at)?, before, "the entry");
        Ok(())
    }

    /// Makes a memory map call, checks the entries that it wrote, and returns their number.
    fn check_map(command: u32) -> Verdict<u32> {
        let mut entries = [E820Entry::default(); 64];
        let mut arg =
            XenMemoryMap { nr_entries: 64, buffer: entries.as_mut_ptr() as u64, ..Default::default() };
        let got = ask(command, &mut arg);
        require!(got != ENOSYS.negated(), "no map was set");
        done("the map", got)?;
        let count = arg.nr_entries;
        ensure!((1..=64).contains(&count), "{count} entries");
        let used = &entries[..count as usize];
        ensure!(used.iter().all(|entry| { entry.size } > 0), "an empty entry");
        ensure!(used.iter().any(|entry| { entry.r#type } == E820_RAM), "no RAM");
        let mut one = [E820Entry::default(); 2];
        let mut arg = XenMemoryMap { nr_entries: 1, buffer: one.as_mut_ptr() as u64, ..Default::default() };
        let got = ask(command, &mut arg);
        ensure!(got == 0 && arg.nr_entries == 1 || got == EINVAL.negated(), "room for one: {}", Got(got));
        ensure!({ one[1].size } == 0, "more than one entry was written");
        Ok(count)
    }

    pub(super) fn memory_map(_: &Env) -> Verdict {
        check_map(XENMEM_MEMORY_MAP).map(|_| ())
    }

    pub(super) fn machine_memory_map(_: &Env) -> Verdict {
        let count = check_map(XENMEM_MACHINE_MEMORY_MAP)?;
        let mut arg = XenMemoryMap::default();
        done("without a buffer", ask(XENMEM_MACHINE_MEMORY_MAP, &mut arg))?;
        ensure!(
            arg.nr_entries >= count && arg.nr_entries <= count + 1,
            "{} entries, not {count}",
            arg.nr_entries
        );
        Ok(())
    }

    pub(super) fn machine_memory_map_unprivileged(_: &Env) -> Verdict {
        let mut entries = [E820Entry::default(); 4];
        let mut arg =
            XenMemoryMap { nr_entries: 4, buffer: entries.as_mut_ptr() as u64, ..Default::default() };
        refused("the machine's map", ask(XENMEM_MACHINE_MEMORY_MAP, &mut arg), &[EPERM])
    }

    pub(super) fn add_to_physmap(_: &Env) -> Verdict {
        let mut arg = XenAddToPhysmap { domid: DOMID_SELF, gpfn: 0x3_0000, ..Default::default() };
        let got = ask(XENMEM_ADD_TO_PHYSMAP, &mut arg);
        refused("add_to_physmap", got, &[EACCES, ENOSYS, EOPNOTSUPP, EINVAL, EPERM])
    }
}
