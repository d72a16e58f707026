//! Guests with real page tables make calls that are nearly right. After each call the frame table agrees with all page
//! tables; when the guests are destroyed, every frame comes back.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use proptest::prelude::*;
use ring_abi::domctl::{XEN_DOMCTL_DESTROYDOMAIN, XEN_DOMCTL_INTERFACE_VERSION};
use ring_abi::hypercall::*;
use ring_abi::types::{GuestVa, Mfn};

use crate::domain::Domain;
use crate::frames::pte::{P, RW, US};
use crate::platform::{GuestMemory, MachineMemory, Paging, Settled};
use crate::testing::{ARGS, World, wild};

const FRAMES: u64 = 128;
const GUESTS: usize = 2;
/// Pages of each guest besides its four tables.
const PAGES: u64 = 12;
/// First slot of the L1 table, and so first page of the address space, at which those pages are mapped for writing.
const FIRST_PAGE: u64 = 16;
/// The page that arguments lie in.
const ARGUMENTS: u64 = FIRST_PAGE * 4096;
const FLAGS: [u64; 6] = [0, P, P | RW, P | RW | US, P | RW | 0x80, P | 0x18];

/// A word of an argument.
#[derive(Clone, Debug)]
enum Word {
    Small(u64),
    /// Two halves: low, high.
    Pair(u32, u32),
    Frame(u64),
    /// A page-table entry.
    Entry(u64, usize),
    /// Machine address of a slot of a frame, with low bits.
    Slot(u64, u64, u64),
    /// An address in the guest's first pages.
    Address(u64, u64),
    Any(u64),
}

impl Word {
    fn value(&self) -> u64 {
        match *self {
            Self::Small(n) | Self::Any(n) | Self::Frame(n) => n,
            Self::Pair(low, high) => u64::from(high) << 32 | u64::from(low),
            Self::Entry(frame, flags) => frame << 12 | FLAGS[flags],
            Self::Slot(frame, slot, low) => (frame << 12) + slot * 8 + low,
            Self::Address(page, offset) => page << 12 | offset,
        }
    }
}

fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![12 => 16u64..80, 1 => 0..FRAMES + 2]
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        3 => (0u64..24).prop_map(Word::Small),
        3 => (0u32..12, 0u32..12).prop_map(|(low, high)| Word::Pair(low, high)),
        4 => frame().prop_map(Word::Frame),
        4 => (frame(), 0..FLAGS.len()).prop_map(|(frame, flags)| Word::Entry(frame, flags)),
        3 => (frame(), 0u64..32, prop_oneof![6 => Just(0u64), 1 => 0u64..8])
            .prop_map(|(frame, slot, low)| Word::Slot(frame, slot, low)),
        2 => (0u64..32, prop_oneof![3 => Just(0u64), 1 => 0u64..4096])
            .prop_map(|(page, offset)| Word::Address(page, offset)),
        2 => Just(Word::Small(0x7ff0)),
        1 => any::<u64>().prop_map(Word::Any),
        1 => (0u64..64).prop_map(|bit| Word::Any(1 << bit)),
    ]
}

#[derive(Clone, Debug)]
struct Step {
    guest: usize,
    number: u32,
    args: [Word; 5],
    memory: Vec<Word>,
    /// A grant entry set before: reference, frame, flags, grantee.
    grant: (u64, u64, u64, u64),
    pending: bool,
}

/// A call: mostly one about memory, whose arguments are of the right kinds.
fn call() -> impl Strategy<Value = (u32, [Word; 5])> {
    let at = || (0u64..8).prop_map(|offset| Word::Address(FIRST_PAGE, offset * 8));
    let own = || Just(Word::Small(0x7ff0));
    let zero = || Just(Word::Small(0));
    let few = || (0u64..4).prop_map(Word::Small);
    let number = |n: u32| Just(n);
    prop_oneof![
        6 => (number(__HYPERVISOR_MMU_UPDATE), (at(), few(), zero(), own(), zero())),
        6 => (number(__HYPERVISOR_MMUEXT_OP), (at(), few(), zero(), own(), zero())),
        4 => (number(__HYPERVISOR_UPDATE_VA_MAPPING), (word(), word(), few(), zero(), zero())),
        8 => (number(__HYPERVISOR_GRANT_TABLE_OP), (few(), at(), few(), zero(), zero())),
        2 => (number(__HYPERVISOR_GRANT_TABLE_OP), (Just(Word::Small(5)), at(), few(), zero(), zero())),
        4 => (number(__HYPERVISOR_MEMORY_OP), ((0u64..12).prop_map(Word::Small), at(), zero(), zero(), zero())),
        2 => (number(__HYPERVISOR_SET_GDT), (at(), (0u64..2000).prop_map(Word::Small), zero(), zero(), zero())),
        2 => (number(__HYPERVISOR_UPDATE_DESCRIPTOR), (word(), word(), zero(), zero(), zero())),
        2 => (number(__HYPERVISOR_MULTICALL), (at(), few(), zero(), zero(), zero())),
        1 => (number(__HYPERVISOR_VCPU_OP), ((0u64..14).prop_map(Word::Small), zero(), at(), zero(), zero())),
        4 => (0u32..58, (word(), word(), word(), word(), word())),
    ]
    .prop_map(|(number, (a, b, c, d, e))| (number, [a, b, c, d, e]))
}

fn step() -> impl Strategy<Value = Step> {
    (
        0..GUESTS,
        call(),
        proptest::collection::vec(word(), 16),
        (0u64..12, frame(), 0u64..8, 1u64..1 + GUESTS as u64),
        proptest::bool::weighted(0.1),
    )
        .prop_map(|(guest, (number, args), memory, grant, pending)| Step {
            guest,
            number,
            args,
            memory,
            grant,
            pending,
        })
}

/// A guest whose tables map some pages and, read-only, themselves.
fn guest(world: &World) -> Arc<Domain> {
    let hv = &world.hv;
    let guest = world.guest(1);
    guest.mm.set_max_pages(PAGES + 12);
    let page = || hv.populate(&guest, 0, 0).expect("a page");
    let poke = |table: Mfn, slot: u64, entry: u64| {
        hv.platform.table(table)[slot as usize].store(entry, Ordering::Relaxed);
    };
    let tables: [Mfn; 4] = core::array::from_fn(|_| page());
    for pair in tables.windows(2) {
        poke(pair[0], 0, pair[1].raw() << 12 | P | RW | US);
    }
    for (slot, table) in (0u64..).zip(tables) {
        poke(tables[3], slot, table.raw() << 12 | P | US);
    }
    for n in 0..PAGES {
        poke(tables[3], FIRST_PAGE + n, page().raw() << 12 | P | RW | US);
    }
    hv.install_bases(&guest, &guest.vcpus[0], tables[0], None).expect("sound tables");
    hv.grow_grant_table(&guest, 1).expect("a grant table");
    guest
}

fn apply(world: &World, guests: &[Arc<Domain>], step: &Step) {
    let (hv, guest) = (&world.hv, &guests[step.guest]);
    let (gref, frame, flags, grantee) = step.grant;
    if let Ok(table) = hv.grant_table_frame(guest, 0) {
        let entry = frame << 32 | grantee << 16 | flags;
        // The entry may be in use: a guest that is so foolish is tested too.
        hv.platform.table(table)[gref as usize].store(entry, Ordering::Relaxed);
    }
    let Some(base) = guest.vcpus[0].cr3_kernel.get() else { return };
    hv.platform.load_cr3(base);
    for (n, word) in (0u64..).zip(&step.memory) {
        // If the page is no longer mapped, the call reads what lies there.
        let _ = hv.platform.copy_to_guest(
            Settled::new(),
            GuestVa::new(ARGUMENTS + n * 8),
            &word.value().to_le_bytes(),
        );
    }
    hv.platform.pending.store(step.pending, Ordering::Relaxed);
    let args = step.args.each_ref().map(Word::value);
    // One step only: a guest need not take up a continuation.
    let _ = world.raw(guest, 0, step.number, &args);
    hv.platform.pending.store(false, Ordering::Relaxed);
    hv.platform.identity();
}

fn destroy(world: &World, guest: &Arc<Domain>) {
    let words = [
        u64::from(XEN_DOMCTL_INTERFACE_VERSION) << 32 | u64::from(XEN_DOMCTL_DESTROYDOMAIN),
        u64::from(guest.id.raw()),
    ];
    let mut op = [0u64; 18];
    op[..2].copy_from_slice(&words);
    world.put(ARGS, &op);
    assert_eq!(world.call(&world.dom0, __HYPERVISOR_DOMCTL, &[ARGS]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn no_call_breaks_an_invariant(steps in proptest::collection::vec(step(), 1..100)) {
        let world = World::new(FRAMES as usize);
        let free = world.hv.frames.free_pages();
        let guests: Vec<_> = (0..GUESTS).map(|_| guest(&world)).collect();
        let wrong = world.hv.check_frames();
        prop_assert!(wrong.is_empty(), "at the start: {wrong:#?}");
        for (n, step) in steps.iter().enumerate() {
            apply(&world, &guests, step);
            let wrong = world.hv.check_frames();
            prop_assert!(wrong.is_empty(), "after step {n}, {step:?}: {wrong:#?}");
        }
        for guest in guests {
            destroy(&world, &guest);
            let wrong = world.hv.check_frames();
            prop_assert!(wrong.is_empty(), "after the end of {guest:?}: {wrong:#?}");
        }
        world.settle(); // drops the reference to the last vCPU that ran
        prop_assert_eq!(world.hv.frames.free_pages(), free, "everything came back");
    }
}

/// A grant is unmapped on one CPU, and its page becomes a table on another.
#[test]
fn an_unmapped_grant_is_forgotten() {
    use wild::Act::*;
    let step = |cpu, act| wild::Step { cpu, act };
    // CPU 0 runs domain 1, and CPU 1 runs domain 2. Pick 0 is the frame that was named last.
    let before = [
        step(0, Map { page: 0xe, entry: (0, 0), flush: 0 }),
        step(0, Grant { gref: 0, frame: 0, to: 2, flags: 0 }),
        step(1, MapGrant { granter: 1, gref: 0, page: 0xf, flags: 2 }),
    ];
    let after = [
        step(1, Unmap { which: [0, 0], count: 0, replace: false, page: 0 }),
        step(0, Ext { ops: [(0, 0), (22, 0)], whose: 0 }),
    ];
    let world = wild::Wild::new(2);
    let anothers = |world: &wild::Wild| world.remembered().iter().any(|leaf| leaf.by != leaf.owner);
    for step in before {
        world.step(&step);
    }
    assert!(anothers(&world));
    for step in after {
        world.step(&step);
    }
    assert!(!anothers(&world));
    let wrong = world.wrong(true);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Seeds that each test run plays, and the steps of each.
const SEEDS: u64 = 200;
const STEPS: usize = 120;

#[test]
fn guests_on_one_cpu_use_nothing_that_was_taken() {
    wild::search(1, seeds(), STEPS, false);
}

#[test]
fn guests_on_five_cpus_use_nothing_that_was_taken() {
    wild::search(5, seeds(), STEPS, false);
}

/// The CPUs are amid their calls at the same time, and another goes on wherever that could be seen.
#[test]
fn guests_that_call_at_once_use_nothing_that_was_taken() {
    let seeds = seeds();
    for cpus in 2..=4 {
        // Each of these takes ten times as long.
        let fewer = seeds.start..seeds.start + seeds.end.saturating_sub(seeds.start).div_ceil(10);
        wild::search(cpus, fewer, STEPS, true);
    }
}

/// `MICROHV_WILD_SEEDS=FIRST,COUNT` chooses others.
fn seeds() -> core::ops::Range<u64> {
    let chosen = std::env::var("MICROHV_WILD_SEEDS").unwrap_or_default();
    let numbers: Vec<u64> = chosen.split(',').filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [first, count] => first..first + count,
        _ => 0..SEEDS,
    }
}
