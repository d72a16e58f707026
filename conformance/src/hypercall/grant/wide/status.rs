//! The frames of status words.

hypercall_cases! {
    "grant.v2-status-frames" = frames_of_status {
        title: "the frames of status words",
        rule: "GNTTABOP_get_status_frames writes the frames of the caller's status words, which it may map.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-none" = none {
        title: "no frames of status words",
        rule: "A list of no frames is written, whatever the version.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-too-many" = too_many {
        title: "more frames of status words than there are",
        rule: "GNTTABOP_get_status_frames gives GNTST_general_error for more frames than the table has.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-version-1" = version_1 {
        title: "frames of status words under version 1",
        rule: "Version 1 has no status words.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-of-nobody" = of_nobody {
        title: "frames of status words of a domain that there is not",
        rule: "GNTTABOP_get_status_frames gives GNTST_bad_domain for a domain that does not exist.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-of-dom0" = of_dom0 {
        title: "frames of status words of dom0",
        rule: "Another domain's table is a privileged caller's to see, else GNTST_permission_denied.",
        source: "grant_table.h, GNTST_permission_denied",
    }
    "grant.v2-status-frames-list" = lists {
        title: "several structures, and none",
        rule: "GNTTABOP_get_status_frames takes exactly one structure.",
        source: "grant_table.h, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-frames-bad-list" = bad_list {
        title: "a list of frames that cannot be written",
        rule: "A list that is not mapped gives GNTST_bad_virt_addr.",
        source: "grant_table.h, GNTST_bad_virt_addr",
    }
    "grant.v2-status-frames-grow" = grow {
        title: "status words of a table that grows",
        rule: "Each entry of a table of version 2 has a status word: a table of nine frames has two frames of them.",
        source: "grant_table.h, GNTTABOP_setup_table, GNTTABOP_get_status_frames",
    }
    "grant.v2-status-last" = last {
        title: "the last entry of a frame",
        rule: "An entry of version 2 has 16 bytes and a status word of 2: a frame has 256.",
        source: "grant_table.h, union grant_entry_v2, grant_status_t",
    }
    "grant.v2-status-own" = own {
        title: "what the domain itself writes to a status word",
        rule: "What a domain writes to a status word neither permits nor prevents a use.",
        source: "grant_table.h, grant_status_t",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;

    pub(super) fn frames_of_status(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        let (status, list) = status_frames(DOMID_SELF, 1)?;
        okay("get_status_frames", status)?;
        ensure!(!frames()?.contains(&list[0]), "a frame of entries");
        ensure_eq!(list[1], u64::MAX, "what is behind the list");
        done("mapping it", map(wide.scratch.at(0), list[0] << 12 | RW))?;
        store("it", wide.scratch.at(0) + 4088, 0)?;
        done("unmapping it", map(wide.scratch.at(0), 0))?;
        let (status, list) = status_frames(wide.me, 1)?;
        okay("by the domain's number", status)?;
        ensure!(list[0] != u64::MAX, "nothing written");
        Ok(())
    }

    pub(super) fn none(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        okay("under version 2", status_frames(DOMID_SELF, 0)?.0)?;
        wide.back();
        okay("under version 1", status_frames(DOMID_SELF, 0)?.0)
    }

    pub(super) fn too_many(_: &Env) -> Verdict {
        let _wide = Wide::new(1)?;
        let have = (frames()?.len() as u32).div_ceil(8);
        okay("all", status_frames(DOMID_SELF, have)?.0)?;
        for count in [have + 1, 512, 1 << 16, u32::MAX] {
            not_mapped("too many", status_frames(DOMID_SELF, count)?.0, &[GNTST_GENERAL_ERROR])?;
        }
        Ok(())
    }

    pub(super) fn version_1(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        wide.back();
        for count in [1, 2] {
            let (status, list) = status_frames(DOMID_SELF, count)?;
            not_mapped("get_status_frames", status, &[GNTST_GENERAL_ERROR])?;
            ensure_eq!(list[0], u64::MAX, "the list");
        }
        Ok(())
    }

    pub(super) fn of_nobody(_: &Env) -> Verdict {
        not_mapped("get_status_frames", status_frames(NO_DOMAIN, 1)?.0, &[GNTST_BAD_DOMAIN])
    }

    pub(super) fn of_dom0(_: &Env) -> Verdict {
        require!(own_domid()? != 0, "in dom0 all tables may be seen");
        not_mapped("get_status_frames", status_frames(0, 1)?.0, &[GNTST_PERMISSION_DENIED])
    }

    pub(super) fn lists(_: &Env) -> Verdict {
        let _wide = Wide::new(1)?;
        let mut list = [0u64; 1];
        let one = GnttabGetStatusFrames {
            nr_frames: 1,
            dom: DOMID_SELF,
            status: 0,
            frame_list: list.as_mut_ptr() as u64,
        };
        refused("two", ask(GNTTABOP_GET_STATUS_FRAMES, &mut [one; 2]), &[EINVAL])?;
        refused("none", ask(GNTTABOP_GET_STATUS_FRAMES, &mut [one; 0]), &[EINVAL])
    }

    pub(super) fn bad_list(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        let mut arg = GnttabGetStatusFrames {
            nr_frames: 1,
            dom: DOMID_SELF,
            status: 0x55,
            frame_list: wide.scratch.at(0),
        };
        done("get_status_frames", ask_one(GNTTABOP_GET_STATUS_FRAMES, &mut arg))?;
        not_mapped("get_status_frames", arg.status, &[GNTST_BAD_VIRT_ADDR])
    }

    pub(super) fn grow(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        let mut list = alloc::vec![0u64; 9];
        let mut arg = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: 9,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        };
        done("setup_table", ask_one(GNTTABOP_SETUP_TABLE, &mut arg))?;
        okay("setup_table", arg.status)?;
        let (status, words) = status_frames(DOMID_SELF, 2)?;
        okay("get_status_frames", status)?;
        // The first entry of the ninth frame, whose status word is the second frame's first.
        let (entries, status) = (View::of(list[8])?, View::of(words[1])?);
        entries.store(8, wide.scratch.mfn(0))?;
        entries.store(0, first(GTF_PERMIT_ACCESS, wide.me))?;
        let (mapping, mapped) = wide.map(8 * 256, GNTMAP_HOST_MAP, 0);
        okay("map", mapping)?;
        let during = status.load(0);
        wide.unmap(&mapped)?;
        ensure_eq!(during?, u64::from(MARKS), "the status words while mapped");
        ensure_eq!(status.load(0)?, 0, "the status words after");
        Ok(())
    }

    pub(super) fn last(_: &Env) -> Verdict {
        let wide = Wide::new(1)?;
        wide.grant(255, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(255, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        let during = wide.status(255);
        let neighbour = wide.status(254);
        wide.unmap(&mapped)?;
        ensure_eq!((during?, neighbour?), (MARKS, 0), "the status words");
        let beyond = frames()?.len() as u32 * 256;
        not_mapped("the last of all", wide.map(beyond - 1, GNTMAP_HOST_MAP, 0).0, &[GNTST_GENERAL_ERROR])?;
        for gref in [beyond, beyond + 1, beyond * 2, u32::MAX] {
            not_mapped("beyond", wide.map(gref, GNTMAP_HOST_MAP, 0).0, &[GNTST_BAD_GNTREF])?;
        }
        Ok(())
    }

    pub(super) fn own(_: &Env) -> Verdict {
        let mut wide = Wide::new(1)?;
        let (_, list) = status_frames(DOMID_SELF, 1)?;
        let view = View::of(list[0])?;
        let at = u64::from(GREF / 4) * 8;
        view.store(at, u64::MAX)?;
        not_mapped("map", wide.map(GREF, GNTMAP_HOST_MAP, 0).0, &[GNTST_GENERAL_ERROR])?;
        wide.grant(GREF, GTF_PERMIT_ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP, 0);
        okay("map", status)?;
        // The guest clears the status word; the hypervisor must still count the entry as in use.
        let cleared = view.store(at, 0);
        drop(view);
        let got = wide.back();
        wide.unmap(&mapped)?;
        cleared?;
        refused("version 1", got.0, &[EBUSY])
    }
}
