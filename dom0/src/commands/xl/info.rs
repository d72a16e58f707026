//! `xl`: the sub-commands that show something. Columns and keys are those of Xen's `xl`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::executor::{self, time, yield_now};
use pvrt::hypercall::{domctl, event, sysctl, version};
use pvrt::{account, grant, mem, println};
use ring_abi::domctl::*;
use ring_abi::errno::Errno;
use ring_abi::sched::SHUTDOWN_CRASH;
use ring_abi::types::{DomId, Port};

use super::{Outcome, Shell, no_more};
use crate::shell::print::{self, Printer};

/// Domains asked for at a time.
const LIST_STEP: usize = 16;
/// Ports asked for at a time: a call for each.
const PORTS_AT_A_TIME: u32 = 64;
/// The hypervisor's messages are at most this many bytes: a ring that grows while it is read must not hold us.
const MESSAGES_BYTES: usize = 1 << 20;

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

/// `5:07:09`, with the days before it.
fn uptime(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let days = match seconds / 86400 {
        0 => String::new(),
        1 => "1 day, ".to_string(),
        days => format!("{days} days, "),
    };
    format!("{days}{:2}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// `0-3,5`, or `all`.
fn cpu_ranges(map: &[u8], nr_cpus: u32) -> String {
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
    ranges.join(",")
}

impl Shell {
    /// The domains that `arguments` name, or all.
    fn selected(&self, arguments: &[&str]) -> Result<Vec<XenDomctlGetdomaininfo>, String> {
        let mut list = domain_list()?;
        if !arguments.is_empty() {
            let mut ids = Vec::new();
            for &text in arguments {
                ids.push(match text {
                    "0" | "Domain-0" => DomId::DOM0,
                    _ => self.toolstack.find(text)?.id,
                });
            }
            list.retain(|info| ids.contains(&DomId::new(info.domain)));
        }
        Ok(list)
    }

    /// `xl list [DOMAIN...]`.
    pub(super) async fn xl_list(&self, arguments: &[&str]) -> Outcome {
        let list = self.selected(arguments)?;
        let mut printer = Printer::default();
        printer.line("Name                                        ID   Mem VCPUs\tState\tTime(s)").await;
        for info in list {
            let line = format!(
                "{:<40} {:>5} {:>5} {:>5}     {}  {:>8}",
                self.toolstack.name(DomId::new(info.domain)),
                info.domain,
                (info.tot_pages + info.outstanding_pages) / 256,
                info.nr_online_vcpus,
                state(&info),
                seconds(info.cpu_time),
            );
            printer.line(&line).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl vcpu-list [DOMAIN...]`.
    pub(super) async fn xl_vcpu_list(&self, arguments: &[&str]) -> Outcome {
        let nr_cpus = sysctl::physinfo().map_or(1, |info| info.nr_cpus);
        let list = self.selected(arguments)?;
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
                let hard = domctl::vcpu_affinity(id, vcpu).unwrap_or([0xff; 128]);
                let line = format!(
                    "{:<32} {:>5} {vcpu:>5} {cpu:>5} {state:>5} {:>9}  {} / all",
                    self.toolstack.name(id),
                    domain.domain,
                    seconds(info.cpu_time),
                    cpu_ranges(&hard, nr_cpus),
                );
                printer.line(&line).await;
            }
        }
        printer.end().await;
        Ok(())
    }

    /// `xl uptime [DOMAIN...]`.
    pub(super) async fn xl_uptime(&self, arguments: &[&str]) -> Outcome {
        let list = self.selected(arguments)?;
        let mut printer = Printer::default();
        printer.line(&format!("{:<33} {:>4} Uptime", "Name", "ID")).await;
        for info in list {
            let id = DomId::new(info.domain);
            let started = match self.toolstack.domain(id) {
                Some(domain) => domain.started_ns,
                None if id == DomId::DOM0 => self.started_ns,
                None => continue,
            };
            let ns = time::now_ns().saturating_sub(started);
            let name = self.toolstack.name(id);
            printer.line(&format!("{name:<33} {:>4} {}", info.domain, uptime(ns))).await;
        }
        printer.end().await;
        Ok(())
    }

    /// `xl info`.
    pub(super) async fn xl_info(&self, arguments: &[&str]) -> Outcome {
        no_more(arguments)?;
        let line = |key: &str, value: &dyn core::fmt::Display| println!("{key:<23}: {value}");
        let machine = sysctl::physinfo().map_err(|errno| format!("physinfo: {errno}"))?;
        line("host", &"dom0");
        line("release", &env!("CARGO_PKG_VERSION"));
        line("machine", &"x86_64");
        line("nr_cpus", &machine.nr_cpus);
        line("max_cpu_id", &machine.max_cpu_id);
        line("nr_nodes", &machine.nr_nodes);
        line("cores_per_socket", &machine.cores_per_socket);
        line("threads_per_core", &machine.threads_per_core);
        line("cpu_mhz", &format!("{}.{:03}", machine.cpu_khz / 1000, machine.cpu_khz % 1000));
        let words: Vec<String> = machine.hw_cap.iter().map(|word| format!("{word:08x}")).collect();
        line("hw_caps", &words.join(":"));
        line("virt_caps", &"pv");
        line("total_memory", &(machine.total_pages / 256));
        line("free_memory", &(machine.free_pages / 256));
        let number = version::version().unwrap_or(0);
        let extra = version::extra_version().map(|text| text_of(&text)).unwrap_or_default();
        line("xen_major", &(number >> 16));
        line("xen_minor", &(number & 0xffff));
        line("xen_extra", &extra);
        line("xen_version", &format!("{}.{}{extra}", number >> 16, number & 0xffff));
        line("xen_caps", &version::capabilities().map(|text| text_of(&text)).unwrap_or_default());
        line("xen_pagesize", &4096);

        yield_now().await;
        // What must be the same after everything that was made is gone again.
        let memory = mem::usage();
        line("total_frames", &machine.total_pages);
        line("free_frames", &machine.free_pages);
        line("bundle_frames", &self.bundle.bytes().div_ceil(4096));
        line("domains", &(self.toolstack.domains().len() + 1));
        line("dom0_pages", &memory.total_pages);
        line("dom0_free_pages", &memory.free_pages);
        line("dom0_grown_pages", &memory.grown_pages);
        line("dom0_window_pages", &memory.window_pages);
        line("dom0_heap_bytes", &memory.heap_bytes);
        line("dom0_heap_objects", &memory.heap_objects);
        line("dom0_accounts", &account::all().len());
        line("dom0_tasks", &executor::live_tasks());
        line("dom0_ports", &open_ports().await);
        let grants = grant::usage();
        line("dom0_grants", &grants.used);
        line("dom0_grants_busy", &grants.busy);
        line("consoles", &self.toolstack.consoles().count());
        let store = self.store.figures();
        line("xenstore_nodes", &store.nodes);
        line("xenstore_watches", &store.watches);
        line("xenstore_transactions", &store.transactions);
        line("xenstore_connections", &store.connections);
        line("xenstore_bytes", &store.bytes);
        Ok(())
    }
}

/// Event channel ports that dom0 has open.
async fn open_ports() -> usize {
    let mut count = 0;
    for number in 1.. {
        let Ok(open) = event::is_open(Port::new(number)) else { break };
        count += usize::from(open);
        if number % PORTS_AT_A_TIME == 0 {
            yield_now().await;
        }
    }
    count
}

/// Text up to its NUL.
fn text_of(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).trim_end().to_string()
}

/// `xl dmesg [-c]`: with `-c` there are no messages afterwards.
pub(super) async fn dmesg(arguments: &[&str]) -> Outcome {
    let clear = match arguments {
        [] => false,
        ["-c" | "--clear"] => true,
        _ => return Err("usage: xl dmesg [-c]".into()),
    };
    let mut messages = Vec::new();
    let mut index = 0;
    let mut buffer = alloc::vec![0; 4096];
    // Read before anything is printed: what dom0 prints may be added to the messages.
    while messages.len() < MESSAGES_BYTES {
        let (count, next) =
            sysctl::read_console(index, &mut buffer).map_err(|errno| format!("readconsole: {errno}"))?;
        if count == 0 {
            break;
        }
        messages.extend_from_slice(&buffer[..count]);
        index = next;
        yield_now().await;
    }
    print::bytes(&messages).await;
    if messages.last().is_some_and(|&byte| byte != b'\n') {
        println!();
    }
    // What dom0 prints is kept as well: these messages would come back.
    if clear {
        sysctl::clear_console().map_err(|errno| format!("readconsole: {errno}"))?;
    }
    Ok(())
}

/// `xl debug-keys KEYS`.
pub(super) fn debug_keys(keys: &str) -> Outcome {
    sysctl::debug_keys(keys.as_bytes()).map_err(|errno| format!("debug-keys: {errno}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_xl_prints_them() {
        assert_eq!(seconds(0), "0.0");
        assert_eq!(seconds(12_345_000_000), "12.3");
        assert_eq!(uptime(0), " 0:00:00");
        assert_eq!(uptime((86400 + 3600 * 5 + 61) * 1_000_000_000), "1 day,  5:01:01");
        assert_eq!(uptime(86400 * 12 * 1_000_000_000), "12 days,  0:00:00");
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
        assert_eq!(cpu_ranges(&[], 2), "");
        assert_eq!(cpu_ranges(&[1], 2), "0");
    }
}
