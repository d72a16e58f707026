//! Guests do anything, in any order. After every step the frame table agrees with all page tables, and no TLB can remember
//! write access to a page that is now a page table or another domain's.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use proptest::prelude::*;
use ring_abi::types::{DOMID_INVALID, Maddr, Mfn};

use super::{World, entry};
use crate::domain::Domain;
use crate::frames::info::PageType;
use crate::frames::pte::{A, D, G, NX, P, PCD, PSE, Pte, RW, US};
use crate::mem::{FrameOwner, GrantAddress, MemError, PageRef, TypedRef, Update};
use crate::platform::MachineMemory;

const FRAMES: usize = 72;
const DOMAINS: usize = 3;
/// Slots that steps use: a few, so that steps meet each other, and those at the edges.
const SLOTS: [usize; 8] = [0, 1, 2, 3, 255, 256, 271, 511];
const FLAGS: [u64; 10] =
    [0, P, P | RW, P | US, P | RW | US | A | D, P | RW | NX, P | G, P | PSE, P | PCD, P | RW | G | 0xe00];

#[derive(Clone, Debug)]
enum Step {
    /// The guest writes its own memory.
    Poke {
        dom: usize,
        frame: usize,
        slot: usize,
        target: usize,
        flags: usize,
    },
    /// `mmu_update` on a table of `dom` with a frame of `owner`.
    Set {
        dom: usize,
        owner: usize,
        frame: usize,
        slot: usize,
        target: usize,
        flags: usize,
        mode: u8,
    },
    Pin {
        dom: usize,
        frame: usize,
        level: u8,
    },
    Unpin {
        dom: usize,
        frame: usize,
    },
    Base {
        dom: usize,
        frame: usize,
        user: bool,
    },
    Gdt {
        dom: usize,
        frames: Vec<usize>,
    },
    Populate {
        dom: usize,
    },
    Release {
        dom: usize,
        frame: usize,
    },
    Steal {
        dom: usize,
        frame: usize,
    },
    MapGrant {
        dom: usize,
        owner: usize,
        frame: usize,
        table: usize,
        slot: usize,
        read_only: bool,
    },
    UnmapGrant {
        pick: usize,
    },
    Pending(bool),
    Destroy {
        dom: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let dom = || 0..DOMAINS;
    let frame = || 0..FRAMES + 2;
    let slot = || 0..SLOTS.len();
    let flags = || 0..FLAGS.len();
    prop_oneof![
        6 => (dom(), frame(), slot(), frame(), flags())
            .prop_map(|(dom, frame, slot, target, flags)| Step::Poke { dom, frame, slot, target, flags }),
        12 => (dom(), dom(), frame(), slot(), frame(), flags(), 0u8..3)
            .prop_map(|(dom, owner, frame, slot, target, flags, mode)| Step::Set { dom, owner, frame, slot, target, flags, mode }),
        6 => (dom(), frame(), 1u8..5).prop_map(|(dom, frame, level)| Step::Pin { dom, frame, level }),
        4 => (dom(), frame()).prop_map(|(dom, frame)| Step::Unpin { dom, frame }),
        3 => (dom(), frame(), any::<bool>()).prop_map(|(dom, frame, user)| Step::Base { dom, frame, user }),
        1 => (dom(), proptest::collection::vec(frame(), 0..4)).prop_map(|(dom, frames)| Step::Gdt { dom, frames }),
        2 => dom().prop_map(|dom| Step::Populate { dom }),
        2 => (dom(), frame()).prop_map(|(dom, frame)| Step::Release { dom, frame }),
        1 => (dom(), frame()).prop_map(|(dom, frame)| Step::Steal { dom, frame }),
        3 => (dom(), dom(), frame(), frame(), slot(), any::<bool>()).prop_map(
            |(dom, owner, frame, table, slot, read_only)| Step::MapGrant { dom, owner, frame, table, slot, read_only }
        ),
        2 => (0usize..8).prop_map(|pick| Step::UnmapGrant { pick }),
        2 => any::<bool>().prop_map(Step::Pending),
        1 => dom().prop_map(|dom| Step::Destroy { dom }),
    ]
}

fn mfn(n: usize) -> Mfn {
    Mfn::new(n as u64)
}

struct Mapping {
    dom: usize,
    at: Maddr,
    frame: Mfn,
    read_only: bool,
}

struct Model {
    world: World,
    doms: Vec<Arc<Domain>>,
    grants: Vec<Mapping>,
    /// Frames that a TLB may remember as writable, with their owners at that time.
    tlb: BTreeMap<u64, BTreeSet<u16>>,
    flushes: u32,
}

impl Model {
    fn new() -> Self {
        let world = World::new(FRAMES);
        let doms: Vec<_> = (0..DOMAINS).map(|id| world.domain(id as u16, id == 0, 40)).collect();
        for dom in &doms {
            let tables = world.address_space(dom);
            let pages = world.pages::<6>(dom);
            world.poke(tables[3], 255, entry(pages[0], P | RW));
            world.poke(tables[3], 511, entry(pages[1], P | RW | US));
            world.hv.install_bases(dom, &dom.vcpus[0], tables[0], None).expect("valid");
        }
        Self { world, doms, grants: Vec::new(), tlb: BTreeMap::new(), flushes: 0 }
    }

    /// Repeats a call that is to be continued, as a guest does, at most 64 times: a call that needs more makes no progress.
    fn repeat(&self, mut f: impl FnMut() -> Result<(), MemError>) -> bool {
        for _ in 0..64 {
            match f() {
                Err(MemError::Restart) => {}
                result => return result.is_ok(),
            }
            if self.flushes.is_multiple_of(3) {
                return false; // a guest that does not come back
            }
        }
        panic!("no progress");
    }

    fn apply(&mut self, step: &Step) {
        let hv = &self.world.hv;
        match *step {
            Step::Poke { dom, frame, slot, target, flags } => {
                if let Ok(page) = hv.get_page_writable(mfn(frame), &self.doms[dom]) {
                    self.world.poke(page.mfn(), SLOTS[slot], entry(mfn(target), FLAGS[flags]));
                }
            }
            Step::Set { dom, owner, frame, slot, target, flags, mode } => {
                let slot = SLOTS[slot];
                let update = match mode {
                    0 => Update::Plain,
                    1 => Update::PreserveAccessedDirty,
                    _ if frame < FRAMES => {
                        Update::CompareExchange(Pte::new(self.world.peek(mfn(frame), slot)))
                    }
                    _ => Update::CompareExchange(Pte::NONE),
                };
                self.set(dom, owner, (frame, slot), entry(mfn(target), FLAGS[flags]), update);
            }
            Step::Pin { dom, frame, level } => {
                let dom = &self.doms[dom];
                if !dom.is_dying() {
                    self.repeat(|| hv.pin_table(dom, mfn(frame), level));
                }
            }
            Step::Unpin { dom, frame } => {
                self.repeat(|| hv.unpin_table(&self.doms[dom], mfn(frame)));
            }
            Step::Base { dom, frame, user } => {
                if !self.doms[dom].is_dying() {
                    self.base(dom, frame, user);
                }
            }
            Step::Gdt { dom, ref frames } => {
                let dom = &self.doms[dom];
                let frames: Vec<Mfn> = frames.iter().map(|&n| mfn(n)).collect();
                if !dom.is_dying() {
                    let _ = hv.set_gdt(dom, &dom.vcpus[0], &frames, frames.len() as u32 * 512);
                }
            }
            Step::Populate { dom } => {
                let _ = hv.populate(&self.doms[dom], 0, 0);
            }
            Step::Release { dom, frame } => {
                let _ = hv.release_page(&self.doms[dom], mfn(frame));
            }
            Step::Steal { dom, frame } => {
                if hv.steal_page(&self.doms[dom], mfn(frame)).is_ok() {
                    hv.frames.release(mfn(frame), 0);
                }
            }
            Step::MapGrant { dom, owner, frame, table, slot, read_only } => {
                let at = Maddr::new(table as u64 * 4096 + SLOTS[slot] as u64 * 8);
                self.map_grant(dom, owner, frame, at, read_only);
            }
            Step::UnmapGrant { pick } => {
                if let Some(n) = pick.checked_rem(self.grants.len()) {
                    self.unmap_grant(n);
                }
            }
            Step::Pending(pending) => hv.platform.pending.store(pending, Ordering::Relaxed),
            Step::Destroy { dom } => {
                if !self.doms[dom].is_dying() {
                    let pending = hv.platform.pending.load(Ordering::Relaxed);
                    self.world.destroy(&self.doms[dom], pending);
                    hv.platform.pending.store(pending, Ordering::Relaxed);
                }
            }
        }
    }

    /// `mmu_update` of one entry, named by its table's frame and its slot.
    fn set(&self, dom: usize, owner: usize, (frame, slot): (usize, usize), new: u64, update: Update) {
        let (dom, owner) = (&self.doms[dom], &self.doms[owner]);
        self.repeat(|| {
            let mut mm = self.world.hv.lock_tables(dom);
            mm.begin()?;
            if dom.is_dying() {
                return Err(MemError::NoSuchDomain);
            }
            mm.update_entry(mfn(frame), slot as u64 * 8, Pte::new(new), FrameOwner::Domain(owner), update)
                .map(|_| ())
        });
    }

    fn base(&self, dom: usize, frame: usize, user: bool) {
        let hv = &self.world.hv;
        self.repeat(|| {
            self.world.run(&self.doms[dom], |cur| {
                if user {
                    hv.new_user_base(cur.domain, cur.vcpu, mfn(frame))
                } else {
                    hv.new_base(cur.domain, cur.vcpu, mfn(frame))
                }
            })
        });
        hv.platform.identity();
    }

    /// Maps a frame of `owner` as a grant into the entry at `at`.
    fn map_grant(&mut self, dom: usize, owner: usize, frame: usize, at: Maddr, read_only: bool) {
        let hv = &self.world.hv;
        let (taker, owner) = (&self.doms[dom], &self.doms[owner]);
        let page = if read_only {
            hv.get_page(mfn(frame), owner).map(PageRef::into_raw)
        } else {
            hv.get_page_writable(mfn(frame), owner).ok().map(TypedRef::into_raw)
        };
        let Some(page) = page else { return };
        let place = GrantAddress::Entry(at);
        let mapped = !taker.is_dying()
            && self
                .world
                .run(taker, |cur| hv.map_grant_frame(cur.domain, cur.vcpu, place, page, read_only, 0))
                .is_ok();
        hv.platform.identity();
        if mapped {
            self.grants.push(Mapping { dom, at, frame: page, read_only });
        } else {
            self.give_back(page, read_only);
        }
    }

    fn unmap_grant(&mut self, n: usize) {
        let Mapping { dom, at, frame, read_only } = self.grants.swap_remove(n);
        let (hv, dom) = (&self.world.hv, &self.doms[dom]);
        let place = GrantAddress::Entry(at);
        let unmapped = self
            .world
            .run(dom, |cur| hv.unmap_grant_frame(cur.domain, cur.vcpu, place, frame, read_only))
            .is_ok();
        hv.platform.identity();
        if unmapped {
            hv.flush_grants(dom);
            self.give_back(frame, read_only);
        }
    }

    /// A grant's user gives back the references that the mapping took.
    fn give_back(&self, frame: Mfn, read_only: bool) {
        if read_only {
            self.world.hv.put_page(frame);
        } else {
            self.world.hv.put_page_and_type(frame);
        }
    }

    fn check(&mut self) -> Vec<String> {
        let hv = &self.world.hv;
        let mut wrong = hv.check_frames();
        let flushes = hv.platform.flushes.load(Ordering::Relaxed);
        if flushes != self.flushes {
            self.flushes = flushes;
            self.tlb.clear();
        }
        for (&mfn, owners) in &self.tlb {
            let info = hv.frames.held(Mfn::new(mfn));
            let (page_type, count) = info.page_type();
            if count > 0 && (page_type.level() > 0 || page_type == PageType::SegDesc) {
                wrong.push(alloc::format!("{mfn:#x} is {page_type:?}, a TLB may write it"));
            }
            // A lent page that outlives its owner has none, so no domain can take a new reference to it.
            let is_news = |owner: u16| owner != DOMID_INVALID && !owners.contains(&owner);
            if info.owner().is_some_and(|owner| is_news(owner.raw())) {
                wrong.push(alloc::format!("{mfn:#x} has a new owner, a TLB may write it"));
            }
        }
        for table in 0..FRAMES as u64 {
            let info = hv.frames.held(Mfn::new(table));
            if info.page_type().0 != PageType::L1 || info.page_type().1 == 0 {
                continue;
            }
            for cell in hv.platform.table(Mfn::new(table)) {
                let leaf = Pte::load(cell);
                if leaf.raw() & (P | RW) == P | RW
                    && let Some(owner) = hv.frames.held(leaf.frame()).owner()
                {
                    self.tlb.entry(leaf.frame().raw()).or_default().insert(owner.raw());
                }
            }
        }
        wrong
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_breaks_an_invariant(steps in proptest::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        for (n, step) in steps.iter().enumerate() {
            model.apply(step);
            let wrong = model.check();
            prop_assert!(wrong.is_empty(), "after step {n}, {step:?}: {wrong:#?}");
        }
        model.world.hv.platform.pending.store(false, Ordering::Relaxed);
        for dom in 0..DOMAINS {
            model.apply(&Step::Destroy { dom });
            let wrong = model.check();
            prop_assert!(wrong.is_empty(), "after the end of d{dom}: {wrong:#?}");
        }
        let hv = &model.world.hv;
        prop_assert_eq!(hv.frames.free_pages(), FRAMES as u64 - 1, "everything came back");
    }
}
