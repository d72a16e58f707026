//! Sending a domain while it runs: round after round, each of what was written in the one before, until little is left.

use alloc::format;
use alloc::string::String;

use migration::{Sink, Writer};
use pvrt::executor::time;
use ring_abi::types::PAGE_SIZE;

use super::super::{Domain, Toolstack};
use super::send::Sender;
use super::suspend::Suspended;
use super::tracked::Tracked;

/// When a domain that is sent while it runs is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goals {
    /// Once the pages that are left are sent in so many nanoseconds.
    pub downtime_ns: u64,
    /// After so many rounds, whatever is left.
    pub rounds: u32,
}

/// As much as this is sent of a domain that writes faster than the wire carries, in multiples of its memory.
const MOST_SENT: u64 = 3;

/// A round that is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// From 1 on. 0: the domain was suspended.
    pub number: u32,
    /// Pages that were sent.
    pub pages: u64,
    /// Bytes that were sent.
    pub bytes: u64,
    /// How long that took.
    pub ns: u64,
    /// Pages that the domain has written meanwhile.
    pub left: u64,
    /// Faults at first writes meanwhile.
    pub faults: u32,
}

/// Whether the domain is stopped now, or another round comes.
fn is_last(goals: Goals, round: &Round, sent: u64, all: u64) -> bool {
    if round.left == 0 || round.number >= goals.rounds || sent >= all.saturating_mul(MOST_SENT) {
        return true;
    }
    let left = u128::from(round.left) * PAGE_SIZE as u128 * u128::from(round.ns);
    left <= u128::from(goals.downtime_ns) * u128::from(round.bytes)
}

/// A domain that is suspended, and of which all is in the stream.
pub(super) struct Sent<S> {
    pub(super) writer: Writer<S>,
    pub(super) suspended: Suspended,
    /// Since when the domain is suspended.
    pub(super) since_ns: u64,
    /// To end tracking takes time, which the domain need not wait for.
    pub(super) tracked: Tracked,
}

impl Toolstack {
    /// Sends a running domain, and suspends it at the end. `told` hears of each round. After a failure the domain goes on, and if the
    /// future is dropped.
    ///
    /// # Errors
    /// In words.
    pub(super) async fn send_live<S: Sink + Send>(
        &self,
        domain: &Domain,
        writer: Writer<S>,
        goals: Goals,
        told: impl Fn(&Round),
    ) -> Result<Sent<S>, String> {
        let wrong = |errno| format!("dirty tracking: {errno}");
        let tracked = Tracked::begin(domain.id).map_err(wrong)?;
        let mut sender = Sender::begin(domain, writer).await?;
        let mut due = sender.all()?;
        let all = due.count();
        let (mut written, mut sent) = (sender.none()?, 0);
        for number in 1.. {
            let (begun_ns, begun_bytes) = (time::now_ns(), sender.bytes());
            let mut left = sender.none()?;
            let pages = sender.pages(&due, Some(&mut left)).await?;
            sent += pages;
            let (ns, bytes) = (time::now_ns() - begun_ns, sender.bytes() - begun_bytes);
            let faults = tracked.clean(written.words()).map_err(wrong)?.fault_count;
            sender.look_again(&written, &mut left).await?;
            left.add(&written);
            let round = Round { number, pages, bytes, ns, left: left.count(), faults };
            told(&round);
            due = left;
            if is_last(goals, &round, sent, all) {
                break;
            }
        }
        let suspended = self.suspend(domain).await?;
        let since_ns = time::now_ns();
        let faults = tracked.clean(written.words()).map_err(wrong)?.fault_count;
        sender.look_again(&written, &mut due).await?;
        due.add(&written);
        sender.add_rings(&mut due)?;
        let begun_bytes = sender.bytes();
        let pages = sender.pages(&due, None).await?;
        let (ns, bytes) = (time::now_ns() - since_ns, sender.bytes() - begun_bytes);
        told(&Round { number: 0, pages, bytes, ns, left: 0, faults });
        let writer = sender.state().await?;
        Ok(Sent { writer, suspended, since_ns, tracked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_domain_is_stopped_once_little_is_left() {
        let goals = Goals { downtime_ns: 300 * MS, rounds: 30 };
        // 1000 pages took a second.
        let round =
            |number, left| Round { number, pages: 1000, bytes: 1000 << 12, ns: 1000 * MS, left, faults: 0 };
        assert!(!is_last(goals, &round(1, 301), 1000, 1000));
        assert!(is_last(goals, &round(1, 300), 1000, 1000));
        assert!(is_last(goals, &round(1, 0), 1000, 1000));
        assert!(is_last(Goals { downtime_ns: 0, ..goals }, &round(1, 0), 1000, 1000));
        assert!(!is_last(Goals { downtime_ns: 0, ..goals }, &round(29, 1), 1000, 1000));
        assert!(is_last(goals, &round(30, 1000), 1000, 1000));
        assert!(!is_last(goals, &round(2, 1000), 2999, 1000));
        assert!(is_last(goals, &round(2, 1000), 3000, 1000));
        // Nothing could be sent at all, since the guest changed everything.
        assert!(!is_last(goals, &Round { bytes: 0, ..round(2, 1000) }, 0, 1000));
    }
}
