//! A storm of forks in a process whose threads write memory all the while: each child has the memory of the moment of the fork, and
//! neither sees what the other writes. Says what went wrong, and how many forks there were.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
}

const PAGE: usize = 4096 / 8;
/// Pages that a thread keeps writing, and that the child looks at twice.
const BUSY_PAGES: usize = 64;
/// Pages that parent and child write after the fork.
const PAGES: usize = 64;

fn pages(count: usize) -> &'static [AtomicU64] {
    Box::leak((0..count * PAGE).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>())
}

fn words(pages: &'static [AtomicU64]) -> impl Iterator<Item = &'static AtomicU64> {
    pages.iter().step_by(PAGE / 4)
}

/// What the child finds: 0, or the number of the look that failed.
fn child(busy: &'static [AtomicU64], own: &'static [AtomicU64], round: u64) -> i32 {
    let before: u64 = words(busy).map(|word| word.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
    if words(own).any(|word| word.load(Ordering::Relaxed) != round) {
        return 1;
    }
    words(own).for_each(|word| word.store(!round, Ordering::Relaxed));
    for _ in 0..20_000 {
        std::hint::spin_loop();
    }
    if words(own).any(|word| word.load(Ordering::Relaxed) != !round) {
        return 2;
    }
    let after: u64 = words(busy).map(|word| word.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
    if before == after { 0 } else { 3 }
}

fn main() {
    let forks: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("a number of forks");
    let (busy, own) = (pages(BUSY_PAGES), pages(PAGES));
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                for word in words(busy) {
                    word.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let mut wrong = 0;
    for round in 1..=forks {
        words(own).for_each(|word| word.store(round, Ordering::Relaxed));
        // SAFETY: the child calls nothing that takes a lock.
        let pid = unsafe { fork() };
        if pid == 0 {
            let found = child(busy, own, round);
            // SAFETY: no exit code of Rust's runs.
            unsafe { _exit(found) };
        }
        words(own).for_each(|word| word.store(round << 32, Ordering::Relaxed));
        let mut status = -1;
        // SAFETY: `status` is there.
        let waited = unsafe { waitpid(pid, &raw mut status, 0) };
        let kept = words(own).all(|word| word.load(Ordering::Relaxed) == round << 32);
        if waited != pid || status != 0 || !kept {
            println!("fork {round}: status {status:#x}, parent kept {kept}");
            wrong += 1;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    writer.join().expect("the writer ends");
    println!("forks: {forks}, wrong: {wrong}");
}
