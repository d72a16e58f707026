//! Dirty tracking against an oracle: what a round reports is what was written, whoever wrote, and a guest's copy-on-write stays one.

mod random;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use ring_abi::types::{GuestVa, Mfn, Pfn};

use super::guest::{Guest, interrupted};
use super::{World, entry};
use crate::frames::info::TypeWord;
use crate::frames::pte::{GUEST_KERNEL, MARK, P, Pte, RW, US};
use crate::mem::dirty::faults;
use crate::mem::dirty::rounds::{Bitmap, Found, Op};
use crate::mem::{FrameOwner, MemError, Update};
use crate::platform::MachineMemory;

const USER: u64 = P | RW | US;
const KERNEL: u64 = P | RW;
/// The slot of the first page of the guest's that tests write, and how many there are.
const FIRST: usize = 0x40;
const PAGES: usize = 6;
/// Bits of the bitmap.
const BITS: u64 = 512;

/// A guest with two address spaces, and a domain that tracks it.
struct Scene {
    world: World,
    dom0: alloc::sync::Arc<crate::domain::Domain>,
    bitmap: Mfn,
    guest: Guest,
    /// L4, L3, L2, L1 of the child's address space, which is not checked unless it is pinned.
    child: [Mfn; 4],
    is_pinned: bool,
    pages: Vec<Mfn>,
    written: BTreeSet<u64>,
    /// Frames that may be reported though they were not written: until the end of the round.
    excused: BTreeSet<u64>,
    next_excused: BTreeSet<u64>,
    /// Entries that the guest knows as read-only: of the child, slot.
    read_only: BTreeSet<(bool, usize)>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(256);
        let dom0 = world.domain(0, true, 64);
        let [bitmap] = world.pages(&dom0);
        let guest = world.guest(1, false);
        world.hv.pin_table(&guest.dom, guest.tables[0], 4).unwrap();
        let child = world.pages::<4>(&guest.dom);
        for pair in child.windows(2) {
            world.poke(pair[0], 0, entry(pair[1], P | RW | US));
        }
        let pages = world.pages::<PAGES>(&guest.dom).to_vec();
        let (written, excused, next_excused, read_only) = Default::default();
        let is_pinned = false;
        let mut scene = Self {
            world,
            dom0,
            bitmap,
            guest,
            child,
            is_pinned,
            pages,
            written,
            excused,
            next_excused,
            read_only,
        };
        for n in 0..PAGES {
            scene.map(n, if n % 3 == 2 { KERNEL } else { USER });
        }
        for mfn in 0..256 {
            scene.world.hv.platform.set_m2p(Mfn::new(mfn), Pfn::new(mfn ^ 1));
        }
        scene
    }

    /// Page `n` at its slot of the parent's.
    fn map(&mut self, n: usize, flags: u64) {
        self.set(false, n, entry(self.pages[n], flags));
    }

    /// Sets an entry as the guest does: checked in a table, and by a store in a page.
    fn set(&mut self, is_child: bool, n: usize, new: u64) {
        let slot = FIRST + n;
        self.read_only.remove(&(is_child, slot));
        if new & RW != 0 {
            self.excuse_copied(Pte::new(new).frame());
        }
        if is_child && !self.is_pinned {
            return self.world.poke(self.child[3], slot, new);
        }
        let table = if is_child { self.child[3] } else { self.guest.tables[3] };
        self.written.insert(table.raw());
        let own = FrameOwner::Domain(&self.guest.dom);
        let mut mm = self.world.hv.lock_tables(&self.guest.dom);
        mm.update_leaf(table, slot, Pte::new(new), own, Update::Plain).unwrap();
        while !mm.finish_deferred() {}
    }

    fn excuse_copied(&mut self, mfn: Mfn) {
        if self.world.hv.frames.held(mfn).load_kind().has(TypeWord::COPIED) {
            self.excused.insert(mfn.raw());
        }
    }

    fn track_once(&self, op: Op, bits: u64) -> Result<Found, MemError> {
        let bitmap = Bitmap { at: GuestVa::new(self.bitmap.maddr().raw()), pages: bits };
        self.world.run(&self.dom0, |cur| self.world.hv.track(cur, &self.guest.dom, op, Some(bitmap)))
    }

    fn track(&self, op: Op) -> Result<Found, MemError> {
        loop {
            match self.track_once(op, BITS) {
                Err(MemError::Restart) => {}
                done => return done,
            }
        }
    }

    fn reported(&self) -> BTreeSet<u64> {
        let is_set = |pfn: &u64| self.world.peek(self.bitmap, *pfn as usize / 64) >> (pfn % 64) & 1 != 0;
        (0..BITS).filter(is_set).map(|pfn| pfn ^ 1).collect()
    }

    /// A round, or a look: what is reported is what was written.
    fn round(&mut self, op: Op) {
        let found = self.track(op).unwrap();
        let reported = self.reported();
        assert_eq!(found.dirty as usize, reported.len());
        let lost: Vec<_> = self.written.difference(&reported).collect();
        assert!(lost.is_empty(), "{lost:x?} of {:x?} are lost", self.written);
        for mfn in self.pages.iter().map(|mfn| mfn.raw()) {
            let is_right =
                !reported.contains(&mfn) || self.written.contains(&mfn) || self.excused.contains(&mfn);
            assert!(is_right, "{mfn:x} was not written");
        }
        if op == Op::Clean {
            self.written.clear();
            self.excused = core::mem::take(&mut self.next_excused);
        }
    }

    /// A round whose bitmap is gone once it was cleared: what is written stays to be reported.
    fn fault(&mut self) {
        let platform = &self.world.hv.platform;
        let was_pending = platform.pending.swap(true, Ordering::Relaxed);
        assert_eq!(self.track_once(Op::Clean, BITS), Err(MemError::Restart));
        platform.pending.store(was_pending, Ordering::Relaxed);
        let end = platform.identity_end.swap(0, Ordering::Relaxed);
        let done = self.track(Op::Clean);
        self.world.hv.platform.identity_end.store(end, Ordering::Relaxed);
        match done {
            Ok(found) => assert!(found.dirty == 0 && self.written.is_empty(), "{found:?}"),
            Err(error) => assert_eq!(error, MemError::Fault),
        }
    }

    fn begin(&mut self) {
        self.track(Op::Enable).unwrap();
        self.written.clear();
        self.excused.clear();
    }

    /// A guest's store on the tables that are loaded. `false`: the guest got the fault.
    fn store(&mut self, n: usize) -> bool {
        let va = ((FIRST + n) as u64) << 12;
        let platform = &self.world.hv.platform;
        for _ in 0..3 {
            let (is_done, at) = self
                .world
                .run(&self.guest.dom, |_| (platform.store_at(va, 7), platform.translate(va, false)));
            if is_done {
                self.written.insert(at.unwrap().raw() >> 12);
                return true;
            }
            if !self.world.run(&self.guest.dom, |cur| faults::resolve(cur, cur.vcpu.cr3_kernel.get(), va)) {
                return false;
            }
        }
        panic!("the guest does not get on");
    }

    /// A store, and what Linux does about a fault: an entry that it knows as read-only gets a page of its own.
    fn write(&mut self, is_child: bool, n: usize) {
        if is_child && !self.is_pinned {
            return;
        }
        let l4 = if is_child { self.child[0] } else { self.guest.tables[0] };
        self.world.hv.new_base(&self.guest.dom, &self.guest.dom.vcpus[0], l4).unwrap();
        let is_known = self.read_only.contains(&(is_child, FIRST + n));
        let is_done = self.store(n);
        assert!(!(is_known && is_done), "slot {n} of child {is_child} was copied, and is for writing");
        if is_done {
            return;
        }
        let table = if is_child { self.child[3] } else { self.guest.tables[3] };
        let now = self.world.peek(table, FIRST + n);
        if now & P == 0 {
            return;
        }
        let mfn = if is_known { self.fresh() } else { Pte::new(now).frame() };
        self.set(is_child, n, entry(mfn, USER));
        assert!(self.store(n), "the guest made the entry for writing");
    }

    fn fresh(&mut self) -> Mfn {
        let Ok(mfn) = self.world.hv.populate(&self.guest.dom, 0, 0) else { return self.pages[0] };
        self.world.hv.platform.set_m2p(mfn, Pfn::new(mfn.raw() ^ 1));
        self.excused.insert(mfn.raw());
        self.next_excused.insert(mfn.raw());
        self.pages.push(mfn);
        mfn
    }

    /// Copies the parent's entry of a page as fork does, by what the entry looks like.
    fn copy(&mut self, n: usize) {
        let raw = self.world.peek(self.guest.tables[3], FIRST + n);
        if self.is_pinned || raw & P == 0 || raw & GUEST_KERNEL != 0 {
            return;
        }
        if raw & RW != 0 {
            self.set(false, n, raw & !RW);
        }
        self.world.poke(self.child[3], FIRST + n, raw & !RW);
        self.read_only.extend([(false, FIRST + n), (true, FIRST + n)]);
    }

    fn pin(&mut self) {
        // A write that was done before the pin is the parent's own.
        let dom = &self.guest.dom;
        if self.is_pinned {
            self.world.hv.new_base(dom, &dom.vcpus[0], self.guest.tables[0]).unwrap();
            let hv = &self.world.hv;
            while hv.unpin_table(dom, self.child[0]) == Err(MemError::Restart) || !hv.finish_deferred(dom) {}
            (0..PAGES).for_each(|n| self.world.poke(self.child[3], FIRST + n, 0));
            self.read_only.retain(|(is_child, _)| !is_child);
        } else {
            (0..self.pages.len()).for_each(|n| self.excuse_copied(self.pages[n]));
            let dom = &self.guest.dom;
            while self.world.hv.pin_table(dom, self.child[0], 4) == Err(MemError::Restart) {}
            while !self.world.hv.finish_deferred(dom) {}
        }
        self.is_pinned = !self.is_pinned;
    }
}

#[test]
fn a_page_is_reported_once_for_each_round_in_which_it_is_written() {
    let mut scene = Scene::new();
    scene.begin();
    scene.round(Op::Clean);
    scene.round(Op::Clean);
    assert!(scene.reported().is_empty());
    scene.write(false, 0);
    assert!(scene.world.peek(scene.guest.tables[3], FIRST) & (RW | MARK) == RW);
    scene.write(false, 2);
    for op in [Op::Peek, Op::Clean] {
        scene.round(op);
        let written = [scene.pages[0], scene.pages[2], scene.guest.tables[3]].map(Mfn::raw);
        assert_eq!(scene.reported(), written.into());
    }
    assert!(scene.world.peek(scene.guest.tables[3], FIRST) & (RW | MARK) == MARK);
    scene.round(Op::Clean);
    assert!(scene.reported().is_empty());
    assert_eq!(scene.track(Op::Enable), Err(MemError::Invalid), "it is on");
    scene.track(Op::Off).unwrap();
    assert_eq!(scene.track(Op::Clean), Err(MemError::Invalid), "it is off");
    scene.world.check();
}

#[test]
fn one_round_at_a_time() {
    let mut scene = Scene::new();
    scene.begin();
    interrupted(&scene.world, true);
    assert_eq!(scene.track_once(Op::Clean, BITS), Err(MemError::Restart));
    assert_eq!(scene.track_once(Op::Peek, BITS), Err(MemError::Busy));
    interrupted(&scene.world, false);
    scene.track(Op::Off).unwrap();
    scene.world.check();
    scene.begin();
}

#[test]
fn a_bitmap_ends_where_the_caller_says() {
    let mut scene = Scene::new();
    scene.begin();
    scene.write(false, 0);
    let pfn = scene.pages[0].raw() ^ 1;
    scene.world.poke(scene.bitmap, pfn as usize / 64, u64::MAX);
    let bits = pfn / 64 * 64;
    assert!(scene.track_once(Op::Peek, bits).is_ok());
    assert_eq!(scene.world.peek(scene.bitmap, pfn as usize / 64), u64::MAX, "beyond the caller's bits");
    scene.round(Op::Clean);
    assert!(scene.reported().contains(&scene.pages[0].raw()));
}

/// What others may write at any time is dirty in each round: `vcpu_info`, and frames that a grant lends for writing.
#[test]
fn what_others_may_write_at_any_time_is_dirty_in_each_round() {
    let mut scene = Scene::new();
    scene.begin();
    let mfn = scene.pages[0];
    let hv = &scene.world.hv;
    let held = hv.get_page_writable(mfn, &scene.guest.dom).unwrap().into_raw();
    scene.guest.dom.vcpus[0].info_frame.replace(Some(held));
    for op in [Op::Clean, Op::Peek, Op::Clean, Op::Clean] {
        scene.excused.insert(mfn.raw());
        scene.round(op);
        assert!(scene.reported().contains(&mfn.raw()));
    }
    scene.guest.dom.vcpus[0].info_frame.replace(None);
    scene.world.hv.put_page_and_type(held);
    for is_dirty in [true, false] {
        scene.excused.insert(mfn.raw());
        scene.round(Op::Clean);
        assert_eq!(scene.reported().contains(&mfn.raw()), is_dirty);
    }
}

#[test]
fn a_frame_that_gets_another_place_is_dirty() {
    let mut scene = Scene::new();
    scene.begin();
    scene.round(Op::Clean);
    let mfn = scene.pages[1];
    let request = (mfn.maddr().raw() | ring_abi::mmu::MMU_MACHPHYS_UPDATE, mfn.raw() ^ 1);
    assert_eq!(scene.world.mmu(&scene.guest, &[request], super::guest::SELF), 0);
    scene.written.insert(mfn.raw());
    scene.round(Op::Clean);
}

/// Of a page that the guest has copied, the hypervisor takes RW without a mark: the guest alone gives RW back.
#[test]
fn a_copied_page_is_the_guests_to_give_rw() {
    let mut scene = Scene::new();
    scene.begin();
    scene.copy(0);
    scene.pin();
    scene.set(false, 0, entry(scene.pages[0], USER));
    assert!(scene.store(0));
    scene.round(Op::Clean);
    assert_eq!(scene.world.peek(scene.guest.tables[3], FIRST) & (RW | MARK), 0);
    assert!(!scene.store(0), "the guest gets the fault");
    scene.world.check();
}

/// A toolstack that copies a domain page by page has to pin the copies of the tables that are pinned.
#[test]
fn a_table_in_use_that_is_pinned_or_unpinned_is_dirty() {
    let mut scene = Scene::new();
    scene.begin();
    scene.round(Op::Clean);
    let table = scene.guest.tables[3];
    for is_pin in [true, false] {
        let (hv, dom) = (&scene.world.hv, &scene.guest.dom);
        if is_pin { hv.pin_table(dom, table, 1) } else { hv.unpin_table(dom, table) }.unwrap();
        scene.round(Op::Clean);
        assert!(scene.reported().contains(&table.raw()), "pin: {is_pin}");
        scene.round(Op::Clean);
        assert!(!scene.reported().contains(&table.raw()));
    }
}
