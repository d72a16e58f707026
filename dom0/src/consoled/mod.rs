//! The domains' consoles: dom0 always drains each console, keeps the output in a scroll-back, and shows it to
//! attached readers.
//!
//! While no reader is attached to a domain's console, its lines go to dom0's console, as `(dN name) text`. An
//! [`Attachment`] gets the bytes unchanged and may type.
//!
//! Output stays with its time ([`Kept`]), for a while after a domain's end too: `xl console --log` shows it.
//!
//! The budget limits what is printed, prefixes included. Each domain has a token bucket of its own; output beyond it
//! stays in the domain's ring, so that the domain itself waits and nothing is lost. All consoles share the line by
//! turns of one slice ([`share`]). So a poll prints no more than a slice, some 3 KiB, whatever the domain wrote.

mod kept;
#[cfg(test)]
mod kept_tests;
mod look;
mod service;
mod share;
#[cfg(test)]
pub(crate) mod tests;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use pvrt::Account;
use pvrt::event::Port;
use pvrt::grant::map_grants;
use ring_abi::grant::GNTTAB_RESERVED_CONSOLE;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};
use spin::Mutex;

use kept::Ended;
pub use kept::{ENDED_BYTES, ENDED_MAX, Kept, STAMPS_MAX};
pub(crate) use look::{Left, look, show_rest};
pub use service::Attachment;
use service::Console;

/// Bytes of output kept for each domain.
pub const SCROLLBACK_BYTES: usize = 64 * 1024;

/// Why a console cannot be served or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleError {
    /// dom0 serves no console of that domain.
    NoConsole(DomId),
    /// The hypervisor refused the ring's page or the event channel; its reason.
    Refused(String),
}

impl fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoConsole(domain) => write!(f, "domain {domain} has no console"),
            Self::Refused(reason) => write!(f, "console: {reason}"),
        }
    }
}

/// Prints lines of domains without an attached reader: whole lines, the last without its line end. The function
/// returns the number of bytes that it printed.
pub type Printer = dyn Fn(&str) -> usize + Send + Sync;

/// A domain's console, and the domain's name.
#[derive(Clone)]
struct Named {
    console: Arc<Console>,
    name: String,
}

/// The consoles of all domains. Clones are the same consoles.
///
/// The lock guards the map only and is taken before a console's own.
#[derive(Clone)]
pub struct Consoles {
    map: Arc<Mutex<BTreeMap<DomId, Named>>>,
    /// A leaf lock.
    ended: Arc<Mutex<Ended>>,
    print: Arc<Printer>,
    share: Arc<share::Share>,
}

impl Consoles {
    /// No consoles yet. `print` shows a line on dom0's console.
    pub fn new(print: Arc<Printer>) -> Self {
        let ended = Arc::new(Mutex::new(Ended::new()));
        Self { map: Arc::default(), ended, print, share: Arc::new(share::Share::new()) }
    }

    /// Begins to serve the console of `domain`, called `name`: the domain grants its ring by the reserved entry,
    /// and has opened port `remote` for dom0 to bind.
    ///
    /// # Errors
    /// [`ConsoleError::Refused`].
    pub fn add(&self, domain: DomId, name: &str, remote: PortNumber) -> Result<(), ConsoleError> {
        let account = Account::of(domain);
        let console = account.charge(|| self.open(domain, name, remote))?;
        let name = String::from(name);
        self.map.lock().insert(domain, Named { console: console.clone(), name });
        pvrt::spawn_for(&account, async move { console.serve().await });
        Ok(())
    }

    fn open(&self, domain: DomId, name: &str, remote: PortNumber) -> Result<Arc<Console>, ConsoleError> {
        let page = map_grants(domain, &[GrantRef::new(GNTTAB_RESERVED_CONSOLE)], true)
            .map_err(|status| ConsoleError::Refused(format!("mapping its page: {status}")))?;
        let port = Port::bind_interdomain(domain, remote)
            .map_err(|errno| ConsoleError::Refused(format!("binding its port {remote}: {errno}")))?;
        let console = Console::new(page, port, prefix(domain, name), self.print.clone(), self.share.clone())
            .map_err(|error| ConsoleError::Refused(format!("{error}")))?;
        Ok(Arc::new(console))
    }

    /// Takes the domain's last output, releases its page and port, and wakes attached readers, since the console has
    /// ended. Readers can still read the rest. When this returns, a slice of the rest was printed; a task prints what
    /// remains. A domain without a console is no error.
    pub fn remove(&self, domain: DomId) {
        let named = self.map.lock().remove(&domain);
        if let Some(Named { console, name }) = named {
            console.end();
            // A domain without output must not replace the kept output of another.
            if console.has_output() {
                // The kept output of ended domains is dom0's own.
                Account::own().charge(|| {
                    self.ended.lock().keep(&name, |to| console.copy(ENDED_BYTES, to));
                });
            }
        }
    }

    /// Changes a domain's name in the prefix of its further lines. A domain without a console is no error.
    pub fn rename(&self, domain: DomId, name: &str) {
        if let Some(named) = self.map.lock().get_mut(&domain) {
            Account::of(domain).charge(|| named.console.set_prefix(prefix(domain, name)));
            named.name = String::from(name);
        }
    }

    /// The kept output under this name: the last output of the domain of that name that ended last, and the output of
    /// the present domain.
    pub fn kept(&self, name: &str) -> [Option<Kept>; 2] {
        let ended = self.ended.lock().of(name).cloned();
        let live =
            self.map.lock().values().find(|named| named.name == name).map(|named| named.console.clone());
        let live = live.map(|console| {
            let mut kept = Kept::default();
            console.copy(SCROLLBACK_BYTES, &mut kept);
            kept
        });
        [ended, live]
    }

    /// Attaches to the console of `domain`. With `history`, the kept output comes first.
    ///
    /// # Errors
    /// [`ConsoleError::NoConsole`].
    pub fn attach(&self, domain: DomId, history: bool) -> Result<Attachment, ConsoleError> {
        let console = self.map.lock().get(&domain).cloned();
        console.map(|named| Attachment::new(named.console, history)).ok_or(ConsoleError::NoConsole(domain))
    }

    /// The number of consoles served.
    pub fn count(&self) -> usize {
        self.map.lock().len()
    }
}

/// The prefix of each line of a domain.
fn prefix(domain: DomId, name: &str) -> String {
    format!("(d{domain} {name}) ")
}
