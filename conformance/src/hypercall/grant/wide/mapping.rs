//! Mappings of entries of version 2.

hypercall_cases! {
    "grant.v2-map" = map_host {
        title: "a page mapped by an entry of version 2",
        rule: "An entry whose hdr has GTF_permit_access grants full_page.frame to hdr.domid.",
        source: "grant_table.h, union grant_entry_v2",
    }
    "grant.v2-map-writing" = writing {
        title: "the status word while a page is mapped for writing",
        rule: "GTF_reading and GTF_writing stand in the status word; hdr.flags are the domain's own.",
        source: "grant_table.h, grant_status_t",
    }
    "grant.v2-map-reading" = reading {
        title: "the status word while a page is mapped for reading",
        rule: "A mapping for reading sets GTF_reading alone in the status word.",
        source: "grant_table.h, grant_status_t",
    }
    "grant.v2-map-last" = last {
        title: "the status word until the last mapping ends",
        rule: "GTF_reading and GTF_writing are cleared with the last mapping of their kind.",
        source: "grant_table.h, grant_status_t",
    }
    "grant.v2-map-device" = device {
        title: "a mapping for a device",
        rule: "GNTMAP_device_map gives the frame's machine address, and marks the status word.",
        source: "grant_table.h, GNTMAP_device_map",
    }
    "grant.v2-map-entry" = by_entry {
        title: "a mapping by the page-table entry's machine address",
        rule: "GNTMAP_contains_pte serves under both versions.",
        source: "grant_table.h, GNTMAP_contains_pte",
    }
    "grant.v2-map-readonly-as-writable" = readonly {
        title: "writing what was granted for reading",
        rule: "A reference with GTF_readonly is mapped with GNTMAP_readonly or not at all.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.v2-map-not-granted" = not_granted {
        title: "entries that grant nothing",
        rule: "An entry that is neither GTF_permit_access nor GTF_transitive grants nothing.",
        source: "grant_table.h, GTF_invalid, GTF_accept_transfer",
    }
    "grant.v2-map-others" = others {
        title: "an entry for another domain",
        rule: "An entry is good for hdr.domid alone.",
        source: "grant_table.h, struct grant_entry_header, domid",
    }
    "grant.v2-map-high-frame" = high_frame {
        title: "frames that there are not",
        rule: "All 64 bits of full_page.frame count.",
        source: "grant_table.h, union grant_entry_v2, full_page.frame",
    }
    "grant.v2-map-table" = table {
        title: "page tables by their references",
        rule: "A frame that is a page table is not mapped for writing by a reference.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.v2-map-part" = part {
        title: "a part of a page",
        rule: "An entry with GTF_sub_page serves copies alone.",
        source: "grant_table.h, GTF_sub_page",
    }
    "grant.v2-map-transitive" = transitive {
        title: "a grant that is passed on",
        rule: "An entry of GTF_transitive serves copies alone.",
        source: "grant_table.h, GTF_transitive",
    }
    "grant.v2-map-batch" = batch {
        title: "a good, a bad and a good mapping",
        rule: "Each entry of a list has its own status, and a failed one does not keep the others from being done.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, 'NOTES'",
    }
    "grant.v2-unmap-and-replace" = replace {
        title: "a mapping that gives way to another",
        rule: "GNTTABOP_unmap_and_replace serves under both versions, and clears the status word.",
        source: "grant_table.h, GNTTABOP_unmap_and_replace",
    }
    "grant.v2-revoke-in-use" = revoke_in_use {
        title: "a grant that is withdrawn while it is mapped",
        rule: "While a reference is mapped its status word says so, whatever becomes of the entry's flags.",
        source: "grant_table.h, grant_status_t; 'Use of grant tables'",
    }
    "grant.v2-frame-changed" = frame_changed {
        title: "an entry whose frame is changed while it is mapped",
        rule: "A mapping stays one of the frame that was mapped.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.v2-swap" = swap {
        title: "two entries change places",
        rule: "GNTTABOP_swap_grant_ref exchanges entries whole, and their status words.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
    "grant.v2-swap-busy" = swap_busy {
        title: "an entry that is in use stays where it is",
        rule: "GNTTABOP_swap_grant_ref gives GNTST_eagain for an entry that is mapped.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;

    const ACCESS: u16 = GTF_PERMIT_ACCESS;

    pub(super) fn map_host(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS, 0)?;
        store("the page", wide.scratch.page(0), 0x1111)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        ensure_eq!(load("the mapping", wide.scratch.at(0))?, 0x1111, "what it shows");
        store("the mapping", wide.scratch.at(0) + 8, 0x2222)?;
        wide.unmap(&mapped)?;
        ensure_eq!(load("the page", wide.scratch.page(0) + 8)?, 0x2222, "what it was written");
        trapped("the address after", probe::read(wide.scratch.at(0)).err(), 14).map(|_| ())
    }

    pub(super) fn writing(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS, 0)?;
        let entry = wide.read(GREF)?;
        wide.marked("before", GREF, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let during = (wide.status(GREF), wide.read(GREF));
        wide.unmap(&mapped)?;
        ensure_eq!((during.0?, during.1?), (MARKS, entry), "the status word and the entry while mapped");
        wide.marked("after", GREF, 0)
    }

    pub(super) fn reading(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS | GTF_READONLY, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP | GNTMAP_READONLY, 0);
        okay("map", status)?;
        let during = wide.status(GREF);
        wide.unmap(&mapped)?;
        ensure_eq!(during?, GTF_READING, "the status word while mapped");
        wide.marked("after", GREF, 0)
    }

    pub(super) fn last(_: &Env) -> Verdict {
        let wide = Wide::new(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (one, read) = wide.map(GREF, GNTMAP_HOST_MAP | GNTMAP_READONLY, 0);
        let (two, write) = wide.map(GREF, GNTMAP_HOST_MAP, 1);
        okay("map for reading", one)?;
        okay("map for writing", two)?;
        let both = wide.status(GREF);
        wide.unmap(&write)?;
        let left = wide.status(GREF);
        wide.unmap(&read)?;
        ensure_eq!((both?, left?), (MARKS, GTF_READING), "the status word with both, and with one");
        wide.marked("after", GREF, 0)
    }

    pub(super) fn device(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_DEVICE_MAP, 0);
        okay("map", status)?;
        let during = wide.status(GREF);
        okay("unmap", unmap_ref(mapped.handle, 0, mapped.dev_bus_addr))?;
        ensure_eq!(mapped.dev_bus_addr, wide.scratch.mfn(0) << 12, "dev_bus_addr");
        ensure_eq!(during?, MARKS, "the status word while mapped");
        wide.marked("after", GREF, 0)
    }

    pub(super) fn by_entry(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS, 0)?;
        store("the page", wide.scratch.page(0), 0x1111)?;
        let entry = wide.scratch.entry_address(0);
        let (status, mapped) = map_ref(wide.me, GREF, GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, entry);
        okay("map", status)?;
        let shown = load("the mapping", wide.scratch.at(0));
        wide.unmap(&mapped)?;
        ensure_eq!(shown?, 0x1111, "what it shows");
        wide.marked("after", GREF, 0)
    }

    /// Checks that a mapping is refused, and that the entry is not marked as in use afterwards.
    fn unmapped(wide: &Wide, what: &str, flags: u32, wanted: &[i16]) -> Verdict {
        let (status, mapped) = wide.map(GREF, flags, 0);
        if status == GNTST_OKAY {
            unmap_ref(mapped.handle, mapped.host_addr, mapped.dev_bus_addr);
        }
        not_mapped(what, status, wanted)?;
        wide.marked(what, GREF, 0)
    }

    pub(super) fn readonly(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS | GTF_READONLY, 0)?;
        for flags in [GNTMAP_HOST_MAP, GNTMAP_DEVICE_MAP] {
            unmapped(&wide, "for writing", flags, &[GNTST_GENERAL_ERROR])?;
        }
        Ok(())
    }

    pub(super) fn not_granted(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        for flags in [GTF_INVALID, GTF_ACCEPT_TRANSFER, GTF_READING | GTF_WRITING] {
            wide.grant(GREF, flags, 0)?;
            unmapped(&wide, "nothing granted", GNTMAP_HOST_MAP | GNTMAP_READONLY, &[GNTST_GENERAL_ERROR])?;
        }
        Ok(())
    }

    pub(super) fn others(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        for dom in [wide.me ^ 1, DOMID_SELF, u16::MAX] {
            wide.write(GREF, [first(ACCESS, dom), wide.scratch.mfn(0)])?;
            unmapped(&wide, "another's", GNTMAP_HOST_MAP, &[GNTST_GENERAL_ERROR])?;
        }
        Ok(())
    }

    pub(super) fn high_frame(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        let mfn = wide.scratch.mfn(0);
        for frame in [mfn | 1 << 32, mfn | 1 << 40, mfn | 1 << 52, mfn | 1 << 63, u64::MAX] {
            wide.write(GREF, [first(ACCESS, wide.me), frame])?;
            for flags in [GNTMAP_HOST_MAP, GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP | GNTMAP_READONLY] {
                let wanted = [GNTST_GENERAL_ERROR, GNTST_BAD_PAGE];
                unmapped(&wide, "a frame that is not there", flags, &wanted)?;
            }
        }
        Ok(())
    }

    pub(super) fn table(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        for mfn in tables(wide.scratch.at(0)) {
            wide.write(GREF, [first(ACCESS, wide.me), mfn])?;
            let wanted = [GNTST_GENERAL_ERROR, GNTST_BAD_PAGE];
            unmapped(&wide, "a table for writing", GNTMAP_HOST_MAP, &wanted)?;
        }
        Ok(())
    }

    pub(super) fn part(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        for part in [(0, 4096), (0, 512), (8, 8)] {
            wide.lend(GREF, 0, 0, part)?;
            for flags in [GNTMAP_HOST_MAP, GNTMAP_HOST_MAP | GNTMAP_READONLY, GNTMAP_DEVICE_MAP] {
                unmapped(&wide, "a part", flags, &[GNTST_GENERAL_ERROR])?;
            }
        }
        Ok(())
    }

    pub(super) fn transitive(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        // The transitive entry's reference is the number of a frame of this domain. A hypervisor that took
        // the entry for an ordinary one would map that frame.
        let mfn = wide.scratch.mfn(0);
        wide.pass_on(GREF, 0, 0, mfn as u32)?;
        for flags in [GNTMAP_HOST_MAP, GNTMAP_HOST_MAP | GNTMAP_READONLY, GNTMAP_DEVICE_MAP] {
            unmapped(&wide, "a grant passed on", flags, &[GNTST_GENERAL_ERROR])?;
        }
        Ok(())
    }

    pub(super) fn batch(_: &Env) -> Verdict {
        let wide = Wide::new(3)?;
        wide.grant(GREF, ACCESS, 0)?;
        wide.lend(GREF + 1, 0, 1, (0, 64))?;
        wide.grant(GREF + 2, ACCESS | GTF_READONLY, 2)?;
        let one = |n: usize| GnttabMapGrantRef {
            host_addr: wide.scratch.at(n),
            flags: GNTMAP_HOST_MAP | GNTMAP_READONLY,
            r#ref: GREF + n as u32,
            dom: wide.me,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [0, 1, 2].map(one);
        done("map", ask(GNTTABOP_MAP_GRANT_REF, &mut list))?;
        ensure_eq!(
            list.map(|entry| entry.status),
            [GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_OKAY],
            "the statuses"
        );
        wide.unmap(&list[0])?;
        wide.unmap(&list[2])
    }

    pub(super) fn replace(_: &Env) -> Verdict {
        let wide = Wide::new(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (at, other) = (wide.scratch.at(0), wide.scratch.at(1));
        store("the other page", wide.scratch.page(1), 0x77)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        done("the other mapping", map(other, wide.scratch.mfn(1) << 12 | RW))?;
        let mut arg = GnttabUnmapAndReplace {
            host_addr: at,
            new_addr: other,
            handle: mapped.handle,
            ..Default::default()
        };
        done("unmap_and_replace", ask_one(GNTTABOP_UNMAP_AND_REPLACE, &mut arg))?;
        okay("unmap_and_replace", arg.status)?;
        let shown = load("the address", at);
        done("unmapping it", map(at, 0))?;
        ensure_eq!(shown?, 0x77, "what it shows");
        wide.marked("after", GREF, 0)
    }

    pub(super) fn revoke_in_use(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let cleared = wide.write(GREF, [0, 0]);
        let during = (wide.status(GREF), probe::write(wide.scratch.at(0), 5));
        wide.unmap(&mapped)?;
        cleared?;
        ensure_eq!(during.0?, MARKS, "the status word while mapped");
        untrapped("the mapping", during.1)?;
        wide.marked("after", GREF, 0)?;
        unmapped(&wide, "map after", GNTMAP_HOST_MAP, &[GNTST_GENERAL_ERROR])
    }

    pub(super) fn frame_changed(_: &Env) -> Verdict {
        let wide = Wide::new(3)?;
        wide.grant(GREF, ACCESS, 0)?;
        store("the page", wide.scratch.page(0), 0x1111)?;
        store("the other page", wide.scratch.page(1), 0x2222)?;
        let (one, first_map) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", one)?;
        wide.grant(GREF, ACCESS, 1)?;
        let (two, second_map) = wide.map(GREF, GNTMAP_HOST_MAP, 2);
        let shown = (load("the mapping", wide.scratch.at(0)), load("the second", wide.scratch.at(2)));
        if two == GNTST_OKAY {
            wide.unmap(&second_map)?;
        }
        wide.unmap(&first_map)?;
        ensure_eq!(two, GNTST_OKAY, "map again");
        ensure_eq!((shown.0?, shown.1?), (0x1111, 0x1111), "what the mappings show");
        wide.marked("after", GREF, 0)
    }

    fn swap_refs(ref_a: u32, ref_b: u32) -> Verdict<i16> {
        let mut arg = GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() };
        let got = ask_one(GNTTABOP_SWAP_GRANT_REF, &mut arg);
        require!(got != ENOSYS.negated() && got != EOPNOTSUPP.negated(), "no such operation here");
        done("swap_grant_ref", got)?;
        Ok(arg.status)
    }

    pub(super) fn swap(_: &Env) -> Verdict {
        let wide = Wide::new(2)?;
        wide.lend(GREF, GTF_READONLY, 0, (16, 32))?;
        wide.grant(GREF + 1, ACCESS, 1)?;
        let (one, two) = (wide.read(GREF)?, wide.read(GREF + 1)?);
        okay("swap", swap_refs(GREF, GREF + 1)?)?;
        ensure_eq!((wide.read(GREF)?, wide.read(GREF + 1)?), (two, one), "the entries");
        let beyond = frames()?.len() as u32 * 256;
        not_mapped("swap with none", swap_refs(GREF, beyond)?, &[GNTST_BAD_GNTREF])
    }

    pub(super) fn swap_busy(_: &Env) -> Verdict {
        let wide = Wide::new(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let swapped = (swap_refs(GREF, GREF + 1), swap_refs(GREF + 1, GREF));
        wide.unmap(&mapped)?;
        ensure_eq!((swapped.0?, swapped.1?), (GNTST_EAGAIN, GNTST_EAGAIN), "the statuses");
        Ok(())
    }
}
