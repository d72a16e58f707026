//! Tables that change their version.

use core::sync::atomic::Ordering;

use ring_abi::grant::*;
use ring_abi::types::DOMID_SELF;

use super::*;
use crate::domain::DomainConfig;
use crate::gnttab::state::{Access, EntryPin, GrantError, UseKind};
use crate::hypercall::{HypercallError, Outcome};

impl World {
    fn asked(&self, version: u32) -> (HypercallResult, u32) {
        self.put(0, &GnttabSetVersion { version });
        (self.call(&self.granter, GNTTABOP_SET_VERSION, 1), self.get::<GnttabSetVersion>(0).version)
    }

    fn becomes(&self, version: u32) {
        assert_eq!(self.asked(version), (Ok(Outcome::OK), version));
        self.put(0, &GnttabGetVersion { dom: DOMID_SELF, pad: 0, version: 9 });
        assert_eq!(self.call(&self.granter, GNTTABOP_GET_VERSION, 1), Ok(Outcome::OK));
        assert_eq!(self.get::<GnttabGetVersion>(0).version, version);
    }

    fn stays(&self, asked: u32, error: HypercallError) {
        assert_eq!(self.asked(asked), (Err(error), 3 - asked));
    }

    /// All entries of the first frame but reserved ones are empty.
    fn is_empty(&self) -> bool {
        let frame = self.granter.grants.entries.lock().frame(Part::Entries, 0).unwrap();
        let reserved = if self.granter.grants.version() == Version::One { 8 } else { 16 };
        (reserved..512).all(|word| self.hv.platform.load(frame.maddr().add(word * 8)) == 0)
    }

    fn status_frames(&self, count: u32) -> (i16, Vec<u64>) {
        let list = 0x2000;
        for n in 0..16 {
            self.hv.platform.store(Maddr::new(list + n * 8), 99);
        }
        self.put(
            0,
            &GnttabGetStatusFrames { nr_frames: count, dom: DOMID_SELF, status: 9, frame_list: list },
        );
        assert_eq!(self.call(&self.granter, GNTTABOP_GET_STATUS_FRAMES, 1), Ok(Outcome::OK));
        let told =
            (0..16).map(|n| self.hv.platform.load(Maddr::new(list + n * 8))).take_while(|mfn| *mfn != 99);
        (self.get::<GnttabGetStatusFrames>(0).status, told.collect())
    }
}

#[test]
fn reserved_entries_stay_and_the_others_go() {
    let w = world();
    let page = w.page(&w.granter);
    for gref in [0, 7, 8, 300, 511] {
        w.grant(gref, ACCESS | GTF_READONLY, 0, page);
    }
    w.becomes(2);
    assert!(w.is_empty());
    for gref in [0, 7] {
        assert_eq!(w.flags(gref), ACCESS | GTF_READONLY);
        assert_eq!(w.hv.platform.load(w.entry_at(&w.granter, gref).add(8)), page.raw());
    }
    assert_eq!(w.map(GNTMAP_DEVICE_MAP, 8, 0).status, GNTST_GENERAL_ERROR);
    for gref in [8, 255] {
        w.grant(gref, ACCESS, 0, page);
    }
    w.becomes(1);
    assert!(w.is_empty());
    let entry = u64::from(ACCESS | GTF_READONLY) | page.raw() << 32;
    assert_eq!([0, 7].map(|gref| w.hv.platform.load(w.entry_at(&w.granter, gref))), [entry; 2]);
    w.becomes(1);
    assert_eq!(w.hv.platform.load(w.entry_at(&w.granter, 0)), entry);
}

#[test]
fn a_reserved_entry_in_use_keeps_its_marks_and_its_use() {
    let w = world();
    let page = w.page(&w.granter);
    w.grant(1, ACCESS, 0, page);
    for access in [GNTMAP_READONLY, 0] {
        let marks = if access == 0 { GTF_READING | GTF_WRITING } else { GTF_READING };
        let mapped = w.map(GNTMAP_DEVICE_MAP | access, 1, 0);
        for version in [2, 1, 2] {
            w.becomes(version);
            assert_eq!(w.flags(1), ACCESS | marks, "{version}");
        }
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        assert_eq!((w.flags(1), w.uses(page)), (ACCESS, (0, 0)));
        w.becomes(1);
    }
    w.nothing_is_left();
}

#[test]
fn a_table_in_use_keeps_its_version() {
    let w = world();
    let page = w.page(&w.granter);
    for (version, other) in [(1, 2), (2, 1)] {
        w.becomes(version);
        for (gref, flags) in [(8, GNTMAP_DEVICE_MAP), (200, GNTMAP_DEVICE_MAP | GNTMAP_READONLY)] {
            w.grant(gref, ACCESS, 0, page);
            let mapped = w.map(flags, gref, 0);
            assert_eq!(mapped.status, GNTST_OKAY);
            w.stays(other, HypercallError::Busy);
            assert_eq!(w.flags(gref) & GTF_READING, GTF_READING, "the entry is as it was");
            assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        }
    }
    // A part of a reserved entry's page is in use: version 1 would lend the page.
    w.write(&w.granter, 3, [u64::from(ACCESS | GTF_SUB_PAGE) | 8 << 48, page.raw()]);
    let entries = &w.granter.grants.entries;
    let (.., pin) = EntryPin::of_any_shape(entries, GrantRef::new(3), w.mapper.id, Access::Read).unwrap();
    w.stays(1, HypercallError::Busy);
    drop(pin);
    w.becomes(1);
    assert_eq!(w.flags(3), ACCESS | GTF_SUB_PAGE);
    w.nothing_is_left();
}

#[test]
fn what_version_1_cannot_say_keeps_version_2() {
    let w = world();
    w.becomes(2);
    let free = w.hv.frames.free_pages();
    for entry in [[ACCESS.into(), 1 << 32], [ACCESS.into(), u64::MAX], [GTF_TRANSITIVE.into(), 0]] {
        w.write(&w.granter, 7, entry);
        w.stays(1, HypercallError::Range);
        assert_eq!((w.flags(7), w.hv.frames.free_pages()), (entry[0] as u16, free));
    }
    w.write(&w.granter, 7, [GTF_ACCEPT_TRANSFER.into(), u64::MAX]);
    w.becomes(1);
    assert_eq!(w.hv.platform.load(w.entry_at(&w.granter, 7)), 0);
}

#[test]
fn status_words_that_somebody_maps_are_not_taken() {
    let w = world_of(20);
    w.hv.grow_grant_table(&w.granter, 20).unwrap();
    w.becomes(2);
    let (status, frames) = w.status_frames(3);
    assert_eq!(status, GNTST_OKAY);
    let free = w.hv.frames.free_pages();
    for &frame in &frames {
        let mapped = w.hv.get_page(Mfn::new(frame), &w.granter).expect("the domain may map it");
        w.stays(1, HypercallError::Busy);
        drop(mapped);
        assert_eq!(w.status_frames(3).1, frames);
        assert_eq!(w.hv.frames.free_pages(), free);
        assert!(frames.iter().all(|frame| w.hv.get_page(Mfn::new(*frame), &w.granter).is_some()));
    }
    w.becomes(1);
    assert_eq!(w.hv.frames.free_pages(), free + 3);
    assert!(frames.iter().all(|frame| w.hv.get_page(Mfn::new(*frame), &w.granter).is_none()));
    assert_eq!((w.status_frames(1), w.status_frames(0).0), ((GNTST_GENERAL_ERROR, Vec::new()), GNTST_OKAY));
}

#[test]
fn each_entry_of_version_2_has_a_status_word() {
    let w = world_of(17);
    w.becomes(2);
    assert_eq!((w.status_frames(1).0, w.status_frames(2).0, w.status_frames(u32::MAX).0), (0, -1, -1));
    for (frames, status) in [(8, 1), (9, 2), (16, 2), (17, 3)] {
        w.hv.grow_grant_table(&w.granter, frames).unwrap();
        assert_eq!(w.status_frames(status).0, GNTST_OKAY, "{frames}");
        assert_eq!(w.status_frames(status + 1).0, GNTST_GENERAL_ERROR, "{frames}");
        let (last, page) = (frames * 256 - 1, w.page(&w.granter));
        w.grant(last, ACCESS, 0, page);
        let mapped = w.map(GNTMAP_DEVICE_MAP, last, 0);
        assert_eq!((mapped.status, w.flags(last)), (GNTST_OKAY, ACCESS | GTF_READING | GTF_WRITING));
        assert_eq!(w.flags(last - 1), 0);
        assert_eq!(w.unmap(mapped.handle, 0, mapped.dev_bus_addr), GNTST_OKAY);
        assert_eq!(w.flags(last), ACCESS);
        assert_eq!(w.map(GNTMAP_DEVICE_MAP, last + 1, 0).status, GNTST_BAD_GNTREF);
    }
}

#[test]
fn a_version_changes_in_pieces_and_what_waits_to_be_emptied_lends_nothing() {
    let w = world_of(4);
    w.hv.grow_grant_table(&w.granter, 4).unwrap();
    let page = w.page(&w.granter);
    for (from, to) in [(Version::One, 2), (Version::Two, 1)] {
        let per_frame = if from == Version::One { 512 } else { 256 };
        for gref in 8..4 * per_frame {
            w.grant(gref, ACCESS, 0, page);
            if from == Version::One && gref % 2 == 1 {
                // With the entry before, an entry of version 2 that lends the page.
                w.grant(gref, page.raw() as u16, 0, Mfn::new(0));
            }
        }
        let mut pieces = 0;
        loop {
            w.hv.platform.pending.store(true, Ordering::Relaxed);
            match w.asked(to).0 {
                Ok(Outcome::Continue) => pieces += 1,
                done => break assert_eq!(done, Ok(Outcome::OK)),
            }
            w.hv.platform.pending.store(false, Ordering::Relaxed);
            if w.granter.grants.version() != from {
                for gref in 8..2048 {
                    assert_ne!(w.map(GNTMAP_DEVICE_MAP, gref, 0).status, GNTST_OKAY, "{gref} after {pieces}");
                }
            }
        }
        w.hv.platform.pending.store(false, Ordering::Relaxed);
        assert!(pieces >= 4, "{pieces}");
        assert_eq!(w.granter.grants.version() as u32, to);
    }
    w.nothing_is_left();
}

/// Two vCPUs ask for the same version: both have seen the other one when the first makes the change.
#[test]
fn a_change_that_another_vcpu_has_made_is_not_made_again() {
    let w = world_of(9);
    w.hv.grow_grant_table(&w.granter, 9).unwrap();
    w.becomes(2);
    let entries = &w.granter.grants.entries;
    let count = || {
        let entries = entries.lock();
        (entries.frame_count(), entries.all_frames())
    };
    let before = count();
    assert_eq!(entries.lock().switch(Version::Two, |_| true), Ok(()));
    assert_eq!(count(), before);
    // On the way back one of the frames of status words is freed, and one waits.
    w.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(w.asked(1).0, Ok(Outcome::Continue));
    w.hv.platform.pending.store(false, Ordering::Relaxed);
    let before = count();
    assert_eq!(entries.lock().switch(Version::One, |_| true), Ok(()));
    assert_eq!(count(), before);
    // With all that version 2 needs, the frame that waits is in the way.
    for _ in 0..2 {
        let mfn = w.hv.alloc_zeroed().unwrap();
        w.hv.share_with_guest(mfn, w.granter.id, false);
        assert!(entries.lock().add_frame(Part::Status, (mfn, w.hv.platform.shared(mfn))));
    }
    assert_eq!(entries.lock().switch(Version::Two, |_| true), Err(GrowError::Again), "a frame waits");
    w.becomes(1);
    w.nothing_is_left();
}

#[test]
fn what_a_table_has_is_given_back_whatever_it_was_doing() {
    for (steps, version) in [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)] {
        let w = world_of(9);
        let free = w.hv.frames.free_pages();
        let domain =
            w.hv.create_domain(None, DomainConfig { max_grant_frames: 9, ..DomainConfig::default() })
                .unwrap();
        w.hv.grow_grant_table(&domain, 9).unwrap();
        let w = World { granter: domain, ..w };
        w.becomes(version);
        // As far on the way to the other version.
        for _ in 0..steps {
            w.hv.platform.pending.store(true, Ordering::Relaxed);
            assert_eq!(w.asked(1).0, Ok(Outcome::Continue));
        }
        w.hv.platform.pending.store(false, Ordering::Relaxed);
        let frames = w.granter.grants.entries.lock().all_frames();
        assert!((9..=11).contains(&frames), "{frames}");
        while !w.hv.release_grant_table(&w.granter) {}
        assert_eq!(w.granter.grants.entries.lock().all_frames(), 9, "their records");
        let shared_info = 1;
        let records = w.hv.frames.free_pages() + shared_info;
        assert!(records <= free, "{records} of {free}");
        while w.hv.kill_domain(&w.granter).is_err() {}
        let World { hv, granter, .. } = w;
        drop(granter);
        while hv.unfinished.has_dead() {
            hv.reap_dead();
        }
        assert_eq!(hv.frames.free_pages(), free);
    }
}

#[test]
fn a_domain_may_be_kept_to_version_1() {
    let w = world();
    let config = DomainConfig { max_grant_version: 1, ..DomainConfig::default() };
    let w = World { granter: w.hv.create_domain(None, config).unwrap(), ..w };
    w.stays(2, HypercallError::NoSys);
    w.becomes(1);
}

#[test]
fn version_2_without_memory_leaves_version_1() {
    let w = world();
    while w.hv.alloc_zeroed().is_some() {}
    w.stays(2, HypercallError::NoMemory);
    let refused = EntryPin::new(
        &w.granter.grants.entries,
        GrantRef::new(511),
        w.mapper.id,
        UseKind::Device,
        Access::Read,
    );
    assert_eq!(refused.unwrap_err(), GrantError::General, "an entry of version 1");
}
