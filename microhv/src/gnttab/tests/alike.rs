//! Batches of copies against the same copies one by one, and copies of several CPUs between the same tables.

use ring_abi::grant::*;
use ring_abi::types::{DOMID_SELF, DomId};

use super::*;
use crate::domain::DomainConfig;
use crate::hypercall::Outcome;

/// Pages of each domain: three of its own, one with descriptors, and the first of its table.
const PAGES: usize = 5;

/// Three domains, each of which lends its pages to the first, which copies.
struct Scene {
    w: World,
    doms: [Arc<Domain>; 3],
    pages: Vec<Mfn>,
}

/// An entry at random: whose, which, its flags, for whom, and what the entry lends.
type RawEntry = (usize, u32, u16, u64, usize);
/// A copy at random: its flags, and of each side the domain, the page and the place; the length.
type RawCopy = (u8, [(u8, u8, u8); 2], u16);

fn scene(versions: [Version; 3], entries: &[RawEntry]) -> Scene {
    let w = world();
    let third = w.hv.create_domain(Some(DomId::new(2)), DomainConfig::default()).unwrap();
    third.mm.set_max_pages(16);
    let doms = [w.mapper.clone(), w.granter.clone(), third];
    let mut pages = Vec::new();
    for (dom, version) in doms.iter().zip(versions) {
        w.hv.set_grant_version(dom, version).unwrap();
        w.hv.grow_grant_table(dom, 1).unwrap();
        for _ in 1..PAGES {
            let page = w.page(dom);
            (0..8).for_each(|at| w.hv.platform.store(page.maddr().add(at * 8), page.raw() << 8 | at));
            pages.push(page);
        }
        let last = w.hv.frames.info(pages[pages.len() - 1]).unwrap();
        assert!(last.get_type(PageType::SegDesc).is_some());
        pages.push(dom.grants.entries.lock().frame(Part::Entries, 0).unwrap());
    }
    for (n, gref) in (0..3).flat_map(|n| (8..12).map(move |gref| (n, gref))) {
        let page = pages[n * PAGES + gref as usize % 4 % 3];
        w.write(&doms[n], gref, [ACCESS.into(), page.raw()]);
    }
    for &(dom, gref, flags, grantee, target) in entries {
        let (dom, gref) = (&doms[dom % 3], 8 + gref % 4);
        let flags = flags & (GTF_TYPE_MASK | GTF_READONLY | GTF_SUB_PAGE);
        let first = u64::from(flags) | (grantee % 3) << 16;
        let page = pages[target % pages.len()].raw();
        let (first, lent) = if dom.grants.version() == Version::One {
            (first, page)
        } else if flags & GTF_TYPE_MASK == GTF_TRANSITIVE {
            (first | (target as u64 % 3) << 32, 8 + target as u64 % 4)
        } else {
            (first | (target as u64 % 64) << 32 | 48 << 48, page)
        };
        w.write(dom, gref, [first, lent]);
    }
    Scene { w, doms, pages }
}

impl Scene {
    /// All that copies may change.
    fn state(&self) -> Vec<u64> {
        let word = |mfn: Mfn, at: u64| self.w.hv.platform.load(mfn.maddr().add(at * 8));
        let mut state = Vec::new();
        for &page in &self.pages {
            let (uses, types) = self.w.uses(page);
            state.extend([uses, types].map(u64::from));
            state.extend((0..64).chain(508..512).map(|at| word(page, at)));
        }
        for dom in &self.doms {
            state.push(dom.grants.figures().pinned.into());
            let status = dom.grants.status_frame();
            state.extend(status.into_iter().flat_map(|mfn| (0..8).map(move |at| word(mfn, at))));
        }
        state
    }

    /// Mostly between grants of one domain, so that many copies in a row are alike.
    fn copy(&self, (kind, sides, len): RawCopy) -> GnttabCopy {
        let flags = if kind < 160 { GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF } else { u16::from(kind % 4) };
        let side = |is_granted: bool, (dom, what, at): (u8, u8, u8)| {
            let offset = if at > 250 { 4090 } else { u16::from(at % 64) };
            if !is_granted {
                let dom = if dom > 250 { 1 } else { DOMID_SELF };
                return (self.pages[usize::from(what) % self.pages.len()].raw(), dom, offset);
            }
            let dom = match dom {
                0..120 => 1,
                120..240 => u16::from(dom % 3),
                _ => [DOMID_SELF, 77][usize::from(dom % 2)],
            };
            (if what > 250 { 7000 } else { 8 + u64::from(what % 4) }, dom, offset)
        };
        let [source, dest] = sides;
        let source = side(flags & GNTCOPY_SOURCE_GREF != 0, source);
        copy(source, side(flags & GNTCOPY_DEST_GREF != 0, dest), len % 80, flags)
    }
}

/// Mostly a grant of a page.
fn flags() -> impl Strategy<Value = u16> {
    (any::<u16>(), 0..3).prop_map(|(flags, kind)| match kind {
        0 => flags,
        _ => GTF_PERMIT_ACCESS | if flags % 4 == 0 { GTF_READONLY } else { 0 },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the entries lend, a batch has the results, the effects and the leavings of its copies.
    #[test]
    fn a_batch_does_what_its_copies_do_one_by_one(
        wide in proptest::array::uniform3(any::<bool>()),
        entries in proptest::collection::vec((0..3usize, any::<u32>(), flags(), any::<u64>(), any::<usize>()), 0..8),
        raw in proptest::collection::vec(any::<RawCopy>(), 1..24),
    ) {
        let versions = wide.map(|wide| if wide { Version::Two } else { Version::One });
        let [one, all] = [(); 2].map(|()| scene(versions, &entries));
        prop_assert_eq!(&one.pages, &all.pages);
        let ops: Vec<GnttabCopy> = raw.iter().map(|&raw| one.copy(raw)).collect();
        let mut statuses = Vec::new();
        for op in &ops {
            one.w.put(0, op);
            prop_assert_eq!(one.w.call(&one.doms[0], GNTTABOP_COPY, 1), Ok(Outcome::OK));
            statuses.push(one.w.get::<GnttabCopy>(0).status);
        }
        ops.iter().enumerate().for_each(|(n, op)| all.w.put(n, op));
        prop_assert_eq!(all.w.call(&all.doms[0], GNTTABOP_COPY, ops.len() as u64), Ok(Outcome::OK));
        let batch: Vec<i16> = (0..ops.len()).map(|n| all.w.get::<GnttabCopy>(n).status).collect();
        prop_assert_eq!(statuses, batch);
        prop_assert_eq!(one.state(), all.state());
    }
}

/// The locks of two tables are taken in one order, whichever table is copied from.
#[test]
fn several_cpus_copy_between_two_tables_in_both_directions() {
    for version in [Version::One, Version::Two] {
        let s = scene([version; 3], &[]);
        for (n, dom) in s.doms.iter().enumerate() {
            for gref in 8..12 {
                let grantee = u64::from(gref % 2) * 2;
                let page = s.pages[n * PAGES + gref as usize % 3];
                s.w.write(dom, gref, [u64::from(ACCESS) | grantee << 16, page.raw()]);
            }
        }
        let work = |caller: &Arc<Domain>, n: u64| {
            let mut regs = CpuUserRegs::default();
            let mut cur = Current { hv: &s.w.hv, domain: caller, vcpu: &caller.vcpus[0], regs: &mut regs };
            let args = ARGS + n * 0x1000;
            for round in 0..200 {
                let (from, to) = if (round + n).is_multiple_of(2) { (1, 2) } else { (2, 1) };
                for at in 0..8 {
                    let source = (8 + (at + round) % 4, from, 0);
                    let op = copy(
                        source,
                        (8 + (at * 3 + round) % 4, to, 64),
                        8,
                        GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF,
                    );
                    let place = Maddr::new(args + at * size_of_val(&op) as u64);
                    s.w.hv.platform.write_bytes(place, zerocopy::IntoBytes::as_bytes(&op));
                }
                let call = [u64::from(GNTTABOP_COPY), args, 8, 0, 0, 0];
                assert_eq!(grant_table_op(&mut cur, &call), Ok(Outcome::OK));
            }
        };
        std::thread::scope(|scope| {
            for (n, caller) in [&s.doms[0], &s.doms[2], &s.doms[0]].into_iter().enumerate() {
                let work = &work;
                scope.spawn(move || work(caller, n as u64));
            }
        });
        for dom in &s.doms {
            assert_eq!(dom.grants.figures().pinned, 0);
            assert!((8..12).all(|gref| s.w.flags_of(dom, gref) == ACCESS), "no marks");
        }
        assert!(s.pages.iter().all(|page| s.w.uses(*page).0 == 0));
    }
}
