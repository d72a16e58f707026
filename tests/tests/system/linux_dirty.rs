//! Dirty tracking of a Linux guest that forks all the while: the guest does not notice, and each round finds what it wrote.

use anyhow::{Context, Result, ensure};
use tests::linux::{command, machine_with, no_complaints, program};
use tests::{Live, Scratch};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_dirty: a_guest_that_forks_is_tracked_and_does_not_notice]);
    for case in &mut cases {
        // It fetches Debian's packages first, and takes minutes.
        case.soak = true;
    }
    cases
}

/// Pages and faults of each round that `xl dirty-rate` printed.
fn rounds(printed: &str) -> Result<Vec<(u64, u64)>> {
    let lines =
        printed.lines().filter_map(|line| Some(line.trim().strip_prefix("round ")?.split_once(": ")?.1));
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("`{text}` is no number"));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            ensure!(words.len() == 7 && words[1] == "pages," && words[6] == "faults", "`{line}`");
            Ok((number(words[0])?, number(words[5])?))
        })
        .collect()
}

/// `xl dirty-rate` in so many rounds.
fn track(machine: &mut Live, seconds: usize) -> Result<Vec<(u64, u64)>> {
    let said = command(machine, &format!("xl dirty-rate g {seconds}"), 300)?;
    let rounds = rounds(&said)?;
    ensure!(rounds.len() == seconds, "not {seconds} rounds: {said}");
    Ok(rounds)
}

fn a_guest_that_forks_is_tracked_and_does_not_notice() -> Result<()> {
    const PAGES: u64 = 256 * 256;
    let scratch = Scratch::new("linux-dirty")?;
    let forks = program(&scratch, "forks")?;
    let mut machine = machine_with("linux-dirty", &scratch, &[("forks", &forks)])?.seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    let run = "run=\"echo storm; /forks 2000; echo idle; sleep 1000\"";
    let create =
        format!("xl create /boot/debian-ramdisk.cfg name='g' memory=256 vcpus=2 extra='quiet {run}'");
    command(&mut machine, &create, 60)?;
    machine.expect("run: echo storm", 200)?;
    for _ in 0..3 {
        // The storm's pages are 128 and more.
        for (pages, faults) in track(&mut machine, 4)? {
            ensure!((128..PAGES).contains(&pages) && faults > 0, "{pages} pages, {faults} faults");
        }
    }
    machine.expect("forks: 2000, wrong: 0", 600)?;
    machine.expect("g) idle", 60)?;
    let quiet = track(&mut machine, 2)?;
    ensure!(quiet[1].0 < 500, "an idle guest writes {quiet:?}");
    let said = command(&mut machine, "xl debug-keys M", 60)?;
    ensure!(said.contains("frame table: 0 differences"), "{said}");
    command(&mut machine, "xl destroy g", 20)?;
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}
