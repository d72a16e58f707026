//! A program of Linux user space. Each of its operations makes a guest's kernel use the hypervisor, and runs many
//! times between two marker instructions; `xtask/plugin/count.c` counts the instructions in between.
//!
//! `costs SCALE [DISK]` prints `costs NAME OPS` for each operation: operation k stands between the markers 100 + 2k
//! and 101 + 2k; the last ones read the disk. `costs window INTERFACE MILLISECONDS` lets others work for a while
//! between two markers; `costs pairs SCALE` does operations in two processes at once (`pairs.rs`); `costs flood ADDRESS:PORT BYTES` sends datagrams; `costs seed` makes the kernel take its
//! random numbers for good ones; `costs touch PASSES` writes the same pages again and again. The same file runs on every system of a comparison. The program is linked
//! statically and starts without the Rust library's start-up code, so that `exec` costs only the kernel's work.

#![allow(unsafe_code, reason = "main as the C library calls it")]
#![no_main]

mod libc;
mod pairs;
mod window;

use core::ffi::{c_char, c_int};

use libc::{DEPTH, Disk, Mapping, PAGE, POPULATE, Pipe, Reads, exec_self, exit, getpid, join, mark, spawn};

/// Pages that the program touches one by one.
const TOUCHED: usize = 1000;
/// Pages that the program maps and unmaps in one call.
const MAPPED: usize = 64;
/// Bytes of a long read.
const LONG: usize = 1 << 20;

/// Does `operation` a few times, then `ops` times between two markers.
macro_rules! count {
    ($k:literal, $name:literal, $ops:expr, warm_up $warm:literal, $operation:expr) => {{
        let (ops, operation): (usize, &dyn Fn()) = ($ops, &$operation);
        for _ in 0..$warm {
            operation();
        }
        mark::<{ 100 + 2 * $k }>();
        for _ in 0..ops {
            operation();
        }
        mark::<{ 101 + 2 * $k }>();
        println!("costs {} {ops}", $name);
    }};
}

fn fork_exit() {
    spawn(|| 0);
    join();
}

fn fork_exec() {
    spawn(|| exec_self(c"child"));
    join();
}

fn map_and_unmap() {
    drop(Mapping::new(MAPPED, POPULATE));
}

/// Touches new pages, `rounds` times [`TOUCHED`]: the markers enclose only the touching.
fn page_faults(rounds: usize) {
    for round in 0..=rounds {
        let mapping = Mapping::new(TOUCHED, 0);
        mapping.no_huge_pages();
        if round == 0 {
            mapping.touch();
            continue;
        }
        mark::<106>();
        mapping.touch();
        mark::<107>();
    }
    println!("costs page_fault {}", rounds * TOUCHED);
}

/// Writes [`TOUCHED`] pages that are there, between two markers, again and again: each pass is longer after the last than a round of dirty
/// tracking takes.
fn touch(passes: usize) -> c_int {
    let mapping = Mapping::new(TOUCHED, POPULATE);
    mapping.no_huge_pages();
    mapping.touch();
    println!("costs touching");
    for _ in 0..passes {
        std::thread::sleep(core::time::Duration::from_millis(1300));
        mark::<180>();
        mapping.touch();
        mark::<181>();
    }
    println!("costs touch {}", passes * TOUCHED);
    0
}

/// Sends a byte to another process and back.
fn pipe_round_trips(scale: usize) {
    let (there, back) = (Pipe::new(), Pipe::new());
    spawn(|| {
        there.close_writer();
        while there.get() && back.put() {}
        0
    });
    count!(5, "pipe_round_trip", 200 * scale, warm_up 20, || {
        if !there.put() || !back.get() {
            libc::fail("a pipe");
        }
    });
    there.close_writer();
    join();
}

/// Does `count` reads, `depth` at a time, of blocks all over the disk.
fn read_all(disk: &Disk, reads: &Reads<'_>, bytes: usize, depth: usize, count: usize) {
    let mut random = 1u64;
    let mut begin = |index| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        reads.begin(index, (random >> 33) % disk.blocks(bytes));
    };
    (0..depth).for_each(&mut begin);
    let (mut begun, mut ended) = (depth, 0);
    while ended < count {
        reads.wait(|index| {
            ended += 1;
            if begun < count {
                begun += 1;
                begin(index);
            }
        });
    }
}

/// Counts `count` reads of `bytes`, `depth` at a time, between the markers `BEGIN` and `END`.
fn count_reads<const BEGIN: u32, const END: u32>(
    disk: &Disk,
    name: &str,
    bytes: usize,
    depth: usize,
    count: usize,
) {
    let reads = Reads::new(disk, bytes);
    read_all(disk, &reads, bytes, depth, 2 * depth);
    mark::<BEGIN>();
    read_all(disk, &reads, bytes, depth, count);
    mark::<END>();
    println!("costs {name} {count}");
}

fn disk_reads(disk: &Disk, scale: usize) {
    // Reads are never made one at a time: while such a read waits the machine is idle, and the idle loop
    // would count.
    count_reads::<112, 113>(disk, "read_4k_32", PAGE, DEPTH, 1000 * scale);
    count_reads::<114, 115>(disk, "read_1m_4", LONG, 4, 16 * scale);
}

/// The program's entry, which the C library calls.
///
/// # Safety
/// `arguments` are `count` strings, and null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // SAFETY: the caller's word.
    let [first, second, third] = [1, 2, 3].map(|index| unsafe { libc::argument(count, arguments, index) });
    let first = first.and_then(|word| word.to_str().ok());
    if first == Some("child") {
        exit(0);
    }
    if first == Some("seed") {
        return libc::pretend_randomness();
    }
    let text = |argument: Option<&'static core::ffi::CStr>| argument.and_then(|word| word.to_str().ok());
    match first {
        Some("pairs") => return pairs::run(text(second).and_then(|scale| scale.parse().ok()).unwrap_or(1)),
        Some("window") => return window::run(text(second), text(third)),
        Some("touch") => return touch(text(second).and_then(|passes| passes.parse().ok()).unwrap_or(1)),
        Some("flood") => return window::flood(text(second), text(third)),
        _ => {}
    }
    let scale = first.and_then(|scale| scale.parse().ok()).unwrap_or(1);
    count!(0, "getpid", 2000 * scale, warm_up 200, getpid);
    count!(1, "fork_exit", 20 * scale, warm_up 3, fork_exit);
    count!(2, "fork_exec", 10 * scale, warm_up 3, fork_exec);
    page_faults(scale);
    count!(4, "mmap_64", 50 * scale, warm_up 3, map_and_unmap);
    pipe_round_trips(scale);
    if let Some(disk) = second {
        disk_reads(&Disk::open(disk), scale);
    }
    println!("costs done");
    0
}
