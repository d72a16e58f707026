//! Stale translations in the TLB of another vCPU's CPU. The second vCPU writes to a page, the first unmaps the page
//! without a flush and makes it a page table, and the second writes again.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvrt::hypercall::mmu::pte;
use pvrt::hypercall::sched;
use pvrt::mem::Pages;
use pvrt::probe;
use pvrt::space::*;
use ring_abi::hypercall::*;
use ring_abi::types::PAGE_SIZE;

use crate::others;
use crate::report::Report;
use crate::stale::List;

const STACK_PAGES: usize = 4;
const TABLE: u64 = pte::P | pte::RW | pte::US | pte::A | pte::D;
/// A slot of the window's L2 that nothing uses.
const SLOT: u64 = 201;
/// A frame of the hypervisor's, where a loader normally puts it.
const FOREIGN: u64 = 0x200;
const TRIES: usize = 8;

/// Whose turn it is, and what to do in the turn.
const IDLE: u32 = 0;
const TOUCH: u32 = 1;
const WRITE: u32 = 2;
const STOP: u32 = 3;
static TURN: AtomicU32 = AtomicU32::new(IDLE);
/// The address that the second vCPU writes to, the value, and whether the write trapped.
static AT: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Runs all cases, if this domain has a second vCPU.
pub(crate) fn run(report: &mut Report) {
    let Some(_stack) = start() else { return };
    for fails in [false, true] {
        let (mut got, mut tried) = (None, 0);
        for _ in 0..TRIES {
            if let Some(now) = attempt(fails) {
                tried += 1;
                got = got.or((now & pte::P != 0).then_some(now));
            }
        }
        let between = if fails { "after an exchange that fails" } else { "at once" };
        let name = alloc::format!("a table that the other vCPU could write, {between}");
        report.case(&name, got.is_none() && tried == TRIES, (got, tried));
    }
    TURN.store(STOP, Ordering::Release);
    while TURN.load(Ordering::Acquire) != IDLE {
        sched::yield_cpu();
    }
    // The second vCPU takes itself down after its last turn.
    others::wait_until_down(1);
}

/// Makes one attack. Returns the table's word that the second vCPU wrote to; `None` if the page did not
/// become a table.
fn attempt(fails: bool) -> Option<u64> {
    let scratch = Scratch::new(2);
    let (at, mfn) = (scratch.at(0), scratch.mfn(0));
    let slot = (tables(at)[2] << 12) + SLOT * 8;
    scratch.hide(0);
    map(at, mfn << 12 | RW);
    let refused = ask(TOUCH, at + 8, 2);
    call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, 0, 0, 0, 0]);
    if fails {
        let mut list = List::default();
        list.failed_exchange(mfn);
        list.make();
    }
    if refused || update(slot, mfn << 12 | TABLE) != 0 {
        return None;
    }
    let refused = ask(WRITE, at + 8, FOREIGN << 12 | RO | pte::US);
    let now = entry_by_map(&scratch, mfn);
    if !refused {
        ask(WRITE, at + 8, 0);
    }
    update(slot, 0);
    Some(now)
}

/// The table's second entry.
fn entry_by_map(scratch: &Scratch, mfn: u64) -> u64 {
    map(scratch.at(1), mfn << 12 | RO);
    let now = probe::read(scratch.at(1) + 8).unwrap_or(0);
    map(scratch.at(1), 0);
    now
}

/// Lets the second vCPU write `value` to `at`; true if the write trapped.
fn ask(turn: u32, at: u64, value: u64) -> bool {
    AT.store(at, Ordering::Relaxed);
    VALUE.store(value, Ordering::Relaxed);
    TURN.store(turn, Ordering::Release);
    while TURN.load(Ordering::Acquire) != IDLE {
        sched::yield_cpu();
    }
    REFUSED.load(Ordering::Relaxed) != 0
}

/// The code of vCPU 1, which waits for its turn and writes. The first vCPU must not probe meanwhile, since
/// both share the probe's state.
extern "C" fn second(vcpu: u32) -> ! {
    let table = probe::trap_table();
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    loop {
        match TURN.load(Ordering::Acquire) {
            IDLE => {
                sched::yield_cpu();
                continue;
            }
            STOP => break,
            _ => {}
        }
        let trap = probe::write(AT.load(Ordering::Relaxed), VALUE.load(Ordering::Relaxed));
        REFUSED.store(trap.is_some().into(), Ordering::Relaxed);
        TURN.store(IDLE, Ordering::Release);
    }
    drop(table);
    TURN.store(IDLE, Ordering::Release);
    others::go_down(vcpu)
}

/// Brings vCPU 1 up, and returns its stack; `None` if there is no such vCPU.
fn start() -> Option<Pages> {
    let stack = Pages::zeroed(STACK_PAGES).ok()?;
    let top = (stack.va() + STACK_PAGES * PAGE_SIZE) as u64;
    others::start(1, top, second).then_some(stack)
}
