//! What the first vCPU does to the page that the others use.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use pvrt::hypercall::mmu::pte;
use pvrt::space::*;
use pvrt::{println, time};
use ring_abi::grant::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::types::{DOMID_SELF, DomId, Mfn, PAGE_SIZE};

use super::users::*;
use super::{DESCRIPTOR, is_anothers, word_of};
use crate::ground::{grant_access, probe};

const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// A slot of the window's L2 that nothing uses.
const SLOT: u64 = 202;
/// An entry for a frame of the hypervisor's, where a loader normally puts it.
const ENTRY: u64 = 0x200 << 12 | RO | pte::US;
/// A descriptor of ring 0.
const RING_0: u64 = 0x00cf_9300_0000_ffff;
/// The bits that a table's entry or a descriptor may gain by itself: accessed.
const ACCESSED: u64 = 1 << 40;
/// How often the users go round at least before the page is taken, and after.
const LAPS: u64 = 40;
/// How long they may take for that: another domain may have all CPUs.
const PATIENCE_NS: u64 = 5_000_000;
/// How long two domains wait for each other until one has borrowed what the other lends.
const MEETING_NS: u64 = 60_000_000;
const WORDS: u64 = PAGE_SIZE as u64 / 8;
/// Grant references of a peer among which one that lends is looked for.
const REFS: core::ops::Range<u32> = 8..48;

/// This domain's number.
pub(super) static NUMBER: AtomicU64 = AtomicU64::new(0);

const KINDS: [&str; 6] = ["given back", "exchanged", "a table", "a gdt", "lent", "borrowed"];

/// The page, and what came of it so far.
pub(super) struct Storm {
    number: u16,
    peer: u16,
    seed: u64,
    /// 0: the page that changes; 1: the callers' page. Addresses: 0, 1 the page; 2: a borrowed page; 3: the callers'.
    scratch: Scratch,
    mfn: u64,
    rounds: u64,
    /// Of each kind: done, and refused.
    counts: [[u64; 2]; KINDS.len()],
}

impl Storm {
    pub(super) fn new(peer: u16) -> Option<Self> {
        let number = pvrt::hypercall::event::own_domid().ok()?.raw();
        NUMBER.store(number.into(), Ordering::Relaxed);
        let scratch = Scratch::new(4);
        let mfn = scratch.mfn(0);
        scratch.hide(1);
        CALLED[0].store(scratch.at(3), Ordering::Release);
        CALLED[1].store(scratch.mfn(1), Ordering::Release);
        let seed = time::tsc() | 1;
        let storm = Self { number, peer, seed, scratch, mfn, rounds: 0, counts: Default::default() };
        storm.fill();
        Some(storm)
    }

    pub(super) const fn count(&self) -> u64 {
        self.rounds
    }

    /// What the other vCPUs saw that they must not.
    pub(super) fn seen() -> Option<String> {
        let word = FOREIGN_WORD.load(Ordering::Acquire);
        (word != 0).then(|| format!("a vCPU read {word:#x}, another domain's"))
    }

    pub(super) fn report(&self) {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        for (kind, [done, refused]) in KINDS.iter().zip(self.counts) {
            println!("storm: {kind}: {done} times, refused {refused} times");
        }
        println!(
            "storm: {} rounds of the users, {} trapped; {} calls beside, {} refused",
            load(&ROUNDS),
            load(&TRAPPED),
            load(&CALLS[0]),
            load(&CALLS[1])
        );
    }

    fn next(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 8
    }

    /// The page at its own address.
    fn linear(&self) -> u64 {
        self.scratch.page(0)
    }

    fn words(&self, at: u64) -> impl Iterator<Item = u64> {
        (0..WORDS).map(move |n| probe::read(at + n * 8).unwrap_or(0))
    }

    /// Writes own words all over the page.
    fn fill(&self) {
        for n in 0..WORDS {
            probe::write(self.linear() + n * 8, word_of(self.number, n));
        }
    }

    /// Waits until the user has been round some times.
    fn laps(&self) {
        let (begin, end) = (ROUNDS.load(Ordering::Acquire), time::now_ns() + PATIENCE_NS);
        while ROUNDS.load(Ordering::Acquire) < begin + LAPS && time::now_ns() < end {
            pvrt::hypercall::sched::yield_cpu();
        }
    }

    /// The users write `word` at the page's address, where the page is mapped.
    fn use_page(&self, word: u64) {
        WORD.store(word, Ordering::Release);
        map(self.scratch.at(0), self.mfn << 12 | RW);
        OWN.store(self.scratch.at(0), Ordering::Release);
        self.laps();
    }

    /// The page is mapped nowhere any more, and nobody was asked to forget that it was.
    fn unmap(&self) {
        self.scratch.hide(0);
        call(__HYPERVISOR_UPDATE_VA_MAPPING, [self.scratch.at(0), 0, 0, 0, 0]);
    }

    /// The page is at its own address again, with own words.
    fn take_back(&self) {
        map(self.linear(), self.mfn << 12 | RW);
        self.fill();
    }

    /// One round; what was wrong.
    pub(super) fn round(&mut self) -> Option<String> {
        self.rounds += 1;
        // Two must meet for a page to be borrowed, so both sides of that come more often.
        let kind = [0, 1, 2, 3, 4, 4, 5, 5][self.next() as usize % 8];
        let own = word_of(self.number, self.rounds);
        self.use_page(own);
        let (done, wrong) = match kind {
            0 => self.give_back(),
            1 => self.exchange(),
            2 => self.table(),
            3 => self.gdt(),
            4 => self.lend(),
            _ => self.borrow(),
        };
        self.counts[kind][usize::from(!done)] += 1;
        wrong
    }

    /// No word of the page is another's, before it goes.
    fn check_own(&self) -> Option<String> {
        let strange = self.words(self.linear()).find(|word| is_anothers(*word));
        strange.map(|word| format!("{word:#x} in this domain's memory"))
    }

    /// The page is new: nothing may be in it.
    fn check_new(&self, how: &str) -> Option<String> {
        map(self.linear(), self.mfn << 12 | RW);
        self.laps();
        let strange = self.words(self.linear()).find(|word| *word != 0);
        strange.map(|word| format!("{word:#x} in a page {how}"))
    }

    fn reserve(&self, command: u32, frame: &mut u64) -> bool {
        let request = XenMemoryReservation {
            extent_start: (&raw mut *frame) as u64,
            nr_extents: 1,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        call(__HYPERVISOR_MEMORY_OP, [command.into(), (&raw const request) as u64, 0, 0, 0]) == 1
    }

    fn give_back(&mut self) -> (bool, Option<String>) {
        let wrong = self.check_own();
        let mut frame = self.mfn;
        let number = self.scratch.pages.pfn(0).raw();
        self.unmap();
        if !self.reserve(XENMEM_DECREASE_RESERVATION, &mut frame) {
            self.take_back();
            return (false, wrong);
        }
        self.laps();
        frame = number;
        while !self.reserve(XENMEM_POPULATE_PHYSMAP, &mut frame) {
            frame = number;
            pvrt::hypercall::sched::yield_cpu();
        }
        self.mfn = frame;
        let wrong = wrong.or_else(|| self.check_new("that was just given"));
        self.take_back();
        (true, wrong)
    }

    fn exchange(&mut self) -> (bool, Option<String>) {
        let wrong = self.check_own();
        let (mut give, mut take) = (self.mfn, self.scratch.pages.pfn(0).raw());
        self.unmap();
        let list = |word: &mut u64| XenMemoryReservation {
            extent_start: (&raw mut *word) as u64,
            nr_extents: 1,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        let mut request =
            XenMemoryExchange { r#in: list(&mut give), out: list(&mut take), ..XenMemoryExchange::default() };
        let done = op(__HYPERVISOR_MEMORY_OP, XENMEM_EXCHANGE, &mut request) == 0;
        let mut strange = None;
        if done {
            self.mfn = take;
            strange = self.check_new("of an exchange");
        }
        self.take_back();
        (done, wrong.or(strange))
    }

    /// While the page is a table, the users try to write an entry.
    fn table(&self) -> (bool, Option<String>) {
        let slot = (tables(self.scratch.at(0))[2] << 12) + SLOT * 8;
        self.unmap();
        WORD.store(ENTRY, Ordering::Release);
        let done = update(slot, self.mfn << 12 | TABLE) == 0;
        let wrong = if done { self.look("a table", |word| word & pte::P != 0) } else { None };
        WORD.store(0, Ordering::Release);
        update(slot, 0);
        self.take_back();
        (done, wrong)
    }

    /// While the page has descriptors, the users try to write one of ring 0.
    fn gdt(&self) -> (bool, Option<String>) {
        for n in 0..WORDS {
            probe::write(self.linear() + n * 8, 0);
        }
        WORD.store(DESCRIPTOR, Ordering::Release);
        self.laps();
        self.unmap();
        WORD.store(RING_0, Ordering::Release);
        let list = [self.mfn];
        let done = call(__HYPERVISOR_SET_GDT, [(&raw const list) as u64, 512, 0, 0, 0]) == 0;
        let wrong =
            if done { self.look("a GDT", |word| word & !ACCESSED == RING_0 & !ACCESSED) } else { None };
        WORD.store(0, Ordering::Release);
        call(__HYPERVISOR_SET_GDT, [0; 5]);
        self.take_back();
        (done, wrong)
    }

    /// Looks for a word that must not be in the page, after the users had time.
    fn look(&self, what: &str, is_wrong: impl Fn(u64) -> bool) -> Option<String> {
        self.laps();
        map(self.scratch.at(1), self.mfn << 12 | RO);
        let strange = self.words(self.scratch.at(1)).find(|word| is_wrong(*word));
        map(self.scratch.at(1), 0);
        strange.map(|word| format!("{word:#x} was written into {what}"))
    }

    /// The peer may use the page for a while, and must not any more when the grant has ended.
    fn lend(&self) -> (bool, Option<String>) {
        if self.peer == 0 {
            return (false, None);
        }
        let wrong = self.check_own();
        OWN.store(0, Ordering::Release);
        self.laps();
        call(__HYPERVISOR_UPDATE_VA_MAPPING, [self.scratch.at(0), 0, 0, 0, 0]);
        let Ok(grant) = grant_access(DomId::new(self.peer), Mfn::new(self.mfn), false) else {
            return (false, wrong);
        };
        let end = time::now_ns() + MEETING_NS;
        while !grant.in_use() && time::now_ns() < end {
            pvrt::hypercall::sched::yield_cpu();
        }
        self.laps();
        let mut grant = grant;
        while let Err(still) = grant.end() {
            grant = still;
            pvrt::hypercall::sched::yield_cpu();
        }
        self.fill();
        self.laps();
        let strange =
            (0..).zip(self.words(self.linear())).find(|(n, word)| *word != word_of(self.number, *n));
        let strange = strange.map(|(_, word)| format!("{word:#x} was written after the end of a grant"));
        (true, wrong.or(strange))
    }

    /// What the peer lends is used for a while, and beyond the end.
    fn borrow(&self) -> (bool, Option<String>) {
        if self.peer == 0 {
            return (false, None);
        }
        let at = self.scratch.at(2);
        let borrow = |gref: u32| {
            let mut op = GnttabMapGrantRef {
                host_addr: at,
                flags: GNTMAP_HOST_MAP,
                r#ref: gref,
                dom: self.peer,
                ..Default::default()
            };
            let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF, &mut op);
            (got == 0 && op.status == GNTST_OKAY).then_some(op.handle)
        };
        let end = time::now_ns() + MEETING_NS;
        let handle = loop {
            if let Some(handle) = REFS.into_iter().find_map(borrow) {
                break handle;
            }
            if time::now_ns() > end {
                return (false, None);
            }
            pvrt::hypercall::sched::yield_cpu();
        };
        BORROWED.store(at, Ordering::Release);
        self.laps();
        let mut op = GnttabUnmapGrantRef { host_addr: at, handle, ..GnttabUnmapGrantRef::default() };
        let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF, &mut op);
        self.laps();
        BORROWED.store(0, Ordering::Release);
        (got == 0 && op.status == GNTST_OKAY, None)
    }
}
