//! Copies by entries of version 2: whole pages, parts of pages, grants passed on.

hypercall_cases! {
    "grant.v2-copy-from" = from {
        title: "a copy from an entry of version 2",
        rule: "GNTTABOP_copy serves under both versions, and leaves no mark.",
        source: "grant_table.h, GNTTABOP_copy, grant_status_t",
    }
    "grant.v2-copy-to" = to {
        title: "a copy to an entry of version 2",
        rule: "With GNTCOPY_dest_gref the target is a reference.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_dest_gref",
    }
    "grant.v2-copy-bounds" = bounds {
        title: "a copy over the end of a page",
        rule: "A copy that would leave the page on either side gives GNTST_bad_copy_arg and moves nothing.",
        source: "grant_table.h, GNTTABOP_copy; GNTST_bad_copy_arg",
    }
    "grant.v2-copy-readonly" = readonly {
        title: "a copy to what was granted for reading",
        rule: "A reference with GTF_readonly is no target of a copy, whole or in part.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.v2-copy-not-granted" = not_granted {
        title: "copies from entries that grant nothing",
        rule: "An entry that grants nothing, or to another domain, is no source of a copy.",
        source: "grant_table.h, GTF_invalid; struct grant_entry_header, domid",
    }
    "grant.v2-copy-while-mapped" = while_mapped {
        title: "a copy from an entry that is mapped",
        rule: "A copy leaves the marks of a mapping.",
        source: "grant_table.h, grant_status_t",
    }
    "grant.v2-part-whole" = part_whole {
        title: "a copy of all of a part",
        rule: "An entry with GTF_sub_page grants sub_page.length bytes from sub_page.page_off on.",
        source: "grant_table.h, GTF_sub_page, union grant_entry_v2, sub_page",
    }
    "grant.v2-part-inside" = part_inside {
        title: "a copy from within a part",
        rule: "Offsets of a copy count from the page's beginning, not the part's.",
        source: "grant_table.h, struct gnttab_copy, offset; sub_page",
    }
    "grant.v2-part-before" = part_before {
        title: "a copy that begins before a part",
        rule: "A copy of bytes that are not granted gives GNTST_general_error and moves nothing.",
        source: "grant_table.h, sub_page.page_off",
    }
    "grant.v2-part-behind" = part_behind {
        title: "a copy that ends behind a part",
        rule: "A copy of bytes that are not granted gives GNTST_general_error and moves nothing.",
        source: "grant_table.h, sub_page.length",
    }
    "grant.v2-part-target" = part_target {
        title: "a part as the target of copies",
        rule: "A part bounds a target as it bounds a source.",
        source: "grant_table.h, sub_page; GNTCOPY_dest_gref",
    }
    "grant.v2-part-empty" = part_empty {
        title: "a part of no bytes",
        rule: "A part of length 0 grants nothing but the empty copy at its place.",
        source: "grant_table.h, sub_page.length",
    }
    "grant.v2-part-beyond" = part_beyond {
        title: "a part that is said to go beyond its page",
        rule: "However long a part is said to be, a copy ends with the page.",
        source: "grant_table.h, sub_page; GNTST_bad_copy_arg",
    }
    "grant.v2-part-between" = part_between {
        title: "a copy from part to part",
        rule: "Source and target may each be a part.",
        source: "grant_table.h, sub_page; GNTTABOP_copy",
    }
    "grant.v2-part-batch" = part_batch {
        title: "good and bad copies from parts",
        rule: "Each entry of a list of copies has its own status, and all are done.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.v2-transitive-own" = transitive_own {
        title: "a grant passed on by its own granter",
        rule: "A transitive grant that refers to its own domain is refused.",
        source: "grant_table.h, GTF_transitive",
    }
    "grant.v2-transitive-nobody" = transitive_nobody {
        title: "a grant passed on of domains that there are not",
        rule: "A transitive grant that refers to no domain is refused.",
        source: "grant_table.h, GTF_transitive, transitive.trans_domid",
    }
    "grant.v2-transitive-others" = transitive_others {
        title: "grants passed on that another domain did not make",
        rule: "A transitive grant is worth what the domain that it refers to granted to the one that passes it on.",
        source: "grant_table.h, GTF_transitive",
    }
    "grant.v2-transitive-readonly" = transitive_readonly {
        title: "a target that is passed on for reading",
        rule: "GTF_readonly forbids writing by a transitive grant, too.",
        source: "grant_table.h, GTF_transitive, GTF_readonly",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use ring_abi::grant::*;

    const ACCESS: u16 = GTF_PERMIT_ACCESS;

    fn frame(wide: &Wide, page: usize, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: wide.scratch.mfn(page), domid: DOMID_SELF, offset, ..Default::default() }
    }

    fn gref(wide: &Wide, gref: u32, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: gref.into(), domid: wide.me, offset, ..Default::default() }
    }

    fn copy(source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16) -> i16 {
        let mut arg = GnttabCopy { source, dest, len, flags, ..Default::default() };
        let got = ask_one(GNTTABOP_COPY, &mut arg);
        if got == 0 { arg.status } else { i16::MIN }
    }

    /// Copies from a granted page to page 1, at the same offset, and returns the status.
    fn copy_out(wide: &Wide, offset: u16, len: u16) -> i16 {
        copy(gref(wide, GREF, offset), frame(wide, 1, offset), len, GNTCOPY_SOURCE_GREF)
    }

    /// Copies from page 1 to a granted page, at the same offset, and returns the status.
    fn copy_in(wide: &Wide, offset: u16, len: u16) -> i16 {
        copy(frame(wide, 1, offset), gref(wide, GREF, offset), len, GNTCOPY_DEST_GREF)
    }

    /// Switches to version 2, with pages of which each has a pattern of its own.
    fn filled(pages: usize) -> Verdict<Wide> {
        let wide = Wide::new(pages)?;
        for page in 0..pages {
            for word in 0..512 {
                store("filling", wide.scratch.page(page) + word * 8, pattern(page, word))?;
            }
        }
        Ok(wide)
    }

    fn pattern(page: usize, word: u64) -> u64 {
        (page as u64 + 1) << 56 | word << 32 | !word & 0xffff
    }

    /// Checks that page `to` has the words `which` of page `from` and its own words elsewhere, and that the
    /// entry is not marked as in use.
    fn moved(wide: &Wide, from: usize, to: usize, which: core::ops::Range<u64>) -> Verdict {
        for word in 0..512 {
            let page = if which.contains(&word) { from } else { to };
            let found = load("the target", wide.scratch.page(to) + word * 8)?;
            ensure_eq!(found, pattern(page, word), "word {word}");
        }
        wide.marked("after", GREF, 0)
    }

    /// Checks that a copy was refused with the status `wanted`, and that no page has changed.
    fn not_copied(wide: &Wide, what: &str, status: i16, wanted: i16) -> Verdict {
        not_mapped(what, status, &[wanted])?;
        moved(wide, 0, 1, 0..0)
    }

    pub(super) fn from(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF, ACCESS | GTF_READONLY, 0)?;
        okay("copy", copy_out(&wide, 64, 128))?;
        moved(&wide, 0, 1, 8..24)?;
        okay("the page", copy_out(&wide, 0, 4096))?;
        moved(&wide, 0, 1, 0..512)
    }

    pub(super) fn to(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        okay("copy", copy_in(&wide, 64, 128))?;
        moved(&wide, 1, 0, 8..24)
    }

    pub(super) fn bounds(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        for (offset, len) in [(4000, 97), (4095, 2), (0, 4097), (1, 4096), (0xffff, 0xffff), (4097, 0)] {
            not_copied(&wide, "copy", copy_out(&wide, offset, len), GNTST_BAD_COPY_ARG)?;
        }
        okay("nothing at the end", copy_out(&wide, 4096, 0))
    }

    pub(super) fn readonly(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF, ACCESS | GTF_READONLY, 0)?;
        not_mapped("a page", copy_in(&wide, 0, 64), &[GNTST_GENERAL_ERROR])?;
        wide.lend(GREF, GTF_READONLY, 0, (0, 64))?;
        not_mapped("a part", copy_in(&wide, 0, 64), &[GNTST_GENERAL_ERROR])?;
        moved(&wide, 1, 0, 0..0)
    }

    pub(super) fn not_granted(_: &Env) -> Verdict {
        let wide = filled(2)?;
        for flags in [GTF_INVALID, GTF_ACCEPT_TRANSFER, GTF_SUB_PAGE] {
            wide.grant(GREF, flags, 0)?;
            not_copied(&wide, "nothing granted", copy_out(&wide, 0, 64), GNTST_GENERAL_ERROR)?;
        }
        wide.write(GREF, [first(ACCESS, wide.me ^ 1), wide.scratch.mfn(0)])?;
        not_copied(&wide, "another's", copy_out(&wide, 0, 64), GNTST_GENERAL_ERROR)?;
        let beyond = frames()?.len() as u32 * 256;
        let status = copy(gref(&wide, beyond, 0), frame(&wide, 1, 0), 64, GNTCOPY_SOURCE_GREF);
        not_copied(&wide, "beyond the table", status, GNTST_BAD_GNTREF)
    }

    pub(super) fn while_mapped(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF, ACCESS, 0)?;
        let (status, mapped) = wide.map(GREF, GNTMAP_HOST_MAP | GNTMAP_READONLY, 0);
        okay("map", status)?;
        let (copied, marks) = (copy_in(&wide, 0, 64), wide.status(GREF));
        wide.unmap(&mapped)?;
        okay("copy", copied)?;
        ensure_eq!(marks?, GTF_READING, "the status word while mapped for reading");
        moved(&wide, 1, 0, 0..8)
    }

    pub(super) fn part_whole(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (256, 512))?;
        okay("copy", copy_out(&wide, 256, 512))?;
        moved(&wide, 0, 1, 32..96)
    }

    pub(super) fn part_inside(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, GTF_READONLY, 0, (256, 512))?;
        okay("copy", copy_out(&wide, 320, 64))?;
        moved(&wide, 0, 1, 40..48)
    }

    pub(super) fn part_before(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (256, 512))?;
        for (offset, len) in [(0, 64), (255, 1), (255, 2), (0, 4096), (248, 512), (0, 0)] {
            not_copied(&wide, "before it", copy_out(&wide, offset, len), GNTST_GENERAL_ERROR)?;
        }
        Ok(())
    }

    pub(super) fn part_behind(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (256, 512))?;
        for (offset, len) in [(256, 513), (767, 2), (768, 1), (4000, 8), (769, 0)] {
            not_copied(&wide, "behind it", copy_out(&wide, offset, len), GNTST_GENERAL_ERROR)?;
        }
        Ok(())
    }

    pub(super) fn part_target(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (256, 512))?;
        for (offset, len) in [(248, 16), (760, 16), (0, 4096)] {
            not_mapped("over its ends", copy_in(&wide, offset, len), &[GNTST_GENERAL_ERROR])?;
        }
        moved(&wide, 1, 0, 0..0)?;
        okay("inside", copy_in(&wide, 256, 512))?;
        moved(&wide, 1, 0, 32..96)
    }

    pub(super) fn part_empty(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (256, 0))?;
        okay("nothing", copy_out(&wide, 256, 0))?;
        for (offset, len) in [(256, 1), (255, 1), (0, 64)] {
            not_copied(&wide, "a byte", copy_out(&wide, offset, len), GNTST_GENERAL_ERROR)?;
        }
        Ok(())
    }

    pub(super) fn part_beyond(_: &Env) -> Verdict {
        let wide = filled(2)?;
        for part in [(4000, 4000), (4000, u16::MAX)] {
            wide.lend(GREF, 0, 0, part)?;
            not_copied(&wide, "beyond", copy_out(&wide, 4000, 97), GNTST_BAD_COPY_ARG)?;
            not_copied(&wide, "before", copy_out(&wide, 3999, 8), GNTST_GENERAL_ERROR)?;
        }
        okay("to the page's end", copy_out(&wide, 4000, 96))?;
        moved(&wide, 0, 1, 500..512)
    }

    pub(super) fn part_between(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, GTF_READONLY, 0, (64, 64))?;
        wide.lend(GREF + 1, 0, 1, (64, 32))?;
        let both = GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF;
        let between = |offset, len| copy(gref(&wide, GREF, offset), gref(&wide, GREF + 1, offset), len, both);
        not_copied(&wide, "more than the target is", between(64, 64), GNTST_GENERAL_ERROR)?;
        not_copied(&wide, "before both", between(56, 16), GNTST_GENERAL_ERROR)?;
        okay("what both are", between(64, 32))?;
        moved(&wide, 0, 1, 8..12)?;
        wide.marked("after", GREF + 1, 0)
    }

    pub(super) fn part_batch(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.lend(GREF, 0, 0, (0, 64))?;
        wide.grant(GREF + 1, ACCESS, 0)?;
        let one = |from, offset, len| GnttabCopy {
            source: gref(&wide, from, offset),
            dest: frame(&wide, 1, offset),
            len,
            flags: GNTCOPY_SOURCE_GREF,
            status: 0x55,
            ..Default::default()
        };
        let mut list =
            [one(GREF, 0, 8), one(GREF, 60, 8), one(GREF + 1, 8, 8), one(GREF, 16, 8), one(GREF, 64, 8)];
        done("copy", ask(GNTTABOP_COPY, &mut list))?;
        let wanted = [GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_OKAY, GNTST_OKAY, GNTST_GENERAL_ERROR];
        ensure_eq!(list.map(|entry| entry.status), wanted, "the statuses");
        moved(&wide, 0, 1, 0..3)
    }

    pub(super) fn transitive_own(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.grant(GREF + 1, ACCESS, 0)?;
        wide.pass_on(GREF, 0, wide.me, GREF + 1)?;
        not_copied(&wide, "its own grant", copy_out(&wide, 0, 64), GNTST_GENERAL_ERROR)?;
        wide.pass_on(GREF, 0, wide.me, GREF)?;
        not_copied(&wide, "itself", copy_out(&wide, 0, 64), GNTST_GENERAL_ERROR)
    }

    pub(super) fn transitive_nobody(_: &Env) -> Verdict {
        let wide = filled(2)?;
        for dom in [NO_DOMAIN, DOMID_SELF, 0x7ff1, 0x7ff2, u16::MAX] {
            wide.pass_on(GREF, 0, dom, 8)?;
            not_copied(&wide, "a grant of nobody", copy_out(&wide, 0, 64), GNTST_GENERAL_ERROR)?;
        }
        Ok(())
    }

    pub(super) fn transitive_others(_: &Env) -> Verdict {
        let wide = filled(2)?;
        require!(wide.me != 0, "dom0 knows no other domain here");
        for other in [0, 1, 7, 8, 500, u32::MAX] {
            wide.pass_on(GREF, 0, 0, other)?;
            let status = copy_out(&wide, 0, 64);
            not_mapped("a grant of dom0", status, &[GNTST_GENERAL_ERROR, GNTST_BAD_GNTREF])?;
            moved(&wide, 0, 1, 0..0)?;
        }
        Ok(())
    }

    pub(super) fn transitive_readonly(_: &Env) -> Verdict {
        let wide = filled(2)?;
        wide.pass_on(GREF, GTF_READONLY, 0, 8)?;
        not_mapped("as a target", copy_in(&wide, 0, 64), &[GNTST_GENERAL_ERROR])?;
        moved(&wide, 1, 0, 0..0)
    }
}
