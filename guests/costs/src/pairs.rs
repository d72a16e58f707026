//! Operations of two processes at once, each on a CPU of its own.

use std::time::Instant;

use crate::libc::{Mapping, Pipe, join, mark, spawn, stay_on};
use crate::{TOUCHED, fork_exec, fork_exit};

/// What each process does before anything counts.
const WARM_UP: usize = 3;

/// Does each operation in one process, then in two, and prints `costs NAME OPS ONE TWO`: the operations that the two did
/// together between the markers, and the nanoseconds that one process took for half as many, and the two for all.
pub(crate) fn run(scale: usize) -> i32 {
    in_two::<116, 117>("pair_fork_exit", 40 * scale, 1, &fork_exit);
    in_two::<118, 119>("pair_fork_exec", 20 * scale, 1, &fork_exec);
    in_two::<120, 121>("pair_fault", 4 * scale, TOUCHED, &touch);
    println!("costs done");
    0
}

/// Touches new pages, one by one.
fn touch() {
    let mapping = Mapping::new(TOUCHED, 0);
    mapping.no_huge_pages();
    mapping.touch();
}

/// Does `operation`, which counts for `each`, `times` times in this process, then as often in this and another one at once,
/// between two markers.
fn in_two<const BEGIN: u32, const END: u32>(name: &str, times: usize, each: usize, operation: &dyn Fn()) {
    let (there, back) = (Pipe::new(), Pipe::new());
    let do_all = |times: usize| (0..times).for_each(|_| operation());
    spawn(|| {
        stay_on(1);
        do_all(WARM_UP);
        let is_sound = back.put() && there.get();
        do_all(times);
        // This process ends only when the other waits for no other child.
        i32::from(!(is_sound && back.put() && there.get()))
    });
    stay_on(0);
    do_all(WARM_UP);
    let mut is_sound = back.get();
    let begin = Instant::now();
    do_all(times);
    let one = begin.elapsed();
    let begin = Instant::now();
    mark::<BEGIN>();
    is_sound &= there.put();
    do_all(times);
    is_sound &= back.get();
    mark::<END>();
    let two = begin.elapsed();
    if !is_sound || !there.put() {
        crate::libc::fail("a pipe");
    }
    join();
    println!("costs {name} {} {} {}", 2 * times * each, one.as_nanos(), two.as_nanos());
}
