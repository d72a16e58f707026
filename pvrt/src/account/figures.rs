//! What there is to say about accounts.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use ring_abi::types::DomId;

use super::RECORDS;
use super::record::{NOBODY, Record};

/// The figures of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The domain that the account is or was for.
    pub domain: Option<DomId>,
    /// Whether the account's domain is there; if not, the account has only objects left.
    pub open: bool,
    /// Bytes that were promised to the account.
    pub budget: usize,
    /// Bytes that the account uses.
    pub used: usize,
    /// The most that the account used since its budget last became smaller, or its allowance changed.
    pub peak: usize,
    /// Number of tasks that belong to the account.
    pub tasks: usize,
}

/// The figures of all accounts but the kernel's own that have a domain, bytes or tasks.
pub fn all() -> Vec<Figures> {
    let records = RECORDS.with(|records| records.lock().clone());
    records
        .into_iter()
        .map(figures)
        .filter(|figures| figures.open || figures.used > 0 || figures.tasks > 0)
        .collect()
}

/// Number of places for accounts. A place is one object of the heap, which the kernel keeps for the next account: there
/// are as many places as there ever were accounts at one time.
pub fn places() -> usize {
    RECORDS.with(|records| records.lock().len())
}

pub(super) fn figures(record: &'static Record) -> Figures {
    Figures {
        domain: u16::try_from(record.named.load(Relaxed)).ok().map(DomId::new),
        open: record.domain.load(Relaxed) != NOBODY,
        budget: record.budget.load(Relaxed),
        used: record.used.load(Relaxed),
        peak: record.peak.load(Relaxed),
        tasks: record.tasks.load(Relaxed),
    }
}
