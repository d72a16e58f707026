//! Looks at a Linux guest's clocks, from inside.
//!
//! - `clock watch SECONDS`: a thread on each CPU reads the clocks, and none may see a time before one that another
//!   has seen; fails if one did.
//! - `clock stamp COUNT`: prints the wall time in ns, 50 ms apart.
//! - `clock sleep COUNT`: sleeps a second and prints how many ns that took, so many times.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// `struct timespec`, `time.h`.
#[repr(C)]
#[derive(Default)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    fn sched_setaffinity(pid: i32, bytes: usize, mask: *const u64) -> i32;
}

/// `CLOCK_REALTIME`, `linux/time.h`.
const REALTIME: i32 = 0;
/// `CLOCK_MONOTONIC`.
const MONOTONIC: i32 = 1;
/// These two, `CLOCK_MONOTONIC_RAW` and `CLOCK_BOOTTIME`.
const CLOCKS: [i32; 4] = [REALTIME, MONOTONIC, 4, 7];

/// The latest time that anybody has seen, in ns, of each clock.
static LATEST: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static READINGS: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU64 = AtomicU64::new(0);
static WORST_NS: AtomicU64 = AtomicU64::new(0);

fn read(clock: i32) -> u64 {
    let mut time = Timespec::default();
    // SAFETY: the structure is as the C library defines it, and ours.
    assert_eq!(unsafe { clock_gettime(clock, &mut time) }, 0, "clock {clock}");
    time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64
}

/// Moves this thread to a CPU.
fn pin(cpu: usize) {
    let mask = 1u64 << cpu;
    // SAFETY: a mask of eight bytes, as said.
    assert_eq!(unsafe { sched_setaffinity(0, 8, &mask) }, 0, "no CPU {cpu}");
}

fn watch(cpu: usize, end: Instant) {
    pin(cpu);
    while Instant::now() < end {
        for (clock, latest) in CLOCKS.into_iter().zip(&LATEST) {
            let before = latest.load(SeqCst);
            let now = read(clock);
            READINGS.fetch_add(1, SeqCst);
            if now < before {
                BACKWARDS.fetch_add(1, SeqCst);
                WORST_NS.fetch_max(before - now, SeqCst);
            }
            latest.fetch_max(now, SeqCst);
        }
    }
}

fn watch_all(seconds: u64) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            scope.spawn(move || watch(cpu, end));
        }
    });
    let (readings, backwards) = (READINGS.load(SeqCst), BACKWARDS.load(SeqCst));
    let worst = WORST_NS.load(SeqCst);
    println!("clock: {cpus} CPUs, {readings} readings, {backwards} backwards, worst {worst} ns");
    std::process::exit(i32::from(backwards != 0));
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(what), Some(count)) = (words.first(), words.get(1).and_then(|word| word.parse().ok())) else {
        panic!("usage: clock watch|stamp|sleep COUNT");
    };
    match what.as_str() {
        "watch" => watch_all(count),
        "stamp" => {
            for _ in 0..count {
                println!("stamp {}", read(REALTIME));
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        "sleep" => {
            for _ in 0..count {
                let before = read(MONOTONIC);
                std::thread::sleep(Duration::from_secs(1));
                println!("slept {}", read(MONOTONIC) - before);
            }
        }
        other => panic!("{other}?"),
    }
}
