//! `GNTTABOP_copy` of many in one call. Each batch runs twice: at first a page that is written may have no type yet, which is
//! another path.

use alloc::vec;

use ring_abi::grant::*;
use ring_abi::types::{DOMID_SELF, DomId};

use super::*;
use crate::domain::DomainConfig;
use crate::gnttab::state::{Access, EntryPin, UseKind};
use crate::hypercall::Outcome;

const BOTH: u16 = GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF;

impl World {
    /// Runs a batch as the mapper: the status of each.
    fn batch(&self, ops: &[GnttabCopy]) -> Vec<i16> {
        ops.iter().enumerate().for_each(|(n, op)| self.put(n, &GnttabCopy { status: 99, ..*op }));
        assert_eq!(self.call(&self.mapper, GNTTABOP_COPY, ops.len() as u64), Ok(Outcome::OK));
        self.statuses(0..ops.len())
    }

    fn statuses(&self, which: core::ops::Range<usize>) -> Vec<i16> {
        which.map(|n| self.get::<GnttabCopy>(n).status).collect()
    }

    fn word(&self, frame: Mfn, offset: u64) -> u64 {
        self.hv.platform.load(frame.maddr().add(offset))
    }

    fn set_word(&self, frame: Mfn, offset: u64, value: u64) {
        self.hv.platform.store(frame.maddr().add(offset), value);
    }

    /// Where the marks of an entry are: the frame, and the byte in it.
    fn marks_at(&self, gref: u32) -> (Mfn, u16) {
        if self.granter.grants.version() == Version::One {
            let at = self.entry_at(&self.granter, gref).raw();
            return (Mfn::new(at >> 12), at as u16 & 0xfff);
        }
        (self.granter.grants.entries.lock().frame(Part::Status, 0).unwrap(), gref as u16 * 2)
    }
}

#[test]
fn a_batch_is_done_in_order_and_holds_nothing() {
    for w in worlds() {
        let pages: Vec<Mfn> = (0..20).map(|_| w.page(&w.granter)).collect();
        (8..).zip(&pages).for_each(|(gref, page)| w.grant(gref, ACCESS, 0, *page));
        let ops: Vec<GnttabCopy> = (8..27).map(|n| copy((n, 1, 64), (n + 1, 1, 64), 64, BOTH)).collect();
        for value in [0x1234_5678, 0x8765_4321] {
            w.set_word(pages[0], 64, value);
            assert_eq!(w.batch(&ops), [GNTST_OKAY; 19]);
            assert_eq!(w.word(pages[19], 64), value, "each copies what the one before brought");
            for (gref, page) in (8..).zip(&pages) {
                assert_eq!((w.uses(*page), w.flags(gref)), ((0, 0), ACCESS));
            }
            w.nothing_is_left();
        }
    }
}

#[test]
fn each_operation_of_a_batch_has_its_own_status() {
    for w in worlds() {
        let (page, other, mine) = (w.page(&w.granter), w.page(&w.granter), w.page(&w.mapper));
        let descriptors = w.page(&w.granter);
        assert!(w.hv.frames.info(descriptors).unwrap().get_type(PageType::SegDesc).is_some());
        w.grant(8, ACCESS, 0, page);
        w.grant(9, ACCESS | GTF_READONLY, 0, other);
        w.grant(10, ACCESS, 0, mine); // not the granter's
        w.grant(11, ACCESS, 0, descriptors);
        let me = (mine.raw(), DOMID_SELF, 0);
        let good = copy((9, 1, 0), (8, 1, 0), 8, BOTH);
        let ops = [
            (good, GNTST_OKAY),
            (copy((8, 1, 0), (9, 1, 0), 8, BOTH), GNTST_GENERAL_ERROR),
            (copy((7000, 1, 0), (8, 1, 0), 8, BOTH), GNTST_BAD_GNTREF),
            (copy((9, 1, 0), (10, 1, 0), 8, BOTH), GNTST_BAD_PAGE),
            (copy((10, 1, 0), (8, 1, 0), 8, BOTH), GNTST_BAD_PAGE),
            (copy((9, 1, 0), (11, 1, 0), 8, BOTH), GNTST_BAD_PAGE),
            (copy((9, 1, 4090), (8, 1, 0), 8, BOTH), GNTST_BAD_COPY_ARG),
            (copy((9, 1, 0), (8, 1, 4090), 8, BOTH), GNTST_BAD_COPY_ARG),
            (copy((9, 1, 0), (8, 77, 0), 8, BOTH), GNTST_BAD_DOMAIN),
            (copy((9, 1, 0), (8, 1, 0), 8, GNTCOPY_SOURCE_GREF), GNTST_PERMISSION_DENIED),
            (copy((9, 1, 0), me, 8, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
            (copy((page.raw(), DOMID_SELF, 0), me, 8, 0), GNTST_BAD_PAGE),
            (copy(me, (mine.raw(), DOMID_SELF, 8), 8, 0), GNTST_OKAY),
            (copy(me, (8, 1, 8), 8, GNTCOPY_DEST_GREF), GNTST_OKAY),
        ];
        for value in [3, 4] {
            w.set_word(other, 0, value);
            let statuses: Vec<i16> = ops.iter().map(|op| op.1).collect();
            assert_eq!(w.batch(&ops.map(|op| op.0)), statuses);
            let copied = [(page, 0), (mine, 0), (mine, 8), (page, 8)];
            assert_eq!(copied.map(|(frame, offset)| w.word(frame, offset)), [value; 4]);
            assert_eq!((w.flags(8), w.flags(9)), (ACCESS, ACCESS | GTF_READONLY));
            assert_eq!([page, other, mine].map(|frame| w.uses(frame)), [(0, 0); 3]);
            assert_eq!(w.uses(descriptors), (0, 1));
        }
        w.nothing_is_left();
    }
}

#[test]
fn entries_are_marked_while_bytes_are_copied() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(8, ACCESS, 0, page);
        // What is copied is the marks themselves: of the entry that is read, and of the one that is written.
        let (table, at) = w.marks_at(9);
        w.grant(9, ACCESS, 0, table);
        let (_, written_at) = w.marks_at(8);
        let ops = [
            copy((9, 1, at), (mine.raw(), DOMID_SELF, 0), 2, GNTCOPY_SOURCE_GREF),
            copy((9, 1, written_at), (8, 1, 0), 2, BOTH),
        ];
        let marks = GTF_READING | GTF_WRITING;
        for _ in 0..2 {
            assert_eq!(w.batch(&ops), [GNTST_OKAY; 2]);
            assert_eq!(w.word(mine, 0) as u16 & marks, GTF_READING);
            assert_eq!(w.word(page, 0) as u16 & marks, marks);
            assert_eq!((w.flags(8), w.flags(9)), (ACCESS, ACCESS));
        }
        w.nothing_is_left();
    }
}

#[test]
fn an_entry_that_a_batch_takes_away_lends_nothing_more() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        let at = w.entry_at(&w.granter, 9).raw();
        w.grant(10, ACCESS, 0, Mfn::new(at >> 12));
        let own = |offset| (mine.raw(), DOMID_SELF, offset);
        for _ in 0..2 {
            w.grant(9, ACCESS, 0, page);
            w.set_word(page, 0, 7);
            w.set_word(mine, 0, 0);
            w.set_word(mine, 8, 0);
            // The second of three clears the entry that all name.
            let ops = [
                copy(own(0), (9, 1, 8), 8, GNTCOPY_DEST_GREF),
                copy(own(0), (10, 1, at as u16 & 0xfff), 8, GNTCOPY_DEST_GREF),
                copy(own(0), (9, 1, 0), 8, GNTCOPY_DEST_GREF),
            ];
            assert_eq!(w.batch(&ops), [GNTST_OKAY, GNTST_OKAY, GNTST_GENERAL_ERROR]);
            assert_eq!((w.word(page, 0), w.flags(9)), (7, 0));
        }
        w.nothing_is_left();
    }
}

#[test]
fn copies_leave_other_uses_their_marks_and_their_frame() {
    for w in worlds() {
        let (page, other, mine) = (w.page(&w.granter), w.page(&w.granter), w.page(&w.mapper));
        let own = |offset| (mine.raw(), DOMID_SELF, offset);
        let ops =
            [copy((9, 1, 0), own(8), 8, GNTCOPY_SOURCE_GREF), copy(own(0), (9, 1, 8), 8, GNTCOPY_DEST_GREF)];
        // The page beside is one that copies may write, too.
        w.grant(8, ACCESS, 0, other);
        assert_eq!(w.batch(&[copy(own(0), (8, 1, 0), 8, GNTCOPY_DEST_GREF)]), [GNTST_OKAY]);
        for (flags, marks) in [(GNTMAP_READONLY, GTF_READING), (0, GTF_READING | GTF_WRITING)] {
            w.grant(9, ACCESS, 0, page);
            let mapped = w.map(GNTMAP_DEVICE_MAP | flags, 9, 0);
            // The granter turns the entry, with its marks, while it is in use.
            w.grant(9, ACCESS | if w.granter.grants.version() == Version::One { marks } else { 0 }, 0, other);
            for value in [5, 6] {
                w.set_word(page, 0, value);
                w.set_word(mine, 0, value);
                assert_eq!(w.batch(&ops), [GNTST_OKAY; 2]);
                assert_eq!((w.word(mine, 8), w.word(page, 8), w.word(other, 8)), (value, value, 0));
                assert_eq!(w.flags(9), ACCESS | marks);
            }
            assert_eq!((w.uses(page).0, w.uses(other)), (1, (0, 0)));
            assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
            assert_eq!(w.flags(9), ACCESS);
        }
        // In use by another domain than the one that copies.
        w.grant(9, ACCESS, 1, page);
        let gref = GrantRef::new(9);
        let entries = &w.granter.grants.entries;
        let (_, pin) = EntryPin::new(entries, gref, w.granter.id, UseKind::Device, Access::Read).unwrap();
        w.grant(9, ACCESS, 0, page);
        assert_eq!(w.batch(&ops), [GNTST_GENERAL_ERROR; 2]);
        drop(pin);
        w.nothing_is_left();
    }
}

#[test]
fn a_batch_between_domains_reaches_those_that_it_names() {
    for w in worlds() {
        let third = w.hv.create_domain(Some(DomId::new(2)), DomainConfig::default()).unwrap();
        third.mm.set_max_pages(8);
        w.hv.set_grant_version(&third, w.granter.grants.version()).unwrap();
        let (one, two) = (w.page(&w.granter), w.page(&third));
        w.grant(9, ACCESS, 0, one);
        w.write(&third, 9, [u64::from(ACCESS), two.raw()]);
        let ops = [
            copy((9, 1, 0), (9, 2, 8), 8, BOTH),
            copy((9, 2, 0), (9, 1, 8), 8, BOTH),
            copy((9, 1, 8), (9, 1, 16), 8, BOTH),
            copy((9, 2, 8), (9, 2, 16), 8, BOTH),
        ];
        for value in [10, 20] {
            w.set_word(one, 0, value);
            w.set_word(two, 0, value + 1);
            assert_eq!(w.batch(&ops), [GNTST_OKAY; 4]);
            assert_eq!([8, 16].map(|at| (w.word(one, at), w.word(two, at))), [(value + 1, value); 2]);
        }
        assert_eq!((w.uses(one), w.uses(two), third.grants.figures().pinned), ((0, 0), (0, 0), 0));
        w.nothing_is_left();
    }
}

#[test]
fn a_batch_is_interrupted_and_its_granter_dies_meanwhile() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(9, ACCESS, 0, page);
        let op = copy((9, 1, 0), (mine.raw(), DOMID_SELF, 0), 8, GNTCOPY_SOURCE_GREF);
        (0..12).for_each(|n| w.put(n, &GnttabCopy { status: 99, ..op }));
        w.hv.platform.pending.store(true, Ordering::Relaxed);
        assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 12), Ok(Outcome::Continue));
        let rest = w.mapper.vcpus[0].continuation();
        let done = 8 * size_of::<GnttabCopy>() as u64;
        assert_eq!(rest, [u64::from(GNTTABOP_COPY), ARGS + done, 4, 0, 0, 0]);
        assert_eq!((w.statuses(0..8), w.statuses(8..12)), (vec![GNTST_OKAY; 8], vec![99; 4]));
        w.hv.platform.pending.store(false, Ordering::Relaxed);
        assert!(w.hv.release_grant_table(&w.granter));
        let mut regs = CpuUserRegs::default();
        let mut cur = Current { hv: &w.hv, domain: &w.mapper, vcpu: &w.mapper.vcpus[0], regs: &mut regs };
        assert_eq!(grant_table_op(&mut cur, &rest), Ok(Outcome::OK));
        assert_eq!(w.statuses(8..12), [GNTST_BAD_GNTREF; 4]);
        assert_eq!(w.uses(page), (0, 0));
        w.nothing_is_left();
    }
}

#[test]
fn what_stands_before_the_end_of_memory_is_done() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(9, ACCESS, 0, page);
        w.set_word(page, 0, 11);
        let op = copy((9, 1, 0), (mine.raw(), DOMID_SELF, 0), 8, GNTCOPY_SOURCE_GREF);
        // The third of four lies beyond the machine's memory.
        let at = FRAMES as u64 * 4096 - 2 * size_of_val(&op) as u64;
        for n in 0..2 {
            let to = Maddr::new(at + n * size_of_val(&op) as u64);
            w.hv.platform.write_bytes(to, zerocopy::IntoBytes::as_bytes(&GnttabCopy { status: 99, ..op }));
        }
        let mut regs = CpuUserRegs::default();
        let mut cur = Current { hv: &w.hv, domain: &w.mapper, vcpu: &w.mapper.vcpus[0], regs: &mut regs };
        let result = grant_table_op(&mut cur, &[u64::from(GNTTABOP_COPY), at, 4, 0, 0, 0]);
        assert_eq!(result, Err(HypercallError::Fault));
        for n in 0..2 {
            let mut told = op;
            let from = Maddr::new(at + n * size_of_val(&op) as u64);
            w.hv.platform.read_bytes(from, zerocopy::IntoBytes::as_mut_bytes(&mut told));
            assert_eq!(told.status, GNTST_OKAY);
        }
        assert_eq!((w.word(mine, 0), w.uses(page)), (11, (0, 0)));
        w.nothing_is_left();
    }
}
