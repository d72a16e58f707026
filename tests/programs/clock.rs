//! Looks at a Linux guest's clocks, from inside.
//!
//! - `clock watch SECONDS`: a thread on each CPU reads the clocks, in user mode and by system calls, and none may see a
//!   time before one that another has seen; fails if one did.
//! - `clock user 1`: reads the clocks where a system call for it is death; says so if it lives.
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
    fn prctl(option: i32, value: u64) -> i32;
    fn syscall(number: i64, first: u64, second: u64, third: u64) -> i64;
}

/// `PR_SET_SECCOMP`, `linux/prctl.h`, and `SECCOMP_MODE_STRICT`, `linux/seccomp.h`: only `read`, `write` and `exit` are
/// allowed.
const SECCOMP: (i32, u64) = (22, 1);
/// Numbers of system calls, `asm/unistd_64.h`.
const SYS_WRITE: i64 = 1;
const SYS_EXIT: i64 = 60;
const SYS_CLOCK_GETTIME: i64 = 228;

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

/// Asks the kernel, which reads the clock of the vCPU that this runs on.
fn ask(clock: i32) -> u64 {
    let mut time = Timespec::default();
    // SAFETY: as in `read`.
    let done = unsafe { syscall(SYS_CLOCK_GETTIME, clock as u64, (&raw mut time) as u64, 0) };
    assert_eq!(done, 0, "clock {clock}");
    time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64
}

/// Reads the clocks without the kernel, or is killed.
fn in_user_mode() -> ! {
    const DONE: &[u8] = b"clock: read in user mode\n";
    const BACK: &[u8] = b"clock: did not go on\n";
    // SAFETY: no pointers.
    assert_eq!(unsafe { prctl(SECCOMP.0, SECCOMP.1) }, 0, "no seccomp");
    let first = CLOCKS.map(read);
    let went_on = CLOCKS.map(read).iter().zip(first).all(|(now, then)| *now >= then && then > 0);
    let said = if went_on { DONE } else { BACK };
    // SAFETY: the bytes live as long as the program; `exit` ends it, which has one thread.
    unsafe {
        syscall(SYS_WRITE, 1, said.as_ptr() as u64, said.len() as u64);
        syscall(SYS_EXIT, u64::from(!went_on), 0, 0);
    }
    unreachable!("it has ended")
}

/// Moves this thread to a CPU.
fn pin(cpu: usize) {
    let mask = 1u64 << cpu;
    // SAFETY: a mask of eight bytes, as said.
    assert_eq!(unsafe { sched_setaffinity(0, 8, &mask) }, 0, "no CPU {cpu}");
}

fn watch(cpu: usize, end: Instant) {
    pin(cpu);
    let mut round = cpu;
    while Instant::now() < end {
        round += 1;
        for (clock, latest) in CLOCKS.into_iter().zip(&LATEST) {
            let before = latest.load(SeqCst);
            let now = if round.is_multiple_of(2) { read(clock) } else { ask(clock) };
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
        panic!("usage: clock watch|user|stamp|sleep COUNT");
    };
    match what.as_str() {
        "watch" => watch_all(count),
        "user" => in_user_mode(),
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
