//! Whether the CPUs' TSCs are one clock: a CPU that starts and the boot CPU tell each other their TSCs, many times.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use microhv::boot::clock::Comparison;
use microhv::platform::{CpuId, MAX_CPUS};

use super::cpu::{rdtsc, rdtsc_after_reads};
use super::time;

/// The most meetings: enough that one of them takes no longer than it must.
const MEETINGS: u32 = 1_000;
/// How long they may take in all.
const MEETINGS_NS: u64 = 20_000_000;
/// How long the boot CPU waits for an answer. A CPU that does not answer is left out.
const PATIENCE_NS: u64 = 100_000_000;

/// Nobody waits.
const IDLE: u32 = 0;
/// The CPU that starts waits to be asked.
const HERE: u32 = 1;
/// The boot CPU has told its TSC.
const ASKED: u32 = 2;
/// The other CPU has told when it read that, and its TSC.
const TOLD: u32 = 3;
/// That was all.
const OVER: u32 = 4;

/// Whose turn it is.
static TURN: AtomicU32 = AtomicU32::new(IDLE);
/// What the CPU in turn told.
static ASKED_AT: AtomicU64 = AtomicU64::new(0);
static READ_AT: AtomicU64 = AtomicU64::new(0);
static TOLD_AT: AtomicU64 = AtomicU64::new(0);

/// What makes each CPU's TSC the boot CPU's.
static OFFSETS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// What is to be added to the TSC of `cpu`.
#[inline]
pub(crate) fn offset(cpu: CpuId) -> u64 {
    OFFSETS[cpu.index()].load(Ordering::Relaxed)
}

/// Nobody has come yet.
pub(crate) fn await_cpu() {
    TURN.store(IDLE, Ordering::Release);
}

/// The boot CPU's part, when the CPU that was started has come.
pub(crate) fn meet_if_here(cpu: CpuId) {
    if TURN.load(Ordering::Acquire) != HERE {
        return;
    }
    let began = time::now_ns();
    let passed = || time::now_ns().saturating_sub(began);
    let mut seen = Comparison::default();
    for n in 0..MEETINGS {
        if n != 0 && passed() > MEETINGS_NS {
            break;
        }
        let asked = rdtsc();
        ASKED_AT.store(asked, Ordering::Relaxed);
        TURN.store(ASKED, Ordering::Release);
        while TURN.load(Ordering::Acquire) != TOLD {
            if passed() > PATIENCE_NS {
                return;
            }
            core::hint::spin_loop();
        }
        let back = rdtsc_after_reads();
        seen.went(asked, READ_AT.load(Ordering::Relaxed));
        seen.came(TOLD_AT.load(Ordering::Relaxed), back);
    }
    if let Some(offset) = seen.offset() {
        let ahead = (offset as i64).wrapping_neg();
        log::warn!(
            "the TSC of CPU {} is {ahead} ticks ahead: guests are not told that TSCs are stable",
            cpu.raw()
        );
        OFFSETS[cpu.index()].store(offset, Ordering::Release);
        time::note_skew();
    }
    TURN.store(OVER, Ordering::Release);
}

/// The part of the CPU that starts.
pub(crate) fn meet_boot_cpu() {
    TURN.store(HERE, Ordering::Release);
    loop {
        match TURN.load(Ordering::Acquire) {
            ASKED => {
                READ_AT.store(rdtsc_after_reads(), Ordering::Relaxed);
                TOLD_AT.store(rdtsc(), Ordering::Relaxed);
                TURN.store(TOLD, Ordering::Release);
            }
            OVER => return,
            _ => core::hint::spin_loop(),
        }
    }
}
