//! Guests and a control domain that call the hypervisor as they like, against the model of what processors remember.

use std::sync::atomic::{AtomicU64, Ordering};

use microhv::testing::wild;

/// CPUs of the larger machine.
const CPUS: usize = 5;

/// Steps played so far: an input has as many as it likes, so that the number of inputs says little.
static PLAYED: AtomicU64 = AtomicU64::new(0);
/// After so many steps a line says how many they were.
const TELL_EVERY: u64 = 5_000_000;

/// All domains take turns on one CPU.
pub(crate) fn one_cpu(data: &[u8]) {
    run(1, data);
}

/// Domains run at the same time, and a domain on two CPUs.
pub(crate) fn five_cpus(data: &[u8]) {
    run(CPUS, data);
}

/// Plays the scenario. A finding is made small before it is told, and told as a regression test takes it.
fn run(cpus: usize, data: &[u8]) {
    let steps = wild::decode(data, wild::MOST_STEPS);
    let before = PLAYED.fetch_add(steps.len() as u64, Ordering::Relaxed);
    let after = before + steps.len() as u64;
    if before / TELL_EVERY != after / TELL_EVERY {
        eprintln!("{cpus} CPUs: {after} steps");
    }
    if let Some(finding) = wild::play(cpus, &steps) {
        let small =
            wild::smaller(&steps[..steps.len().min(finding.step + 1)], |steps| wild::play(cpus, steps));
        panic!("{finding:#?}\nwild::play({cpus}, &{small:?})");
    }
}
