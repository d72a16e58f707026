//! Domains from the moment they are asked for to their record.
//!
//! Building a domain takes as long as its kernel file likes. Meanwhile the domain has its name and its number for whoever
//! looks, and it can be given up: by the one who asked, who leaves, or by `xl destroy`. Then nothing of the domain stays.

use alloc::string::String;
use alloc::sync::Arc;
use core::future::Future;

use pvrt::Account;
use pvrt::executor::{Either, select, spawn, spawn_join, time};
use ring_abi::types::DomId;
use spin::Mutex;

use super::claims::OpenMaking;
use super::create::CreateError;
use super::death::exists;
use super::{Domain, Toolstack};
use crate::config::DomainConfig;

/// How often the hypervisor is asked whether a domain that was given up is gone, and how many times.
const GONE_ROUND_NS: u64 = 1_000_000;
const GONE_ROUNDS: u32 = 200;

/// What is known of a domain that is being made. Clones are of the same domain.
#[derive(Clone, Default)]
pub(super) struct Making(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The domain's number, once the hypervisor has it.
    id: Option<DomId>,
    /// Nobody wants the domain any more.
    given_up: bool,
    /// The domain was made, and the one who asked has not taken it yet.
    made: Option<Domain>,
}

impl Making {
    /// Its number, if the hypervisor has it.
    pub(super) fn id(&self) -> Option<DomId> {
        self.0.lock().id
    }

    /// Notes its number.
    pub(super) fn has(&self, id: DomId) {
        self.0.lock().id = Some(id);
    }

    /// Does nobody want it any more?
    pub(super) fn is_given_up(&self) -> bool {
        self.0.lock().given_up
    }

    /// Leaves the domain, which was made, to the one who asked; `false`: nobody wants it any more.
    fn take_over(&self, domain: &Domain) -> bool {
        let mut state = self.0.lock();
        if !state.given_up {
            state.made = Some(domain.clone());
        }
        !state.given_up
    }

    /// Nobody wants it any more.
    pub(super) fn give_up(&self) {
        self.0.lock().given_up = true;
    }
}

/// A domain that somebody asked for and waits for. Dropped before the domain is there, this gives the domain up.
#[must_use]
struct Asked {
    toolstack: Toolstack,
    name: String,
    making: Making,
    is_answered: bool,
}

impl Toolstack {
    /// Asks for a domain, and waits until it is made, paused. Dropped before, this gives the domain up; what there is of
    /// the domain is taken away behind that.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn ask(
        &self,
        config: Arc<DomainConfig>,
    ) -> impl Future<Output = Result<Domain, CreateError>> + Send + use<> {
        let making = Making::default();
        let mut asked = Asked {
            toolstack: self.clone(),
            name: config.name.clone(),
            making: making.clone(),
            is_answered: false,
        };
        let toolstack = self.clone();
        // A task of its own: one that gave the domain up does not wait for its end.
        let answer = spawn_join(async move {
            let domain = toolstack.create_as(config, &making).await?;
            if making.take_over(&domain) {
                return Ok(());
            }
            // Given up in the last moment.
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

    /// Gives up a domain that is being made or that waits to start again, and waits until nothing of it is left; was there
    /// one of this name or number?
    pub async fn give_up(&self, text: &str) -> bool {
        let Some(OpenMaking { number, making, former }) = self.open_making(text) else { return false };
        making.give_up();
        if let Some(former) = &former {
            former.lock().unwanted = true;
        }
        self.0.changed.notify_all();
        self.wait_until(|all| !all.is_open(number)).await;
        if let Some(former) = &former {
            self.wait_until(|_| former.lock().over).await;
        }
        true
    }

    /// Awaits `work` on a domain that is being made, unless the domain is given up or `failed`; `None`: so it was.
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

    /// Waits until the hypervisor has no domain any more whose building was stopped. One that is still mapped somewhere
    /// keeps its name.
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
            // A drop cannot wait.
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
