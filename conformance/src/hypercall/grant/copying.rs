//! `GNTTABOP_copy`: bytes between references and frames.

hypercall_cases! {
    "grant.copy-from" = copy_from {
        title: "a copy from a reference",
        rule: "GNTTABOP_copy moves len bytes from the source's offset to the target's, and nothing beside them.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_source_gref",
    }
    "grant.copy-to" = copy_to {
        title: "a copy to a reference",
        rule: "With GNTCOPY_dest_gref the target is a reference.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_dest_gref",
    }
    "grant.copy-between" = copy_between {
        title: "a copy between references, and between frames",
        rule: "Source and target are each a reference or a frame of the domain itself.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-page" = copy_page {
        title: "a whole page",
        rule: "A copy of 4096 bytes at offset 0 moves the page.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-bounds" = copy_bounds {
        title: "a copy over the end of a page",
        rule: "A copy that would leave the page on either side gives GNTST_bad_copy_arg and moves nothing.",
        source: "grant_table.h, GNTTABOP_copy; GNTST_bad_copy_arg",
    }
    "grant.copy-readonly" = copy_readonly {
        title: "a copy to what was granted for reading",
        rule: "A reference with GTF_readonly is no target of a copy.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.copy-flags" = copy_flags {
        title: "a copy leaves no trace in the entry",
        rule: "After GNTTABOP_copy the entry has neither GTF_reading nor GTF_writing.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.copy-batch" = copy_batch {
        title: "a good, a bad and a good copy",
        rule: "Each entry of a list of copies has its own status, and all are done.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-bad-reference" = copy_bad_reference {
        title: "copies from references and domains that there are not",
        rule: "A reference beyond the table gives GNTST_bad_gntref, a domain that does not exist GNTST_bad_domain.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-part-flag" = copy_part_flag {
        title: "GTF_sub_page in an entry of version 1",
        rule: "In version 1, which has no parts, GTF_sub_page keeps the page from being mapped, and a copy uses the whole page.",
        source: "grant_table.h, GTF_sub_page",
    }
}

#[cfg(freestanding)]
mod body {
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;

    fn frame_place(mfn: u64, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: mfn, domid: DOMID_SELF, offset, ..Default::default() }
    }

    fn grant_place(page: &Granted, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: page.number().into(), domid: page.me, offset, ..Default::default() }
    }

    fn copy(source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16) -> i16 {
        let mut arg = GnttabCopy { source, dest, len, flags, ..Default::default() };
        let got = ask_one(GNTTABOP_COPY, &mut arg);
        if got == 0 { arg.status } else { i16::MIN }
    }

    /// Fills a page with a pattern of its own.
    fn fill(scratch: &Scratch, page: usize) -> Verdict {
        for word in 0..512 {
            store("filling", scratch.page(page) + word * 8, pattern(page, word))?;
        }
        Ok(())
    }

    fn pattern(page: usize, word: u64) -> u64 {
        (page as u64 + 1) << 56 | word << 32 | !word & 0xffff
    }

    /// Checks that page `to` has changed only in `words` words from `at` on, and that these are the words of
    /// page `from` from `start` on.
    fn moved(scratch: &Scratch, from: (usize, u64), to: (usize, u64), words: u64) -> Verdict {
        for word in 0..512 {
            let inside = (to.1..to.1 + words).contains(&word);
            let wanted = if inside { pattern(from.0, word - to.1 + from.1) } else { pattern(to.0, word) };
            ensure_eq!(load("the target", scratch.page(to.0) + word * 8)?, wanted, "word {word}");
        }
        Ok(())
    }

    pub(super) fn copy_from(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(grant_place(&page, 64), frame_place(page.scratch.mfn(1), 256), 128, GNTCOPY_SOURCE_GREF),
        )?;
        moved(&page.scratch, (0, 8), (1, 32), 16)
    }

    pub(super) fn copy_to(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(frame_place(page.scratch.mfn(1), 4096 - 80), grant_place(&page, 8), 80, GNTCOPY_DEST_GREF),
        )?;
        moved(&page.scratch, (1, 502), (0, 1), 10)
    }

    pub(super) fn copy_between(_: &Env) -> Verdict {
        let page = Granted::new(3, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        for n in 0..3 {
            fill(&page.scratch, n)?;
        }
        let source = GnttabCopyPtr { u: other.number().raw().into(), domid: page.me, ..Default::default() };
        okay(
            "between references",
            copy(source, grant_place(&page, 0), 64, GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF),
        )?;
        moved(&page.scratch, (1, 0), (0, 0), 8)?;
        okay(
            "between frames",
            copy(frame_place(page.scratch.mfn(1), 0), frame_place(page.scratch.mfn(2), 8), 64, 0),
        )?;
        moved(&page.scratch, (1, 0), (2, 1), 8)
    }

    pub(super) fn copy_page(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(grant_place(&page, 0), frame_place(page.scratch.mfn(1), 0), 4096, GNTCOPY_SOURCE_GREF),
        )?;
        moved(&page.scratch, (0, 0), (1, 0), 512)
    }

    pub(super) fn copy_bounds(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        let own = page.scratch.mfn(1);
        for (from, to, len) in [(4000, 0, 97), (0, 4095, 2), (0, 0, 4097), (1, 0, 4096), (0xffff, 0, 0xffff)]
        {
            let status = copy(grant_place(&page, from), frame_place(own, to), len, GNTCOPY_SOURCE_GREF);
            not_mapped("copy", status, &[GNTST_BAD_COPY_ARG])?;
        }
        moved(&page.scratch, (0, 0), (1, 0), 0)
    }

    pub(super) fn copy_readonly(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        let status = copy(frame_place(page.scratch.mfn(1), 0), grant_place(&page, 0), 64, GNTCOPY_DEST_GREF);
        not_mapped("copy", status, &[GNTST_GENERAL_ERROR])?;
        moved(&page.scratch, (0, 0), (0, 0), 0)
    }

    pub(super) fn copy_flags(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        okay(
            "copy",
            copy(grant_place(&page, 0), frame_place(page.scratch.mfn(1), 0), 64, GNTCOPY_SOURCE_GREF),
        )?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after a copy from it");
        okay(
            "copy",
            copy(frame_place(page.scratch.mfn(1), 0), grant_place(&page, 0), 64, GNTCOPY_DEST_GREF),
        )?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after a copy to it");
        Ok(())
    }

    pub(super) fn copy_part_flag(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        set_entry_flags(page.number(), GTF_PERMIT_ACCESS | GTF_SUB_PAGE)?;
        let own = page.scratch.mfn(1);
        let from = copy(grant_place(&page, 0), frame_place(own, 0), 64, GNTCOPY_SOURCE_GREF);
        let to = copy(frame_place(own, 4032), grant_place(&page, 4032), 64, GNTCOPY_DEST_GREF);
        let (mapped, _) = page.map(GNTMAP_HOST_MAP, page.scratch.at(1));
        let flags = page.flags()?;
        set_entry_flags(page.number(), GTF_PERMIT_ACCESS)?;
        okay("a copy from the page", from)?;
        okay("a copy to the page", to)?;
        not_mapped("the map", mapped, &[GNTST_GENERAL_ERROR])?;
        ensure_eq!(flags, GTF_PERMIT_ACCESS | GTF_SUB_PAGE, "the flags afterwards");
        moved(&page.scratch, (0, 0), (1, 0), 8)?;
        moved(&page.scratch, (1, 504), (0, 504), 8)
    }

    pub(super) fn copy_batch(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        let own = page.scratch.mfn(1);
        let one = |offset, len| GnttabCopy {
            source: grant_place(&page, offset),
            dest: frame_place(own, offset % 4096),
            len,
            flags: GNTCOPY_SOURCE_GREF,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [one(0, 8), one(4090, 100), one(8, 8), one(16, 8)];
        done("copy", ask(GNTTABOP_COPY, &mut list))?;
        let wanted = [GNTST_OKAY, GNTST_BAD_COPY_ARG, GNTST_OKAY, GNTST_OKAY];
        ensure_eq!(list.map(|entry| entry.status), wanted, "the statuses");
        moved(&page.scratch, (0, 0), (1, 0), 3)
    }

    pub(super) fn copy_bad_reference(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        let own = frame_place(page.scratch.mfn(1), 0);
        let beyond = GnttabCopyPtr { u: u32::MAX.into(), domid: page.me, ..Default::default() };
        not_mapped("no reference", copy(beyond, own, 64, GNTCOPY_SOURCE_GREF), &[GNTST_BAD_GNTREF])?;
        let nobody = GnttabCopyPtr { u: page.number().into(), domid: NO_DOMAIN, ..Default::default() };
        not_mapped("no domain", copy(nobody, own, 64, GNTCOPY_SOURCE_GREF), &[GNTST_BAD_DOMAIN])
    }
}
