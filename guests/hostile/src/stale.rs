//! Stale translations in a CPU's TLB, to memory that has become a page table, descriptors, or another domain's. No
//! access through a stale translation may reach that memory.

use alloc::format;
use alloc::vec::Vec;

use ring_abi::errno::Errno::EFAULT;
use ring_abi::grant::*;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use crate::ground::{KERNEL, grant_access, probe, pte, space::*};
use crate::report::{Got, Report};

const SELF: u64 = DOMID_SELF as u64;
const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// A slot of the window's L2 that nothing uses.
const SLOT: u64 = 200;
/// A count with this bit belongs to a continued call, and adds to the number of requests done.
const RESUMED: u64 = 1 << 31;
/// How often each attack is tried, since an interrupt at the wrong moment flushes the TLB.
const TRIES: usize = 2;
/// Words of the page: the guest writes the first while it may, and tries to write the second when it must
/// not.
const BEFORE: u64 = 200;
const AFTER: u64 = 1;

/// How the guest maps and unmaps the page, never asking for a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Address,
    Entry,
    Grant,
}

/// What happens to the page before it becomes something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    /// An exchange that fails, since its second frame is a table in use.
    FailedExchange,
    /// A pin as an L3, then an unpin.
    Pin,
    /// Use as the GDT, then the end of that use.
    Gdt,
    /// A copy to the page, as to any frame of the guest's.
    Copy,
    /// `decrease_reservation`, and `populate_physmap`, which may give the same frame again.
    GivenBack,
}

/// What the page becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// A pinned table of this level.
    Pinned(u32),
    /// A table of level 1 by an entry of level 2.
    Child,
    Gdt,
}

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    by_instruction(report);
    use Between::*;
    for way in [Way::Address, Way::Entry, Way::Grant] {
        for between in [Nothing, FailedExchange, Pin, Gdt, Copy, GivenBack] {
            // Under Linux the GDT and the P2M are the kernel's, so cases that change them are left out.
            if KERNEL || !matches!(between, Gdt | GivenBack) {
                retyped(report, way, between);
            }
        }
    }
    for level in 1..=3 {
        walked(report, level);
    }
    if KERNEL {
        local_descriptors(report);
    }
}

/// A frame that is not the guest's: at 2 MiB, where a loader normally puts the hypervisor.
fn foreign_frame() -> u64 {
    0x200
}

/// An entry that is not present; adding 1 makes the entry present, for frame 0, which is no guest's. A table may have no entry that
/// is not present and names another frame where the CPU has L1TF.
const ABSENT: u64 = (RO | pte::US) & !pte::P;

/// Hypercalls that are made as one multicall, so that no interrupt of the guest's comes between them. The
/// memory that they read stays in place.
#[derive(Default)]
pub(crate) struct List {
    calls: Vec<MulticallEntry>,
    kept: Vec<Vec<u64>>,
}

impl List {
    /// Keeps words for a call to read or write, and returns their address.
    fn keep(&mut self, words: &[u64]) -> u64 {
        let words = words.to_vec();
        let at = words.as_ptr() as u64;
        self.kept.push(words);
        at
    }

    fn call(&mut self, op: u32, [a, b, c, d]: [u64; 4]) {
        self.calls.push(MulticallEntry { op: op.into(), result: 0, args: [a, b, c, d, 0, 0] });
    }

    fn unmap(&mut self, va: u64) {
        self.call(__HYPERVISOR_UPDATE_VA_MAPPING, [va, 0, 0, 0]);
    }

    fn update(&mut self, ptr: u64, val: u64) {
        let request = self.keep(&[ptr, val]);
        self.call(__HYPERVISOR_MMU_UPDATE, [request, 1, 0, SELF]);
    }

    /// Lets the hypervisor add 1 to the 32-bit word at `at`, by a call on `entry`, the entry of an address
    /// without a mapping.
    fn add_one(&mut self, at: u64, entry: u64) {
        let request = self.keep(&[entry, 0]);
        self.call(__HYPERVISOR_MMU_UPDATE, [request, 1 | RESUMED, at, SELF]);
    }

    fn extended(&mut self, cmd: u32, mfn: u64) {
        let operation = self.keep(&[cmd.into(), mfn, 0]);
        self.call(__HYPERVISOR_MMUEXT_OP, [operation, 1, 0, SELF]);
    }

    fn gdt(&mut self, mfn: Option<u64>) {
        let list = mfn.map_or(0, |mfn| self.keep(&[mfn]));
        self.call(__HYPERVISOR_SET_GDT, [list, if mfn.is_some() { 512 } else { 0 }, 0, 0]);
    }

    fn grant(&mut self, command: u32, words: &[u64]) {
        let arg = self.keep(words);
        self.call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), arg, 1, 0]);
    }

    /// A reservation of `count` single frames, in words.
    fn reservation(list: u64, count: u64) -> [u64; 4] {
        [list, count, 0, SELF]
    }

    /// An exchange of two frames that fails at the second one, a table in use.
    pub(crate) fn failed_exchange(&mut self, mfn: u64) {
        let give = self.keep(&[mfn, base()]);
        // The exchange is of one extent of two frames for two of one frame: the hypervisor exchanges both or
        // neither.
        let take = self.keep(&[0x10_0000]);
        let mut words = [0; 9];
        words[..4].copy_from_slice(&Self::reservation(give, 2));
        words[4..8].copy_from_slice(&[take, 1, 1, SELF]);
        self.memory(XENMEM_EXCHANGE, &words);
    }

    /// A hypervisor may flush the TLB when it allocates frames that were freed since the last flush. An exchange
    /// that fails at its first frame allocates without freeing a guest's frame, so that later allocations find no
    /// such frames.
    fn settle(&mut self) {
        self.failed_exchange(base());
    }

    fn memory(&mut self, command: u32, words: &[u64]) {
        let arg = self.keep(words);
        self.call(__HYPERVISOR_MEMORY_OP, [command.into(), arg, 0, 0]);
    }

    /// Makes the calls, and returns the result of each.
    pub(crate) fn make(&mut self) -> Vec<i64> {
        let at = self.calls.as_mut_ptr() as u64;
        call(__HYPERVISOR_MULTICALL, [at, self.calls.len() as u64, 0, 0, 0]);
        self.calls.iter().map(|call| call.result as i64).collect()
    }
}

/// The guest writes to the page through an old translation, after the page has become an L1. If the write had an
/// effect, the entry would name a frame that is not the guest's, and the guest could read that frame.
fn by_instruction(report: &mut Report) {
    for between in [Between::Nothing, Between::FailedExchange] {
        let mut got = None;
        for _ in 0..TRIES * 4 {
            let scratch = Scratch::new(2);
            let (at, mfn, foreign) = (scratch.at(0), scratch.mfn(0), foreign_frame());
            let [_, _, l2, _] = tables(at);
            scratch.hide(0);
            map(at, mfn << 12 | RW);
            let (mut first, mut then) = (List::default(), List::default());
            first.settle();
            then.unmap(at);
            if between == Between::FailedExchange {
                then.failed_exchange(mfn);
            }
            first.make();
            probe::write(at + BEFORE * 8, 2);
            then.make();
            let slot = (l2 << 12) + SLOT * 8;
            if update(slot, mfn << 12 | TABLE) != 0 {
                continue;
            }
            let va = at & !((1 << 30) - 1) | SLOT << 21 | AFTER << 12;
            let trap = probe::write(at + AFTER * 8, foreign << 12 | RO | pte::US);
            if trap.is_none() {
                // Restores the table's entry through the same translation, before the hypervisor reads the
                // entry.
                got = Some((foreign, probe::read(va)));
                let _ = probe::write(at + AFTER * 8, 0);
            }
            update(slot, 0);
        }
        report.case(
            &format!("a write to what was unmapped, {between:?}, now a table: frame, what stands there"),
            got.is_none(),
            got,
        );
    }
}

/// Makes the hypervisor write through the old translation, in one multicall, so that no other domain's
/// interrupt comes between.
fn retyped(report: &mut Report, way: Way, between: Between) {
    let all = [1, 2, 3, 4].map(Becomes::Pinned).into_iter().chain([Becomes::Child, Becomes::Gdt]);
    let (mut escaped, mut spoiled) = (None, None);
    for becomes in all.filter(|becomes| KERNEL || *becomes != Becomes::Gdt) {
        let mut reached = false;
        for _ in 0..TRIES {
            let Some((now, results)) = attempt(way, between, becomes) else { continue };
            reached = true;
            if now & pte::P != 0 {
                escaped = Some((becomes, now, results));
            }
        }
        // The hypervisor need not give the kernel the same frame again.
        if !reached && between != Between::GivenBack {
            spoiled = Some(becomes);
        }
    }
    let name = format!("{way:?}, {between:?}: a write through the old translation");
    report.case(&name, escaped.is_none(), escaped);
    report.case(&format!("{way:?}, {between:?}: all became what they should"), spoiled.is_none(), spoiled);
}

/// Adds the calls that use the page between the end of its last mapping and its new use.
fn add_between(list: &mut List, scratch: &Scratch, between: Between) {
    let mfn = scratch.mfn(0);
    match between {
        Between::Nothing => {}
        Between::FailedExchange => list.failed_exchange(mfn),
        Between::Pin => {
            list.extended(MMUEXT_PIN_L3_TABLE, mfn);
            list.extended(MMUEXT_UNPIN_TABLE, mfn);
        }
        Between::Gdt => {
            list.gdt(Some(mfn));
            list.gdt(None);
        }
        Between::Copy => {
            let (from, to) = (scratch.mfn(1), 2048 << 16 | SELF);
            list.grant(GNTTABOP_COPY, &[from, SELF, mfn, to, 8]);
        }
        Between::GivenBack => {
            let frames = list.keep(&[mfn]);
            list.memory(XENMEM_DECREASE_RESERVATION, &List::reservation(frames, 1));
            let pages = list.keep(&[scratch.pages.pfn(0).raw()]);
            list.memory(XENMEM_POPULATE_PHYSMAP, &List::reservation(pages, 1));
            // Restores the page's entry, which the hypervisor has cleared.
            list.update(mfn << 12 | AFTER * 8, ABSENT);
        }
    }
}

/// Makes one attack. Returns the page's entry when the page is a table or a GDT, and the result of each call; `None`
/// if the page did not become one.
fn attempt(way: Way, between: Between, becomes: Becomes) -> Option<(u64, Vec<i64>)> {
    let scratch = Scratch::new(3);
    let (at, mfn, unmapped) = (scratch.at(0), scratch.mfn(0), scratch.entry_address(2));
    let [_, _, l2, _] = tables(at);
    let slot = (l2 << 12) + SLOT * 8;
    probe::write(scratch.page(0) + AFTER * 8, ABSENT);
    // The word is not present even with 1 added.
    probe::write(scratch.page(0) + BEFORE * 8, 1);
    let mut list = List::default();
    scratch.hide(0);
    let mut granted = None;
    if way == Way::Grant {
        let me = pvrt::hypercall::event::own_domid().ok()?;
        let grant = grant_access(me, scratch.pages.mfn(0), false).ok()?;
        let mut arg = GnttabMapGrantRef {
            host_addr: at,
            flags: GNTMAP_HOST_MAP | if KERNEL { 0 } else { GNTMAP_APPLICATION_MAP },
            r#ref: grant.number().raw(),
            dom: me.raw(),
            ..Default::default()
        };
        let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF, &mut arg);
        if got != 0 || arg.status != 0 {
            return None;
        }
        granted = Some((grant, arg.handle));
    } else {
        map(at, mfn << 12 | RW);
    }
    list.settle();
    list.add_one(at + BEFORE * 8, unmapped);
    match (way, &granted) {
        (Way::Grant, Some((_, handle))) => list.grant(GNTTABOP_UNMAP_GRANT_REF, &[at, 0, (*handle).into()]),
        (Way::Entry, _) => list.update(scratch.entry_address(0), 0),
        _ => list.unmap(at),
    }
    add_between(&mut list, &scratch, between);
    match becomes {
        Becomes::Pinned(level) => list.extended(MMUEXT_PIN_L1_TABLE + level - 1, mfn),
        Becomes::Child => list.update(slot, mfn << 12 | TABLE),
        Becomes::Gdt => list.gdt(Some(mfn)),
    }
    let became = list.calls.len() - 1;
    list.add_one(at + AFTER * 8, unmapped);
    let results = list.make();
    if results[became] != 0 {
        let lost = between == Between::GivenBack && results[became - 1] != 0;
        if lost {
            // The kernel now has another frame in the page's place, without knowing, so the page is never
            // freed.
            core::mem::forget(scratch);
        }
        return None;
    }
    map(scratch.at(1), mfn << 12 | RO);
    let now = probe::read(scratch.at(1) + AFTER * 8).unwrap_or(0);
    if now & 1 != 0 {
        // A second addition through the same translation makes the entry not present again.
        let mut list = List::default();
        list.add_one(at + AFTER * 8, unmapped);
        list.make();
    }
    map(scratch.at(1), 0);
    match becomes {
        Becomes::Pinned(_) => extended(MMUEXT_UNPIN_TABLE, mfn, 0),
        Becomes::Child => update(slot, 0),
        Becomes::Gdt => call(__HYPERVISOR_SET_GDT, [0; 5]),
    };
    Some((now, results))
}

/// The tables that map a batch of requests include one that the batch itself turns into a plain page and overwrites.
/// If the CPU still used that page as a cached table, the second half of the last request would come from wherever
/// the new contents point.
fn walked(report: &mut Report, level: usize) {
    // Page 0 holds the requests, and pages 1 to `level` are tables of level 1 and up. Page 4 looks like a table of
    // any level.
    let scratch = Scratch::new(6);
    let [l4, l3, l2, _] = tables(scratch.at(0));
    let (top, slot, start) = match level {
        1 => (l2, SLOT, scratch.at(0) & !((1 << 30) - 1) | SLOT << 21),
        2 => (l3, 100, scratch.at(0) & !((1 << 39) - 1) | 100 << 30),
        _ => (l4, 300, 0xffff_0000_0000_0000 | 300 << 39),
    };
    let requests = scratch.mfn(0) << 12 | RW;
    for n in 1..=level {
        let below = if n == 1 { requests } else { scratch.mfn(n - 1) << 12 | TABLE };
        let place = if n == level { 0 } else { 511 };
        probe::write(scratch.page(n) + place * 8, below);
        scratch.protect(n);
    }
    let forged = scratch.mfn(4) << 12 | pte::P | pte::RW | pte::US;
    probe::write(scratch.page(4), forged);
    // At level 1 the forged entry may name any frame. Above level 1 the entry names a frame of the guest's, in
    // which the processor's walk would set accessed bits.
    let target = if level == 1 { foreign_frame() << 12 | RO | pte::US } else { forged };
    let table = scratch.mfn(level);
    let end = start + (PAGE_SIZE as u64) * 512u64.pow(level as u32 - 1);
    let (own, number) = (scratch.mfn(5), scratch.pages.pfn(5).raw());
    let list = [((top << 12) + slot * 8, 0), (table << 12 | 8, target), (own << 12 | MMU_MACHPHYS_UPDATE, 0)];
    let first = PAGE_SIZE as u64 - 40;
    for (n, (ptr, val)) in list.into_iter().enumerate() {
        probe::write(scratch.page(0) + first + n as u64 * 16, ptr);
        if n < 2 {
            probe::write(scratch.page(0) + first + n as u64 * 16 + 8, val);
        }
    }
    let linked = update((top << 12) + slot * 8, scratch.mfn(level) << 12 | TABLE);
    report.succeeds(&format!("an L{level} under a batch of requests"), linked);
    let got = call(__HYPERVISOR_MMU_UPDATE, [end - 40, 3, 0, SELF, 0]);
    let (said, walked) = (probe::read(M2P + own * 8), probe::read(scratch.page(4)));
    update(own << 12 | MMU_MACHPHYS_UPDATE, number);
    let held = said == Ok(number) && (level == 1 || walked == Ok(forged));
    report.case(
        &format!("requests through an L{level} that is one no more"),
        held && got == EFAULT.negated(),
        (Got(got), said, walked),
    );
    update((top << 12) + slot * 8, 0);
    // Makes the table a plain page again, without the batch's writes.
    update(table << 12 | 8, 0);
}

/// Writes a descriptor of the LDT through an old translation, after the CPU has loaded from that LDT.
fn local_descriptors(report: &mut Report) {
    const DATA: u64 = 0x00cf_f300_0000_ffff;
    const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
    let scratch = Scratch::new(2);
    let (at, mfn) = (scratch.at(0), scratch.mfn(0));
    scratch.hide(0);
    let mut got = None;
    for _ in 0..TRIES * 4 {
        map(at, mfn << 12 | RW);
        probe::write(at, DATA);
        call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, 0, 0, 0, 0]);
        map(scratch.at(1), mfn << 12 | RO);
        extended(MMUEXT_SET_LDT, scratch.at(1), 16);
        // SAFETY: the selector is of an ordinary data segment; a trap is caught.
        #[allow(unsafe_code)]
        let _ = probe::attempt(|| unsafe {
            core::arch::asm!("mov {old:e}, es", "mov es, {0:e}", "mov es, {old:e}", in(reg) 7u32, old = out(reg) _)
        });
        if probe::write(at, KERNEL_DATA).is_none() {
            got = Some(probe::read(scratch.at(1)));
        }
        extended(MMUEXT_SET_LDT, 0, 0);
        map(scratch.at(1), 0);
    }
    report.case("a descriptor in use", got.is_none(), got);
}
