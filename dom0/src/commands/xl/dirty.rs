//! `xl dirty-rate`: how fast a domain writes its memory, as QEMU's `calc-dirty-rate` tells. Xen has no such command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::println;
use ring_abi::types::DomId;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::toolstack::Tracked;

const ROUND_NS: u64 = 1_000_000_000;
const DEFAULT_ROUNDS: u32 = 1;
/// An hour.
const MOST_ROUNDS: u32 = 3600;

impl Shell {
    /// `xl dirty-rate DOMAIN [SECONDS]`: a round each second, and a line for each.
    pub(super) async fn xl_dirty_rate(&self, line: &Line<'_>) -> Outcome {
        let [name, ref rounds @ ..] = line.operands[..] else { return Err(line.command.usage()) };
        let rounds = rounds.first().map_or(Some(DEFAULT_ROUNDS), |text| text.parse().ok());
        let rounds = rounds.filter(|rounds| (1..=MOST_ROUNDS).contains(rounds));
        let rounds = rounds.ok_or_else(|| line.wrong(&format!("SECONDS is 1 to {MOST_ROUNDS}")))?;
        let list = self.selected(&[name])?;
        let info = list.first().ok_or_else(|| format!("{name}: no such domain"))?;
        let dom = DomId::new(info.domain);
        let mut bitmap = Vec::new();
        let words = info.max_pages.div_ceil(64) as usize;
        bitmap
            .try_reserve_exact(words)
            .map_err(|_| format!("{name}: no memory for {words} words of bits"))?;
        bitmap.resize(words, 0u64);
        let wrong = |errno| format!("{name}: dirty tracking: {errno}");
        let tracked = Tracked::begin(dom).map_err(wrong)?;
        let measured = measure(&tracked, rounds, &mut bitmap).await;
        let ended = tracked.end();
        measured.and(ended).map_err(wrong)
    }
}

async fn measure(tracked: &Tracked, rounds: u32, bitmap: &mut [u64]) -> pvrt::hypercall::Result<()> {
    let mut since_ns = time::now_ns();
    for round in 1..=rounds {
        time::sleep(ROUND_NS).await;
        let asked_ns = time::now_ns();
        let stats = tracked.clean(bitmap)?;
        let took_ns = time::now_ns() - asked_ns;
        let now_ns = time::now_ns();
        let pages: u64 = bitmap.iter().map(|word| u64::from(word.count_ones())).sum();
        println!("{}", row(round, pages, stats.fault_count, now_ns - since_ns, took_ns));
        since_ns = now_ns;
    }
    Ok(())
}

/// What a round of `ns` nanoseconds found, and how long the hypervisor took to say so.
fn row(round: u32, pages: u64, faults: u32, ns: u64, took_ns: u64) -> String {
    let rate = u128::from(pages) * u128::from(ROUND_NS) / u128::from(ns.max(1));
    let us = took_ns / 1000;
    format!("round {round}: {pages} pages, {rate} a second, {faults} faults; found in {us} us")
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::failure;
    use super::*;

    #[test]
    fn rates_are_of_a_second() {
        assert_eq!(
            row(2, 300, 7, 1_500_000_000, 5_000_999),
            "round 2: 300 pages, 200 a second, 7 faults; found in 5000 us"
        );
        assert_eq!(
            row(1, u64::MAX, 0, 0, 0),
            "round 1: 18446744073709551615 pages, 18446744073709551615000000000 a second, 0 faults; found in 0 us"
        );
    }

    #[test]
    fn seconds_are_looked_at() {
        for wrong in ["0", "3601", "x"] {
            assert!(failure(&format!("xl dirty-rate 9 {wrong}")).contains("SECONDS is 1 to 3600"), "{wrong}");
        }
    }
}
