//! Two vCPUs of a guest that make long calls at the same time, each kind beside each: what the one does under a lock, the other
//! waits for. The first vCPU has a timer that fires all the time; the second has none, so the pieces of its calls end only since the
//! first waits.
//!
//! Each vCPU makes its call a few times, and goes on until the other has, too. The counting plugin says how long the hypervisor took no
//! interrupt on either CPU, with what the other CPU executed meanwhile where one waited for the other.
//!
//! The plugin wants all CPUs executed by one thread of the emulator, by turns. A turn may end at a PAUSE alone: each vCPU executes one
//! between two calls, and the hypervisor where it looks for interrupts.
#![allow(unsafe_code)] // what one vCPU lends the other

mod kinds;
mod memory;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use pvrt::marker::mark;
use pvrt::mem::Pages;
use pvrt::println;
use ring_abi::types::PAGE_SIZE;

use super::case;
use crate::others;

/// A call, made again and again: each time what [`Kind::make`] set up is changed, or changed back.
type Act = Box<dyn FnMut() -> i64>;

/// A kind of call.
struct Kind {
    name: &'static str,
    /// Sets up what the call needs, for one of the vCPUs.
    make: fn() -> Option<Act>,
}

/// How often each vCPU makes its call in each pair, at least, and at most.
const ROUNDS: u32 = 2;
const MOST_ROUNDS: u32 = 6;
/// The timers fire after this time plus up to as much again.
const TICK_NS: u64 = 40_000;
/// The stack of the second vCPU.
const STACK_PAGES: usize = 4;

/// What the second vCPU is to do; null when that is done, or nothing is to be done.
static WORK: AtomicPtr<Act> = AtomicPtr::new(core::ptr::null_mut());
/// How often each vCPU has made its call.
static DONE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
/// The second vCPU is there.
static IS_UP: AtomicBool = AtomicBool::new(false);

/// After how long the timer fires while there is a second vCPU, which gets its turn here: time passes for both.
pub(super) fn tick_ns() -> Option<u64> {
    let is_pair = IS_UP.load(Ordering::Relaxed);
    is_pair.then(|| {
        spin_loop();
        TICK_NS
    })
}

/// Runs each kind beside each.
pub(super) fn run() {
    let (mut own, mut others) = (make(), make());
    if !start() {
        return println!("stretch: no second vCPU");
    }
    for (name, act) in &mut own {
        for (beside, other) in &mut others {
            pair(&format!("{name} beside {beside}"), act, other);
        }
    }
}

/// Makes the calls of all kinds on both vCPUs, until a toolstack ends the domain.
pub(super) fn hammer() {
    let (mut own, mut others) = (make(), make());
    if !start() {
        return println!("stretch: no second vCPU");
    }
    mark::<300>();
    loop {
        for ((_, act), (_, other)) in own.iter_mut().zip(others.iter_mut().rev()) {
            both(act, other);
        }
    }
}

/// Sets up the calls of one vCPU.
fn make() -> Vec<(&'static str, Act)> {
    let mut made = Vec::new();
    for kind in kinds::all() {
        match (kind.make)() {
            Some(act) => made.push((kind.name, act)),
            None => println!("stretch: no {}", kind.name),
        }
    }
    made
}

fn pair(name: &str, own: &mut Act, other: &mut Act) {
    case(name, || both(own, other));
}

/// Makes both calls at the same time.
fn both(own: &mut Act, other: &mut Act) -> i64 {
    DONE.iter().for_each(|done| done.store(0, Ordering::Release));
    WORK.store(other, Ordering::Release);
    let got = rounds(0, own);
    while !WORK.load(Ordering::Acquire).is_null() {
        spin_loop();
    }
    got
}

fn rounds(vcpu: usize, act: &mut Act) -> i64 {
    let mut got = 0;
    for round in 1..=MOST_ROUNDS {
        got = act();
        DONE[vcpu].store(round, Ordering::Release);
        spin_loop();
        if round >= ROUNDS && DONE[1 - vcpu].load(Ordering::Acquire) >= ROUNDS {
            break;
        }
    }
    got
}

/// Brings the second vCPU up.
fn start() -> bool {
    let Ok(stack) = Pages::zeroed(STACK_PAGES) else { return false };
    let top = (stack.va() + STACK_PAGES * PAGE_SIZE) as u64;
    core::mem::forget(stack); // the vCPU's until the domain ends
    if !others::start(1, top, second) {
        return false;
    }
    while !IS_UP.load(Ordering::Acquire) {
        spin_loop();
    }
    true
}

/// The code of the second vCPU.
extern "C" fn second(_: u32) -> ! {
    IS_UP.store(true, Ordering::Release);
    loop {
        let work = WORK.load(Ordering::Acquire);
        if work.is_null() {
            spin_loop();
            continue;
        }
        // SAFETY: the first vCPU lends the work until this one says that the work is done.
        rounds(1, unsafe { &mut *work });
        WORK.store(core::ptr::null_mut(), Ordering::Release);
    }
}
