//! The FIFO layout of event channels: pages that a guest may not use, random words and control blocks, pages with two
//! uses at once.

use alloc::format;

use pvrt::event::KeptPorts;
use ring_abi::errno::Errno::{EBUSY, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP};
use ring_abi::evtchn::fifo::{BUSY, LINKED, MASKED, PENDING};
use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::mmu::MMUEXT_PIN_L1_TABLE;
use ring_abi::types::DOMID_SELF;

use crate::ground::space::{self, Scratch, extended, op};
use crate::report::Report;

/// Ports that get events.
const PORTS: usize = 16;

/// Runs all of them, and goes back to two levels.
pub(crate) fn run(report: &mut Report) {
    let kept = match KeptPorts::note() {
        Ok(kept) => kept,
        Err(errno) => return report.case("own ports", false, errno),
    };
    let scratch = Scratch::new(2);
    pages(report, &scratch);
    rubbish(report, &scratch);
    held(report, &scratch);
    let back = kept.bring_back();
    report.case("the way back to two levels", back.is_ok(), back);
    crate::ground::set_own_timer();
}

fn channel<T>(command: u32, mut arg: T) -> i64 {
    op(__HYPERVISOR_EVENT_CHANNEL_OP, command, &mut arg)
}

fn init(control_gfn: u64, offset: u32, vcpu: u32) -> i64 {
    channel(EVTCHNOP_INIT_CONTROL, EvtchnInitControl { control_gfn, offset, vcpu, ..Default::default() })
}

fn expand(array_gfn: u64) -> i64 {
    channel(EVTCHNOP_EXPAND_ARRAY, EvtchnExpandArray { array_gfn })
}

/// Frames that are not writable memory of this domain.
fn bad_frames() -> impl Iterator<Item = u64> {
    let nowhere = [u64::MAX, u64::MAX >> 12, 1 << 40, space::end_of_memory() + 1, space::base()];
    nowhere.into_iter().chain(space::foreign_frames())
}

fn pages(report: &mut Report, scratch: &Scratch) {
    report.refused("words before a control block", expand(scratch.mfn(1)), &[EOPNOTSUPP]);
    for mfn in bad_frames() {
        report.refused(&format!("a control block in {mfn:#x}"), init(mfn, 0, 0), &[EINVAL]);
    }
    for offset in [1, 4, 4025, 4032, 4096, 1 << 31, u32::MAX, u32::MAX - 7] {
        report.refused(
            &format!("a control block at {offset:#x}"),
            init(scratch.mfn(0), offset, 0),
            &[EINVAL],
        );
    }
    for vcpu in [128, 8191, u32::MAX] {
        report.refused(&format!("one of vCPU {vcpu:#x}"), init(scratch.mfn(0), 0, vcpu), &[ENOENT]);
    }
    report.refused("words after all that", expand(scratch.mfn(1)), &[EOPNOTSUPP]);
    report.succeeds("a control block", init(scratch.mfn(0), 0, 0));
    report.refused("a second", init(scratch.mfn(0), 128, 0), &[EINVAL]);
    for mfn in bad_frames() {
        report.refused(&format!("words in {mfn:#x}"), expand(mfn), &[EINVAL]);
    }
    // The same two pages are given again and again, as pages of words and as the control block's page.
    let full = (0..200).map(|n| expand(scratch.mfn(n % 2))).find(|got| *got != 0);
    report.case("words for ever", full == Some(ENOSPC.negated()), full);
    for port in [1 << 17, u32::MAX] {
        let got = channel(EVTCHNOP_SET_PRIORITY, EvtchnSetPriority { port, priority: 1 });
        report.refused(&format!("a priority of {port:#x}"), got, &[EINVAL]);
    }
}

/// Sends, unmasks, moves and closes while the words hold random bits.
fn rubbish(report: &mut Report, scratch: &Scratch) {
    let words = scratch.pages.bytes();
    let mut failed = None;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..600u32 {
        let mut ports = [0; PORTS];
        for port in &mut ports {
            let mut ipi = EvtchnBindIpi { vcpu: 0, port: 0 };
            if op(__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_IPI, &mut ipi) == 0 {
                *port = ipi.port;
            }
        }
        for n in 0..2048 {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let word = match round % 6 {
                0 => (seed >> 32) as u32,
                1 => u32::MAX,
                2 => LINKED | (n as u32 + 1) % 1024,
                3 => PENDING | LINKED | BUSY | n as u32,
                4 => PENDING | MASKED,
                _ => 0,
            };
            words.store_u32(n * 4, word);
        }
        for port in ports.into_iter().filter(|port| *port != 0) {
            let calls = [
                channel(EVTCHNOP_SET_PRIORITY, EvtchnSetPriority { port, priority: port % 16 }),
                channel(EVTCHNOP_SEND, EvtchnSend { port }),
                channel(EVTCHNOP_UNMASK, EvtchnUnmask { port }),
                channel(EVTCHNOP_SEND, EvtchnSend { port }),
                channel(EVTCHNOP_CLOSE, EvtchnClose { port }),
            ];
            failed = failed.or_else(|| calls.iter().any(|got| *got != 0).then_some((round, port, calls)));
        }
    }
    words.fill(0, 2 * 4096, 0);
    report.case("words of any kind", failed.is_none(), failed);
    // The words claim that all free ports are on a queue. The hypervisor must then refuse to open a port, in
    // bounded time.
    (0..2048).for_each(|n| words.store_u32(n * 4, LINKED));
    let got = (0..3000)
        .map(|_| channel(EVTCHNOP_BIND_IPI, EvtchnBindIpi { vcpu: 0, port: 0 }))
        .find(|got| *got != 0);
    words.fill(0, 2 * 4096, 0);
    report.case("no port while all are linked", got == Some(ENOSPC.negated()), got);
}

/// Tries to make pages that the hypervisor writes into page tables, and to give them back.
fn held(report: &mut Report, scratch: &Scratch) {
    for n in [0, 1] {
        report.succeeds("read-only", scratch.protect(n));
        let got = extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(n), 0);
        report.refused("a page of the FIFO for a table", got, &[EINVAL, EBUSY]);
    }
    report.succeeds("a reset", channel(EVTCHNOP_RESET, EvtchnReset { dom: DOMID_SELF }));
    report.refused("words after it", expand(scratch.mfn(1)), &[EOPNOTSUPP]);
    // Events that came meanwhile have left words. As entries of a table, some are not present and name memory, which is refused
    // where the CPU has L1TF.
    let writable = [0, 1].map(|n| scratch.unprotect(n));
    scratch.pages.bytes().fill(0, 2 * 4096, 0);
    report.case("words to clear", writable == [0, 0], writable);
    for n in [0, 1] {
        report.succeeds("read-only again", scratch.protect(n));
        report.succeeds("then a table", extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(n), 0));
        report.succeeds("and none", extended(ring_abi::mmu::MMUEXT_UNPIN_TABLE, scratch.mfn(n), 0));
    }
}
