//! The table itself: its frames, its version, its entries.

hypercall_cases! {
    "grant.setup" = setup {
        title: "the table's frames",
        rule: "GNTTABOP_setup_table writes the frames of the caller's table, which it may map.",
        source: "grant_table.h, GNTTABOP_setup_table",
    }
    "grant.setup-too-many" = setup_too_many {
        title: "more frames than the table may have",
        rule: "GNTTABOP_setup_table beyond the limit fails and leaves the table as it is.",
        source: "grant_table.h, GNTTABOP_setup_table, GNTTABOP_query_size",
    }
    "grant.setup-other" = setup_other {
        title: "the table of a domain that there is not",
        rule: "GNTTABOP_setup_table gives GNTST_bad_domain for a domain that does not exist.",
        source: "grant_table.h, GNTTABOP_setup_table",
    }
    "grant.query-size" = query_size {
        title: "the table's size and its limit",
        rule: "GNTTABOP_query_size gives the frames in use and the frames allowed.",
        source: "grant_table.h, GNTTABOP_query_size",
    }
    "grant.version" = version {
        title: "the version in force",
        rule: "GNTTABOP_get_version gives the version, and GNTTABOP_set_version to that one gives 0.",
        source: "grant_table.h, GNTTABOP_get_version, GNTTABOP_set_version",
    }
    "grant.version-unknown" = version_unknown {
        title: "versions that there are not",
        rule: "GNTTABOP_set_version refuses versions other than 1 and 2 with EINVAL.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.version-other" = version_other {
        title: "the version of a domain that there is not",
        rule: "GNTTABOP_get_version gives ESRCH for a domain that does not exist.",
        source: "grant_table.h, GNTTABOP_get_version",
    }
    "grant.map-empty" = map_empty {
        title: "a list without entries",
        rule: "A list of no entries gives 0.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
    "grant.swap" = swap {
        title: "two entries change places",
        rule: "GNTTABOP_swap_grant_ref exchanges the contents of two entries.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
    "grant.swap-busy" = swap_busy {
        title: "an entry that is in use stays where it is",
        rule: "GNTTABOP_swap_grant_ref gives GNTST_eagain for an entry that is mapped.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
    "grant.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
    "grant.fault" = fault {
        title: "a list that cannot be read",
        rule: "A list that is not mapped gives EFAULT.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
}

#[cfg(freestanding)]
mod body {
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;

    pub(super) fn setup(_: &Env) -> Verdict {
        let _held = Granted::new(1, false)?;
        let frames = frames()?;
        ensure!(!frames.is_empty(), "a table without frames");
        let scratch = Scratch::new(1);
        for mfn in frames {
            done("mapping it", map(scratch.at(0), mfn << 12 | RW))?;
        }
        Ok(())
    }

    pub(super) fn setup_too_many(_: &Env) -> Verdict {
        let before = frames()?;
        let mut list = alloc::vec![0u64; 4096];
        let mut arg = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: 4096,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        };
        let got = ask_one(GNTTABOP_SETUP_TABLE, &mut arg);
        ensure!(got < 0 || arg.status < 0, "4096 frames: {}, status {}", Got(got), arg.status);
        ensure_eq!(frames()?, before, "the frames");
        Ok(())
    }

    pub(super) fn setup_other(_: &Env) -> Verdict {
        let mut frame = 0u64;
        let mut arg = GnttabSetupTable {
            dom: NO_DOMAIN,
            nr_frames: 1,
            frame_list: (&raw mut frame) as u64,
            ..Default::default()
        };
        done("setup_table", ask_one(GNTTABOP_SETUP_TABLE, &mut arg))?;
        ensure_eq!(arg.status, GNTST_BAD_DOMAIN, "the status");
        Ok(())
    }

    pub(super) fn query_size(_: &Env) -> Verdict {
        let _held = Granted::new(1, false)?;
        let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
        done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
        okay("query_size", size.status)?;
        ensure!(
            1 <= size.nr_frames && size.nr_frames <= size.max_nr_frames,
            "{} of {} frames",
            size.nr_frames,
            size.max_nr_frames
        );
        let mut size = GnttabQuerySize { dom: NO_DOMAIN, ..Default::default() };
        done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
        ensure_eq!(size.status, GNTST_BAD_DOMAIN, "the status for no domain");
        Ok(())
    }

    pub(super) fn version(_: &Env) -> Verdict {
        let mut arg = GnttabGetVersion { dom: DOMID_SELF, ..Default::default() };
        done("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg))?;
        // The runtime's table is of version 1.
        ensure_eq!(arg.version, 1, "the version");
        let mut arg = GnttabSetVersion { version: 1 };
        done("set_version", ask_one(GNTTABOP_SET_VERSION, &mut arg))?;
        ensure_eq!(arg.version, 1, "the version set");
        Ok(())
    }

    pub(super) fn version_unknown(_: &Env) -> Verdict {
        for version in [0, 3, u32::MAX] {
            refused(
                "set_version",
                ask_one(GNTTABOP_SET_VERSION, &mut GnttabSetVersion { version }),
                &[EINVAL],
            )?;
        }
        let mut arg = GnttabGetVersion { dom: DOMID_SELF, ..Default::default() };
        done("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg))?;
        ensure_eq!(arg.version, 1, "the version");
        Ok(())
    }

    pub(super) fn version_other(_: &Env) -> Verdict {
        let mut arg = GnttabGetVersion { dom: NO_DOMAIN, ..Default::default() };
        refused("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg), &[ESRCH])
    }

    pub(super) fn map_empty(_: &Env) -> Verdict {
        for command in [GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GNTTABOP_COPY] {
            done("no entries", call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), 0x1000, 0, 0, 0]))?;
        }
        Ok(())
    }

    fn swap_refs(ref_a: u32, ref_b: u32) -> Verdict<i16> {
        let mut arg = GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() };
        let got = ask_one(GNTTABOP_SWAP_GRANT_REF, &mut arg);
        require!(got != ENOSYS.negated() && got != EOPNOTSUPP.negated(), "no such operation here");
        done("swap_grant_ref", got)?;
        Ok(arg.status)
    }

    pub(super) fn swap(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        let (a, b) = (page.number(), other.number().raw());
        let before = (entry_word(a)?, entry_word(b)?);
        okay("swap", swap_refs(a, b)?)?;
        let after = (entry_word(a)?, entry_word(b)?);
        okay("swap back", swap_refs(a, b)?)?;
        ensure_eq!(after, (before.1, before.0), "the entries");
        ensure_eq!((entry_word(a)?, entry_word(b)?), before, "the entries at last");
        not_mapped("swap with none", swap_refs(a, u32::MAX)?, &[GNTST_BAD_GNTREF])
    }

    pub(super) fn swap_busy(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        let swapped = swap_refs(page.number(), other.number().raw());
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        not_mapped("swap", swapped?, &[GNTST_EAGAIN])
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [13, 99, 0xfff] {
            let mut words = [0u64; 8];
            refused("grant_table_op", ask_one(command, &mut words), &[ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_SETUP_TABLE,
            GNTTABOP_COPY,
            GNTTABOP_QUERY_SIZE,
            GNTTABOP_GET_VERSION,
            GNTTABOP_SET_VERSION,
        ] {
            let got = call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), scratch.at(0), 1, 0, 0]);
            refused("grant_table_op", got, &[EFAULT])?;
        }
        Ok(())
    }
}
