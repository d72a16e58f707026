//! Domains from their configuration to their end.
//!
//! [`Toolstack`] knows every domain that it made: [`Toolstack::create`] builds one and puts its nodes into the store,
//! [`Toolstack::serve`] gets the hypervisor's event when a domain has ended, and does what the domain's configuration
//! says.
#![forbid(unsafe_code)]

pub mod budget;
mod claims;
mod control;
mod create;
mod death;
mod devices;
mod disks;
mod making;
mod nodes;
mod pools;
mod saving;
mod uuid;
mod vifs;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::Account;
use pvrt::executor::sync::{Mutex as AsyncMutex, Notify};
use ring_abi::sched::*;
use ring_abi::types::DomId;
use spin::Mutex;

use crate::blkdev::Disks;
use crate::bundle::Bundle;
use crate::config::DomainConfig;
use crate::consoled::Consoles;
use crate::netback::Network;
use crate::shell::Terminal;
use crate::xenstore::Xenstore;

pub use create::CreateError;
pub use devices::{DeviceError, Kind};
pub use disks::AttachedDisk;
#[cfg(test)]
pub(crate) use disks::tests::start as start_for_tests;
pub use pools::{cpu_list, cpu_numbers, scheduler_name, scheduler_number};
pub use saving::{After, Arrival, Goals, Moved, Round, Tracked};
pub use uuid::text as uuid_text;
pub use vifs::AttachedVif;

/// Reads a domain's number: digits alone, since `+1` may be a name.
pub fn domain_number(text: &str) -> Option<DomId> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().map(DomId::new)
}

/// How a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The domain shut down, by itself or on request: its reason, `SHUTDOWN_*`.
    ShutDown(u32),
    /// Another toolstack or tool destroyed the domain.
    Destroyed,
}

impl End {
    /// Whether the domain powered off.
    pub fn is_success(self) -> bool {
        self == Self::ShutDown(SHUTDOWN_POWEROFF)
    }

    /// What the domain did, in words.
    pub fn text(self) -> String {
        match self {
            Self::ShutDown(SHUTDOWN_POWEROFF) => "powered off".into(),
            Self::ShutDown(SHUTDOWN_REBOOT) => "rebooted".into(),
            Self::ShutDown(SHUTDOWN_SUSPEND) => "suspended".into(),
            Self::ShutDown(SHUTDOWN_CRASH) => "crashed".into(),
            Self::ShutDown(SHUTDOWN_WATCHDOG) => "was stopped by its watchdog".into(),
            Self::ShutDown(SHUTDOWN_SOFT_RESET) => "asked for a soft reset".into(),
            Self::ShutDown(other) => format!("shut down for reason {other}"),
            Self::Destroyed => "was destroyed".into(),
        }
    }
}

/// The fate of a domain: whether and how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// How the domain ended.
    pub end: Option<End>,
    /// The domain is over: gone, or kept dead; and if it was to start again, its successor has started.
    pub over: bool,
    /// The domain that took its place.
    pub successor: Option<DomId>,
    /// The domain is to be destroyed and must not start again.
    pub unwanted: bool,
    /// A task is removing the dead domain that was kept.
    pub leaving: bool,
    /// How many runs in a row before this one were too short.
    pub short_runs: u32,
}

/// A domain that the toolstack made.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The domain's number.
    pub id: DomId,
    /// The domain's name.
    pub name: String,
    /// The configuration that the domain was made from.
    pub config: Arc<DomainConfig>,
    /// The domain's UUID.
    pub uuid: [u8; 16],
    /// When the domain was made: system time in nanoseconds.
    pub started_ns: u64,
    /// The domain's fate.
    pub fate: Arc<Mutex<Fate>>,
    /// The domain is dead and kept, and another has its name and its disks now.
    replaced: bool,
    /// A task handles the domain's end.
    handled: bool,
}

/// The toolstack. Clones are the same one.
#[derive(Clone)]
pub struct Toolstack(Arc<Shared>);

struct Shared {
    store: Xenstore,
    disks: Arc<Disks>,
    network: Arc<Network>,
    consoles: Consoles,
    bundle: Bundle,
    terminal: Terminal,
    /// Guards the map only; no call is made while it is held.
    domains: Mutex<BTreeMap<DomId, Domain>>,
    /// Something in a [`Fate`] has changed.
    changed: Notify,
    /// The accounts of domains that are over, each with the time when it must be empty. A leaf lock, but for the
    /// executor's: the last handle of an account goes here.
    closing: Mutex<Vec<(Account, u64)>>,
    /// An account was added to `closing`.
    closed: Notify,
    /// Names of domains that left the list while the hypervisor still has them, since other domains map their pages.
    /// A leaf lock.
    left: Mutex<Vec<(DomId, String)>>,
    /// The claims of domains that are being made. A leaf lock, as `domains` is.
    claims: Mutex<claims::Claims>,
    /// The domains that were asked to suspend. A leaf lock.
    saving: Mutex<saving::Saving>,
    /// Only one domain is populated at a time: if there is memory for one of two, one of them must get it.
    populating: AsyncMutex<()>,
}

impl Toolstack {
    /// A toolstack that has made no domain yet.
    pub fn new(
        store: Xenstore,
        disks: Arc<Disks>,
        network: Arc<Network>,
        bundle: Bundle,
        terminal: Terminal,
    ) -> Self {
        let printer = terminal.clone();
        // What the screen allocates is dom0's own, whichever domain's line it shows.
        let print = move |text: &str| Account::own().charge(|| printer.print_lines(text));
        let consoles = Consoles::new(Arc::new(print));
        nodes::write_own(&store);
        Self(Arc::new(Shared {
            store,
            disks,
            network,
            consoles,
            bundle,
            terminal,
            domains: Mutex::default(),
            changed: Notify::new(),
            closing: Mutex::default(),
            closed: Notify::new(),
            left: Mutex::default(),
            claims: Mutex::default(),
            saving: Mutex::default(),
            populating: AsyncMutex::new(()),
        }))
    }

    /// The consoles of all domains.
    pub fn consoles(&self) -> &Consoles {
        &self.0.consoles
    }

    /// All domains, in order of their numbers; dom0 is none of them.
    pub fn domains(&self) -> Vec<Domain> {
        self.0.domains.lock().values().cloned().collect()
    }

    /// The domain of this number.
    pub fn domain(&self, id: DomId) -> Option<Domain> {
        self.0.domains.lock().get(&id).cloned()
    }

    /// The domain that has this name or number.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn find(&self, text: &str) -> Result<Domain, String> {
        if matches!(text, "0" | nodes::OWN_NAME) {
            return Err(format!("{text}: that is dom0 itself; only other domains can be meant here"));
        }
        let domains = self.0.domains.lock();
        let named = domains.values().find(|domain| domain.name == text);
        let numbered = || domain_number(text).and_then(|id| domains.get(&id));
        if let Some(found) = named.or_else(numbered) {
            return Ok(found.clone());
        }
        drop(domains);
        Err(match self.open_making(text) {
            Some(_) => format!("{text}: the domain is still being made; `xl destroy` gives it up"),
            None => format!("{text}: no such domain"),
        })
    }

    /// The number of the domain that has this name or number, dom0 included.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn number(&self, text: &str) -> Result<DomId, String> {
        match text {
            "0" | nodes::OWN_NAME => Ok(DomId::DOM0),
            _ => match self.open_making(text).and_then(|open| open.making.id()) {
                Some(id) => Ok(id),
                None => self.find(text).map(|domain| domain.id),
            },
        }
    }

    /// The name of domain `id`.
    pub fn name(&self, id: DomId) -> String {
        // In the hypervisor and in nobody's hands: made by another toolstack.
        self.known_name(id).unwrap_or_else(|| "(null)".into())
    }

    /// What domain `id` is called, if somebody here knows it: of one that is being made, too, and of one that is over
    /// while the hypervisor still has it.
    pub fn known_name(&self, id: DomId) -> Option<String> {
        match self.domain(id) {
            Some(domain) => Some(domain.name),
            None if id == DomId::DOM0 => Some(nodes::OWN_NAME.to_string()),
            None => self.name_in_making(id).or_else(|| self.name_left(id)),
        }
    }

    /// The number of the domain of this name, dom0 included, and of one that is being made.
    ///
    /// # Errors
    /// There is none, or it has no number yet.
    pub fn number_of_name(&self, name: &str) -> Result<DomId, String> {
        if name == nodes::OWN_NAME {
            return Ok(DomId::DOM0);
        }
        if let Some(named) = self.domains().into_iter().find(|domain| domain.name == name) {
            return Ok(named.id);
        }
        match self.making_of_name(name) {
            Some(making) => making.id().ok_or_else(|| format!("{name}: the domain has no number yet")),
            None => Err(format!("{name}: no such domain")),
        }
    }

    /// Keeps the name of a domain that leaves the list, while the hypervisor still has the domain.
    fn leave(&self, id: DomId, name: &str) {
        let mut left = self.0.left.lock();
        left.retain(|(other, _)| *other != id && death::exists(*other));
        if death::exists(id) {
            left.push((id, name.to_string()));
        }
    }

    /// The name of a domain that has left the list, if the hypervisor still has it.
    fn name_left(&self, id: DomId) -> Option<String> {
        let mut left = self.0.left.lock();
        left.retain(|(other, _)| death::exists(*other));
        left.iter().find(|(other, _)| *other == id).map(|(_, name)| name.clone())
    }

    /// Waits until `done` is true, and checks `done` again whenever the fate of a domain changes.
    pub async fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.0.changed.notified().await;
        }
    }

    /// Waits until a domain is over; returns how it ended, and its successor.
    pub async fn wait_over(&self, domain: &Domain) -> Fate {
        self.wait_until(|_| domain.fate.lock().over).await;
        *domain.fate.lock()
    }

    /// Whether the domain is still there: running, ending, or kept. Another domain may have its number by
    /// now.
    pub fn is_there(&self, domain: &Domain) -> bool {
        self.domain(domain.id).is_some_and(|now| Arc::ptr_eq(&now.fate, &domain.fate))
    }

    /// Whether the domain is there, and no task is ending it.
    fn is_wanted(&self, domain: &Domain) -> bool {
        self.domain(domain.id).is_some_and(|now| Arc::ptr_eq(&now.fate, &domain.fate) && !now.handled)
    }

    fn set_fate(&self, domain: &Domain, change: impl FnOnce(&mut Fate)) {
        change(&mut domain.fate.lock());
        self.0.changed.notify_all();
    }

    /// Claims the right to remove a domain that is over and kept; `false`: the domain is not over, or another task
    /// removes it.
    fn claim_kept(&self, domain: &Domain) -> bool {
        let mut fate = domain.fate.lock();
        fate.over && !core::mem::replace(&mut fate.leaving, true)
    }

    /// Claims the right to end a domain; `false`: another task has it.
    fn claim(&self, id: DomId) -> bool {
        let mut domains = self.0.domains.lock();
        domains.get_mut(&id).is_some_and(|domain| !core::mem::replace(&mut domain.handled, true))
    }
}
