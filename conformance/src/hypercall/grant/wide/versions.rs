//! Changes of version: what prevents a change, which entries it keeps and which it clears.

hypercall_cases! {
    "grant.v2-set" = set {
        title: "version 2 and back",
        rule: "GNTTABOP_set_version makes the version the one in force, and tells it.",
        source: "grant_table.h, GNTTABOP_set_version, GNTTABOP_get_version",
    }
    "grant.v2-set-again" = set_again {
        title: "the version that is in force",
        rule: "GNTTABOP_set_version to the version in force gives 0 and changes nothing.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-often" = often {
        title: "forty changes of version",
        rule: "A table changes its version as often as its domain asks.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-unknown" = unknown {
        title: "versions that there are not, under version 2",
        rule: "GNTTABOP_set_version refuses versions other than 1 and 2 with EINVAL.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-fault" = fault {
        title: "a structure that cannot be read, under version 2",
        rule: "A structure that is not mapped gives EFAULT.",
        source: "grant_table.h, GNTTABOP_set_version, GNTTABOP_get_status_frames",
    }
    "grant.v2-same-frames" = same_frames {
        title: "the table's frames under both versions",
        rule: "A change of version leaves the table's frames what they are.",
        source: "grant_table.h, GNTTABOP_set_version, GNTTABOP_setup_table",
    }
    "grant.v2-query-size" = query_size {
        title: "the table's size under both versions",
        rule: "GNTTABOP_query_size counts frames of entries, whatever the version.",
        source: "grant_table.h, GNTTABOP_query_size",
    }
    "grant.v2-busy" = busy {
        title: "version 2 while an entry is mapped",
        rule: "GNTTABOP_set_version gives EBUSY while an entry that is not reserved is in use, and tells the version in force.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-busy-back" = busy_back {
        title: "version 1 while an entry of version 2 is mapped",
        rule: "GNTTABOP_set_version gives EBUSY while an entry that is not reserved is in use, and tells the version in force.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-busy-device" = busy_device {
        title: "version 1 while an entry is mapped for a device",
        rule: "A use for a device alone is a use.",
        source: "grant_table.h, GNTTABOP_set_version, GNTMAP_device_map",
    }
    "grant.v2-busy-status" = busy_status {
        title: "version 1 while the status words are mapped",
        rule: "Frames of status words that are mapped are not taken: version 2 stays.",
        source: "grant_table.h, GNTTABOP_set_version, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-taken" = status_taken {
        title: "the frames of status words after version 1 is back",
        rule: "Under version 1 the frames of status words are not the domain's to map.",
        source: "grant_table.h, GNTTABOP_set_version, GNTTABOP_get_status_frames",
    }
    "grant.v2-clears" = clears {
        title: "entries of version 1 under version 2",
        rule: "Entries that are not reserved are empty after a change of version.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-clears-back" = clears_back {
        title: "entries of version 2 under version 1",
        rule: "Entries that are not reserved are empty after a change of version.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.v2-status-clean" = status_clean {
        title: "status words of a table that was of version 2 before",
        rule: "The status words of entries that nobody uses are 0 after a change to version 2.",
        source: "grant_table.h, grant_status_t",
    }
    "grant.v2-reserved" = reserved {
        title: "a reserved entry through both changes",
        rule: "The first GNTTAB_NR_RESERVED_ENTRIES entries say the same in both versions.",
        source: "grant_table.h, GNTTAB_NR_RESERVED_ENTRIES, GNTTABOP_set_version",
    }
    "grant.v2-reserved-mapped" = reserved_mapped {
        title: "a reserved entry that is mapped while the version changes",
        rule: "A reserved entry in use does not keep the version: its marks are then in its status word.",
        source: "grant_table.h, GNTTAB_NR_RESERVED_ENTRIES, grant_status_t",
    }
    "grant.v2-reserved-mapped-back" = reserved_mapped_back {
        title: "a reserved entry of version 2 that is mapped while version 1 comes back",
        rule: "A reserved entry in use does not keep the version: its marks are then among its flags.",
        source: "grant_table.h, GNTTAB_NR_RESERVED_ENTRIES, GTF_reading, GTF_writing",
    }
    "grant.v2-reserved-high-frame" = reserved_high {
        title: "a reserved entry with a frame that version 1 has no room for",
        rule: "GNTTABOP_set_version gives ERANGE if version 1 cannot say what a reserved entry grants.",
        source: "grant_table.h, struct grant_entry_v1, frame; GNTTABOP_set_version",
    }
    "grant.v2-reserved-transitive" = reserved_transitive {
        title: "a reserved entry that passes a grant on",
        rule: "GNTTABOP_set_version gives ERANGE if version 1 cannot say what a reserved entry grants.",
        source: "grant_table.h, GTF_transitive; GNTTABOP_set_version",
    }
    "grant.v2-reserved-transfer" = reserved_transfer {
        title: "a reserved entry that accepts a transfer",
        rule: "A reserved entry that does not grant access is empty when version 1 comes back.",
        source: "grant_table.h, GTF_accept_transfer; GNTTABOP_set_version",
    }
    "grant.v2-runtime" = runtime {
        title: "a page granted, mapped, copied and taken back by a runtime, under version 2",
        rule: "A grant of version 2 ends when its flags are cleared and its status word shows no use.",
        source: "grant_table.h, 'Use of grant tables'; grant_status_t",
    }
    "grant.unused-reference" = unused {
        title: "the last entry of the table's first frame",
        rule: "A table has its first frame from the start: an entry that grants nothing is no bad reference.",
        source: "grant_table.h, GNTST_general_error, GNTST_bad_gntref",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use pvrt::grant::{map_grants, set_version as runtime_version, usage};
    use ring_abi::grant::*;
    use ring_abi::types::DomId;

    fn is_version(what: &str, (got, told): (i64, u32), wanted: u32) -> Verdict {
        done(what, got)?;
        ensure_eq!(told, wanted, "{what}: the version told");
        ensure_eq!(version()?, wanted, "{what}: the version in force");
        Ok(())
    }

    fn stays(what: &str, (got, told): (i64, u32), errno: Errno, wanted: u32) -> Verdict {
        refused(what, got, &[errno])?;
        ensure_eq!(told, wanted, "{what}: the version told");
        ensure_eq!(version()?, wanted, "{what}: the version in force");
        Ok(())
    }

    pub(super) fn set(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        ensure_eq!(version()?, 2, "the version in force");
        is_version("back", wide.back(), 1)?;
        is_version("again", set_version(2), 2)
    }

    pub(super) fn set_again(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(GREF, GTF_PERMIT_ACCESS, 0)?;
        let before = wide.read(GREF)?;
        is_version("again", set_version(2), 2)?;
        ensure_eq!(wide.read(GREF)?, before, "the entry");
        is_version("back", wide.back(), 1)?;
        is_version("back again", set_version(1), 1)
    }

    pub(super) fn often(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.back();
        for _ in 0..20 {
            is_version("version 2", set_version(2), 2)?;
            is_version("version 1", set_version(1), 1)?;
        }
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        let _wide = Wide::new(1)?;
        for version in [0, 3, u32::MAX] {
            stays("set_version", set_version(version), EINVAL, 2)?;
        }
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        for command in [GNTTABOP_SET_VERSION, GNTTABOP_GET_VERSION, GNTTABOP_GET_STATUS_FRAMES] {
            let got = call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), wide.scratch.at(0), 1, 0, 0]);
            refused("grant_table_op", got, &[EFAULT])?;
        }
        Ok(())
    }

    pub(super) fn same_frames(_: &Env) -> Verdict {
        let before = frames()?;
        let mut wide = Wide::new(1)?;
        ensure_eq!(frames()?, before, "the frames of version 2");
        wide.back();
        ensure_eq!(frames()?, before, "the frames at last");
        Ok(())
    }

    pub(super) fn query_size(_: &Env) -> Verdict {
        let size = || {
            let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
            done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
            Ok((size.status, size.nr_frames, size.max_nr_frames))
        };
        let before = size()?;
        let _wide = Wide::new(1)?;
        ensure_eq!(size()?, before, "the size");
        Ok(())
    }

    pub(super) fn busy(_: &Env) -> Verdict {
        drop(Wide::new(1)?); // is there a version 2?
        let page = Granted::new(1, false)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        let got = set_version(2);
        if got.0 == 0 {
            set_version(1);
        }
        let flags = page.flags();
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        stays("version 2", got, EBUSY, 1)?;
        ensure_eq!(flags?, GTF_PERMIT_ACCESS | MARKS, "the entry");
        Ok(())
    }

    pub(super) fn busy_back(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(GREF, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let got = wide.back();
        let entry = wide.read(GREF);
        wide.unmap(&mapped)?;
        stays("version 1", got, EBUSY, 2)?;
        ensure_eq!(entry?[1], wide.scratch.mfn(0), "the entry's frame");
        is_version("version 1 after", wide.back(), 1)
    }

    pub(super) fn busy_device(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(GREF, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_DEVICE_MAP | GNTMAP_READONLY, 0);
        okay("map", status)?;
        let got = wide.back();
        okay("unmap", unmap_ref(mapped.handle, 0, mapped.dev_bus_addr))?;
        stays("version 1", got, EBUSY, 2)
    }

    pub(super) fn busy_status(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        stays("version 1", set_version(1), EBUSY, 2)?;
        // The refused call has changed nothing.
        wide.grant(GREF, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let marks = wide.marked("while mapped", GREF, MARKS);
        wide.unmap(&mapped)?;
        marks?;
        is_version("version 1 after", wide.back(), 1)
    }

    pub(super) fn status_taken(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        let (_, list) = status_frames(DOMID_SELF, 1)?;
        is_version("back", wide.back(), 1)?;
        let got = map(wide.scratch.at(0), list[0] << 12 | RW);
        if got == 0 {
            map(wide.scratch.at(0), 0);
        }
        ensure!(got < 0, "a frame of status words is mapped under version 1");
        Ok(())
    }

    pub(super) fn clears(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.back();
        let view = View::of(frames()?[0])?;
        for gref in [8, 9, 255, 256, 511] {
            view.store(gref * 8, first(GTF_PERMIT_ACCESS, wide.me) | wide.scratch.mfn(0) << 32)?;
        }
        is_version("version 2", set_version(2), 2)?;
        for word in 16..512 {
            ensure_eq!(view.load(word * 8)?, 0, "word {word}");
        }
        Ok(())
    }

    pub(super) fn clears_back(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        for gref in [8, 9, 128, 255] {
            wide.grant(gref, GTF_PERMIT_ACCESS, 0)?;
        }
        is_version("back", wide.back(), 1)?;
        let view = View::of(frames()?[0])?;
        for word in 8..512 {
            ensure_eq!(view.load(word * 8)?, 0, "word {word}");
        }
        Ok(())
    }

    pub(super) fn status_clean(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        let (_, list) = status_frames(DOMID_SELF, 1)?;
        let view = View::of(list[0])?;
        for word in 2..512 {
            view.store(word * 8, u64::MAX)?;
        }
        drop(view);
        is_version("back", wide.back(), 1)?;
        is_version("version 2", set_version(2), 2)?;
        let (_, list) = status_frames(DOMID_SELF, 1)?;
        let view = View::of(list[0])?;
        for word in 2..512 {
            ensure_eq!(view.load(word * 8)?, 0, "word {word}");
        }
        Ok(())
    }

    pub(super) fn reserved(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(RESERVED, GTF_PERMIT_ACCESS | GTF_READONLY, 0)?;
        is_version("back", wide.back(), 1)?;
        let one = entry_word(RESERVED)?;
        let flags = first(GTF_PERMIT_ACCESS | GTF_READONLY, wide.me);
        ensure_eq!(one, flags | wide.scratch.mfn(0) << 32, "the entry of version 1");
        is_version("version 2", set_version(2), 2)?;
        ensure_eq!(wide.read(RESERVED)?, [flags, wide.scratch.mfn(0)], "the entry of version 2");
        wide.write(RESERVED, [0, 0])
    }

    pub(super) fn reserved_mapped(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(RESERVED, GTF_PERMIT_ACCESS, 0)?;
        is_version("back", wide.back(), 1)?;
        let (status, mapped) = wide.map(RESERVED, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let got = set_version(2);
        let (_, list) = status_frames(DOMID_SELF, 1)?;
        let marks = View::of(list[0]).and_then(|view| view.load(8));
        wide.unmap(&mapped)?;
        is_version("version 2", got, 2)?;
        ensure_eq!((marks? >> 48) as u16, MARKS, "the status word while mapped");
        let after = View::of(list[0])?.load(8)?;
        ensure_eq!((after >> 48) as u16, 0, "the status word after");
        ensure_eq!(wide.read(RESERVED)?[0], first(GTF_PERMIT_ACCESS, wide.me), "the flags");
        wide.write(RESERVED, [0, 0])
    }

    pub(super) fn reserved_mapped_back(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.grant(RESERVED, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(RESERVED, GNTMAP_HOST_MAP | GNTMAP_READONLY, 0);
        okay("map", status)?;
        let got = wide.back();
        let during = entry_flags(RESERVED);
        wide.unmap(&mapped)?;
        is_version("back", got, 1)?;
        ensure_eq!(during?, GTF_PERMIT_ACCESS | GTF_READING, "the flags while mapped");
        ensure_eq!(entry_flags(RESERVED)?, GTF_PERMIT_ACCESS, "the flags after");
        is_version("version 2", set_version(2), 2)?;
        wide.write(RESERVED, [0, 0])
    }

    pub(super) fn reserved_high(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.write(RESERVED, [first(GTF_PERMIT_ACCESS, wide.me), 1 << 32])?;
        let got = wide.back();
        wide.write(RESERVED, [0, 0])?;
        stays("version 1", got, ERANGE, 2)
    }

    pub(super) fn reserved_transitive(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.pass_on(RESERVED, 0, 0, 0)?;
        let got = wide.back();
        wide.write(RESERVED, [0, 0])?;
        stays("version 1", got, ERANGE, 2)
    }

    pub(super) fn reserved_transfer(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.write(RESERVED, [first(GTF_ACCEPT_TRANSFER, wide.me), 7])?;
        is_version("back", wide.back(), 1)?;
        ensure_eq!(entry_word(RESERVED)?, 0, "the entry");
        Ok(())
    }

    fn failed<E: core::fmt::Debug>(what: &'static str) -> impl FnOnce(E) -> Problem {
        move |error| Problem::Fail(alloc::format!("{what}: {error:?}"))
    }

    pub(super) fn runtime(_: &Env) -> Verdict {
        drop(Wide::new(1)?);
        runtime_version(2).map_err(failed("version 2"))?;
        let page = Granted::new(1, false)?;
        let again = runtime_version(1);
        let mapping = map_grants(DomId::new(page.me), &[page.grant.number()], true).map_err(failed("map"))?;
        let in_use = page.grant.in_use();
        drop(mapping);
        let left = page.grant.in_use();
        drop(page);
        let used = usage().used;
        runtime_version(1).map_err(failed("version 1"))?;
        ensure_eq!(again, Err(EBUSY), "version 1 while a page is granted");
        ensure!(in_use && !left, "in use while mapped: {in_use}, after: {left}");
        ensure_eq!(used, 0, "entries in use at last");
        Ok(())
    }

    pub(super) fn unused(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let (status, _) = map_ref(own_domid()?, 511, GNTMAP_HOST_MAP, scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])
    }
}
