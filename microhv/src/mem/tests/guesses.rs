//! What a CPU reads ahead while it guesses what a check says: barriers come ahead of what other frames hold.

use ring_abi::types::{GuestVa, Maddr, Mfn};

use super::{World, entry};
use crate::frames::pte::{P, Pte, RW, US};
use crate::mem::{FrameOwner, Update};
use crate::testing::looks::Look::{self, Barrier, Contents, Entry};
use crate::testing::looks::{during, is_guarded};

const VA: u64 = 9 << 12;

/// The looks at these frames, and barriers.
fn at(looks: &[Look], frames: &[Mfn]) -> alloc::vec::Vec<Look> {
    let is_at = |look: &&Look| match look {
        Entry(mfn) | Contents(mfn) => frames.contains(mfn),
        Barrier => true,
    };
    looks.iter().filter(is_at).copied().collect()
}

#[test]
fn a_walk_goes_on_by_no_entry_that_may_be_absent() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, l3, l2, l1] = world.address_space(&dom);
    world.hv.pin_table(&dom, l4, 4).expect("valid");
    let mm = world.hv.lock_tables(&dom);
    let looks = during(|| assert_eq!(mm.find_leaf(l4, GuestVa::new(VA)), Ok((l1, 9))));
    drop(mm);
    // Each table may be anybody's frame if the entry above is absent.
    assert_eq!(looks, [Contents(l4), Barrier, Contents(l3), Barrier, Contents(l2), Entry(l1), Barrier]);
}

#[test]
fn a_frame_is_looked_into_behind_a_barrier() {
    let world = World::new(128);
    let dom = world.domain(1, false, 64);
    let [l4, l3, l2, l1] = world.address_space(&dom);
    let [page, gdt] = world.pages(&dom);
    let own = FrameOwner::Domain(&dom);
    let pinned = during(|| world.hv.pin_table(&dom, l4, 4).expect("valid"));
    for table in [l4, l3, l2, l1] {
        assert!(is_guarded(&pinned, table), "{table:?}: {pinned:?}");
    }
    let update = |table: Mfn, new: u64| {
        let new = Pte::new(new);
        let mut mm = world.hv.lock_tables(&dom);
        let looks = during(|| {
            mm.update_entry(table, 9 * 8, new, own, Update::Plain).expect("allowed");
        });
        drop(mm);
        looks
    };
    for table in [l1, l2, page] {
        let looks = update(table, 0);
        assert!(is_guarded(&looks, table), "{table:?}: {looks:?}");
    }
    assert_eq!(at(&update(l1, entry(page, P | RW | US)), &[l1])[..3], [Entry(l1), Barrier, Contents(l1)]);
    let looks =
        during(|| world.hv.update_descriptor(&dom, Maddr::new(gdt.maddr().raw() + 8), 0).expect("a page"));
    assert!(is_guarded(&looks, gdt), "{looks:?}");
    let looks = during(|| world.hv.set_gdt(&dom, &dom.vcpus[0], &[gdt], 512).expect("descriptors"));
    assert!(is_guarded(&looks, gdt), "{looks:?}");
    // Not present, but for a CPU's guess, an entry may lead to any frame.
    let looks = during(|| world.hv.unpin_table(&dom, l4).expect("pinned"));
    for (table, contents) in [(l4, l3), (l3, l2), (l2, l1)] {
        let looks = at(&looks, &[table, contents]);
        let first = looks.iter().position(|look| *look == Contents(contents)).expect("given back");
        assert_eq!(looks[first - 1], Barrier, "ahead of {contents:?}: {looks:?}");
    }
    world.hv.set_gdt(&dom, &dom.vcpus[0], &[], 0).expect("none");
    world.destroy(&dom, false);
    world.check();
}
