//! `xl cpupool-*`, `xl cpu-online` and `xl cpu-offline`.

#[cfg(test)]
mod tests;

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::hypercall::sysctl::{self, CpuPool};
use pvrt::println;
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

use super::Line;
use super::list::domain_list;
use crate::commands::{Outcome, Shell};
use crate::config::{Config, CpuSet, Setting, ValueKind};
use crate::shell::print::{Printer, shown};
use crate::toolstack::{cpu_list, cpu_numbers, scheduler_name, scheduler_number};

/// CPUs as a toolstack's text has them: those below 64, which are all that are used.
fn cpus(text: &str) -> Result<u64, String> {
    match CpuSet::parse_named(text)? {
        CpuSet::All => Ok(u64::MAX),
        CpuSet::Some(set) => {
            let bytes = set.bytes();
            let (low, high) = bytes.split_at(8);
            let is_all = text.contains("node") || text.contains("all");
            if !is_all && high.iter().any(|byte| *byte != 0) {
                return Err(format!("`{text}`: expected CPUs below 64"));
            }
            Ok(low.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
        }
    }
}

/// What a new pool is to be.
struct Wanted {
    name: String,
    scheduler: u32,
    cpus: u64,
}

impl Shell {
    /// The pool that the first operand names, in words that a user typed.
    fn named_pool(&self, text: &str) -> Result<CpuPool, String> {
        self.toolstack.find_pool(text)
    }

    /// `xl cpupool-list [-c] [POOL]`.
    pub(super) async fn xl_pool_list(&self, line: &Line<'_>) -> Outcome {
        let pools = match line.operands.first() {
            Some(name) => Vec::from([self.named_pool(name)?]),
            None => self.toolstack.pools()?,
        };
        let mut printer = Printer::default();
        let with_cpus = line.has("c");
        let head = if with_cpus { "CPU list" } else { "CPUs   Sched     Active   Domain count" };
        printer.line(&format!("{:<19}{head}", "Name")).await;
        for pool in pools {
            let name = format!("{}", shown(&self.toolstack.pool_name(pool.id)));
            let text = if with_cpus {
                cpu_list(pool.cpus)
            } else {
                let (cpus, scheduler) = (pool.cpus.count_ones(), scheduler_name(pool.scheduler));
                format!("{cpus:>3} {scheduler:>9}       y       {:>4}", pool.domains)
            };
            printer.line(&format!("{name:<19}{text}")).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl cpupool-create [-n] [-f FILE] [FILE] [KEY=VALUE...]`.
    pub(super) async fn xl_pool_create(&self, line: &Line<'_>) -> Outcome {
        let wanted = self.pool_wanted(line).await?;
        println!("cpupool name:   {}", shown(&wanted.name));
        println!("scheduler:      {}", scheduler_name(wanted.scheduler));
        println!("number of cpus: {}", wanted.cpus.count_ones());
        if !line.dry_run && !line.has("n") {
            self.toolstack.create_pool(&wanted.name, wanted.scheduler, wanted.cpus)?;
        }
        Ok(())
    }

    /// Reads what a new pool is to be, from a file and the words of the line.
    async fn pool_wanted(&self, line: &Line<'_>) -> Result<Wanted, String> {
        let (file, config) = self.settings(line).await?;
        for setting in config.settings().iter().filter(|set| !KEYS.contains(&&*set.key)) {
            println!("warning: {}: no such key of a CPU pool", shown(&setting.key));
        }
        // As Xen's xl has it, a pool without a name is called after its file.
        let base = file.map(|path| path.rsplit('/').next().unwrap_or(path).to_string());
        let name = text(&config, "name")?.map(Cow::into_owned).or(base).ok_or("name: missing")?;
        self.toolstack.check_pool_name(&name)?;
        let scheduler = match text(&config, "sched")? {
            Some(name) => scheduler_number(&name)
                .ok_or_else(|| format!("sched: `{name}`: expected `credit2` or `null`"))?,
            None => XEN_SCHEDULER_CREDIT2,
        };
        let free = sysctl::free_cpus().map_err(|errno| format!("free CPUs: {errno}"))?;
        let cpus = match (config.get("cpus"), config.get("nodes")) {
            (Some(_), Some(_)) => return Err("cpus, nodes: one of the two alone".into()),
            (Some(setting), None) => cpus_of(setting)?,
            // All CPUs are of the one node.
            (None, Some(_)) => free,
            (None, None) => free & free.wrapping_neg(),
        };
        if let Some(cpu) = cpu_numbers(cpus & !free).next() {
            return Err(format!("cpus: {}", self.toolstack.not_free(cpu)));
        }
        if cpus == 0 {
            return Err(format!("{name}: no CPU is free: `xl cpupool-cpu-remove` takes CPUs out of a pool"));
        }
        Ok(Wanted { name, scheduler, cpus })
    }

    /// `xl cpupool-cpu-add POOL CPUS`, `xl cpupool-cpu-remove POOL CPUS`.
    pub(super) fn xl_pool_cpus(&self, line: &Line<'_>, adds: bool) -> Outcome {
        let [pool, text] = line.operands[..] else { return Err(line.command.usage()) };
        let pool = self.named_pool(pool)?;
        let cpus = cpus(text).map_err(|error| line.wrong(&error))?;
        let is_some = text.contains("all") || text.contains("node");
        if adds {
            let free = sysctl::free_cpus().map_err(|errno| format!("free CPUs: {errno}"))?;
            self.toolstack.add_pool_cpus(pool.id, if is_some { cpus & free } else { cpus })
        } else {
            self.toolstack.remove_pool_cpus(pool.id, if is_some { cpus & pool.cpus } else { cpus })
        }
    }

    /// `xl cpupool-destroy POOL`.
    pub(super) fn xl_pool_destroy(&self, name: &str) -> Outcome {
        let pool = self.named_pool(name)?;
        if pool.id == 0 {
            return Err(format!("{name}: dom0 is in this CPU pool"));
        }
        self.toolstack.destroy_pool(&pool)
    }

    /// `xl cpupool-rename POOL NAME`.
    pub(super) fn xl_pool_rename(&self, line: &Line<'_>) -> Outcome {
        let [pool, name] = line.operands[..] else { return Err(line.command.usage()) };
        self.toolstack.rename_pool(&self.named_pool(pool)?, name)
    }

    /// `xl cpupool-migrate DOMAIN POOL`.
    pub(super) fn xl_pool_migrate(&self, line: &Line<'_>) -> Outcome {
        let [domain, pool] = line.operands[..] else { return Err(line.command.usage()) };
        let list = self.selected(&[domain])?;
        let info = list.first().ok_or_else(|| format!("{domain}: no such domain"))?;
        let pool = self.named_pool(pool)?;
        self.toolstack.migrate(DomId::new(info.domain), &pool)?;
        self.warn_of_waiting(&pool, 0);
        Ok(())
    }

    /// Warns when a pool whose scheduler is null has fewer CPUs than its domains' vCPUs with `more`: no turns are taken there.
    pub(super) fn warn_of_waiting(&self, pool: &CpuPool, more: u32) {
        let inside = domain_list().unwrap_or_default().into_iter().filter(|info| info.cpupool == pool.id);
        let (vcpus, cpus) =
            (inside.map(|info| info.nr_online_vcpus).sum::<u32>() + more, pool.cpus.count_ones());
        if let Some(text) = waiting(pool.scheduler, vcpus, cpus) {
            println!("warning: CPU pool {}: {text}", shown(&self.toolstack.pool_name(pool.id)));
        }
    }

    /// `xl cpu-online CPU`, `xl cpu-offline CPU`: what `xen-hptool` does on Xen.
    pub(super) fn xl_cpu_online(&self, line: &Line<'_>, online: bool) -> Outcome {
        let text = line.one()?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let cpu = text.parse().ok().filter(|_| digits);
        let cpu: u32 = cpu.ok_or_else(|| line.wrong(&format!("`{text}`: expected a CPU's number")))?;
        sysctl::set_cpu_online(cpu, online).map_err(|errno| match errno {
            Errno::EINVAL if cpu == 0 => "CPU 0 is the boot CPU, which stays online".to_string(),
            Errno::EINVAL => format!("CPU {cpu}: there is no such CPU"),
            Errno::EEXIST if online => format!("CPU {cpu} is online"),
            Errno::EEXIST => format!("CPU {cpu} is offline"),
            Errno::EBUSY => format!("CPU {cpu} is the last of the CPU pool {}", self.toolstack.pool_name(0)),
            Errno::ENODEV => format!("CPU {cpu} is in a CPU pool: `xl cpupool-cpu-remove` takes it out"),
            other => format!("CPU {cpu}: {other}"),
        })
    }
}

/// What becomes of vCPUs in a pool that has fewer CPUs, if some of them cannot run.
fn waiting(scheduler: u32, vcpus: u32, cpus: u32) -> Option<String> {
    (scheduler == XEN_SCHEDULER_NULL && vcpus > cpus).then(|| {
        format!(
            "{vcpus} vCPUs for {cpus} CPU(s): with the scheduler null, {} wait until a CPU comes free",
            vcpus - cpus
        )
    })
}

/// The keys of a pool's configuration.
const KEYS: [&str; 4] = ["name", "sched", "cpus", "nodes"];

/// The text of a setting.
fn text<'a>(config: &'a Config, key: &str) -> Result<Option<Cow<'a, str>>, String> {
    let Some(setting) = config.get(key) else { return Ok(None) };
    setting.value.text().map(Some).ok_or_else(|| format!("{key}: expected a string"))
}

/// The CPUs of a setting: a string, a number, or a list of these.
fn cpus_of(setting: &Setting) -> Result<u64, String> {
    let one = core::slice::from_ref(&setting.value);
    let values = if let ValueKind::List(list) = &setting.value.kind { &list[..] } else { one };
    values.iter().try_fold(0, |all, value| {
        let text = value.text().ok_or("cpus: expected CPUs")?;
        cpus(&text).map(|more| all | more).map_err(|error| format!("cpus: {error}"))
    })
}
