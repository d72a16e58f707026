//! `GNTTABOP_copy`.

use ring_abi::grant::*;
use ring_abi::types::{DOMID_SELF, Maddr};

use super::*;
use crate::hypercall::Outcome;
use crate::testing::looks::{Look, during};

#[test]
fn copies_move_bytes_and_hold_nothing() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(9, ACCESS, 0, page);
        w.hv.platform.write_bytes(Maddr::new(mine.maddr().raw() + 100), b"from the mapper");
        w.put(0, &copy((mine.raw(), DOMID_SELF, 100), (9, 1, 4081), 15, GNTCOPY_DEST_GREF));
        w.put(1, &copy((9, 1, 4081), (mine.raw(), DOMID_SELF, 0), 15, GNTCOPY_SOURCE_GREF));
        assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 2), Ok(Outcome::OK));
        assert_eq!((w.get::<GnttabCopy>(0).status, w.get::<GnttabCopy>(1).status), (0, 0));
        let mut back = [0; 15];
        w.hv.platform.read_bytes(mine.maddr(), &mut back);
        assert_eq!(&back, b"from the mapper");
        assert_eq!(w.uses(page), (0, 0));
        assert_eq!(w.flags(9), ACCESS);
        w.nothing_is_left();
    }
}

#[test]
fn bytes_are_copied_behind_a_barrier() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(9, ACCESS, 0, page);
        let there = copy((9, 1, 0), (mine.raw(), DOMID_SELF, 0), 8, GNTCOPY_SOURCE_GREF);
        let back = copy((mine.raw(), DOMID_SELF, 0), (9, 1, 0), 8, GNTCOPY_DEST_GREF);
        // The first of each makes its frame one that is written to, for which `copy_parts` has to look.
        for op in [there, back, there, back] {
            w.put(0, &op);
            let looks = during(|| assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 1), Ok(Outcome::OK)));
            let first =
                looks.iter().position(|look| matches!(look, Look::Contents(at) if [page, mine].contains(at)));
            assert_eq!(looks[first.expect("a copy") - 1], Look::Barrier, "{looks:?}");
        }
        w.nothing_is_left();
    }
}

#[test]
fn copies_stay_inside_pages_and_rights() {
    for w in worlds() {
        let (page, mine) = (w.page(&w.granter), w.page(&w.mapper));
        w.grant(9, ACCESS | GTF_READONLY, 0, page);
        let me = (mine.raw(), DOMID_SELF, 0);
        for (op, status) in [
            (copy((9, 1, 0), me, 0, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
            (copy((9, 1, 1), me, 4096, GNTCOPY_SOURCE_GREF), GNTST_BAD_COPY_ARG),
            (copy((9, 1, 0), (mine.raw(), DOMID_SELF, 4090), 7, GNTCOPY_SOURCE_GREF), GNTST_BAD_COPY_ARG),
            (copy((9, 1, u16::MAX), me, u16::MAX, GNTCOPY_SOURCE_GREF), GNTST_BAD_COPY_ARG),
            (copy(me, (9, 1, 0), 16, GNTCOPY_DEST_GREF), GNTST_GENERAL_ERROR),
            (copy((page.raw(), 1, 0), me, 16, 0), GNTST_PERMISSION_DENIED),
            (copy((page.raw(), DOMID_SELF, 0), me, 16, 0), GNTST_BAD_PAGE),
            (copy((9, 55, 0), me, 16, GNTCOPY_SOURCE_GREF), GNTST_BAD_DOMAIN),
            (copy((9, 1, 0), me, 4096, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
            (copy((9, 1, 4096), (mine.raw(), DOMID_SELF, 4096), 0, GNTCOPY_SOURCE_GREF), GNTST_OKAY),
        ] {
            w.put(0, &op);
            assert_eq!(w.call(&w.mapper, GNTTABOP_COPY, 1), Ok(Outcome::OK));
            assert_eq!(w.get::<GnttabCopy>(0).status, status, "{op:?}");
        }
        w.nothing_is_left();
    }
}
