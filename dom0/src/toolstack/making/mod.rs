//! Domains that are being made: from the request until the domain is on record.
//!
//! A kernel file can make the building of a domain long. Meanwhile `xl list` shows the domain's name and number, and
//! the domain can be given up: by the command that asked for it, when that is interrupted, or by `xl destroy`. Then
//! nothing of the domain stays.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::future::Future;

use migration::Reader;
use pvrt::Account;
use pvrt::executor::{Either, select, spawn, spawn_join, time};
use ring_abi::types::DomId;
use spin::Mutex;

use super::claims::OpenMaking;
use super::create::{CreateError, Image};
use super::death::exists;
use super::saving::SavedSource;
use super::{Domain, Toolstack};
use crate::config::DomainConfig;

/// The time between questions to the hypervisor whether a domain that was given up is gone, and their number.
const GONE_ROUND_NS: u64 = 1_000_000;
const GONE_ROUNDS: u32 = 200;

/// The state of a domain that is being made. Clones are of the same domain.
#[derive(Clone, Default)]
pub(super) struct Making(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The domain's number, once the hypervisor has it.
    id: Option<DomId>,
    /// The domain was given up.
    given_up: bool,
    /// The domain was made, and the caller has not taken it yet.
    made: Option<Domain>,
}

impl Making {
    /// The domain's number, if the hypervisor has the domain.
    pub(super) fn id(&self) -> Option<DomId> {
        self.0.lock().id
    }

    /// Notes the domain's number.
    pub(super) fn has(&self, id: DomId) {
        self.0.lock().id = Some(id);
    }

    /// Whether the domain was given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.0.lock().given_up
    }

    /// Hands the finished domain to the caller; `false`: the domain was given up.
    fn take_over(&self, domain: &Domain) -> bool {
        let mut state = self.0.lock();
        if !state.given_up {
            state.made = Some(domain.clone());
        }
        !state.given_up
    }

    /// Gives the domain up.
    pub(super) fn give_up(&self) {
        self.0.lock().given_up = true;
    }
}

/// A request for a domain. Dropped before the domain is made, the request gives the domain up.
#[must_use]
struct Asked {
    toolstack: Toolstack,
    name: String,
    making: Making,
    is_answered: bool,
}

impl Toolstack {
    /// Asks for a domain, and waits until it is made, paused. Dropped before that, the future gives the domain up,
    /// and a task removes what there is of the domain.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn ask(
        &self,
        config: Arc<DomainConfig>,
    ) -> impl Future<Output = Result<Domain, CreateError>> + Send + use<> {
        self.ask_of(config, Image::Kernel)
    }

    /// Does the same for a domain that is restored from a stream.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub(super) fn ask_saved(
        &self,
        config: Arc<DomainConfig>,
        reader: Reader<SavedSource>,
    ) -> impl Future<Output = Result<Domain, CreateError>> + Send + use<> {
        self.ask_of(config, Image::Saved(Box::new(reader)))
    }

    fn ask_of(
        &self,
        config: Arc<DomainConfig>,
        image: Image,
    ) -> impl Future<Output = Result<Domain, CreateError>> + Send + use<> {
        let making = Making::default();
        let mut asked = Asked {
            toolstack: self.clone(),
            name: config.name.clone(),
            making: making.clone(),
            is_answered: false,
        };
        let toolstack = self.clone();
        // The build runs in a task of its own, so that a caller who gives the domain up need not wait for its
        // removal.
        let answer = spawn_join(async move {
            let domain = toolstack.create_as(config, image, &making).await?;
            if making.take_over(&domain) {
                return Ok(());
            }
            // The domain was given up at the last moment.
            let name = domain.name.clone();
            if let Err(error) = toolstack.destroy(&domain).await {
                log::error!("{name}: given up: {error}");
            }
            Err(CreateError::GivenUp(name))
        });
        async move {
            let answer = answer.await;
            asked.is_answered = true;
            let name = &asked.name;
            answer.unwrap_or_else(|_| Err(CreateError::GivenUp(name.clone())))?;
            let made = asked.making.0.lock().made.take();
            made.ok_or_else(|| CreateError::GivenUp(name.clone()))
        }
    }

    /// Gives up a domain that is being made or that waits to start again, and waits until nothing of it is left;
    /// returns whether there was one of this name or number.
    pub async fn give_up(&self, text: &str) -> bool {
        let Some(OpenMaking { number, making, former }) = self.open_making(text) else { return false };
        making.give_up();
        if let Some(former) = &former {
            former.lock().unwanted = true;
        }
        self.0.changed.notify_all();
        self.wait_until(|all| !all.is_open(number)).await;
        // The domain may have been built this instant. Then the toolstack has a record of the domain, and the domain has
        // devices.
        if let Some(domain) = making.id().and_then(|id| self.domain(id))
            && let Err(error) = self.destroy(&domain).await
        {
            log::error!("{}: given up: {error}", domain.name);
        }
        if let Some(former) = &former {
            self.wait_until(|_| former.lock().over).await;
        }
        true
    }

    /// Awaits `work` on a domain that is being made. `None`: the domain was given up meanwhile, or `failed` said
    /// so.
    pub(super) async fn unless_given_up<T>(
        &self,
        making: &Making,
        failed: impl Fn() -> bool,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let stop = self.wait_until(|_| making.is_given_up() || failed());
        match select(work, stop).await {
            Either::Left(done) => Some(done),
            Either::Right(()) => None,
        }
    }

    /// Waits until the hypervisor no longer has a domain whose building was stopped. A domain that is still mapped
    /// somewhere keeps its name.
    pub(super) async fn stopped(&self, making: &Making, name: &str) {
        let Some(id) = making.id() else { return };
        for _ in 0..GONE_ROUNDS {
            if !exists(id) {
                return;
            }
            time::sleep(GONE_ROUND_NS).await;
        }
        self.leave(id, name);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.is_answered && self.making.0.lock().made.is_none() {
            return;
        }
        self.making.give_up();
        let made = self.making.0.lock().made.take();
        let toolstack = self.toolstack.clone();
        toolstack.0.terminal.print_line(&alloc::format!("{}: given up: what there is of it goes", self.name));
        toolstack.0.changed.notify_all();
        if let Some(domain) = made {
            // A drop cannot await, so a task does the rest.
            Account::own().charge(|| {
                spawn(async move {
                    if let Err(error) = toolstack.destroy(&domain).await {
                        log::error!("{}: given up: {error}", domain.name);
                    }
                });
            });
        }
    }
}

#[cfg(test)]
mod tests;
