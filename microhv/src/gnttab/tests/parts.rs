//! Entries of version 2 that lend a part of a page, or what another domain lends.

use ring_abi::grant::*;
use ring_abi::types::{DOMID_SELF, DomId, Maddr};

use super::*;
use crate::domain::DomainConfig;
use crate::gnttab::state::{Access, EntryPin, GrantError, Shape, UseKind};
use crate::hypercall::Outcome;

const PART: u16 = ACCESS | GTF_SUB_PAGE;

fn wide() -> World {
    let [_, w] = worlds();
    w
}

impl World {
    fn lend(&self, gref: u32, flags: u16, frame: Mfn, (start, len): (u16, u16)) {
        let first = u64::from(PART | flags) | u64::from(start) << 32 | u64::from(len) << 48;
        self.write(&self.granter, gref, [first, frame.raw()]);
    }

    /// Lets the granter pass on what `dom` lends to it, to the mapper.
    fn pass_on(&self, gref: u32, flags: u16, dom: u16, other: u32) {
        let first = u64::from(GTF_TRANSITIVE | flags) | u64::from(dom) << 32;
        self.write(&self.granter, gref, [first, other.into()]);
    }

    fn copied(&self, op: &GnttabCopy) -> i16 {
        self.put(0, op);
        assert_eq!(self.call(&self.mapper, GNTTABOP_COPY, 1), Ok(Outcome::OK));
        self.get::<GnttabCopy>(0).status
    }

    /// The status of a copy between entry 9 and a page of the mapper's, at the same offset.
    fn copied_at(&self, mine: Mfn, to: bool, offset: u16, len: u16) -> i16 {
        let (granted, own) = ((9, 1, offset), (mine.raw(), DOMID_SELF, offset));
        self.copied(&match to {
            false => copy(granted, own, len, GNTCOPY_SOURCE_GREF),
            true => copy(own, granted, len, GNTCOPY_DEST_GREF),
        })
    }
}

#[test]
fn copies_stay_inside_the_part_that_is_lent() {
    let w = wide();
    let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
    w.hv.platform.write_bytes(Maddr::new(page.maddr().raw() + 256), &[0xa5; 512]);
    w.lend(9, 0, page, (256, 512));
    for to in [false, true] {
        for (offset, len) in [(256, 512), (300, 1), (256, 0), (768, 0), (767, 1)] {
            assert_eq!(w.copied_at(mine, to, offset, len), GNTST_OKAY, "{offset} {len}");
        }
        for (offset, len) in
            [(255, 1), (255, 512), (256, 513), (767, 2), (768, 1), (0, 4096), (0, 0), (769, 0)]
        {
            assert_eq!(w.copied_at(mine, to, offset, len), GNTST_GENERAL_ERROR, "{offset} {len}");
        }
        assert_eq!(w.copied_at(mine, to, 256, 4000), GNTST_BAD_COPY_ARG);
    }
    let mut back = [0; 512];
    w.hv.platform.read_bytes(Maddr::new(mine.maddr().raw() + 256), &mut back);
    assert_eq!(back, [0xa5; 512]);
    // However long it is said to be, a part ends with its page.
    w.lend(9, 0, page, (4000, u16::MAX));
    assert_eq!(w.copied_at(mine, false, 4000, 96), GNTST_OKAY);
    assert_eq!(w.copied_at(mine, false, 4000, 97), GNTST_BAD_COPY_ARG);
    w.lend(9, GTF_READONLY, page, (0, 64));
    assert_eq!(w.copied_at(mine, false, 0, 64), GNTST_OKAY);
    assert_eq!(w.copied_at(mine, true, 0, 64), GNTST_GENERAL_ERROR);
    assert_eq!((w.uses(page), w.uses(mine), w.flags(9)), ((0, 0), (0, 0), PART | GTF_READONLY));
    w.nothing_is_left();
}

#[test]
fn the_flag_for_a_part_says_nothing_to_copies_of_version_1() {
    let w = world();
    let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
    w.hv.platform.write_bytes(page.maddr(), &[0xa5; 4096]);
    w.grant(9, PART, 0, page);
    for to in [false, true] {
        assert_eq!(w.copied_at(mine, to, 0, 4096), GNTST_OKAY);
    }
    assert_eq!(w.flags(9), PART, "no mark is left");
    w.grant(9, PART | GTF_READONLY, 0, page);
    assert_eq!(w.copied_at(mine, false, 0, 4096), GNTST_OKAY);
    assert_eq!(w.copied_at(mine, true, 0, 1), GNTST_GENERAL_ERROR);
    w.grant(9, PART, 1, page);
    assert_eq!(w.copied_at(mine, false, 0, 1), GNTST_GENERAL_ERROR, "granted to another");
    w.grant(9, PART, 0, page);
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 9, 0).status, GNTST_GENERAL_ERROR);
    w.nothing_is_left();
}

#[test]
fn what_is_no_page_is_not_mapped() {
    let w = wide();
    let page = w.page(&w.granter);
    w.lend(9, 0, page, (0, 4096));
    // The reference is the number of the granter's page.
    w.pass_on(10, 0, 0, page.raw() as u32);
    for gref in [9, 10] {
        for flags in [GNTMAP_DEVICE_MAP, GNTMAP_DEVICE_MAP | GNTMAP_READONLY] {
            assert_eq!(w.map(flags, gref, 0).status, GNTST_GENERAL_ERROR);
        }
        assert_eq!(w.status_of(&w.granter, gref), 0);
    }
    assert_eq!(w.uses(page), (0, 0));
    w.nothing_is_left();
}

#[test]
fn an_entry_in_use_for_a_part_is_lent_as_no_page() {
    let w = wide();
    let page = w.page(&w.granter);
    w.lend(9, 0, page, (64, 64));
    let (gref, me) = (GrantRef::new(9), w.mapper.id);
    let entries = &w.granter.grants.entries;
    let (frame, shape, pin) = EntryPin::of_any_shape(entries, gref, me, Access::Read).unwrap();
    assert_eq!((frame, shape), (page, Shape::Part { start: 64, len: 64 }));
    w.grant(9, ACCESS, 0, page);
    let refused = EntryPin::new(entries, gref, me, UseKind::Device, Access::Read).unwrap_err();
    assert_eq!(refused, GrantError::NotWhole);
    let (_, again, second) = EntryPin::of_any_shape(entries, gref, me, Access::Write).unwrap();
    assert_eq!(again, shape, "what was lent when the first use began");
    drop((pin, second));
    let (_, now, pin) = EntryPin::of_any_shape(entries, gref, me, Access::Write).unwrap();
    assert_eq!(now, Shape::Page);
    drop(pin);
    w.nothing_is_left();
}

/// A third domain lends to the granter, which passes that on.
fn three() -> (World, Arc<Domain>, Mfn, Mfn) {
    let w = wide();
    let owner = w.hv.create_domain(Some(DomId::new(2)), DomainConfig::default()).unwrap();
    owner.mm.set_max_pages(8);
    let (page, mine) = (w.page(&owner), w.page(&w.mapper));
    w.write(&owner, 20, [u64::from(ACCESS) | 1 << 16, page.raw()]);
    w.pass_on(9, 0, 2, 20);
    (w, owner, page, mine)
}

#[test]
fn what_is_passed_on_is_copied_and_both_entries_are_left() {
    let (w, owner, page, mine) = three();
    w.hv.platform.write_bytes(page.maddr(), b"from the owner");
    assert_eq!(w.copied_at(mine, false, 0, 14), GNTST_OKAY);
    let mut back = [0; 14];
    w.hv.platform.read_bytes(mine.maddr(), &mut back);
    assert_eq!(&back, b"from the owner");
    w.hv.platform.write_bytes(mine.maddr(), b"to the owner!!");
    assert_eq!(w.copied_at(mine, true, 0, 14), GNTST_OKAY);
    w.hv.platform.read_bytes(page.maddr(), &mut back);
    assert_eq!(&back, b"to the owner!!");
    // Each of the two may be for reading alone, and the owner's for a part.
    w.pass_on(9, GTF_READONLY, 2, 20);
    assert_eq!(
        (w.copied_at(mine, false, 0, 14), w.copied_at(mine, true, 0, 14)),
        (GNTST_OKAY, GNTST_GENERAL_ERROR)
    );
    w.pass_on(9, 0, 2, 20);
    w.write(&owner, 20, [u64::from(ACCESS | GTF_READONLY) | 1 << 16, page.raw()]);
    assert_eq!(
        (w.copied_at(mine, false, 0, 14), w.copied_at(mine, true, 0, 14)),
        (GNTST_OKAY, GNTST_GENERAL_ERROR)
    );
    w.hv.set_grant_version(&owner, Version::Two).unwrap();
    w.write(&owner, 20, [u64::from(PART) | 1 << 16 | 64 << 32 | 64 << 48, page.raw()]);
    assert_eq!(
        (w.copied_at(mine, false, 0, 14), w.copied_at(mine, false, 64, 64)),
        (GNTST_GENERAL_ERROR, GNTST_OKAY)
    );
    assert_eq!(w.uses(page), (0, 0));
    assert_eq!((w.status_of(&w.granter, 9), w.status_of(&owner, 20)), (0, 0));
    assert_eq!(owner.grants.figures().pinned, 0);
    w.nothing_is_left();
}

#[test]
fn what_is_passed_on_is_what_was_granted_to_who_passes_it_on() {
    let (w, owner, page, mine) = three();
    let refused = |w: &World, status| {
        assert_eq!(w.copied_at(mine, false, 0, 8), status);
        assert_eq!((w.uses(page), w.status_of(&w.granter, 9)), ((0, 0), 0));
        assert_eq!((owner.grants.figures().pinned, w.granter.grants.figures().pinned), (0, 0));
    };
    // Granted to the mapper, and not to the granter.
    w.write(&owner, 20, [ACCESS.into(), page.raw()]);
    refused(&w, GNTST_GENERAL_ERROR);
    w.write(&owner, 20, [u64::from(ACCESS) | 1 << 16, page.raw()]);
    w.pass_on(9, 0, 2, 21);
    refused(&w, GNTST_GENERAL_ERROR);
    w.pass_on(9, 0, 2, 512);
    refused(&w, GNTST_BAD_GNTREF);
    for nobody in [3, DOMID_SELF, 0x7ff1, u16::MAX] {
        w.pass_on(9, 0, nobody, 20);
        refused(&w, GNTST_GENERAL_ERROR);
    }
    // Nor a frame that is not the owner's.
    w.pass_on(9, 0, 2, 20);
    w.write(&owner, 20, [u64::from(ACCESS) | 1 << 16, mine.raw()]);
    refused(&w, GNTST_BAD_PAGE);
}

#[test]
fn what_is_passed_on_goes_one_step() {
    let (w, owner, page, mine) = three();
    // By itself: a grant of its own, and this very entry.
    w.grant(10, ACCESS, 1, page);
    for other in [10, 9] {
        w.pass_on(9, 0, 1, other);
        assert_eq!(w.copied_at(mine, false, 0, 8), GNTST_GENERAL_ERROR);
    }
    // In a circle, and over a third.
    w.hv.set_grant_version(&owner, Version::Two).unwrap();
    for (dom, gref) in [(1, 9), (0, 8)] {
        w.pass_on(9, 0, 2, 20);
        w.write(&owner, 20, [u64::from(GTF_TRANSITIVE) | 1 << 16 | dom << 32, gref]);
        assert_eq!(w.copied_at(mine, false, 0, 8), GNTST_GENERAL_ERROR);
        assert_eq!((w.status_of(&w.granter, 9), w.status_of(&owner, 20)), (0, 0));
    }
    assert_eq!((owner.grants.figures().pinned, w.granter.grants.figures().pinned), (0, 0));
}
