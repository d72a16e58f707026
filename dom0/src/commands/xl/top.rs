//! `xl top`: the resources that domains use, as `xentop` prints them in batch mode.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use pvrt::executor::time;
use pvrt::hypercall::sysctl;
use ring_abi::domctl::*;
use ring_abi::sched::SHUTDOWN_CRASH;
use ring_abi::types::DomId;

use super::Line;
use super::list::{domain_list, seconds};
use crate::commands::machine::nanoseconds;
use crate::commands::{Outcome, Shell};
use crate::shell::print::Printer;

/// KiB of a page.
const PAGE_KIB: u64 = 4;
/// The shortest delay, `-d 0` too.
const SHORTEST_NS: u64 = 100_000_000;
/// `xentop`'s delay.
const DELAY_NS: u64 = 3_000_000_000;

impl Shell {
    /// `xl top [-d SECONDS] [-i ROUNDS]`: without rounds, until `^C`.
    pub(super) async fn xl_top(&self, line: &Line<'_>) -> Outcome {
        let read = |name: &str, usual: u64, read: fn(&str) -> Option<u64>| {
            let Some(text) = line.value(name) else { return Ok(usual) };
            read(text).ok_or_else(|| line.wrong(&format!("-{name}: `{text}` is no number")))
        };
        let delay_ns = read("d", DELAY_NS, delay)?;
        let rounds = read("i", u64::MAX, |text| text.parse().ok())?;
        let mut before: BTreeMap<u16, u64> = BTreeMap::new();
        let mut since_ns = time::now_ns();
        for round in 0..=rounds {
            let machine = sysctl::physinfo().map_err(|errno| format!("physinfo: {errno}"))?;
            let list = domain_list()?;
            let now_ns = time::now_ns();
            if round > 0 {
                let mut printer = Printer::default();
                let head = format!(
                    "{:>10} {:<6} {:>10} {:>6} {:>10} {:>6} {:>10} {:>9} {:>5}",
                    "NAME",
                    "STATE",
                    "CPU(sec)",
                    "CPU(%)",
                    "MEM(k)",
                    "MEM(%)",
                    "MAXMEM(k)",
                    "MAXMEM(%)",
                    "VCPUS"
                );
                printer.line(&head).await;
                for info in &list {
                    let ran = info.cpu_time.saturating_sub(before.get(&info.domain).copied().unwrap_or(0));
                    // dom0's memory may have no limit.
                    let (max_kib, max_share) = match info.max_pages.checked_mul(PAGE_KIB) {
                        Some(kib) if info.max_pages <= machine.total_pages => {
                            (format!("{kib}"), tenths(info.max_pages, machine.total_pages))
                        }
                        _ => ("no limit".into(), "n/a".into()),
                    };
                    let text = format!(
                        "{:>10} {:<6} {:>10} {:>6} {:>10} {:>6} {max_kib:>10} {max_share:>9} {:>5}",
                        self.toolstack.name(DomId::new(info.domain)),
                        state(info),
                        seconds(info.cpu_time),
                        tenths(ran, now_ns.saturating_sub(since_ns)),
                        info.tot_pages * PAGE_KIB,
                        tenths(info.tot_pages, machine.total_pages),
                        info.nr_online_vcpus,
                    );
                    printer.line(&text).await;
                }
                printer.end().await;
            }
            before = list.iter().map(|info| (info.domain, info.cpu_time)).collect();
            since_ns = now_ns;
            if round < rounds {
                time::sleep(delay_ns).await;
            }
        }
        Ok(())
    }
}

/// Reads a delay. A shorter delay than the least counts as the least, as with `xentop`.
fn delay(text: &str) -> Option<u64> {
    nanoseconds(text).map(|ns| ns.max(SHORTEST_NS))
}

/// A part of a whole in percent, with one decimal.
fn tenths(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// `d`ying, `s`hut down, `b`locked, `c`rashed, `p`aused, `r`unning.
fn state(info: &XenDomctlGetdomaininfo) -> String {
    let has = |bit: u32| info.flags & bit != 0;
    let crashed = has(XEN_DOMINF_SHUTDOWN) && info.shutdown_code() == SHUTDOWN_CRASH;
    let letters = [
        (has(XEN_DOMINF_DYING), 'd'),
        (has(XEN_DOMINF_SHUTDOWN), 's'),
        (has(XEN_DOMINF_BLOCKED), 'b'),
        (crashed, 'c'),
        (has(XEN_DOMINF_PAUSED), 'p'),
        (has(XEN_DOMINF_RUNNING), 'r'),
    ];
    letters.into_iter().map(|(is, letter)| if is { letter } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_delay_leaves_time_for_others() {
        assert_eq!(delay("0"), Some(SHORTEST_NS));
        assert_eq!(delay("0.5"), Some(500_000_000));
        assert_eq!(delay("-1"), None);
    }

    #[test]
    fn shares_have_one_decimal() {
        assert_eq!(tenths(0, 0), "0.0");
        assert_eq!(tenths(1, 3), "33.3");
        assert_eq!(tenths(u64::MAX, u64::MAX), "100.0");
        assert_eq!(tenths(3, 2), "150.0");
    }

    #[test]
    fn states_as_xentop_prints_them() {
        let info = |flags| XenDomctlGetdomaininfo { flags, ..Default::default() };
        assert_eq!(state(&info(XEN_DOMINF_RUNNING)), "-----r");
        assert_eq!(state(&info(XEN_DOMINF_BLOCKED)), "--b---");
        let crashed = XEN_DOMINF_SHUTDOWN | SHUTDOWN_CRASH << XEN_DOMINF_SHUTDOWNSHIFT;
        assert_eq!(state(&info(crashed)), "-s-c--");
    }
}
