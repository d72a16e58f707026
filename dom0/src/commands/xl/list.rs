//! `xl list` and other commands that list domains and vCPUs. Columns are those of Xen's `xl`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::executor::time::{self, Utc};
use pvrt::hypercall::{domctl, sysctl};
use ring_abi::domctl::*;
use ring_abi::errno::Errno;
use ring_abi::sched::SHUTDOWN_CRASH;
use ring_abi::types::DomId;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::shell::print::Printer;
use crate::toolstack::uuid_text;

/// Domains asked for at a time.
const LIST_STEP: usize = 16;

/// Nanoseconds as seconds with one decimal.
pub(super) fn seconds(ns: u64) -> String {
    let tenths = ns / 100_000_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// All domains the hypervisor has, in order.
pub(super) fn domain_list() -> Result<Vec<XenDomctlGetdomaininfo>, String> {
    let mut list: Vec<XenDomctlGetdomaininfo> = Vec::new();
    loop {
        let next = list.last().map_or(0, |info| info.domain + 1);
        let mut step = [XenDomctlGetdomaininfo::default(); LIST_STEP];
        let got = sysctl::domain_list(DomId::new(next), &mut step)
            .map_err(|errno| format!("getdomaininfolist: {errno}"))?;
        list.extend_from_slice(&step[..got]);
        if got < LIST_STEP {
            return Ok(list);
        }
    }
}

/// `r`unning, `b`locked, `p`aused, `s`hut down, `c`rashed, `d`ying.
fn state(info: &XenDomctlGetdomaininfo) -> String {
    let flag = |bit: u32, letter: char| if info.flags & bit != 0 { letter } else { '-' };
    let shut_down = info.flags & XEN_DOMINF_SHUTDOWN != 0;
    let crashed = shut_down && info.shutdown_code() == SHUTDOWN_CRASH;
    [
        flag(XEN_DOMINF_RUNNING, 'r'),
        flag(XEN_DOMINF_BLOCKED, 'b'),
        flag(XEN_DOMINF_PAUSED, 'p'),
        flag(XEN_DOMINF_SHUTDOWN, 's'),
        if crashed { 'c' } else { '-' },
        flag(XEN_DOMINF_DYING, 'd'),
    ]
    .into_iter()
    .collect()
}

/// `5:07:09`, with the days before it; `short`: without the seconds.
fn uptime(ns: u64, short: bool) -> String {
    let seconds = ns / 1_000_000_000;
    let days = match seconds / 86400 {
        0 => String::new(),
        1 => "1 day, ".to_string(),
        days => format!("{days} days, "),
    };
    let second = if short { String::new() } else { format!(":{:02}", seconds % 60) };
    format!("{days}{:2}:{:02}{second}", seconds / 3600 % 24, seconds / 60 % 60)
}

/// What `xl list` shows beyond the usual columns.
#[derive(Clone, Copy, Debug, Default)]
struct Columns {
    verbose: bool,
    claim: bool,
    context: bool,
    pool: bool,
    numa: bool,
}

impl Columns {
    fn head(self) -> String {
        let mut head =
            "Name                                        ID   Mem VCPUs\tState\tTime(s)".to_string();
        if self.verbose {
            head += "   UUID                            Reason-Code\tSecurity Label";
        } else if self.context {
            head += "   Security Label";
        }
        if self.claim {
            head += "  Claimed";
        }
        if self.pool {
            head += "         Cpupool";
        }
        match (self.numa, self.pool) {
            (true, true) => head += " NODE Affinity",
            (true, false) => head += "   NODE Affinity",
            (false, _) => {}
        }
        head
    }

    fn line(self, name: &str, pool: &str, info: &XenDomctlGetdomaininfo) -> String {
        let mut line = format!(
            "{name:<40} {:>5} {:>5} {:>5}     {}  {:>8}",
            info.domain,
            (info.tot_pages + info.outstanding_pages) / 256,
            info.nr_online_vcpus,
            state(info),
            seconds(info.cpu_time),
        );
        if self.verbose {
            let reason = match info.flags & XEN_DOMINF_SHUTDOWN {
                0 => "-".to_string(),
                _ => format!("{:x}", info.shutdown_code()),
            };
            line += &format!(" {} {reason:>8}", uuid_text(&info.handle));
        }
        if self.claim {
            line += &format!(" {:>5}", info.outstanding_pages / 256);
        }
        if self.verbose || self.context {
            // Without FLASK a domain has no label.
            line += &format!(" {:>16}", "-");
        }
        if self.pool {
            line += &format!("{:>16}", pool);
        }
        if self.numa {
            line += " all";
        }
        line
    }
}

/// `0-3,5`, `all` or `none`.
pub(super) fn cpu_ranges(map: &[u8], nr_cpus: u32) -> String {
    let set = |cpu: u32| map.get(cpu as usize / 8).is_some_and(|byte| byte >> (cpu % 8) & 1 != 0);
    if (0..nr_cpus).all(set) {
        return "all".to_string();
    }
    let mut ranges: Vec<String> = Vec::new();
    let mut cpu = 0;
    while cpu < nr_cpus {
        let first = cpu;
        while cpu < nr_cpus && set(cpu) {
            cpu += 1;
        }
        match cpu - first {
            0 => cpu += 1,
            1 => ranges.push(first.to_string()),
            _ => ranges.push(format!("{first}-{}", cpu - 1)),
        }
    }
    if ranges.is_empty() { "none".to_string() } else { ranges.join(",") }
}

impl Shell {
    /// The domains in `names`, or all domains if there are none.
    pub(super) fn selected(&self, names: &[&str]) -> Result<Vec<XenDomctlGetdomaininfo>, String> {
        let mut list = domain_list()?;
        if !names.is_empty() {
            let mut ids = Vec::new();
            for &text in names {
                ids.push(match text {
                    "0" | "Domain-0" => DomId::DOM0,
                    _ => self.toolstack.number(text)?,
                });
            }
            list.retain(|info| ids.contains(&DomId::new(info.domain)));
        }
        Ok(list)
    }

    /// `xl list [-l] [-v] [-Z] [-c] [-n] [DOMAIN...]`.
    pub(super) async fn xl_list(&self, line: &Line<'_>) -> Outcome {
        if line.has("l") {
            return self.list_as_json(&line.operands).await;
        }
        let columns = Columns {
            verbose: line.has("v"),
            claim: false,
            context: line.has("Z"),
            pool: line.has("c"),
            numa: line.has("n"),
        };
        self.list_with(columns, &line.operands).await
    }

    /// `xl claims`.
    pub(super) async fn xl_claims(&self) -> Outcome {
        self.list_with(Columns { claim: true, ..Columns::default() }, &[]).await
    }

    async fn list_with(&self, columns: Columns, names: &[&str]) -> Outcome {
        let list = self.selected(names)?;
        let mut printer = Printer::default();
        printer.line(&columns.head()).await;
        for info in list {
            let (name, pool) =
                (self.toolstack.name(DomId::new(info.domain)), self.toolstack.pool_name(info.cpupool));
            printer.line(&columns.line(&name, &pool, &info)).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl vm-list`.
    pub(super) async fn xl_vm_list(&self) -> Outcome {
        let mut printer = Printer::default();
        printer.line("UUID                                  ID    name").await;
        for info in domain_list()?.into_iter().filter(|info| info.domain != 0) {
            let name = self.toolstack.name(DomId::new(info.domain));
            printer.line(&format!("{}  {}    {name:<30}", uuid_text(&info.handle), info.domain)).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl sharing [DOMAIN]`.
    pub(super) async fn xl_sharing(&self, line: &Line<'_>) -> Outcome {
        let list = self.selected(&line.operands)?;
        let mut printer = Printer::default();
        printer.line("Name                                        ID   Mem Shared").await;
        for info in list {
            let name = self.toolstack.name(DomId::new(info.domain));
            let (memory, shared) = (info.tot_pages / 256, info.shr_pages / 256);
            printer.line(&format!("{name:<40} {:>5} {memory:>5}  {shared:>5}", info.domain)).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl vcpu-list [DOMAIN...]`.
    pub(super) async fn xl_vcpu_list(&self, line: &Line<'_>) -> Outcome {
        let nr_cpus = sysctl::physinfo().map_or(1, |info| info.max_cpu_id + 1);
        let list = self.selected(&line.operands)?;
        let mut printer = Printer::default();
        let [name, id, vcpu, cpu, state, time] = ["Name", "ID", "VCPU", "CPU", "State", "Time(s)"];
        let affinity = "Affinity (Hard / Soft)";
        printer.line(&format!("{name:<32} {id:>5} {vcpu:>5} {cpu:>5} {state:>5} {time:>9} {affinity}")).await;
        for domain in list {
            let id = DomId::new(domain.domain);
            for vcpu in 0..=domain.max_vcpu_id {
                let info = match domctl::vcpu_info(id, vcpu) {
                    Ok(info) => info,
                    Err(Errno::ESRCH) => continue,
                    Err(errno) => return Err(format!("getvcpuinfo: {errno}")),
                };
                let (cpu, state) = match info {
                    _ if info.online == 0 => ("-".to_string(), "--p"),
                    _ if info.running != 0 => {
                        (info.cpu.to_string(), if info.blocked != 0 { "rb-" } else { "r--" })
                    }
                    _ => (info.cpu.to_string(), if info.blocked != 0 { "-b-" } else { "---" }),
                };
                let maps = domctl::vcpu_affinity(id, vcpu).unwrap_or([[0xff; 128]; 2]);
                let [hard, soft] = maps.map(|map| cpu_ranges(&map, nr_cpus));
                let text = format!(
                    "{:<32} {:>5} {vcpu:>5} {cpu:>5} {state:>5} {:>9}  {hard} / {soft}",
                    self.toolstack.name(id),
                    domain.domain,
                    seconds(info.cpu_time),
                );
                printer.line(&text).await;
            }
        }
        printer.end().await;
        Ok(())
    }

    /// `xl uptime [-s] [DOMAIN...]`.
    pub(super) async fn xl_uptime(&self, line: &Line<'_>) -> Outcome {
        let list = self.selected(&line.operands)?;
        let short = line.has("s");
        let mut printer = Printer::default();
        if !short {
            printer.line(&format!("{:<33} {:>4} Uptime", "Name", "ID")).await;
        }
        for info in list {
            let id = DomId::new(info.domain);
            let started = match self.toolstack.domain(id) {
                Some(domain) => domain.started_ns,
                None if id == DomId::DOM0 => self.started_ns,
                None => continue,
            };
            let ns = time::now_ns().saturating_sub(started);
            let name = self.toolstack.name(id);
            let (up, number) = (uptime(ns, short), info.domain);
            let text = if short {
                let now = Utc(time::wall_ns()).to_string();
                format!(" {} up {up}, {name} ({number})", &now[11..19])
            } else {
                format!("{name:<33} {number:>4} {up}")
            };
            printer.line(&text).await;
        }
        printer.end().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_xl_prints_them() {
        assert_eq!(seconds(0), "0.0");
        assert_eq!(seconds(12_345_000_000), "12.3");
        assert_eq!(uptime(0, false), " 0:00:00");
        assert_eq!(uptime((86400 + 3600 * 5 + 61) * 1_000_000_000, false), "1 day,  5:01:01");
        assert_eq!(uptime((86400 + 3600 * 5 + 61) * 1_000_000_000, true), "1 day,  5:01");
        assert_eq!(uptime(86400 * 12 * 1_000_000_000, false), "12 days,  0:00:00");
    }

    #[test]
    fn states_as_xl_prints_them() {
        let info = |flags| XenDomctlGetdomaininfo { flags, ..Default::default() };
        assert_eq!(state(&info(0)), "------");
        assert_eq!(state(&info(XEN_DOMINF_RUNNING)), "r-----");
        let crashed = XEN_DOMINF_SHUTDOWN | SHUTDOWN_CRASH << XEN_DOMINF_SHUTDOWNSHIFT | XEN_DOMINF_DYING;
        assert_eq!(state(&info(crashed)), "---scd");
    }

    #[test]
    fn cpus_as_ranges() {
        assert_eq!(cpu_ranges(&[0xff], 8), "all");
        assert_eq!(cpu_ranges(&[0b1011_0111], 8), "0-2,4-5,7");
        assert_eq!(cpu_ranges(&[], 2), "none");
        assert_eq!(cpu_ranges(&[1], 2), "0");
    }
}
