//! `xl`: following domains to their ends, with or without their consoles; `xl destroy`, and `wait`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::{Either, select, spawn_join};
use pvrt::println;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::consoled::{Attachment, Left, look, show_rest};
use crate::toolstack::{Domain, End, Fate};

impl Shell {
    /// `xl destroy DOMAIN`, which also ends the making of a domain, for the first time or again.
    pub(super) async fn xl_destroy(&self, name: &str) -> Outcome {
        match self.toolstack.find(name) {
            Ok(domain) => self.destroy(&domain).await,
            Err(_) if self.toolstack.give_up(name).await => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Destroys a domain; the destruction goes on even if the command is interrupted.
    pub(super) async fn destroy(&self, domain: &Domain) -> Outcome {
        let (toolstack, domain) = (self.toolstack.clone(), domain.clone());
        let destroyed = spawn_join(async move { toolstack.destroy(&domain).await }).await;
        destroyed.map_err(|_| "xl destroy: given up")?
    }

    /// Unpauses a domain that was just made; destroys the domain if that fails.
    pub(super) async fn start(&self, domain: &Domain) -> Outcome {
        let started = self.toolstack.unpause(domain);
        if started.is_err() {
            self.destroy(domain).await?;
        }
        started
    }

    /// Shows the console of a domain and of its successors, until the last is over. Fails unless the last one
    /// powered off. With `waits`, the key that leaves the console does not end the command, which then waits without the
    /// console: a script must not go on while the domain runs.
    pub(super) async fn follow(
        &self,
        mut domain: Domain,
        mut attachment: Attachment,
        waits: bool,
    ) -> Outcome {
        loop {
            // A domain that is kept dead is over, but its console has not ended.
            let looking = look(&self.terminal, &mut attachment);
            let fate = match select(looking, self.toolstack.wait_over(&domain)).await {
                Either::Left(Left::ByKey) if waits => {
                    println!("{} goes on; ^C leads to the prompt", domain.name);
                    drop(attachment);
                    return self.wait_to_the_end(domain).await;
                }
                Either::Left(Left::ByKey) => return Ok(()),
                // The console has ended but the domain is not over yet; from here on `^C` interrupts the
                // command.
                Either::Left(left) => {
                    if let Some(text) = said(left, &domain) {
                        println!("{text}");
                    }
                    self.toolstack.wait_over(&domain).await
                }
                Either::Right(fate) => {
                    show_rest(&mut attachment).await;
                    fate
                }
            };
            drop(attachment);
            match fate.successor.and_then(|id| self.toolstack.domain(id)) {
                Some(successor) => {
                    domain = successor;
                    let consoles = self.toolstack.consoles();
                    match consoles.attach(domain.id, true) {
                        Ok(next) => attachment = next,
                        // The domain is over already.
                        Err(_) => return verdict(&domain, self.toolstack.wait_over(&domain).await),
                    }
                }
                None => return verdict(&domain, fate),
            }
        }
    }

    /// Waits until a domain, and its successors, are over. Fails unless the last one powered off.
    pub(super) async fn wait_to_the_end(&self, mut domain: Domain) -> Outcome {
        loop {
            let fate = self.toolstack.wait_over(&domain).await;
            match fate.successor.and_then(|id| self.toolstack.domain(id)) {
                Some(successor) => domain = successor,
                None => return verdict(&domain, fate),
            }
        }
    }

    /// `xl console [-t pv] [-n 0] DOMAIN`, `xl console --log DOMAIN`.
    pub(super) async fn xl_console(&self, line: &Line<'_>) -> Outcome {
        if line.has("log") {
            return self.console_log(line.one()?).await;
        }
        match line.value("t") {
            None | Some("pv") => {}
            Some(other @ ("serial" | "vuart")) => {
                return Err(line.wrong(&format!("-t {other}: a PV domain has a PV console alone")));
            }
            Some(other) => return Err(line.wrong(&format!("-t {other}: consoles are pv, serial or vuart"))),
        }
        if let Some(number) = line.value("n")
            && number != "0"
        {
            return Err(line.wrong(&format!("-n {number}: a domain has one console, number 0")));
        }
        let domain = self.toolstack.find(line.one()?)?;
        let mut attachment =
            self.toolstack.consoles().attach(domain.id, true).map_err(|error| format!("{error}"))?;
        let left = look(&self.terminal, &mut attachment).await;
        said(left, &domain).map_or(Ok(()), Err)
    }

    /// `wait DOMAIN...|--all`: waits until the domains are gone or kept dead. Fails if one crashed meanwhile.
    pub(in crate::commands) async fn wait(&self, arguments: &[&str]) -> Outcome {
        let mut failed: Vec<String> = Vec::new();
        let mut note = |domain: &Domain| {
            // A copy: a guard in the condition would live through all of it.
            let fate = *domain.fate.lock();
            if let Some(end @ End::ShutDown(_)) = fate.end
                && !end.is_success()
                && fate.successor.is_none()
            {
                failed.push(format!("{} {}", domain.name, end.text()));
            }
        };
        match arguments {
            [] => return Err("usage: wait DOMAIN...|--all".into()),
            ["--all" | "-a"] => loop {
                let domains = self.toolstack.domains();
                let Some(domain) = domains.into_iter().find(|domain| !domain.fate.lock().over) else { break };
                self.toolstack.wait_over(&domain).await;
                note(&domain);
            },
            names => {
                for name in names {
                    // A domain that does not exist is gone already.
                    while let Ok(domain) = self.toolstack.find(name) {
                        if domain.fate.lock().over {
                            break;
                        }
                        self.toolstack.wait_over(&domain).await;
                        note(&domain);
                    }
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join(", ")) }
    }
}

fn verdict(domain: &Domain, fate: Fate) -> Outcome {
    match fate.end {
        Some(end) if end.is_success() => Ok(()),
        Some(end) => Err(format!("{} {}", domain.name, end.text())),
        None => Err(format!("{} is gone", domain.name)),
    }
}

/// The message about how a console session ended.
fn said(left: Left, domain: &Domain) -> Option<String> {
    (left == Left::Ruined).then(|| format!("{}: the domain has ruined its console's ring", domain.name))
}
