//! Calls on the FIFO layout, with as many ports and pages as there can be.

use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvrt::event::KeptPorts;
use pvrt::println;
use pvrt::space::*;
use ring_abi::evtchn::fifo::{LINKED, MASKED, PENDING, READY_OFFSET};
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::DOMID_SELF;

use super::case;

/// Calls of one multicall.
const BATCH: usize = 1024;

/// Address of the control block and of the first page of words while the FIFO is in use, else 0.
static CONTROL: AtomicU64 = AtomicU64::new(0);
static FIRST_WORDS: AtomicU64 = AtomicU64::new(0);
/// The timer's port.
static TIMER: AtomicU32 = AtomicU32::new(0);

fn event<T>(command: u32, arg: &mut T) -> i64 {
    op(__HYPERVISOR_EVENT_CHANNEL_OP, command, arg)
}

/// Clears the timer's event in its word, and all ready bits.
pub(super) fn take_tick() {
    let (control, words) = (CONTROL.load(Ordering::Relaxed), FIRST_WORDS.load(Ordering::Relaxed));
    if control != 0 {
        pvrt::probe::write(words + u64::from(TIMER.load(Ordering::Relaxed) / 2) * 8, 0);
        pvrt::probe::write(control + READY_OFFSET as u64, 0);
    }
}

/// Opens IPI ports, at most `count`, and returns how many.
fn open(count: usize) -> usize {
    let mut opened = 0;
    while opened < count {
        let mut ports = [EvtchnBindIpi { vcpu: 0, port: 0 }; BATCH];
        let start = ports.as_mut_ptr() as u64;
        let mut calls: Vec<MulticallEntry> = (0..BATCH as u64)
            .map(|n| MulticallEntry {
                op: __HYPERVISOR_EVENT_CHANNEL_OP.into(),
                result: 0,
                args: [EVTCHNOP_BIND_IPI.into(), start + n * size_of::<EvtchnBindIpi>() as u64, 0, 0, 0, 0],
            })
            .collect();
        call(__HYPERVISOR_MULTICALL, [calls.as_mut_ptr() as u64, BATCH as u64, 0, 0, 0]);
        let more = calls.iter().filter(|call| call.result == 0).count();
        opened += more;
        if more < BATCH {
            break;
        }
    }
    opened
}

/// The cases.
pub(super) fn fifo() {
    let kept = match KeptPorts::note() {
        Ok(kept) => kept,
        Err(errno) => return println!("stretch: own ports: {errno:?}"),
    };
    let timer = kept.numbers().find(|port| {
        let mut status = EvtchnStatus { dom: DOMID_SELF, port: *port, ..Default::default() };
        event(EVTCHNOP_STATUS, &mut status) == 0
            && (status.status, status.u[0]) == (EVTCHNSTAT_VIRQ, VIRQ_TIMER)
    });
    TIMER.store(timer.unwrap_or(0), Ordering::Relaxed);
    let scratch = Scratch::new(3);
    // All pending bits of the two-level layout are set, so that adding the page of words queues an event for
    // each port.
    let count = open(4096);
    for word in 0..64 {
        pvrt::shared_info().store_u64(ring_abi::shared_info::EVTCHN_PENDING_OFFSET + word * 8, u64::MAX);
    }
    FIRST_WORDS.store(scratch.page(1), Ordering::Relaxed);
    CONTROL.store(scratch.page(0), Ordering::Relaxed);
    let mut control = EvtchnInitControl { control_gfn: scratch.mfn(0), ..Default::default() };
    case(&format!("the turn to the FIFO with {count} ports"), || event(EVTCHNOP_INIT_CONTROL, &mut control));
    for word in 0..64 {
        pvrt::shared_info().store_u64(ring_abi::shared_info::EVTCHN_PENDING_OFFSET + word * 8, u64::MAX);
    }
    for page in 0..4 {
        // The timer's word gets a page of its own, then all others share one.
        let mut expand = EvtchnExpandArray { array_gfn: scratch.mfn(if page == 0 { 1 } else { 2 }) };
        case(&format!("page {page} of words for 1,024 events"), || event(EVTCHNOP_EXPAND_ARRAY, &mut expand));
    }
    for _ in 4..128 {
        event(EVTCHNOP_EXPAND_ARRAY, &mut EvtchnExpandArray { array_gfn: scratch.mfn(2) });
    }
    scratch.pages.bytes().fill(2 * 4096, 4096, 0);
    let mut more = 0;
    case("131,072 ports", || {
        more = open(131_072);
        more as i64
    });
    // The words claim that every closed port is on a queue.
    let words = scratch.pages.page(2);
    (0..1024).for_each(|n| words.store_u32(n * 4, LINKED | MASKED | PENDING));
    for port in 1030..60_000 {
        event(EVTCHNOP_CLOSE, &mut EvtchnClose { port });
    }
    case("ports sought where all are linked", || open(BATCH) as i64);
    words.fill(0, 4096, 0);
    let opened = open(131_072);
    println!("stretch: {opened} ports again");
    case(&format!("reset of {} ports", count + more), || {
        event(EVTCHNOP_RESET, &mut EvtchnReset { dom: DOMID_SELF })
    });
    CONTROL.store(0, Ordering::Relaxed);
    if let Err(errno) = kept.bring_back() {
        println!("stretch: ports: {errno:?}");
    }
}
