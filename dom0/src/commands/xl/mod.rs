//! `xl`: the sub-commands that change domains, and `wait`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::executor::{Either, select, spawn_join, yield_now};
use pvrt::hypercall::domctl;
use pvrt::println;
use ring_abi::types::DomId;

use super::xl_control::Request;
use super::{Outcome, Shell};
use crate::config::{Config, DomainConfig, is_setting_word};
use crate::consoled::{Attachment, Left, look, show_rest};
use crate::shell::print::shown;
use crate::toolstack::{Domain, End, Fate, domain_number};

impl Shell {
    /// `xl COMMAND ...`.
    pub(super) async fn xl(&self, arguments: &[&str]) -> Outcome {
        let Some((command, arguments)) = arguments.split_first() else {
            return Err("usage: xl COMMAND ...; `help xl` lists them".into());
        };
        match *command {
            "create" => self.xl_create(arguments).await,
            "list" | "ls" => self.xl_list(arguments).await,
            "console" => self.xl_console(arguments).await,
            "shutdown" => self.xl_request(arguments, Request::Shutdown).await,
            "reboot" => self.xl_request(arguments, Request::Reboot).await,
            "sysrq" => self.xl_sysrq(arguments),
            "trigger" => self.xl_trigger(arguments),
            "mem-set" => self.xl_mem_set(arguments),
            "mem-max" => self.xl_mem_max(arguments),
            "vcpu-set" => self.xl_vcpu_set(arguments).await,
            "rename" => self.xl_rename(arguments),
            "destroy" => {
                let name = one(arguments, "destroy DOMAIN")?;
                match self.toolstack.find(name) {
                    Ok(domain) => self.destroy(&domain).await,
                    Err(_) if self.toolstack.give_up(name).await => Ok(()),
                    Err(error) => Err(error),
                }
            }
            "pause" => {
                let domain = self.toolstack.find(one(arguments, "pause DOMAIN")?)?;
                domctl::pause(domain.id).map_err(|errno| format!("{}: {errno}", domain.name))
            }
            "unpause" => {
                let domain = self.toolstack.find(one(arguments, "unpause DOMAIN")?)?;
                self.toolstack.unpause(&domain)
            }
            "info" => self.xl_info(arguments).await,
            "dmesg" => super::xl_info::dmesg(arguments).await,
            "top" => self.xl_top(arguments).await,
            "debug-keys" => super::xl_info::debug_keys(one(arguments, "debug-keys KEYS")?),
            "domid" => {
                let name = one(arguments, "domid NAME")?;
                let named = self.toolstack.domains().into_iter().find(|domain| domain.name == *name);
                let id = named.map(|domain| domain.id).or((name == "Domain-0").then_some(DomId::DOM0));
                println!("{}", id.ok_or_else(|| format!("{name}: no such domain"))?);
                Ok(())
            }
            "domname" => {
                let text = one(arguments, "domname DOMID")?;
                let id = domain_number(text).ok_or_else(|| format!("{text}: no such domain"))?;
                if id != DomId::DOM0 && self.toolstack.domain(id).is_none() {
                    return Err(format!("{text}: no such domain"));
                }
                println!("{}", self.toolstack.name(id));
                Ok(())
            }
            "block-attach" => self.xl_block_attach(arguments).await,
            "block-detach" => self.xl_block_detach(arguments).await,
            "block-list" => self.xl_block_list(arguments).await,
            "uptime" => self.xl_uptime(arguments).await,
            "vcpu-list" => self.xl_vcpu_list(arguments).await,
            other => Err(format!("xl {other}: no such command; `help xl` lists them")),
        }
    }

    /// `xl create [-c] [-p] FILE [KEY=VALUE...]`.
    async fn xl_create(&self, arguments: &[&str]) -> Outcome {
        let (mut attach, mut paused) = (false, false);
        let mut file = None;
        let mut words = Vec::new();
        for &word in arguments {
            match word {
                "-c" => attach = true,
                "-p" => paused = true,
                "-cp" | "-pc" => (attach, paused) = (true, true),
                _ if word.starts_with('-') => return Err(format!("xl create: `{word}`: no such option")),
                _ if is_setting_word(word) => words.push(word),
                _ if file.is_none() => file = Some(word),
                _ => return Err(format!("xl create: `{word}`: expected KEY=VALUE")),
            }
        }
        let mut config = match file {
            Some(path) => {
                let file = self.file(path)?;
                Config::read(path, file.bytes).await.map_err(|error| format!("{error}"))?
            }
            None if words.is_empty() => return Err("usage: xl create [-c] [-p] FILE [KEY=VALUE...]".into()),
            None => Config::empty("command line"),
        };
        for word in words {
            yield_now().await;
            config.add_word(word).map_err(|error| format!("{error}"))?;
        }
        yield_now().await;
        let (read, warnings) = DomainConfig::read(&config);
        for warning in warnings {
            println!("warning: {}", shown(&format!("{warning}")));
            yield_now().await;
        }
        let config = read.map_err(|error| format!("{error}"))?;
        if !config.vifs.is_empty() {
            println!("warning: {}: vif: there is no network backend; the domain has no network", config.name);
        }
        // In a task of its own: `^C` ends the waiting, not a domain half made.
        let toolstack = self.toolstack.clone();
        let created = spawn_join(async move { toolstack.create(Arc::new(config)).await }).await;
        let domain = created.map_err(|_| "xl create: given up")?.map_err(|error| format!("{error}"))?;
        if !attach {
            return if paused { Ok(()) } else { self.start(&domain).await };
        }
        let attachment =
            self.toolstack.consoles().attach(domain.id, true).map_err(|error| format!("{error}"))?;
        if !paused {
            self.start(&domain).await?;
        }
        self.follow(domain, attachment).await
    }

    /// Destroys a domain, to the end even if the command is interrupted.
    async fn destroy(&self, domain: &Domain) -> Outcome {
        let (toolstack, domain) = (self.toolstack.clone(), domain.clone());
        let destroyed = spawn_join(async move { toolstack.destroy(&domain).await }).await;
        destroyed.map_err(|_| "xl destroy: given up")?
    }

    /// Lets a domain run that was just made; one that cannot is destroyed.
    async fn start(&self, domain: &Domain) -> Outcome {
        let started = self.toolstack.unpause(domain);
        if started.is_err() {
            self.destroy(domain).await?;
        }
        started
    }

    /// Stays at a domain's console, and its successors', until it is over. Fails unless it powered off.
    async fn follow(&self, mut domain: Domain, mut attachment: Attachment) -> Outcome {
        loop {
            // A domain that is kept dead is over while its console is not.
            let looking = look(&self.terminal, &mut attachment);
            let fate = match select(looking, self.toolstack.wait_over(&domain)).await {
                Either::Left(Left::ByKey) => return Ok(()),
                // The domain itself is not over, but `^C` is heard again.
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

    /// `xl console DOMAIN`.
    async fn xl_console(&self, arguments: &[&str]) -> Outcome {
        let domain = self.toolstack.find(one(arguments, "console DOMAIN")?)?;
        let mut attachment =
            self.toolstack.consoles().attach(domain.id, true).map_err(|error| format!("{error}"))?;
        let left = look(&self.terminal, &mut attachment).await;
        said(left, &domain).map_or(Ok(()), Err)
    }

    /// `wait DOMAIN...|--all`: until they are gone or kept dead. Fails if one crashed meanwhile.
    pub(super) async fn wait(&self, arguments: &[&str]) -> Outcome {
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
                    // A domain that is not there is gone already.
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

/// What to say of how looking at a console ended.
fn said(left: Left, domain: &Domain) -> Option<String> {
    (left == Left::Ruined).then(|| format!("{}: the domain has ruined its console's ring", domain.name))
}

/// The only argument.
fn one<'a>(arguments: &[&'a str], usage: &str) -> Result<&'a str, String> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(format!("usage: xl {usage}")),
    }
}
