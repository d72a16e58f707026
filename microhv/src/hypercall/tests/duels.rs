//! One vCPU uses what another is just taking away: every deed against every deed.

use alloc::vec::Vec;
use std::collections::BTreeMap;

use crate::testing::wild::{Deed, Family, Storm, Way, deeds};

/// How often each pair is played, and in a soak.
const PLAYS: u32 = 1;
const PLAYS_OF_A_SOAK: u32 = 400;

fn count() -> usize {
    deeds().count()
}

/// Pairs of deeds, each once; a deed with itself too.
fn pairs() -> impl Iterator<Item = [usize; 2]> {
    (0..count()).flat_map(|a| (a..count()).map(move |b| [a, b]))
}

/// The number of the deed of that name.
fn number(name: &str) -> usize {
    deeds().position(|deed| deed.name == name).unwrap_or_else(|| panic!("no deed `{name}`"))
}

/// `MICROHV_DUEL_PLAYS=N` plays each pair so often.
fn plays() -> u32 {
    let chosen = std::env::var("MICROHV_DUEL_PLAYS").ok().and_then(|text| text.parse().ok());
    let soak = std::env::var_os("MICROHV_SOAK").is_some();
    chosen.unwrap_or(if soak { PLAYS_OF_A_SOAK } else { PLAYS })
}

/// Plays pairs in one storm, and panics at what is wrong.
fn play(storm: &mut Storm, pairs: impl Iterator<Item = [usize; 2]>) {
    let name = |n: usize| deeds().nth(n).map(|deed| deed.name);
    for pair in pairs {
        let before = format!("{storm:?}");
        let wrong = storm.play(pair);
        assert!(wrong.is_empty(), "{before}: {:?}: {wrong:#?}", pair.map(name));
    }
    let wrong = storm.end();
    assert!(wrong.is_empty(), "the end: {wrong:#?}");
}

/// Prints how often the pairs of two families were played, at least and in all, and how often both deeds of a pair were done.
fn print(storm: &Storm) {
    let all: Vec<&Deed> = deeds().collect();
    let mut table: BTreeMap<(Family, Family), [u32; 3]> = BTreeMap::new();
    for [a, b] in pairs() {
        let [played, done] = storm.counts(a, b);
        let row = table.entry((all[a].family, all[b].family)).or_insert([u32::MAX, 0, 0]);
        *row = [row[0].min(played), row[1] + played, row[2] + done];
    }
    std::println!("{:<24} least  plays  both done", "pairs of");
    for ((a, b), [least, played, done]) in table {
        std::println!("{:<24} {least:>5} {played:>6} {done:>10}", format!("{a:?}, {b:?}"));
    }
}

/// Every pair was played, and every deed was done in some pair beside another that was done too.
fn check(storm: &Storm) {
    let missing: Vec<[usize; 2]> = pairs().filter(|[a, b]| storm.counts(*a, *b)[0] == 0).collect();
    assert!(missing.is_empty(), "pairs that were not played: {missing:?}");
    let was_done = |a: usize| (0..count()).any(|b| storm.counts(a, b)[1] > 0);
    let idle: Vec<&Deed> = deeds().enumerate().filter(|(n, _)| !was_done(*n)).map(|(_, deed)| deed).collect();
    assert!(idle.is_empty(), "deeds that were never done: {idle:?}");
}

fn storm(way: Way) {
    let mut storm = Storm::new(way, 1);
    for _ in 0..plays() {
        play(&mut storm, pairs());
    }
    print(&storm);
    check(&storm);
}

/// By turns, so that what is found can be played again.
#[test]
fn what_one_vcpu_uses_another_may_take_away() {
    storm(Way::Turns);
}

/// On the host's own CPUs.
#[test]
fn what_one_cpu_uses_another_takes_away_meanwhile() {
    storm(Way::Parallel);
}

/// Pairs of which only one may come first, often, in many orders.
#[test]
fn pairs_of_deeds_that_exclude_each_other() {
    const PAIRS: [[&str; 2]; 16] = [
        ["map", "unlink the second table"],
        ["map", "pin"],
        ["map", "link"],
        ["write an entry", "link"],
        ["map", "exchange"],
        ["map", "give back"],
        ["move vcpu_info", "exchange"],
        ["copy to the page", "exchange"],
        ["copy to the page", "pin"],
        ["map", "set the gdt"],
        ["use an ldt", "map"],
        ["map the grant", "end the grant"],
        ["map the grant", "destroy"],
        ["write through the grant", "unmap the grant"],
        ["bind the port", "close"],
        ["map the page for itself", "destroy"],
    ];
    let mut storm = Storm::new(Way::Turns, 7);
    for pair in PAIRS {
        play(&mut storm, core::iter::repeat_n(pair.map(number), 25 * plays() as usize));
    }
}
