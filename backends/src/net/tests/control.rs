//! The control ring, honest and not.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use proptest::prelude::*;
use ring_abi::io::netif::*;
use ring_abi::ring::{BackRing, FrontRing};
use ring_abi::shared::leaked_pages;
use ring_abi::types::{DomId, GrantRef, Mfn};
use zerocopy::IntoBytes;

use super::super::*;
use super::world::*;

/// Pages by reference, and how often each is mapped.
#[derive(Default)]
struct Pages {
    pages: BTreeMap<u32, Page>,
    mapped: Rc<RefCell<BTreeMap<u32, usize>>>,
    map_calls: usize,
    reads: usize,
}

struct Mapped {
    gref: u32,
    page: Page,
    mapped: Rc<RefCell<BTreeMap<u32, usize>>>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        *self.mapped.borrow_mut().get_mut(&self.gref).unwrap() -= 1;
    }
}

impl ring_abi::shared::SharedMemory for Mapped {
    fn shared(&self) -> Page {
        self.page
    }
}

impl Pages {
    fn grant(&mut self, gref: u32) -> Page {
        *self.pages.entry(gref).or_insert_with(|| leaked_pages(1))
    }

    fn mapped(&self) -> usize {
        self.mapped.borrow().values().sum()
    }
}

impl ControlGrants for Pages {
    type Mapped = Mapped;

    fn read(&mut self, gref: GrantRef, target: &mut [u8]) -> bool {
        assert!(!target.is_empty() && target.len() <= 4096);
        self.reads += 1;
        self.pages.get(&gref.raw()).map(|page| page.read(0, target)).is_some()
    }

    fn write(&mut self, gref: GrantRef, source: &[u8]) -> bool {
        self.pages.get(&gref.raw()).map(|page| page.write(0, source)).is_some()
    }

    fn map(&mut self, grefs: &[(GrantRef, bool)], out: &mut Vec<Mapped>) -> bool {
        self.map_calls += 1;
        let Some(pages) = grefs.iter().map(|(gref, _)| self.pages.get(&gref.raw()).copied()).collect() else {
            return false;
        };
        let pages: Vec<Page> = pages;
        for ((gref, _), page) in grefs.iter().zip(pages) {
            *self.mapped.borrow_mut().entry(gref.raw()).or_default() += 1;
            out.push(Mapped { gref: gref.raw(), page, mapped: self.mapped.clone() });
        }
        true
    }
}

struct Bench {
    front: FrontRing<NetifCtrlRing, Page>,
    control: Control<Page, Events>,
    state: Controlled<Mapped>,
    pages: Pages,
    events: Events,
}

impl Bench {
    fn new(queues: usize) -> Self {
        let page = leaked_pages(1);
        let events = Events::default();
        let front = FrontRing::new(page).unwrap();
        let control = Control::new(BackRing::new(page).unwrap(), events.clone());
        Self { front, control, state: Controlled::new(queues), pages: Pages::default(), events }
    }

    /// One request and its answer: status and data.
    fn ask(&mut self, kind: u16, data: [u32; 3]) -> (u32, u32) {
        self.front.push_request(&XenNetifCtrlRequest { id: 77, r#type: kind, data }).unwrap();
        let _ = self.front.publish_requests();
        // Behind a list others come first.
        if self.control.poll(&mut self.state, &mut self.pages).unwrap() {
            assert_eq!(self.control.poll(&mut self.state, &mut self.pages), Ok(false));
        }
        let answer = self.front.next_response().unwrap().unwrap();
        assert_eq!((answer.id, answer.r#type), (77, kind));
        (answer.status, answer.data)
    }

    /// Writes a list of pages into the page `gref`.
    fn list(&mut self, gref: u32, entries: &[(u32, u16)]) {
        let list: Vec<_> =
            entries.iter().map(|&(r#ref, flags)| XenNetifGref { r#ref, flags, status: 99 }).collect();
        self.pages.grant(gref).write(0, list.as_bytes());
    }

    fn statuses(&mut self, gref: u32, count: usize) -> Vec<u32> {
        let page = self.pages.grant(gref);
        (0..count).map(|at| page.read_value::<XenNetifGref>(at * 8).status.into()).collect()
    }
}

const OK: u32 = XEN_NETIF_CTRL_STATUS_SUCCESS;
const BAD: u32 = XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER;

#[test]
fn hashes_are_set_up_and_used() {
    let mut bench = Bench::new(3);
    assert_eq!(
        bench.ask(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3]),
        (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0)
    );
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [1, 0, 0]), (BAD, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [2, 0, 0]), (BAD, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, [1, 0, 0]), (OK, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3]), (OK, 15));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [16, 0, 0]), (BAD, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, [15, 0, 0]), (OK, 0));
    bench.pages.grant(5).write(0, &[0xff; 41]);
    assert_eq!(
        bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [5, 41, 0]),
        (XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, 0)
    );
    assert_eq!(
        bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [5, u32::MAX, 0]),
        (XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, 0)
    );
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [6, 40, 0]), (BAD, 0), "no such page");
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [5, 40, 0]), (OK, 0));
    // One bit of the flow, and a key of ones.
    let flow = Flow::V4([0, 0, 0, 0, 0, 0, 0, 1], None);
    assert_eq!(bench.state.hashing.hash(&flow).unwrap().value, u32::MAX);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [0, 0, 0]), (OK, 0));
    assert_eq!(bench.state.hashing.hash(&flow).unwrap().value, 0);
    assert_eq!(bench.events.0.get(), 1, "the frontend has not armed again");
}

#[test]
fn tables_name_queues_that_exist() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]), (OK, 128));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [129, 0, 0]), (BAD, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [4, 0, 0]), (OK, 0));
    bench.pages.grant(5).write(0, [2u32, 0, 1, 3].as_bytes());
    let mut map = |count, offset| bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, [5, count, offset]);
    assert_eq!(map(4, 0), (BAD, 0), "there is no queue 3");
    assert_eq!(map(3, 1), (OK, 0));
    assert_eq!(map(3, 2), (BAD, 0));
    // XSA-270: what wraps is behind the table, too.
    assert_eq!(map(u32::MAX, 2), (BAD, 0));
    assert_eq!(map(1, u32::MAX), (BAD, 0));
    assert_eq!(map(0x4000_0000, 0), (BAD, 0));
    assert_eq!(map(0, 4), (OK, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, [6, 1, 0]), (BAD, 0), "no such page");
    let queue = |value| bench.state.hashing.queue(Some(PacketHash { kind: 0, value }), 3);
    assert_eq!([0, 1, 2, 3, 5].map(queue), [0, 2, 0, 1, 2]);
}

#[test]
fn requests_that_do_not_exist() {
    let mut bench = Bench::new(1);
    for kind in [0, 11, u16::MAX] {
        assert_eq!(bench.ask(kind, [0; 3]), (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0));
    }
}

#[test]
fn pages_are_lent_and_given_back() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [1, 0, 0]), (OK, MAX_STAGED as u32 / 2));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE, [2, 0, 0]), (BAD, 0));
    for gref in 10..20 {
        bench.pages.grant(gref);
    }
    bench.list(5, &[(12, 0), (10, 1), (11, 0)]);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [1, 5, 3]), (OK, 0));
    assert_eq!((bench.pages.mapped(), bench.state.stages[1].len(), bench.state.stages[0].len()), (3, 3, 0));
    // A list with one page that is lent already, twice in the list, not granted, or with unknown flags adds nothing.
    for list in [&[(13, 0), (12, 0)][..], &[(13, 0), (13, 1)], &[(13, 0), (99, 0)], &[(13, 2), (14, 0)]] {
        bench.list(5, list);
        assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [1, 5, 2]), (BAD, 0), "{list:?}");
        assert_eq!(bench.pages.mapped(), 3);
    }
    bench.list(5, &[(10, 0), (13, 0), (12, 0), (10, 0)]);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [1, 5, 4]), (OK, 2));
    assert_eq!(bench.statuses(5, 4), [OK, BAD, OK, BAD]);
    assert_eq!((bench.pages.mapped(), bench.state.stages[1].len()), (1, 1));
    drop(bench.state);
    assert_eq!(bench.pages.mapped.borrow().values().sum::<usize>(), 0);
}

#[test]
fn lists_that_are_no_lists() {
    let mut bench = Bench::new(1);
    bench.list(5, &[]);
    for (kind, data) in [
        (XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [1, 5, 0]),
        (XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, 513]),
        (XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, u32::MAX]),
        (XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 6, 1]),
        (XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [u32::MAX, 5, 1]),
        (XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [0, 5, 513]),
        (XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [0, 6, 1]),
    ] {
        assert_eq!(bench.ask(kind, data), (BAD, 0), "{kind} {data:?}");
    }
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, 0]), (OK, 0));
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [0, 5, 0]), (OK, 0));
}

#[test]
fn pages_have_a_bound() {
    let mut bench = Bench::new(1);
    for gref in 100..=100 + MAX_STAGED as u32 {
        bench.pages.grant(gref);
    }
    let all: Vec<_> = (0..=MAX_STAGED as u32).map(|at| (100 + at, 0)).collect();
    bench.list(5, &all);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, all.len() as u32]), (BAD, 0));
    assert_eq!(bench.pages.map_calls, 0, "nothing is mapped to find that out");
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, MAX_STAGED as u32]), (OK, 0));
    bench.list(5, &all[MAX_STAGED..]);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, 1]), (BAD, 0));
}

#[test]
fn many_requests_take_turns_with_other_tasks() {
    let mut bench = Bench::new(1);
    for _ in 0..10 {
        let request =
            XenNetifCtrlRequest { r#type: XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, ..Default::default() };
        bench.front.push_request(&request).unwrap();
    }
    let _ = bench.front.publish_requests();
    let polls: Vec<_> =
        (0..3).map(|_| bench.control.poll(&mut bench.state, &mut bench.pages).unwrap()).collect();
    assert_eq!(polls, [true, true, false]);
}

#[test]
fn what_a_request_names_is_read_once() {
    let mut bench = Bench::new(2);
    bench.pages.grant(5).write(0, &[0; 64]);
    bench.pages.grant(0);
    assert_eq!(bench.ask(XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE, [4, 0, 0]), (OK, 0));
    for (kind, data) in [
        (XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, [5, 40, 0]),
        (XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING, [5, 4, 0]),
        (XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, [0, 5, 1]),
        (XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING, [0, 5, 1]),
    ] {
        bench.pages.reads = 0;
        assert_eq!(bench.ask(kind, data).0, OK, "{kind}");
        assert_eq!(bench.pages.reads, 1, "{kind}: the frontend may write between two reads");
    }
}

#[test]
fn a_list_of_pages_is_a_turn_of_its_own() {
    let mut bench = Bench::new(1);
    bench.pages.grant(5);
    for kind in [XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING] {
        let request = XenNetifCtrlRequest { r#type: kind, data: [0, 5, 0], ..Default::default() };
        bench.front.push_request(&request).unwrap();
    }
    let _ = bench.front.publish_requests();
    let polls: Vec<_> =
        (0..3).map(|_| bench.control.poll(&mut bench.state, &mut bench.pages).unwrap()).collect();
    assert_eq!(polls, [true, true, false]);
}

/// A stage with page 9, which may be written, and page 8, which is lent for reading; the bytes of both differ from place to
/// place.
fn stage() -> (Stage<Page>, [Page; 2]) {
    let (lent, readonly) = (leaked_pages(1), leaked_pages(1));
    let mut stage = Stage::new(1);
    assert!(stage.reserve(2));
    stage.add(GrantRef::new(9), false, lent);
    stage.add(GrantRef::new(8), true, readonly);
    for at in 0..4096 {
        readonly.store_u8(at, (at * 7) as u8);
        lent.store_u8(at, (at * 5) as u8);
    }
    (stage, [lent, readonly])
}

const HEAD: Mfn = Mfn::new(1);

fn grant(gref: u32, offset: u16) -> Place {
    Place::Grant { domain: DomId::new(1), gref: GrantRef::new(gref), offset }
}

fn mine(offset: u16) -> Place {
    Place::Own { frame: HEAD, offset }
}

#[test]
fn heads_come_from_lent_pages_without_the_hypervisor() {
    let (mut stage, _) = stage();
    let fetch = |stage: &Stage<Page>, source, len| {
        let (mut op, mut got) = (CopyOp::new(source, mine(32), len), Vec::new());
        let done = stage.fetch(core::slice::from_mut(&mut op), |place, bytes| {
            assert_eq!(place, mine(32));
            got.extend_from_slice(bytes);
            true
        });
        assert_eq!((op.ok(), op.ok()), (done == 1, !got.is_empty()));
        got
    };
    let bytes = |from: usize, len: usize, factor: usize| -> Vec<u8> {
        (from..from + len).map(|at| (at * factor) as u8).collect()
    };
    assert_eq!(fetch(&stage, grant(8, 1), 256), bytes(1, 256, 7));
    assert_eq!(fetch(&stage, grant(9, 4095), 1), bytes(4095, 1, 5));
    // Not lent, long, not within its page, or not granted at all: that is the hypervisor's.
    for (source, len) in [(grant(7, 0), 64), (grant(9, 0), 257), (grant(9, 4090), 7), (mine(0), 64)] {
        assert!(fetch(&stage, source, len).is_empty(), "{source:?} {len}");
    }
    // A page that was given back is as any other that is not lent.
    assert!(stage.remove(GrantRef::new(9)).is_some());
    assert!(fetch(&stage, grant(9, 0), 64).is_empty());
    // The owner's memory is not for copies.
    let mut op = CopyOp::new(grant(8, 0), mine(32), 64);
    assert_eq!((stage.fetch(core::slice::from_mut(&mut op), |_, _| false), op.ok()), (0, false));
}

#[test]
fn a_lent_page_is_found_in_a_row_and_alone() {
    let (mut stage, _) = stage();
    for gref in [20, 12, u32::MAX] {
        stage.add(GrantRef::new(gref), false, leaked_pages(1));
    }
    let found = |stage: &Stage<Page>, gref| {
        let gref = GrantRef::new(gref);
        (stage.readable(gref).is_some(), stage.writable(gref).is_some())
    };
    for gref in [9, 12, 20, u32::MAX] {
        assert_eq!(found(&stage, gref), (true, true), "{gref}");
    }
    assert_eq!(found(&stage, 8), (true, false), "lent for reading");
    for gref in [0, 7, 10, 11, 13, 21, u32::MAX - 1] {
        assert_eq!(found(&stage, gref), (false, false), "{gref}");
    }
    assert!(stage.remove(GrantRef::new(8)).is_some());
    assert_eq!(
        (found(&stage, 8), found(&stage, 9), found(&stage, 20)),
        ((false, false), (true, true), (true, true))
    );
    assert!(stage.take().count() == 4 && found(&stage, 9) == (false, false));
}

/// Notes what is asked, and fails the copies of page 7.
struct Asked(Vec<u16>);

impl Copier for Asked {
    fn copy(&mut self, ops: &mut [CopyOp]) {
        for op in ops {
            self.0.push(op.len());
            let bad = matches!(op.source(), Place::Grant { gref, .. } if gref.raw() == 7);
            op.set_status(if bad { -3 } else { 0 });
        }
    }
}

#[test]
fn the_hypervisor_does_what_is_left() {
    let (stage, _) = stage();
    for (grefs, left, good) in [
        (&[9, 8][..], &[][..], &[true, true][..]),
        (&[7, 6], &[1, 2], &[false, true]),
        (&[9, 7, 8, 6], &[2, 4], &[true, false, true, true]),
    ] {
        let mut ops: Vec<_> =
            grefs.iter().zip(1..).map(|(&gref, len)| CopyOp::new(grant(gref, 0), mine(0), len)).collect();
        let done = stage.fetch(&mut ops, |_, _| true);
        let (mut asked, mut rest) = (Asked(Vec::new()), Vec::new());
        copy_rest(&mut ops, done, &mut asked, &mut rest);
        assert_eq!(asked.0, left);
        assert_eq!(ops.iter().map(CopyOp::ok).collect::<Vec<_>>(), good);
    }
}

proptest! {
    /// Whatever a frontend asks for, pages are mapped once and all go back.
    #[test]
    fn anything_is_asked(requests in prop::collection::vec((0u16..12, 0u32..4, 3u32..7, 0u32..6, any::<u64>()), 1..60)) {
        let mut bench = Bench::new(2);
        (3..10).for_each(|gref| { bench.pages.grant(gref); });
        for (kind, first, second, third, value) in requests {
            bench.pages.grant(second).store_u64((value % 8) as usize * 8, value % 12);
            let (status, _) = bench.ask(kind, [first, second, third]);
            prop_assert!(status <= 3);
            prop_assert!(bench.pages.mapped.borrow().values().all(|times| *times <= 2));
            let lent: usize = bench.state.stages.iter().map(Stage::len).sum();
            prop_assert_eq!(lent, bench.pages.mapped());
        }
        drop(bench.state);
        prop_assert_eq!(bench.pages.mapped.borrow().values().sum::<usize>(), 0);
    }
}
