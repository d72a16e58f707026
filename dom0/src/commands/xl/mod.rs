//! `xl`: the commands of Xen's `xl` 4.17, by the tables of [`table`].

mod block;
mod control;
mod create;
mod dirty;
#[cfg(test)]
mod doc;
mod follow;
mod getopt;
pub(super) mod help;
mod info;
mod json;
mod line;
mod list;
mod migrate;
mod network;
mod pin;
mod pools;
mod saved;
mod saved_config;
mod shares;
pub(super) mod table;
mod top;

use alloc::format;

use pvrt::hypercall::domctl;
use pvrt::println;

use super::{Outcome, Shell};
use crate::shell::print::shown;
use crate::toolstack::domain_number;
use control::Request;
use line::Line;

impl Shell {
    /// `xl [-vfNtT] COMMAND ...`.
    pub(super) async fn xl(&self, words: &[&str]) -> Outcome {
        let (global, rest) = line::global(words)?;
        if global.version {
            return info::version();
        }
        let Some((name, rest)) = rest.split_first() else {
            return if global.help { help::list(false).await } else { Err(help::USAGE.into()) };
        };
        let line = Line::read(table::find(name)?, global.dry_run, rest)?;
        if global.help || line.has("h") {
            return help::one(line.command).await;
        }
        for warning in line.warnings() {
            println!("warning: {}", shown(&warning));
        }
        self.xl_line(&line).await
    }

    /// Runs a line that was read.
    async fn xl_line(&self, line: &Line<'_>) -> Outcome {
        match line.command.name {
            "create" => self.xl_create(line).await,
            "list" => self.xl_list(line).await,
            "vm-list" => self.xl_vm_list().await,
            "claims" => self.xl_claims().await,
            "sharing" => self.xl_sharing(line).await,
            "console" => self.xl_console(line).await,
            "shutdown" => self.xl_request(line, Request::Shutdown).await,
            "reboot" => self.xl_request(line, Request::Reboot).await,
            "sysrq" => self.xl_sysrq(line),
            "trigger" => self.xl_trigger(line),
            "mem-set" => self.xl_mem_set(line),
            "mem-max" => self.xl_mem_max(line),
            "vcpu-set" => self.xl_vcpu_set(line).await,
            "vcpu-list" => self.xl_vcpu_list(line).await,
            "vcpu-pin" => self.xl_vcpu_pin(line).await,
            "sched-credit2" => self.xl_shares(line).await,
            "cpupool-list" => self.xl_pool_list(line).await,
            "cpupool-create" => self.xl_pool_create(line).await,
            "cpupool-destroy" => self.xl_pool_destroy(line.one()?),
            "cpupool-rename" => self.xl_pool_rename(line),
            "cpupool-cpu-add" => self.xl_pool_cpus(line, true),
            "cpupool-cpu-remove" => self.xl_pool_cpus(line, false),
            "cpupool-migrate" => self.xl_pool_migrate(line),
            "cpu-online" => self.xl_cpu_online(line, true),
            "cpu-offline" => self.xl_cpu_online(line, false),
            "rename" => self.xl_rename(line),
            "save" => self.xl_save(line).await,
            "restore" => self.xl_restore(line).await,
            "migrate" => self.xl_migrate(line).await,
            "migrate-receive" => self.xl_migrate_receive(line).await,
            "resume" => self.xl_resume(line),
            "destroy" => self.xl_destroy(line.one()?).await,
            "pause" => {
                let domain = self.toolstack.find(line.one()?)?;
                domctl::pause(domain.id).map_err(|errno| format!("{}: {errno}", domain.name))
            }
            "unpause" => self.toolstack.unpause(&self.toolstack.find(line.one()?)?),
            "info" => self.xl_info(line).await,
            "dmesg" => info::dmesg(line.has("c")).await,
            "top" => self.xl_top(line).await,
            "debug-keys" => info::debug_keys(line.one()?),
            "domid" => self.xl_domid(line.one()?),
            "domname" => self.xl_domname(line.one()?),
            "block-attach" => self.xl_block_attach(line).await,
            "block-detach" => self.xl_block_detach(line).await,
            "block-list" => self.xl_block_list(line).await,
            "network-attach" => self.xl_network_attach(line).await,
            "network-detach" => self.xl_network_detach(line).await,
            "network-list" => self.xl_network_list(line).await,
            "dirty-rate" => self.xl_dirty_rate(line).await,
            "uptime" => self.xl_uptime(line).await,
            "help" => help::command(line).await,
            // The tables refuse all other commands, and a test runs each command that they do not refuse.
            other => Err(format!("xl {other}: no such command")),
        }
    }

    /// `xl domid NAME`.
    fn xl_domid(&self, name: &str) -> Outcome {
        println!("{}", self.toolstack.number_of_name(name)?);
        Ok(())
    }

    /// `xl domname DOMID`.
    fn xl_domname(&self, text: &str) -> Outcome {
        let name = domain_number(text).and_then(|id| self.toolstack.known_name(id));
        println!("{}", shown(&name.ok_or_else(|| format!("{text}: no such domain"))?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{failure, run};
    use super::table::{Status, all};
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_command_is_done_or_says_why_not() {
        for command in all() {
            let operands: Vec<&str> = core::iter::repeat_n("9", command.count.0).collect();
            let line = format!("xl {} {}", command.name, operands.join(" "));
            match command.status {
                // These two would never end, since they get neither domains nor rounds.
                _ if command.name == "top" => {}
                Status::Done => {
                    let text = run(&line).0.err().unwrap_or_default();
                    assert!(!text.contains("no such command"), "{line}: {text}");
                }
                Status::Refused(why) => {
                    assert_eq!(failure(&line), format!("xl {}: not here: {why}", command.name));
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn every_command_takes_the_options_of_its_table() {
        for command in all().filter(|command| command.status == Status::Done) {
            let (_, output) = run(&format!("xl {} -h", command.name));
            for option in command.options {
                assert!(output.contains(&option.forms()), "{}: {output}", option.forms());
                let value = if option.value.is_empty() { "" } else { " 1" };
                let name = option.short.map_or(format!("--{}", option.long), |letter| format!("-{letter}"));
                // With `-h` at its end a line is read but not run.
                let line = format!("xl {} {name}{value} -h", command.name);
                assert_eq!(run(&line).0, Ok(()), "{line}");
            }
        }
    }

    #[test]
    fn xl_alone_says_how_it_is_used() {
        assert!(failure("xl").starts_with("usage: xl [-vfNtT] COMMAND"));
        assert!(failure("xl -v").starts_with("usage"));
        assert!(failure("xl -x list").starts_with("xl: `-x`: no such option"));
        assert!(run("xl -h").1.contains("\nxl destroy [-f] DOMAIN "));
    }
}
