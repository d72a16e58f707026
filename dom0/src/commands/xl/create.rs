//! `xl create`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::executor::{spawn_join, yield_now};
use pvrt::println;

use super::{Line, json};
use crate::commands::{Outcome, Shell};
use crate::config::{Config, DomainConfig, is_setting_word};
use crate::shell::print::shown;

impl Shell {
    /// `xl create [-c] [-p] [-F] [-n] [-q] [-d] [-f FILE] FILE [KEY=VALUE...]`.
    pub(super) async fn xl_create(&self, line: &Line<'_>) -> Outcome {
        let config = self.configuration(line).await?;
        let dry_run = line.dry_run || line.has("n");
        if dry_run || line.has("d") {
            json::print(&json::domain(&config, config.uuid.as_ref())).await?;
        }
        if dry_run {
            return Ok(());
        }
        // In a task of its own: `^C` ends the waiting, not a domain half made.
        let toolstack = self.toolstack.clone();
        let created = spawn_join(async move { toolstack.create(Arc::new(config)).await }).await;
        let domain = created.map_err(|_| "xl create: given up")?.map_err(|error| format!("{error}"))?;
        let paused = line.has("p");
        if line.has("c") {
            let attachment =
                self.toolstack.consoles().attach(domain.id, true).map_err(|error| format!("{error}"))?;
            if !paused {
                self.start(&domain).await?;
            }
            return self.follow(domain, attachment).await;
        }
        if !paused {
            self.start(&domain).await?;
        }
        if line.has("F") { self.wait_to_the_end(domain).await } else { Ok(()) }
    }

    /// Reads the configuration of a line: its file, and its settings on top of that.
    async fn configuration(&self, line: &Line<'_>) -> Result<DomainConfig, String> {
        let mut file = line.value("f");
        let mut words = Vec::new();
        for &word in &line.operands {
            match word {
                _ if is_setting_word(word) => words.push(word),
                _ if file.is_none() => file = Some(word),
                _ => return Err(line.wrong(&format!("`{word}`: expected KEY=VALUE"))),
            }
        }
        let mut config = match file {
            Some(path) => {
                let file = self.file(path)?;
                Config::read(path, file.bytes).await.map_err(|error| format!("{error}"))?
            }
            None if words.is_empty() => return Err(line.command.usage()),
            None => Config::empty("command line"),
        };
        for word in words {
            yield_now().await;
            config.add_word(word).map_err(|error| format!("{error}"))?;
        }
        yield_now().await;
        let (config, warnings) = DomainConfig::from_config(&config).map_err(|error| format!("{error}"))?;
        if line.has("q") {
            return Ok(config);
        }
        for warning in warnings {
            println!("warning: {}", shown(&format!("{warning}")));
            yield_now().await;
        }
        if !config.vifs.is_empty() {
            let name = &config.name;
            println!("warning: {}: vif: there is no network backend; the domain has no network", shown(name));
        }
        Ok(config)
    }
}
