//! What dom0 keeps for domains: each domain's budget, and the end of a domain that goes over it.

use backends::blk::{MAX_REQUESTS, MAX_SEGMENTS_IN_FLIGHT};
use pvrt::account::{Account, Shortage, overdrawn};
use pvrt::executor::{Either, select, time};
use pvrt::hypercall::domctl;
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

use super::Toolstack;
use super::devices::Kind;
use crate::blkqueue;
use crate::config::DomainConfig;
use crate::netback::BYTES_PER_VIF;
use crate::virtio::client_bytes;
use crate::xenstore::Quotas;

/// What dom0 may keep for a domain: its xenstore nodes, watches, transactions and messages, its console and the tasks that
/// serve it. In bytes.
pub const DOMAIN_BYTES: usize = 1536 << 10;
/// The bytes for each disk of a domain that dom0 serves: the block engine's requests, the pages of indirect requests,
/// and what the disk's driver keeps for the vbd as a client.
pub const DISK_BYTES: usize = 384 << 10;
/// And for each of its network interfaces that dom0 serves.
pub const VIF_BYTES: usize = 192 << 10;
/// The store's part is bounded by quotas; the rest has room for the console's scrollback and the tasks.
const _: () =
    assert!(DOMAIN_BYTES >= Quotas::XEN.most_kept() + crate::consoled::SCROLLBACK_BYTES + (64 << 10));
const _: () =
    assert!(DISK_BYTES >= crate::blkback::BYTES_PER_VBD + DRIVER_BYTES + Quotas::XEN.most_for_client());
const _: () = assert!(VIF_BYTES >= BYTES_PER_VIF + Quotas::XEN.most_for_client());
/// What a disk's driver keeps for a vbd at most, whichever driver the disk has.
const DRIVER_BYTES: usize = {
    let (virtio, others) =
        (client_bytes(MAX_REQUESTS, MAX_SEGMENTS_IN_FLIGHT), blkqueue::client_bytes(MAX_REQUESTS));
    if virtio > others { virtio } else { others }
};
/// What building it may take beyond, while it is built: a decompressor's window, the list of its memory. Nobody promised
/// that: if it cannot be had, building fails.
pub const BUILD_BYTES: usize = 136 << 20;
const _: () = assert!(BUILD_BYTES as u64 >= crate::builder::payload::MAX_WINDOW_BYTES + (4 << 20));

/// How long dom0 may keep something for a domain after its end, and how often the toolstack checks. An administrator
/// at the domain's console may still be reading.
const CLOSE_NS: u64 = 10_000_000_000;
const CLOSE_ROUND_NS: u64 = 20_000_000;

/// The budget of a domain, in bytes.
pub(super) fn of(config: &DomainConfig) -> usize {
    // At most 16 of each.
    DOMAIN_BYTES + config.disks.len() * DISK_BYTES + config.vifs.len() * VIF_BYTES
}

/// Claims the budget of a domain that is to be made, and allows what building the domain may take.
pub(super) fn claim(config: &DomainConfig) -> Result<Account, Shortage> {
    let account = Account::claim(of(config))?;
    account.allow(BUILD_BYTES);
    Ok(account)
}

/// What a device of a kind needs.
fn device_bytes(kind: Kind) -> usize {
    match kind {
        Kind::Disk => DISK_BYTES,
        Kind::Vif => VIF_BYTES,
    }
}

/// What one device needs, claimed for a domain. Dropping it gives that back.
#[must_use]
pub(super) struct Raised(Option<(Account, Kind)>);

impl Raised {
    /// The device is the domain's now, and what the device needs with it.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some((account, kind)) = &self.0 {
            account.lower_budget(device_bytes(*kind));
        }
    }
}

/// Claims what one device more needs.
pub(super) fn raise(id: DomId, kind: Kind) -> Result<Raised, Shortage> {
    let account = Account::of(id);
    account.raise_budget(device_bytes(kind))?;
    Ok(Raised(Some((account, kind))))
}

/// Gives back what one device needed.
pub(super) fn lower(id: DomId, kind: Kind) {
    Account::of(id).lower_budget(device_bytes(kind));
}

impl Toolstack {
    /// Ends domains that go over their budget, and logs an error if dom0 keeps something for a domain long after the
    /// domain's end. Runs for ever.
    pub async fn watch_budgets(self) {
        loop {
            match select(overdrawn(), self.closed()).await {
                Either::Left(account) => self.stop(account),
                Either::Right(()) => {}
            }
        }
    }

    /// Ends the domain of an overdrawn account.
    fn stop(&self, account: Account) {
        // A paused domain makes dom0 keep nothing more, so the account's tasks may run again, as the domain's end
        // needs. If the domain is over already, another domain may have its number.
        let id = account.domain().filter(|id| Account::of(*id) == account);
        if let Some(id) = id
            && let Err(errno) = domctl::pause(id)
            && errno != Errno::ESRCH
        {
            log::warn!("d{id}: pausing it: {errno}");
        }
        account.thaw();
        // If the domain is still being made, the task that makes it now checks the account.
        self.0.changed.notify_all();
        let Some(domain) = id.and_then(|id| self.domain(id)) else { return };
        let toolstack = self.clone();
        pvrt::spawn(async move {
            if let Err(error) = toolstack.destroy(&domain).await {
                log::error!("{}: over its budget: {error}", domain.name);
            }
        });
    }

    /// Closes the account of a domain that is over: dom0 must soon keep nothing for that domain.
    pub(super) fn close_account(&self, account: Account) {
        account.retire();
        if account.figures().is_some() {
            self.0.closing.lock().push((account, time::now_ns() + CLOSE_NS));
            self.0.closed.notify_one();
        }
    }

    /// Checks the accounts that are being closed, until all are gone.
    async fn closed(&self) {
        loop {
            let now = time::now_ns();
            self.0.closing.lock().retain(|(account, until)| {
                let Some(figures) = account.figures() else { return false };
                let (used, tasks) = (figures.used, figures.tasks);
                if used == 0 && tasks == 0 {
                    return false;
                }
                if now >= *until {
                    log::error!("{account}: {used} bytes and {tasks} tasks are left of it after its end");
                }
                now < *until
            });
            if self.0.closing.lock().is_empty() {
                self.0.closed.notified().await;
            } else {
                time::sleep(CLOSE_ROUND_NS).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
