//! Guests and a control domain that call the hypervisor as they like, against the model of what processors remember.

use microhv::testing::wild;

/// CPUs of the larger machine.
const CPUS: usize = 5;

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
    if let Some(finding) = wild::play(cpus, &steps) {
        let small = wild::smaller(cpus, &steps[..steps.len().min(finding.step + 1)]);
        panic!("{finding:#?}\nwild::play({cpus}, &{small:?})");
    }
}
