//! The end of domains.

#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::future::Future;
use core::pin::Pin;

use pvrt::Account;
use pvrt::event::Port;
use pvrt::executor::{select, settle, time};
use pvrt::hypercall::domctl;
use ring_abi::domctl::{XEN_DOMINF_DYING, XEN_DOMINF_SHUTDOWN};
use ring_abi::errno::Errno;
use ring_abi::evtchn::VIRQ_DOM_EXC;
use ring_abi::sched::*;
use ring_abi::types::DomId;

use super::create::CreateError;
use super::{Domain, End, Toolstack, nodes, uuid};
use crate::builder::destroy;
use crate::config::{Action, DomainConfig};
use crate::xenstore::{Nodes, XsError};

/// How long backends may take to let go of a dead domain's device.
const RELEASE_NS: u64 = 10_000_000_000;
/// How long to wait until nothing refers to a dead domain's memory: the number of times that the hypervisor is
/// asked, and the time between.
const GONE_ROUNDS: u32 = 200;
const GONE_ROUND_NS: u64 = 1_000_000;
/// The time between further questions, when the domain is to start again.
const HELD_ROUND_NS: u64 = 1_000_000_000;

/// A run that is shorter than this counts as too short: a domain that always ends at once must not use up the
/// machine's time, nor its memory when dead domains are kept.
const SHORT_RUN_NS: u64 = 10_000_000_000;
/// After a short run a domain starts again no sooner than this time after its last start. The time doubles with each
/// further short run, up to the longest. (Xen's `xl` sleeps for two seconds before each restart; its forerunner
/// refused a domain that was "restarting too fast".)
const RESTART_NS: u64 = 1_000_000_000;
const LONGEST_DOUBLINGS: u32 = 5;

/// When a domain may start again that started at `started_ns`, ended at `now_ns`, and had `short_runs` short runs in
/// a row before; also the new number of short runs.
fn next_start(started_ns: u64, now_ns: u64, short_runs: u32) -> (u64, u32) {
    if now_ns.saturating_sub(started_ns) >= SHORT_RUN_NS {
        return (now_ns, 0);
    }
    let doublings = short_runs.min(LONGEST_DOUBLINGS);
    (started_ns.saturating_add(RESTART_NS << doublings), doublings + 1)
}

impl Toolstack {
    /// Handles the ends of domains, for ever.
    pub async fn serve(self) {
        let port = match Port::bind_virq(VIRQ_DOM_EXC) {
            Ok(port) => port,
            Err(errno) => return log::error!("VIRQ_DOM_EXC: {errno}: ends of domains will not be seen"),
        };
        loop {
            for domain in self.domains() {
                if domain.handled {
                    continue;
                }
                if let Some(end) = end_of(domain.id)
                    && !self.is_of_a_save(&domain)
                    && self.claim(domain.id)
                {
                    let toolstack = self.clone();
                    pvrt::spawn(async move { toolstack.finish(domain, end).await });
                }
            }
            port.wait().await;
        }
    }

    /// Destroys a domain at once. When this returns, the domain is gone, and so is any successor that started
    /// meanwhile.
    ///
    /// # Errors
    /// None at present; the function logs what it cannot remove.
    pub async fn destroy(&self, domain: &Domain) -> Result<(), String> {
        let mut waited = false;
        while self.is_there(domain) && !self.claim(domain.id) && !self.claim_kept(domain) {
            // Another task handles the domain's end, and may keep the dead domain or start it again.
            waited = true;
            self.set_fate(domain, |fate| fate.unwanted = true);
            self.wait_until(|all| {
                let fate = *domain.fate.lock();
                fate.over && (!fate.leaving || !all.is_there(domain))
            })
            .await;
        }
        if self.is_there(domain) {
            self.tear_down(domain).await;
            self.set_fate(domain, |fate| {
                fate.end = fate.end.or(Some(End::Destroyed));
                fate.over = true;
            });
        }
        let successor = domain.fate.lock().successor.filter(|_| waited);
        match successor.and_then(|id| self.domain(id)) {
            Some(successor) => Box::pin(self.destroy(&successor)).await,
            None => Ok(()),
        }
    }

    /// Does what the configuration says of such an end.
    pub(super) async fn finish(&self, mut domain: Domain, end: End) {
        self.0.saving.lock().remove(&domain.id);
        self.0.store.domain_shut_down(domain.id.raw());
        domain.fate.lock().end = Some(end);
        self.0.changed.notify_all();
        if !end.is_success() && end != End::ShutDown(SHUTDOWN_REBOOT) {
            self.0.terminal.print_line(&format!("d{} {} {}", domain.id, domain.name, end.text()));
        }
        let mut action = action(&domain, end);
        let mut short_runs = 0;
        if matches!(action, Action::Restart | Action::RenameRestart) {
            short_runs = self.pause_restart(&domain).await;
            domain = self.as_it_is(&domain);
            if domain.fate.lock().unwanted {
                action = Action::Destroy;
            }
        }
        match action {
            Action::Destroy | Action::SoftReset => self.tear_down(&domain).await,
            // The backends let go first: requests of the dead domain must not be under way when another domain has
            // the disk.
            Action::Preserve => self.release_devices(domain.id).await,
            Action::Restart => {
                domain = self.tear_down_wholly(&domain, true).await;
                if !domain.fate.lock().unwanted {
                    self.restart(&domain, short_runs).await;
                }
            }
            Action::RenameRestart => {
                self.make_way(&domain);
                self.release_devices(domain.id).await;
                self.restart(&domain, short_runs).await;
            }
        }
        self.set_fate(&domain, |fate| fate.over = true);
    }

    /// A domain with the name and the configuration that it has now: both change while it is made and while it ends, too.
    pub(super) fn as_it_is(&self, domain: &Domain) -> Domain {
        let now = self.domain(domain.id).filter(|now| Arc::ptr_eq(&now.fate, &domain.fate));
        now.unwrap_or_else(|| domain.clone())
    }

    /// Waits until a domain that has ended may start again, or is to be destroyed; how many runs of it in a row were
    /// too short.
    async fn pause_restart(&self, domain: &Domain) -> u32 {
        let (now_ns, before) = (time::now_ns(), domain.fate.lock().short_runs);
        let (at_ns, short_runs) = next_start(domain.started_ns, now_ns, before);
        if at_ns > now_ns {
            if before > 0 {
                let (ran, pause) = (tenths(now_ns - domain.started_ns), tenths(at_ns - now_ns));
                self.0.terminal.print_line(&format!(
                    "d{} {} restarting too fast ({ran} seconds since the last restart): it waits for {pause} seconds",
                    domain.id, domain.name
                ));
            }
            select(time::sleep_until(at_ns), self.wait_until(|_| domain.fate.lock().unwanted)).await;
        }
        short_runs
    }

    /// Makes a domain again, from its configuration. Other domains may have taken its memory since its end: if there
    /// is too little, the domain keeps its name and its disks, and waits as after a short run. `None`: the domain was
    /// given up meanwhile.
    ///
    /// # Errors
    /// The domain cannot be made, for another reason.
    async fn make_again(
        &self,
        domain: &Domain,
        config: Arc<DomainConfig>,
        mut tries: u32,
    ) -> Result<Option<Domain>, CreateError> {
        loop {
            let error = match self.create(config.clone()).await {
                Err(error) if error.is_shortage() => error,
                result => return result.map(Some),
            };
            // There is no await between, so what the domain had claimed while it was made is still free.
            let claim = self.claim_again(&config, domain)?;
            let pause_ns = RESTART_NS << tries.min(LONGEST_DOUBLINGS);
            tries = tries.saturating_add(1);
            self.0.terminal.print_line(&format!(
                "{}: starting it again: {error}: it waits for {} seconds",
                config.name,
                tenths(pause_ns)
            ));
            let unwanted = || domain.fate.lock().unwanted;
            select(time::sleep(pause_ns), self.wait_until(|_| unwanted())).await;
            drop(claim);
            if unwanted() {
                return Ok(None);
            }
        }
    }

    /// Starts a domain again, from its configuration.
    fn restart<'a>(
        &'a self,
        domain: &'a Domain,
        short_runs: u32,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let mut config = (*domain.config).clone();
            // The UUID stays, since for the user this is the same machine.
            config.uuid = Some(domain.uuid);
            config.name = domain.name.clone();
            let again = match self.make_again(domain, Arc::new(config), short_runs).await {
                Ok(Some(again)) => again,
                Ok(None) => return,
                Err(error) => {
                    return self
                        .0
                        .terminal
                        .print_line(&format!("{}: starting it again: {error}", domain.name));
                }
            };
            again.fate.lock().short_runs = short_runs;
            domain.fate.lock().successor = Some(again.id);
            if let Err(error) = self.unpause(&again) {
                self.0.terminal.print_line(&format!("starting it again: {error}"));
            }
        })
    }

    /// Gives a dead domain that is kept another name and UUID, since the successor takes the old ones.
    fn make_way(&self, domain: &Domain) {
        let uuid = uuid::fresh();
        let names = (1u64..).map(|number| format!("{}-{number}", domain.name));
        let name = names.into_iter().find(|name| self.is_free_name(name)).unwrap_or_default();
        if let Some(domain) = self.0.domains.lock().get_mut(&domain.id) {
            domain.name.clone_from(&name);
            domain.uuid = uuid;
            domain.replaced = true;
        }
        self.follow_name(domain, &name);
        let (from, to) = (uuid::text(&domain.uuid), uuid::text(&uuid));
        if let Err(error) = nodes::move_away(&self.0.store, domain.id, &from, &to, &name) {
            log::error!("{name}: its nodes: {}", error.name());
        }
        if let Err(errno) = domctl::set_handle(domain.id, uuid) {
            log::error!("{name}: its UUID: {errno}");
        }
    }

    /// Removes everything of a domain. The caller must have claimed the domain's end.
    pub(super) async fn tear_down(&self, domain: &Domain) {
        self.tear_down_wholly(domain, false).await;
    }

    /// As [`Toolstack::tear_down`]. With `gone`, the domain stays in the list, and its memory in its account, until no
    /// other domain maps a page of it, or nobody wants it to start again: else each life of it could leave pages behind
    /// that no account has. Gives the domain as it was at last.
    async fn tear_down_wholly(&self, domain: &Domain, gone: bool) -> Domain {
        let id = domain.id;
        let account = Account::of(id);
        // The pause stops the domain's writes to its rings. A domain that shut down has no running vCPU
        // anyway.
        if let Err(errno) = domctl::pause(id)
            && errno != Errno::ESRCH
        {
            log::warn!("d{id}: pausing it: {errno}");
        }
        self.release_devices(id).await;
        self.0.consoles.remove(id);
        self.0.store.domain_destroyed(id.raw());
        nodes::remove(&self.0.store, id, &uuid::text(&domain.uuid));
        // The store must be done before another domain can get the number.
        self.0.store.settled().await;
        // The tasks that serve the domain's rings unmap them in their next turn.
        settle().await;
        match destroy(id).await {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => log::error!("d{id}: destroying it: {errno}"),
        }
        for _ in 0..GONE_ROUNDS {
            if !exists(id) {
                break;
            }
            time::sleep(GONE_ROUND_NS).await;
        }
        if exists(id) {
            log::warn!("d{id}: still referred to after its destruction");
            let unwanted = || domain.fate.lock().unwanted;
            while gone && exists(id) && !unwanted() {
                select(time::sleep(HELD_ROUND_NS), self.wait_until(|_| unwanted())).await;
            }
        }
        self.0.saving.lock().remove(&id);
        let removed = self.0.domains.lock().remove(&id);
        // The domain's name as the name is now: a domain that ends can be renamed, too.
        let last = removed.unwrap_or_else(|| domain.clone());
        self.leave(id, &last.name);
        self.close_account(account);
        last
    }

    /// Removes a dead domain's devices: removes the frontends' nodes, then waits until the backends have
    /// closed.
    async fn release_devices(&self, id: DomId) {
        let store = &self.0.store;
        let backends = nodes::backends(store, id);
        if backends.is_empty() {
            return;
        }
        let client = store.client();
        if let Err(error) = client.rm(&format!("{}/device", nodes::home(id)))
            && error != XsError::NoEnt
        {
            log::error!("d{id}: removing its frontends: {}", error.name());
        }
        for backend in backends {
            let state = format!("{backend}/state");
            let closed = async {
                client.watch(&state, "state")?;
                while !nodes::is_state(client.read(&state)?, nodes::CLOSED) {
                    client.next_event().await;
                }
                client.unwatch(&state, "state")
            };
            match time::timeout(RELEASE_NS, closed).await {
                Ok(Ok(()) | Err(XsError::NoEnt)) => {}
                Ok(Err(error)) => log::error!("{backend}: {}", error.name()),
                Err(_) => log::error!("{backend}: does not let go of its dead domain"),
            }
        }
    }
}

/// How domain `id` ended, if it has.
fn end_of(id: DomId) -> Option<End> {
    match domctl::info(id) {
        Ok(info) if info.domain != id.raw() || info.flags & XEN_DOMINF_DYING != 0 => Some(End::Destroyed),
        Ok(info) if info.flags & XEN_DOMINF_SHUTDOWN != 0 => Some(End::ShutDown(info.shutdown_code())),
        Ok(_) => None,
        Err(Errno::ESRCH) => Some(End::Destroyed),
        Err(errno) => {
            log::warn!("d{id}: getdomaininfo: {errno}");
            None
        }
    }
}

/// Seconds with one digit after the point.
fn tenths(ns: u64) -> String {
    format!("{}.{}", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

/// Whether the hypervisor has domain `id`, dead or alive.
pub(super) fn exists(id: DomId) -> bool {
    domctl::info(id).is_ok_and(|info| info.domain == id.raw())
}

fn action(domain: &Domain, end: End) -> Action {
    let config = &domain.config;
    match end {
        End::ShutDown(SHUTDOWN_POWEROFF) => config.on_poweroff,
        End::ShutDown(SHUTDOWN_REBOOT) => config.on_reboot,
        End::ShutDown(SHUTDOWN_WATCHDOG) => config.on_watchdog,
        End::ShutDown(SHUTDOWN_SOFT_RESET) => config.on_soft_reset,
        // Nobody saves it: a domain that suspends by itself would sleep for ever.
        End::ShutDown(SHUTDOWN_SUSPEND) | End::Destroyed => Action::Destroy,
        End::ShutDown(_) => config.on_crash,
    }
}
