//! `xl create`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::{println, yield_now};

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
        let pool = config.pool.as_deref().and_then(|name| self.toolstack.find_pool(name).ok());
        if let Some(pool) = pool.filter(|_| !line.has("q")) {
            self.warn_of_waiting(&pool, config.vcpus);
        }
        // `^C` before the domain is made gives the domain up.
        let domain = self.toolstack.ask(Arc::new(config)).await.map_err(|error| format!("{error}"))?;
        let paused = line.has("p");
        if line.has("c") {
            let attachment =
                self.toolstack.consoles().attach(domain.id, true).map_err(|error| format!("{error}"))?;
            if !paused {
                self.start(&domain).await?;
            }
            return self.follow(domain, attachment, line.has("F")).await;
        }
        if !paused {
            self.start(&domain).await?;
        }
        if line.has("F") { self.wait_to_the_end(domain).await } else { Ok(()) }
    }

    /// Reads the settings of a line: those of its file, then those in the line. Gives the file's path too.
    pub(super) async fn settings<'a>(&self, line: &Line<'a>) -> Result<(Option<&'a str>, Config), String> {
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
        Ok((file, config))
    }

    /// Reads the configuration of a domain that a line gives.
    async fn configuration(&self, line: &Line<'_>) -> Result<DomainConfig, String> {
        let (_, config) = self.settings(line).await?;
        self.checked(&config, line.has("q")).await
    }

    /// Reads a configuration file alone.
    pub(super) async fn configuration_file(&self, path: &str) -> Result<DomainConfig, String> {
        let file = self.file(path)?;
        let config = Config::read(path, file.bytes).await.map_err(|error| format!("{error}"))?;
        self.checked(&config, false).await
    }

    /// What the settings say of a domain; shows warnings, unless `is_quiet`.
    async fn checked(&self, config: &Config, is_quiet: bool) -> Result<DomainConfig, String> {
        yield_now().await;
        let (read, warnings) = DomainConfig::read(config);
        for warning in warnings.into_iter().filter(|_| !is_quiet) {
            println!("warning: {}", shown(&format!("{warning}")));
            yield_now().await;
        }
        read.map_err(|error| format!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use pvrt::executor::{block_on_test, spawn, time};
    use pvrt::host::{Machine, take_console_output};

    use super::*;
    use crate::blkdev::Disks;
    use crate::bundle::Bundle;
    use crate::commands::tests::{shell_with, toolstack_of};
    use crate::xenstore::{Quotas, Xenstore};

    /// Runs `work` with a shell on a machine that makes domains, and returns what was printed.
    fn printed(work: impl AsyncFnOnce(&Shell, &Machine) + Send + 'static) -> String {
        let test = std::thread::spawn(|| {
            let machine = Machine::install();
            let store = Xenstore::new(Quotas::XEN);
            let (disks, files) = (Arc::new(Disks::new()), Bundle::of(&[("k", b"no kernel")]));
            let shell = shell_with(toolstack_of(store.clone(), disks, files), store);
            take_console_output();
            block_on_test(async { work(&shell, &machine).await });
            String::from_utf8(take_console_output()).unwrap()
        });
        test.join().unwrap()
    }

    const CREATE: &str = "xl create name='new' kernel='/boot/k' memory=4000";

    #[test]
    fn a_domain_is_listed_by_its_name_while_it_is_built_and_interrupted_it_goes() {
        let output = printed(async |shell, machine| {
            let (terminal, begun) = (shell.terminal.clone(), machine.clone());
            // Of a name that is no domain's there is no number, and of no domain's number no name.
            for line in ["xl domid new", "xl domname 7", "xl domid 7"] {
                assert!(
                    shell.run_line(line).await.is_err_and(|error| error.ends_with("no such domain")),
                    "{line}"
                );
            }
            let lister = shell_with(shell.toolstack.clone(), shell.store.clone());
            spawn(async move {
                while begun.free() == Machine::FRAMES {
                    pvrt::yield_now().await;
                }
                lister.run_line("xl list").await.unwrap();
                lister.run_line("xl list -l new").await.unwrap();
                lister.run_line("xl domid new").await.unwrap();
                lister.run_line("xl domname 7").await.unwrap();
                assert!(lister.run_line("xl pause new").await.unwrap_err().contains("still being made"));
                terminal.interrupt();
            });
            assert_eq!(shell.interruptible(CREATE).await, None);
            while machine.count() > 0 {
                time::sleep(1_000_000).await;
            }
            assert_eq!(machine.free(), Machine::FRAMES);
            // The domain's name is free again, and its file is still no kernel.
            let again = shell.run_line(CREATE).await.unwrap_err();
            assert!(again.starts_with("kernel /boot/k: "), "{again}");
        });
        assert!(output.contains("\nnew    ") && output.contains("\"name\": \"new\""), "{output}");
        assert!(output.contains("\n7\nnew\n"), "{output}");
        assert!(output.contains("new: given up") && !output.contains("(null)"), "{output}");
    }

    #[test]
    fn destroy_ends_the_making_of_a_domain() {
        printed(async |shell, machine| {
            let other = shell_with(shell.toolstack.clone(), shell.store.clone());
            let begun = machine.clone();
            spawn(async move {
                while begun.free() == Machine::FRAMES {
                    pvrt::yield_now().await;
                }
                other.run_line("xl destroy new").await.unwrap();
                assert_eq!(begun.count(), 0);
            });
            let error = shell.run_line(CREATE).await.unwrap_err();
            assert_eq!(error, "new: given up before the domain was made");
        });
    }
}
