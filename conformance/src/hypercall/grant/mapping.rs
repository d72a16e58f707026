//! Mappings by reference: how they come about, what they hold, how they end.

hypercall_cases! {
    "grant.map" = map_host {
        title: "a page mapped by its reference",
        rule: "GNTMAP_host_map maps the granted frame at host_addr, and GNTTABOP_unmap_grant_ref ends that.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, GNTMAP_host_map",
    }
    "grant.map-bus-address" = map_bus_address {
        title: "the frame's machine address",
        rule: "dev_bus_addr of a mapping for a device is the machine address of the frame.",
        source: "grant_table.h, struct gnttab_map_grant_ref, dev_bus_addr",
    }
    "grant.map-readonly" = map_readonly {
        title: "a mapping for reading",
        rule: "With GNTMAP_readonly the mapping can be read and not written.",
        source: "grant_table.h, GNTMAP_readonly",
    }
    "grant.map-device" = map_device {
        title: "a mapping for a device alone",
        rule: "GNTMAP_device_map without GNTMAP_host_map maps nothing at an address; the unmap names dev_bus_addr.",
        source: "grant_table.h, GNTMAP_device_map",
    }
    "grant.map-entry" = map_entry {
        title: "a mapping by the entry's machine address",
        rule: "With GNTMAP_contains_pte host_addr is the machine address of the page-table entry.",
        source: "grant_table.h, GNTMAP_contains_pte",
    }
    "grant.map-both" = map_both {
        title: "one reference, two mappings",
        rule: "A reference can be mapped several times; each mapping has a handle of its own and ends by itself.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, 'NOTES'",
    }
    "grant.flags-writing" = flags_writing {
        title: "what the entry says while it is mapped",
        rule: "While a reference is mapped for writing its entry has GTF_reading and GTF_writing, and neither afterwards.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.flags-reading" = flags_reading {
        title: "what the entry says while it is mapped for reading",
        rule: "While a reference is mapped for reading its entry has GTF_reading and not GTF_writing.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.flags-last" = flags_last {
        title: "the flags stay until the last mapping ends",
        rule: "GTF_reading and GTF_writing are cleared with the last mapping of their kind.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.map-readonly-as-writable" = map_readonly_as_writable {
        title: "writing what was granted for reading",
        rule: "A reference with GTF_readonly is mapped with GNTMAP_readonly or not at all.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.map-not-granted" = map_not_granted {
        title: "an entry that grants nothing",
        rule: "A reference whose entry is not GTF_permit_access is not mapped.",
        source: "grant_table.h, GTF_permit_access",
    }
    "grant.map-others" = map_others {
        title: "a grant for another domain",
        rule: "A reference granted to another domain is not mapped.",
        source: "grant_table.h, struct grant_entry_v1, domid",
    }
    "grant.map-bad-reference" = map_bad_reference {
        title: "a reference beyond the table",
        rule: "A reference beyond the table gives GNTST_bad_gntref.",
        source: "grant_table.h, GNTST_bad_gntref",
    }
    "grant.map-bad-domain" = map_bad_domain {
        title: "a grant of a domain that there is not",
        rule: "A domain that does not exist gives GNTST_bad_domain.",
        source: "grant_table.h, GNTST_bad_domain",
    }
    "grant.map-no-kind" = map_no_kind {
        title: "neither for the host nor for a device",
        rule: "A mapping that is neither GNTMAP_host_map nor GNTMAP_device_map is refused.",
        source: "grant_table.h, GNTMAP_device_map, GNTMAP_host_map",
    }
    "grant.map-bad-address" = map_bad_address {
        title: "an address that cannot be mapped",
        rule: "A host_addr without a page table, or of the hypervisor's, is refused, and the entry is not in use.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.map-table" = map_table {
        title: "a page table by its reference",
        rule: "A frame that is a page table is not mapped for writing by a reference.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.map-pins-type" = map_pins_type {
        title: "a page that a mapping can write is no table",
        rule: "A frame with a writable grant mapping does not become a page table.",
        source: "grant_table.h, GNTTABOP_map_grant_ref; xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "grant.unmap-twice" = unmap_twice {
        title: "a handle that was given back",
        rule: "GNTTABOP_unmap_grant_ref of a handle without a mapping gives GNTST_bad_handle.",
        source: "grant_table.h, GNTST_bad_handle",
    }
    "grant.unmap-elsewhere" = unmap_elsewhere {
        title: "an unmap at another address",
        rule: "GNTTABOP_unmap_grant_ref with another host_addr than the mapping's fails, and the mapping stands.",
        source: "grant_table.h, GNTTABOP_unmap_grant_ref, 'NOTES'",
    }
    "grant.unmap-and-replace" = unmap_and_replace {
        title: "a mapping that gives way to another",
        rule: "GNTTABOP_unmap_and_replace puts the mapping of new_addr in place of the grant's, and clears it at new_addr.",
        source: "grant_table.h, GNTTABOP_unmap_and_replace",
    }
    "grant.revoked" = revoked {
        title: "a grant withdrawn after its mapping ended",
        rule: "After its entry is invalid a reference cannot be mapped.",
        source: "grant_table.h, 'Use of grant tables'",
    }
    "grant.map-batch" = map_batch {
        title: "a good, a bad and a good mapping",
        rule: "Each entry of a list has its own status, and a failed one does not keep the others from being done.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, 'NOTES'",
    }
}

#[cfg(freestanding)]
mod body {
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;
    use ring_abi::mmu::MMUEXT_PIN_L1_TABLE;

    pub(super) fn map_host(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        store("the page", page.scratch.page(0), 0x1111)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        ensure_eq!(load("the mapping", at)?, 0x1111, "what it shows");
        store("the mapping", at + 8, 0x2222)?;
        ensure_eq!(load("the page", page.scratch.page(0) + 8)?, 0x2222, "what it was written");
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        trapped("the address after", probe::read(at).err(), 14).map(|_| ())
    }

    pub(super) fn map_bus_address(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, mapped) = page.map(GNTMAP_DEVICE_MAP, 0);
        okay("map", status)?;
        let frame = page.scratch.mfn(0) << 12;
        okay("unmap", unmap_ref(mapped.handle, 0, frame))?;
        ensure_eq!(mapped.dev_bus_addr, frame, "dev_bus_addr");
        Ok(())
    }

    pub(super) fn map_readonly(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        store("the page", page.scratch.page(0), 0x1111)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, at);
        okay("map", status)?;
        ensure_eq!(load("the mapping", at)?, 0x1111, "what it shows");
        let trap = probe::write(at, 0x2222);
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        trapped("a write", trap, 14)?;
        ensure_eq!(load("the page", page.scratch.page(0))?, 0x1111, "the page");
        Ok(())
    }

    pub(super) fn map_device(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, mapped) = page.map(GNTMAP_DEVICE_MAP, 0);
        okay("map", status)?;
        ensure!(page.flags()? & GTF_WRITING != 0, "the entry is not in use");
        okay("unmap", unmap_ref(mapped.handle, 0, mapped.dev_bus_addr))?;
        ensure!(page.flags()? & (GTF_READING | GTF_WRITING) == 0, "the entry is still in use");
        Ok(())
    }

    pub(super) fn map_entry(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        store("the page", page.scratch.page(0), 0x1111)?;
        let entry = page.scratch.entry_address(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, entry);
        okay("map", status)?;
        ensure_eq!(load("the mapping", page.scratch.at(0))?, 0x1111, "what it shows");
        okay("unmap", unmap_ref(mapped.handle, entry, 0))?;
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry after");
        Ok(())
    }

    pub(super) fn map_both(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        store("the page", page.scratch.page(0), 0x1111)?;
        let (first, one) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        let (second, two) = page.map(GNTMAP_HOST_MAP, page.scratch.at(1));
        okay("map", first)?;
        okay("map again", second)?;
        ensure!(one.handle != two.handle, "one handle for both");
        okay("unmap", unmap_ref(one.handle, page.scratch.at(0), 0))?;
        ensure_eq!(load("the other", page.scratch.at(1))?, 0x1111, "what it shows");
        okay("unmap", unmap_ref(two.handle, page.scratch.at(1), 0))
    }

    pub(super) fn flags_writing(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags before");
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        let during = page.flags();
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        ensure_eq!(during?, GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING, "the flags while mapped");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after");
        Ok(())
    }

    pub(super) fn flags_reading(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, page.scratch.at(0));
        okay("map", status)?;
        let during = page.flags();
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        ensure_eq!(during?, GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING, "the flags while mapped");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS | GTF_READONLY, "the flags after");
        Ok(())
    }

    pub(super) fn flags_last(_: &Env) -> Verdict {
        let page = Granted::new(3, false)?;
        let (first, read) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, page.scratch.at(0));
        okay("map for reading", first)?;
        let reading = page.flags()?;
        let (second, write) = page.map(GNTMAP_HOST_MAP, page.scratch.at(1));
        okay("map for writing", second)?;
        okay("unmap", unmap_ref(write.handle, page.scratch.at(1), 0))?;
        let one_left = page.flags()?;
        okay("unmap", unmap_ref(read.handle, page.scratch.at(0), 0))?;
        ensure_eq!(reading, GTF_PERMIT_ACCESS | GTF_READING, "with one for reading");
        ensure_eq!(one_left, GTF_PERMIT_ACCESS | GTF_READING, "after the one for writing");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags at last");
        Ok(())
    }

    pub(super) fn map_readonly_as_writable(_: &Env) -> Verdict {
        let page = Granted::new(1, true)?;
        let (status, _) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])?;
        let (status, _) = page.map(GNTMAP_DEVICE_MAP, 0);
        not_mapped("map for a device", status, &[GNTST_GENERAL_ERROR])?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS | GTF_READONLY, "the flags");
        Ok(())
    }

    pub(super) fn map_not_granted(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        // The reserved entry 7 has never been used.
        let (status, _) = map_ref(page.me, 7, GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])
    }

    pub(super) fn map_others(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let other = grant(page.me ^ 1, page.scratch.mfn(0), false)?;
        let (status, _) = map_ref(page.me, other.number().raw(), GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])
    }

    pub(super) fn map_bad_reference(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for gref in [64 * 512, 1 << 24, u32::MAX] {
            let (status, _) = map_ref(page.me, gref, GNTMAP_HOST_MAP, page.scratch.at(0));
            not_mapped("map", status, &[GNTST_BAD_GNTREF])?;
        }
        Ok(())
    }

    pub(super) fn map_bad_domain(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, _) = map_ref(NO_DOMAIN, page.number(), GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_BAD_DOMAIN])
    }

    pub(super) fn map_no_kind(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for flags in [0, GNTMAP_READONLY] {
            let (status, _) = page.map(flags, page.scratch.at(0));
            ensure!(status < 0, "map: status {status}");
        }
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry");
        Ok(())
    }

    pub(super) fn map_bad_address(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for at in [0x0000_5555_5555_5000, M2P, 0xffff_8300_0000_0000] {
            let (status, _) = page.map(GNTMAP_HOST_MAP, at);
            ensure!(status < 0, "map at {at:#x}: status {status}");
        }
        let (status, _) = page.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, page.scratch.entry_address(0) + 4);
        ensure!(status < 0, "map by half an entry: status {status}");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }

    pub(super) fn map_table(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for mfn in tables(page.scratch.at(0)) {
            let table = grant(page.me, mfn, false)?;
            let (status, _) = map_ref(page.me, table.number().raw(), GNTMAP_HOST_MAP, page.scratch.at(0));
            ensure!(status < 0, "a table for writing: status {status}");
        }
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry");
        Ok(())
    }

    pub(super) fn map_pins_type(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for (flags, at) in [(GNTMAP_HOST_MAP, page.scratch.at(0)), (GNTMAP_DEVICE_MAP, 0)] {
            let (status, mapped) = page.map(flags, at);
            okay("map", status)?;
            done("read-only", page.scratch.protect(0))?;
            let got = extended(MMUEXT_PIN_L1_TABLE, page.scratch.mfn(0), 0);
            let unmapped = unmap_ref(mapped.handle, at, if at == 0 { mapped.dev_bus_addr } else { 0 });
            done("writable", page.scratch.unprotect(0))?;
            okay("unmap", unmapped)?;
            refused("pin", got, &[EINVAL, EBUSY])?;
        }
        Ok(())
    }

    pub(super) fn unmap_twice(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        not_mapped("unmap again", unmap_ref(mapped.handle, at, 0), &[GNTST_BAD_HANDLE])?;
        for handle in [1 << 20, u32::MAX] {
            not_mapped("no handle", unmap_ref(handle, at, 0), &[GNTST_BAD_HANDLE])?;
        }
        Ok(())
    }

    pub(super) fn unmap_elsewhere(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let at = page.scratch.at(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        let wrong = unmap_ref(mapped.handle, page.scratch.at(1), 0);
        let there = probe::read(at);
        let right = unmap_ref(mapped.handle, at, 0);
        ensure!(wrong < 0, "unmap elsewhere: status {wrong}");
        ensure!(there.is_ok(), "the mapping is gone: {there:x?}");
        okay("unmap", right)
    }

    pub(super) fn unmap_and_replace(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let (at, other) = (page.scratch.at(0), page.scratch.at(1));
        store("the other page", page.scratch.page(1), 0x77)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        done("the other mapping", map(other, page.scratch.mfn(1) << 12 | RW))?;
        let mut arg = GnttabUnmapAndReplace {
            host_addr: at,
            new_addr: other,
            handle: mapped.handle,
            ..Default::default()
        };
        let got = ask_one(GNTTABOP_UNMAP_AND_REPLACE, &mut arg);
        if got != 0 || arg.status != 0 {
            unmap_ref(mapped.handle, at, 0);
        }
        require!(got != ENOSYS.negated() && got != EOPNOTSUPP.negated(), "no such operation here");
        done("unmap_and_replace", got)?;
        okay("unmap_and_replace", arg.status)?;
        ensure_eq!(load("the address", at)?, 0x77, "what it shows");
        ensure_eq!(leaf(other), 0, "the entry at new_addr");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }

    pub(super) fn revoked(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (me, gref) = (page.me, page.number());
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        let Granted { scratch, grant, .. } = page;
        drop(grant);
        let (status, _) = map_ref(me, gref, GNTMAP_HOST_MAP, scratch.at(0));
        not_mapped("map after", status, &[GNTST_GENERAL_ERROR, GNTST_BAD_GNTREF])
    }

    pub(super) fn map_batch(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let one = |gref, n: usize| GnttabMapGrantRef {
            host_addr: page.scratch.at(n),
            flags: GNTMAP_HOST_MAP,
            r#ref: gref,
            dom: page.me,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [one(page.number(), 0), one(u32::MAX, 0), one(page.number(), 1)];
        done("map", ask(GNTTABOP_MAP_GRANT_REF, &mut list))?;
        ensure_eq!(
            list.map(|entry| entry.status),
            [GNTST_OKAY, GNTST_BAD_GNTREF, GNTST_OKAY],
            "the statuses"
        );
        let two = |entry: &GnttabMapGrantRef| GnttabUnmapGrantRef {
            host_addr: entry.host_addr,
            handle: entry.handle,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [two(&list[0]), two(&list[2])];
        done("unmap", ask(GNTTABOP_UNMAP_GRANT_REF, &mut list))?;
        ensure_eq!(list.map(|entry| entry.status), [GNTST_OKAY; 2], "the statuses");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }
}
