//! All cases: the lists of each area's modules.

use crate::case::Case;
use crate::{blkfront, blkif, console, consolefront, hypercall, netfront, netif, xenbus, xenstore};

/// Each area's cases, as the list of one module.
const AREAS: &[&[Case]] = &[
    xenstore::values::CASES,
    xenstore::paths::CASES,
    xenstore::tree::CASES,
    xenstore::perms::CASES,
    xenstore::watches::CASES,
    xenstore::unwatch::CASES,
    xenstore::transactions::CASES,
    xenstore::transaction_ends::CASES,
    xenstore::domains::CASES,
    xenstore::requests::CASES,
    xenstore::framing::CASES,
    xenstore::limits::CASES,
    xenstore::broken::CASES,
    blkif::transfers::CASES,
    blkif::refusals::CASES,
    blkif::indirect::CASES,
    blkif::bulk::CASES,
    blkif::ring::CASES,
    blkif::pages::CASES,
    blkif::grants::CASES,
    blkif::nodes::CASES,
    blkif::disks::CASES,
    blkfront::connect::CASES,
    blkfront::requests::CASES,
    blkfront::ring::CASES,
    blkfront::hostile::CASES,
    netif::nodes::CASES,
    netif::connect::CASES,
    netif::transmit::CASES,
    netif::pieces::CASES,
    netif::extras::CASES,
    netif::offload::CASES,
    netif::ring::CASES,
    netif::receive::CASES,
    netif::multicast::CASES,
    netif::control::CASES,
    netif::control_hostile::CASES,
    netif::control_hostile::ruined::CASES,
    netif::hashes::CASES,
    netif::flows::CASES,
    netif::steering::CASES,
    netif::staging::CASES,
    netif::lent::CASES,
    netif::again::CASES,
    netif::hostile::CASES,
    netfront::connect::CASES,
    netfront::transmit::CASES,
    netfront::receive::CASES,
    netfront::hostile::CASES,
    console::output::CASES,
    console::input::CASES,
    console::ruined::CASES,
    console::nodes::CASES,
    consolefront::output::CASES,
    consolefront::input::CASES,
    consolefront::hostile::CASES,
    xenbus::states::CASES,
    xenbus::keys::CASES,
    xenbus::vanished::CASES,
];

/// Every case, in order of area.
pub fn registry() -> impl Iterator<Item = &'static Case> {
    AREAS.iter().chain(hypercall::AREAS).flat_map(|area| area.iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    fn is_part(part: &str) -> bool {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }

    #[test]
    fn every_case_is_documented_and_named_once() {
        let mut seen = BTreeSet::new();
        for case in registry() {
            assert!(seen.insert(case.id), "{} twice", case.id);
            let parts: alloc::vec::Vec<_> = case.id.split('.').collect();
            assert!(parts.len() >= 2 && parts.iter().all(|part| is_part(part)), "{}", case.id);
            assert!(!case.title.is_empty() && !case.title.ends_with('.'), "{}: title", case.id);
            assert!(case.rule.len() > 20 && case.rule.ends_with('.'), "{}: rule", case.id);
            assert!(!case.source.is_empty(), "{}: source", case.id);
            // The report prints these texts in tables and on single lines.
            for text in [case.title, case.rule, case.source] {
                assert!(!text.contains(['|', '\n']), "{}: {text}", case.id);
            }
        }
    }
}
