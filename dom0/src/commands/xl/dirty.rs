//! `xl dirty-rate`: how fast a domain writes its memory, as QEMU's `calc-dirty-rate` tells. Xen has no such command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::hypercall::domctl;
use pvrt::println;
use ring_abi::domctl::{
    XEN_DOMCTL_SHADOW_OP_CLEAN, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, XEN_DOMCTL_SHADOW_OP_OFF,
};
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

use super::Line;
use crate::commands::{Outcome, Shell};

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
        let measured = measure(dom, rounds, &mut bitmap).await;
        let ended = tracked.end();
        measured.and(ended).map_err(wrong)
    }
}

/// A domain that is tracked. Dropped, as by `^C`, it is tracked no more.
struct Tracked(Option<DomId>);

impl Tracked {
    fn begin(dom: DomId) -> pvrt::hypercall::Result<Self> {
        domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, None).map(|_| Self(Some(dom)))
    }

    fn end(mut self) -> pvrt::hypercall::Result<()> {
        let ended = self.0.take().map(|dom| domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_OFF, None));
        ended.map_or(Ok(()), |ended| ended.map(drop))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let Some(dom) = self.0.take() else { return };
        // A domain that is gone is tracked no more.
        if let Err(errno) = domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_OFF, None)
            && errno != Errno::ESRCH
        {
            log::error!("d{dom}: ending dirty tracking: {errno}");
        }
    }
}

async fn measure(dom: DomId, rounds: u32, bitmap: &mut [u64]) -> pvrt::hypercall::Result<()> {
    let mut since_ns = time::now_ns();
    for round in 1..=rounds {
        time::sleep(ROUND_NS).await;
        let stats = domctl::shadow_op(dom, XEN_DOMCTL_SHADOW_OP_CLEAN, Some(bitmap))?;
        let now_ns = time::now_ns();
        let pages: u64 = bitmap.iter().map(|word| u64::from(word.count_ones())).sum();
        println!("{}", row(round, pages, stats.fault_count, now_ns - since_ns));
        since_ns = now_ns;
    }
    Ok(())
}

/// What a round of `ns` nanoseconds found.
fn row(round: u32, pages: u64, faults: u32, ns: u64) -> String {
    let rate = u128::from(pages) * u128::from(ROUND_NS) / u128::from(ns.max(1));
    format!("round {round}: {pages} pages, {rate} a second, {faults} faults")
}

#[cfg(test)]
mod tests {
    use pvrt::executor::block_on_test;
    use pvrt::host::Machine;

    use super::super::super::tests::failure;
    use super::*;

    #[test]
    fn rates_are_of_a_second() {
        assert_eq!(row(2, 300, 7, 1_500_000_000), "round 2: 300 pages, 200 a second, 7 faults");
        assert_eq!(
            row(1, u64::MAX, 0, 0),
            "round 1: 18446744073709551615 pages, 18446744073709551615000000000 a second, 0 faults"
        );
    }

    #[test]
    fn a_command_that_is_interrupted_leaves_nobody_tracked() {
        let machine = Machine::install();
        block_on_test(async {
            machine.has(9);
            let dom = DomId::new(9);
            let tracked = Tracked::begin(dom).unwrap();
            assert!(machine.is_tracked(9));
            tracked.end().unwrap();
            assert!(!machine.is_tracked(9));
            let measuring = async {
                let _tracked = Tracked::begin(dom).unwrap();
                measure(dom, 9, &mut [0]).await
            };
            assert!(time::timeout(ROUND_NS * 2, measuring).await.is_err());
            assert!(!machine.is_tracked(9));
        });
    }

    #[test]
    fn seconds_are_looked_at() {
        for wrong in ["0", "3601", "x"] {
            assert!(failure(&format!("xl dirty-rate 9 {wrong}")).contains("SECONDS is 1 to 3600"), "{wrong}");
        }
    }
}
