//! Guests and a control domain that call as they like, on a machine that remembers what a processor could
//! ([`super::tlb`]).
//!
//! A scenario is a list of [`Step`]s, decoded ([`decode`]) from the bytes of a seed ([`bytes_of`]) or a fuzzer. From
//! the same start the same steps do the same, so a [`Finding`] can be played again, made smaller ([`smaller`]), and
//! printed as what a regression test holds.
//!
//! The machine is small, so that frames come back soon as something else. Each domain has two vCPUs, two bases with
//! several tables, and the tables mapped read-only. Frames that were just unmapped, granted or freed are preferred
//! where a step names one. An interrupted call goes on when a later step says so, or never: a guest need not go on.
//!
//! The steps are played one after the other, or as many at the same time as there are CPUs, each on a thread of its own: at each
//! point that could be seen by another CPU a seed says which goes on ([`super::turns`]). A duel ([`Storm`]) is about one page and
//! one table, which one vCPU uses while another takes them away.
//!
//! After each step the TLB's rules hold, CPUs remember a granted page only while the grant is mapped, and a flush that
//! a guest asked for has been done. A send by the FIFO changes its port's word and the link of one other at most. A copy
//! with bounds moves what the entry lends, and succeeds for nothing else. Now and then, and after each step of a
//! teardown, the frame table agrees with all page tables. In the end all domains are destroyed, and every frame comes
//! back.

mod play;
mod step;

pub use play::{Deed, Family, Finding, Storm, Way, Wild, deeds};
pub use step::{Act, Entry, Page, Pick, Step, decode};

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The most steps that a scenario made of bytes has.
pub const MOST_STEPS: usize = 400;

/// Plays a scenario on so many CPUs; what it found.
#[must_use]
pub fn play(cpus: usize, steps: &[Step]) -> Option<Finding> {
    play_in(&Wild::new(cpus), steps)
}

/// Plays a scenario on so many CPUs, which run guests on copies of their level 4 tables; what it found.
#[must_use]
pub fn play_on_copies(cpus: usize, steps: &[Step]) -> Option<Finding> {
    let wild = Wild::new(cpus);
    wild.run_on_copies();
    play_in(&wild, steps)
}

fn play_in(wild: &Wild, steps: &[Step]) -> Option<Finding> {
    for (n, step) in steps.iter().enumerate() {
        wild.step(step);
        let wrong = wild.wrong(false);
        if !wrong.is_empty() {
            return Some(Finding { step: n, wrong });
        }
    }
    let wrong = wild.end();
    (!wrong.is_empty()).then_some(Finding { step: steps.len(), wrong })
}

/// Plays a scenario on so many CPUs, a step on each at the same time; what it found. `seed` says which CPU goes on when.
#[must_use]
pub fn play_at_once(cpus: usize, steps: &[Step], seed: u64) -> Option<Finding> {
    let mut wild = Wild::new(cpus);
    wild.begin_at_once();
    for (n, together) in steps.chunks(cpus).enumerate() {
        wild.steps_at_once(together, seed.wrapping_add(n as u64));
        let wrong = wild.wrong(false);
        if !wrong.is_empty() {
            return Some(Finding { step: (n * cpus + cpus - 1).min(steps.len()), wrong });
        }
    }
    let wrong = wild.end();
    (!wrong.is_empty()).then_some(Finding { step: steps.len(), wrong })
}

/// Counts a panic of the hypervisor as a finding too.
#[must_use]
pub fn caught(steps: &[Step], play: impl Fn(&[Step]) -> Option<Finding>) -> Option<Finding> {
    catch_unwind(AssertUnwindSafe(|| play(steps)))
        .unwrap_or_else(|_| Some(Finding { step: steps.len(), wrong: vec!["a panic".into()] }))
}

/// `length` bytes of `seed`, by xorshift64*.
#[must_use]
pub fn bytes_of(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The scenario of a seed.
#[must_use]
pub fn scenario(seed: u64, steps: usize) -> Vec<Step> {
    decode(&bytes_of(seed, steps * 24), steps)
}

/// The scenario of a seed for CPUs that play at the same time: mostly, a step is about the same frames, pages and slots as that of
/// the first CPU.
#[must_use]
pub fn scenario_at_once(seed: u64, cpus: usize, steps: usize) -> Vec<Step> {
    const BYTES: usize = 24;
    let bytes = bytes_of(seed, steps * BYTES);
    let mut of_step: Vec<Vec<u8>> = bytes.chunks(BYTES).map(<[u8]>::to_vec).collect();
    for together in of_step.chunks_mut(cpus) {
        if let Some((first, others)) = together.split_first_mut() {
            for other in others.iter_mut().filter(|other| other[1] & 3 != 0) {
                other[2..].copy_from_slice(&first[2..]);
            }
        }
    }
    of_step.iter().flat_map(|bytes| decode(bytes, 1)).collect()
}

/// The scenario without the steps that it can do without and still find something, as `play` plays it.
#[must_use]
pub fn smaller(steps: &[Step], play: impl Fn(&[Step]) -> Option<Finding>) -> Vec<Step> {
    let mut steps = steps.to_vec();
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let (mut at, mut any) = (0, false);
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match caught(&fewer, &play) {
                Some(finding) => {
                    fewer.truncate(finding.step + 1);
                    steps = fewer;
                    any = true;
                }
                None => at += size,
            }
        }
        if size == 1 && !any {
            break;
        }
        size = if any { size.min(steps.len()) } else { size / 2 };
    }
    steps
}

/// Plays the scenarios of `seeds` and panics at the first finding, with the scenario made small. `at_once`: the CPUs play their
/// steps at the same time.
///
/// # Panics
/// At a finding.
pub fn search(cpus: usize, seeds: core::ops::Range<u64>, steps: usize, at_once: bool) {
    for seed in seeds {
        let play = |steps: &[Step]| if at_once { play_at_once(cpus, steps, seed) } else { play(cpus, steps) };
        let list = if at_once { scenario_at_once(seed, cpus, steps) } else { scenario(seed, steps) };
        if let Some(finding) = caught(&list, play) {
            let small = smaller(&list[..list.len().min(finding.step + 1)], play);
            let again = caught(&small, play).unwrap_or(finding);
            let how = if at_once { "at once " } else { "" };
            panic!("seed {seed} {how}on {cpus} CPUs: {again:#?}\n{cpus}, &{small:?}");
        }
    }
}
