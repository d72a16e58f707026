//! Turning to the FIFO and back: pages, what is carried over, what is given back.

use super::*;
use crate::domain::DyingState;
use crate::frames::PageType;
use crate::platform::MachineMemory;
use ring_abi::evtchn::fifo::{
    EventArray, EventQueues, HEAD_OFFSET, LINKED, MASKED, PAGE_PORTS, PENDING as EVENT, READY_OFFSET,
};
use ring_abi::types::{Mfn, VcpuId};

/// A guest that uses the FIFO: its ends of the pages that it gave.
pub(super) struct Fifo<'w> {
    pub(super) world: &'w World,
    pub(super) domain: Arc<Domain>,
    pub(super) array: EventArray<'static>,
    pub(super) queues: Vec<EventQueues<'static>>,
    pub(super) controls: Vec<Mfn>,
    pub(super) pages: Vec<Mfn>,
}

/// A page of `domain`.
pub(super) fn page(world: &World, domain: &Domain) -> Mfn {
    world.hv.populate(domain, 0, 0).expect("a page")
}

pub(super) fn init(world: &World, domain: &Arc<Domain>, vcpu: u32, mfn: Mfn, offset: u32) -> i64 {
    let mut op = EvtchnInitControl { control_gfn: mfn.raw(), offset, vcpu, ..EvtchnInitControl::default() };
    let got = world.op(domain, EVTCHN, EVTCHNOP_INIT_CONTROL, &mut op);
    assert!(got != 0 || u32::from(op.link_bits) == EVTCHN_FIFO_LINK_BITS);
    got
}

pub(super) fn expand(world: &World, domain: &Arc<Domain>, mfn: Mfn) -> i64 {
    world.op(domain, EVTCHN, EVTCHNOP_EXPAND_ARRAY, &mut EvtchnExpandArray { array_gfn: mfn.raw() })
}

impl<'w> Fifo<'w> {
    /// A guest with control blocks for all its vCPUs and no page of words.
    pub(super) fn new(world: &'w World, vcpus: u32) -> Self {
        let domain = world.guest(vcpus);
        domain.mm.set_max_pages(256);
        let mut this = Self {
            world,
            domain,
            array: EventArray::default(),
            queues: vec![],
            controls: vec![],
            pages: vec![],
        };
        for vcpu in 0..vcpus {
            let mfn = page(world, &this.domain);
            assert_eq!(init(world, &this.domain, vcpu, mfn, 128), 0);
            let block = world.hv.platform.shared(mfn).slice(128, 72).expect("inside");
            this.queues.push(EventQueues::new(block));
            this.controls.push(mfn);
        }
        this
    }

    /// Does the same, and adds a page of words.
    pub(super) fn ready(world: &'w World, vcpus: u32) -> Self {
        let mut this = Self::new(world, vcpus);
        this.grow();
        this
    }

    /// Adds a page of words.
    pub(super) fn grow(&mut self) {
        let mfn = page(self.world, &self.domain);
        self.array.add(self.world.hv.platform.shared(mfn));
        assert_eq!(expand(self.world, &self.domain, mfn), 0);
        self.pages.push(mfn);
    }

    pub(super) fn ipi(&self, vcpu: u32) -> u32 {
        let mut ipi = EvtchnBindIpi { vcpu, port: 0 };
        assert_eq!(self.world.op(&self.domain, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
        ipi.port
    }

    pub(super) fn send(&self, port: u32) {
        assert_eq!(send(self.world, &self.domain, port), 0);
    }

    pub(super) fn unmask(&self, port: u32) {
        assert_eq!(self.world.op(&self.domain, EVTCHN, EVTCHNOP_UNMASK, &mut EvtchnUnmask { port }), 0);
    }

    pub(super) fn priority(&self, port: u32, priority: u32) -> i64 {
        self.world.op(&self.domain, EVTCHN, EVTCHNOP_SET_PRIORITY, &mut EvtchnSetPriority { port, priority })
    }

    pub(super) fn to_vcpu(&self, port: u32, vcpu: u32) {
        assert_eq!(
            self.world.op(&self.domain, EVTCHN, EVTCHNOP_BIND_VCPU, &mut EvtchnBindVcpu { port, vcpu }),
            0
        );
    }

    /// The upcall of a vCPU, which this takes.
    pub(super) fn take_upcall(&self, vcpu: u32) -> bool {
        self.domain.vcpus[vcpu as usize].info.get().expect("info").swap_u8(UPCALL_PENDING_OFFSET, 0) != 0
    }

    /// All events that a vCPU has, in their order.
    pub(super) fn events(&mut self, vcpu: u32) -> Vec<u32> {
        core::iter::from_fn(|| self.queues[vcpu as usize].next(&self.array)).collect()
    }

    /// A word of the control block of a vCPU.
    pub(super) fn control(&self, vcpu: u32, offset: usize) -> u32 {
        self.world.hv.platform.shared(self.controls[vcpu as usize]).load_u32(128 + offset)
    }

    pub(super) fn reset(&self) {
        let mut op = EvtchnReset { dom: DOMID_SELF };
        assert_eq!(self.world.op(&self.domain, EVTCHN, EVTCHNOP_RESET, &mut op), 0);
    }

    /// References that the hypervisor has to a page of the guest's for writing.
    pub(super) fn writers(&self, mfn: Mfn) -> u32 {
        match self.world.hv.frames.info(mfn).expect("a frame").page_type() {
            (PageType::Writable, count) => count,
            _ => 0,
        }
    }
}

#[test]
fn control_blocks_are_checked_and_given_once() {
    let world = World::new(256);
    let guest = world.guest(2);
    guest.mm.set_max_pages(64);
    let own = page(&world, &guest);
    let invalid = errno(HypercallError::Invalid);
    assert_eq!(init(&world, &guest, 2, own, 0), errno(HypercallError::NoEntry));
    for offset in [4, 4095, 4096 - 64, 4096, u32::MAX] {
        assert_eq!(init(&world, &guest, 0, own, offset), invalid, "{offset}");
    }
    for mfn in [Mfn::new(1), Mfn::new(u64::MAX), world.dom0.shared_info_mfn] {
        assert_eq!(init(&world, &guest, 0, mfn, 0), invalid, "{mfn:?}");
    }
    assert!(!guest.events.is_fifo(), "what is refused changes nothing");
    assert_eq!(expand(&world, &guest, own), errno(HypercallError::NotSupported));
    assert_eq!(init(&world, &guest, 1, own, 4096 - 72), 0);
    assert!(guest.events.is_fifo());
    assert_eq!(init(&world, &guest, 1, own, 0), invalid, "once for each vCPU");
    assert_eq!(init(&world, &guest, 0, own, 0), 0, "two in one page");
    assert_eq!(expand(&world, &guest, Mfn::new(1)), invalid);
}

#[test]
fn without_memory_the_domain_keeps_two_levels() {
    let world = World::new(256);
    let guest = world.guest(1);
    guest.mm.set_max_pages(64);
    let own = page(&world, &guest);
    world.hv.platform.heap_has_room.store(false, Ordering::Relaxed);
    assert_eq!(init(&world, &guest, 0, own, 0), errno(HypercallError::NoMemory));
    world.hv.platform.heap_has_room.store(true, Ordering::Relaxed);
    assert!(!guest.events.is_fifo());
    assert_eq!(init(&world, &guest, 0, own, 0), 0);
}

#[test]
fn what_was_pending_with_two_levels_is_pending_after() {
    let world = World::new(256);
    let domain = world.guest(1);
    domain.mm.set_max_pages(64);
    let mut ipi = EvtchnBindIpi::default();
    let mut ports = vec![];
    for _ in 0..4 {
        assert_eq!(world.op(&domain, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
        ports.push(ipi.port);
    }
    send(&world, &domain, ports[0]);
    send(&world, &domain, ports[2]);
    let (control, array) = (page(&world, &domain), page(&world, &domain));
    assert_eq!(init(&world, &domain, 0, control, 0), 0);
    // While the words are missing, and of a port that closes: that event is no other port's.
    send(&world, &domain, ports[1]);
    let theirs = alloc(&world, &domain, &world.dom0);
    let ours = bind(&world, &world.dom0, &domain, theirs).expect("bound");
    send(&world, &world.dom0, ours);
    let closes = alloc(&world, &domain, &world.dom0);
    let other = bind(&world, &world.dom0, &domain, closes).expect("bound");
    send(&world, &world.dom0, other);
    close(&world, &domain, closes);
    assert!(!is_pending(&domain, theirs), "there is no word");
    let words = world.hv.platform.shared(array);
    words.store_u32(ports[2] as usize * 4, MASKED);
    assert_eq!(expand(&world, &domain, array), 0);
    let now = |port: u32| words.load_u32(port as usize * 4) & (EVENT | MASKED | LINKED);
    assert_eq!((now(ports[0]), now(ports[1])), (EVENT | LINKED, EVENT | LINKED));
    assert_eq!((now(ports[2]), now(ports[3])), (EVENT | MASKED, 0));
    assert_eq!((now(theirs), now(closes)), (EVENT | LINKED, 0));
    assert_eq!(upcall(&domain, 0).1, 1);
    // From here on an IPI that was opened with two levels is the FIFO's.
    clear(&domain);
    send(&world, &domain, ports[3]);
    assert_eq!((now(ports[3]), domain.shared_info.load_u64(PENDING)), (EVENT | LINKED, 0));
    check(&[&domain]);
}

/// Events are sent by another domain, and from one vCPU to another, while the guest turns to the FIFO.
#[test]
fn no_event_is_lost_while_a_domain_turns_to_the_fifo() {
    for (plan, is_ipi) in (0..12).flat_map(|first| [([first, 400], false), ([first, 400], true)]) {
        let world = World::new(256);
        let domain = world.guest(1);
        domain.mm.set_max_pages(64);
        let (control, array) = (page(&world, &domain), page(&world, &domain));
        let mut ipi = EvtchnBindIpi::default();
        assert_eq!(world.op(&domain, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
        let theirs = alloc(&world, &domain, &world.dom0);
        let ours = bind(&world, &world.dom0, &domain, theirs).expect("bound");
        clear(&domain);
        let (sender, from, port) =
            if is_ipi { (&domain, ipi.port, ipi.port) } else { (&world.dom0, ours, theirs) };
        let send = || assert_eq!(world.hv.evtchn_send(sender, Port::new(from)), Ok(()));
        let turn = || {
            assert_eq!(world.hv.init_control(&domain, 0, control, 0), Ok(()));
            assert_eq!(world.hv.expand_array(&domain, 0, array), Ok(true));
        };
        world.at_once(&plan, send, turn);
        let word = world.hv.platform.shared(array).load_u32(port as usize * 4);
        assert_eq!(word & EVENT, EVENT, "{plan:?}, an IPI: {is_ipi}");
    }
}

#[test]
fn a_reset_goes_back_and_gives_every_page_back() {
    let world = World::new(256);
    let mut guest = Fifo::ready(&world, 3);
    guest.grow();
    let given: Vec<Mfn> = guest.pages.iter().chain(&guest.controls).copied().collect();
    let before: Vec<u32> = given.iter().map(|mfn| guest.writers(*mfn)).collect();
    let port = guest.ipi(0);
    guest.send(port);
    // Something waits all the time: a page goes with each call.
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let calls = 1 + (0..50).take_while(|_| !world.hv.evtchn_close_all(&guest.domain)).count();
    assert!(calls > given.len(), "{calls} calls");
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert!(!guest.domain.events.is_fifo());
    for (mfn, before) in given.iter().zip(before) {
        assert_eq!(guest.writers(*mfn) + 1, before, "{mfn:?}");
    }
    // Two levels again, with nothing left of before.
    assert!(!is_pending(&guest.domain, port));
    assert_eq!(guest.priority(port, 3), errno(HypercallError::NoSys));
    assert_eq!(expand(&world, &guest.domain, given[0]), errno(HypercallError::NotSupported));
    clear(&guest.domain);
    let port = guest.ipi(0);
    guest.send(port);
    assert_eq!(guest.domain.shared_info.load_u64(PENDING), 1 << port);
    assert_eq!(guest.array.word(port) & EVENT, 0);
    assert_eq!(init(&world, &guest.domain, 0, given[0], 0), 0, "and once more");
    guest.reset();
}

#[test]
fn a_port_opened_meanwhile_stops_the_way_back() {
    let world = World::new(256);
    let guest = Fifo::ready(&world, 1);
    let port = guest.ipi(0);
    assert!(!world.hv.release_fifo(&guest.domain), "a port is open");
    assert!(guest.domain.events.is_fifo());
    guest.send(port);
    assert!(is_pending(&guest.domain, port));
}

#[test]
fn ports_of_the_fifo_are_not_ports_of_two_levels() {
    let world = World::new(512);
    let mut guest = Fifo::ready(&world, 1);
    while guest.pages.len() < 5 {
        guest.grow();
    }
    let last = (1..).map(|_| alloc(&world, &guest.domain, &guest.domain)).find(|port| *port > 4500);
    let last = last.expect("more than two levels have");
    let peer = bind(&world, &guest.domain, &guest.domain, last).expect("bound");
    guest.send(peer);
    assert_eq!(guest.events(0), [peer, last]);
    guest.reset();
    // The cells are still there, and nobody can use them. (XSA-338)
    for port in [last, peer, TWO_LEVEL_PORTS, MAX_PORTS - 1, MAX_PORTS] {
        assert_eq!(send(&world, &guest.domain, port), errno(HypercallError::Invalid));
        let mut status = EvtchnStatus { dom: DOMID_SELF, port, ..EvtchnStatus::default() };
        let got = world.op(&guest.domain, EVTCHN, EVTCHNOP_STATUS, &mut status);
        assert_eq!(got, errno(HypercallError::Invalid));
        assert_eq!(close(&world, &guest.domain, port), errno(HypercallError::Invalid));
    }
    for port in 1..TWO_LEVEL_PORTS {
        assert_eq!(alloc(&world, &guest.domain, &world.dom0), port);
    }
    let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: 0, port: 0 };
    let got = world.op(&guest.domain, EVTCHN, EVTCHNOP_ALLOC_UNBOUND, &mut op);
    assert_eq!(got, errno(HypercallError::NoSpace));
    check(&[&guest.domain]);
}

#[test]
fn the_array_has_a_last_page() {
    let world = World::new(512);
    let guest = Fifo::ready(&world, 1);
    let same = guest.pages[0];
    for _ in 1..MAX_PORTS as usize / PAGE_PORTS {
        assert_eq!(expand(&world, &guest.domain, same), 0);
    }
    let before = guest.writers(same);
    assert_eq!(expand(&world, &guest.domain, same), errno(HypercallError::NoSpace));
    assert_eq!(guest.writers(same), before, "a page that is not taken is given back");
    guest.reset();
    assert_eq!(guest.writers(same), before - (MAX_PORTS as usize / PAGE_PORTS) as u32);
}

#[test]
fn a_page_brings_its_events_in_pieces() {
    let world = World::new(256);
    let guest = Fifo::new(&world, 1);
    let ports: Vec<u32> = (0..700).map(|_| guest.ipi(0)).collect();
    ports.iter().for_each(|port| guest.send(*port));
    let mfn = page(&world, &guest.domain);
    let before = guest.writers(mfn);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    let calls = (1..40).find(|_| world.hv.expand_array(&guest.domain, 0, mfn) == Ok(true));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert_eq!(calls, Some(17), "each ends as soon as other work waits");
    assert_eq!(guest.writers(mfn), before + 1, "one page");
    let words = world.hv.platform.shared(mfn);
    assert!(ports.iter().all(|port| words.load_u32(*port as usize * 4) & EVENT != 0));
    assert_eq!(world.hv.expand_array(&guest.domain, 0, mfn), Ok(true), "the same again is another page");
    assert_eq!(guest.writers(mfn), before + 2);
}

/// A call of one vCPU is interrupted. Another vCPU adds a page of its own meanwhile, and does what the first call left.
#[test]
fn a_page_that_another_vcpu_finished_is_added_once() {
    let world = World::new(256);
    let guest = Fifo::new(&world, 2);
    let (first, second) = (page(&world, &guest.domain), page(&world, &guest.domain));
    let before = [first, second].map(|mfn| guest.writers(mfn));
    let add = |vcpu, mfn| world.hv.expand_array(&guest.domain, vcpu, mfn);
    world.hv.platform.pending.store(true, Ordering::Relaxed);
    assert_eq!(add(0, first), Ok(false));
    world.hv.platform.pending.store(false, Ordering::Relaxed);
    assert_eq!(add(1, second), Ok(true));
    assert_eq!(add(0, first), Ok(true), "the call goes on");
    assert_eq!([first, second].map(|mfn| guest.writers(mfn)), before.map(|writers| writers + 1));
}

#[test]
fn a_dying_domain_gives_no_page() {
    let world = World::new(256);
    let guest = Fifo::ready(&world, 2);
    let fresh = world.guest(1);
    fresh.mm.set_max_pages(64);
    let (of_guest, of_fresh) = (page(&world, &guest.domain), page(&world, &fresh));
    let domains = [&guest.domain, &fresh];
    domains.iter().for_each(|domain| domain.set_dying(DyingState::Dying));
    let expanded = world.hv.expand_array(&guest.domain, 0, of_guest);
    assert_eq!(expanded, Err(EvtchnError::Invalid), "a page that nobody would give back");
    assert_eq!(world.hv.init_control(&fresh, 0, of_fresh, 0), Err(EvtchnError::Invalid));
    domains.iter().for_each(|domain| domain.set_dying(DyingState::Alive));
}

#[test]
fn the_end_of_a_domain_gives_all_back() {
    let world = World::new(512);
    let free = world.hv.frames.free_pages();
    let mut guest = Fifo::ready(&world, 2);
    let port = guest.ipi(1);
    guest.send(port);
    assert_eq!(guest.events(1), [port]);
    let Fifo { domain, .. } = guest;
    while world.hv.kill_domain(&domain).is_err() {}
    assert_eq!(domain.mm.tot_pages(), 0);
    drop(domain);
    world.hv.reap_dead();
    assert_eq!(world.hv.frames.free_pages(), free);
    assert!(VcpuId::new(0) == world.dom0.vcpus[0].id);
}

#[test]
fn a_vcpu_without_a_control_block_has_no_queue() {
    let world = World::new(256);
    let domain = world.guest(2);
    domain.mm.set_max_pages(64);
    let (control, array) = (page(&world, &domain), page(&world, &domain));
    assert_eq!(init(&world, &domain, 0, control, 0), 0);
    assert_eq!(expand(&world, &domain, array), 0);
    let mut ipi = EvtchnBindIpi { vcpu: 1, port: 0 };
    assert_eq!(world.op(&domain, EVTCHN, EVTCHNOP_BIND_IPI, &mut ipi), 0);
    assert_eq!(send(&world, &domain, ipi.port), 0);
    let words = world.hv.platform.shared(array);
    let word = || words.load_u32(ipi.port as usize * 4);
    assert_eq!(word(), 0, "the event is lost");
    words.store_u32(ipi.port as usize * 4, EVENT);
    assert_eq!(world.op(&domain, EVTCHN, EVTCHNOP_UNMASK, &mut EvtchnUnmask { port: ipi.port }), 0);
    assert_eq!(word(), EVENT, "not linked");
    assert_eq!((upcall(&domain, 0).1, upcall(&domain, 1).1), (0, 0));
    let blocks = world.hv.platform.shared(control);
    assert_eq!((blocks.load_u32(READY_OFFSET), blocks.load_u32(HEAD_OFFSET + 7 * 4)), (0, 0));
    // The next event finds the block.
    assert_eq!(init(&world, &domain, 1, control, 128), 0);
    assert_eq!(send(&world, &domain, ipi.port), 0);
    assert_eq!((word(), upcall(&domain, 1).1), (EVENT | LINKED, 1));
    assert_eq!(blocks.load_u32(128 + HEAD_OFFSET + 7 * 4), ipi.port);
}
