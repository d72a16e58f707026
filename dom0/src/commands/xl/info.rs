//! `xl info`, `xl dmesg`, `xl debug-keys`. Keys are those of Xen's `xl`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use pvrt::executor::{self, yield_now};
use pvrt::hypercall::{event, sysctl, version};
use pvrt::{account, grant, mem, println};
use ring_abi::sysctl::{XEN_INVALID_CORE_ID, XenSysctlCputopo, XenSysctlPhysinfo};
use ring_abi::types::Port;

use super::Line;
use crate::commands::{Outcome, Shell, hypervisor_log};
use crate::shell::print::{self, Printer};
use crate::toolstack::scheduler_name;

/// Ports asked for at a time: a call for each.
const PORTS_AT_A_TIME: u32 = 64;

/// `xl --version`: the tools' version, and the hypervisor's if a hypervisor answers.
pub(super) fn version() -> Outcome {
    println!("xl {} (the commands of Xen's xl 4.17)", env!("CARGO_PKG_VERSION"));
    if let Ok(number) = version::version() {
        let extra = version::extra_version().map(|text| text_of(&text)).unwrap_or_default();
        println!("hypervisor {}.{}{extra}", number >> 16, number & 0xffff);
    }
    Ok(())
}

impl Shell {
    /// Prints the topology: one NUMA node has all CPUs and memory.
    async fn places(&self, machine: &XenSysctlPhysinfo) -> Outcome {
        let mut places = vec![XenSysctlCputopo::default(); machine.max_cpu_id as usize + 1];
        let known = sysctl::cpu_places(&mut places).map_err(|errno| format!("cputopoinfo: {errno}"))?;
        let mut printer = Printer::default();
        printer.line("cpu_topology           :").await;
        printer.line("cpu:    core    socket     node").await;
        for (cpu, place) in places.iter().take(known).enumerate() {
            let XenSysctlCputopo { core, socket, node } = place;
            if *core != XEN_INVALID_CORE_ID {
                printer.line(&format!("{cpu:3}:    {core:4}     {socket:4}     {node:4}")).await;
            }
        }
        printer.line("numa_info              :").await;
        printer.line("node:    memsize    memfree    distances").await;
        let (all, free) = (machine.total_pages / 256, machine.free_pages / 256);
        printer.line(&format!("{:4}:    {all:6}     {free:6}      10", 0)).await;
        printer.end().await;
        Ok(())
    }

    /// `xl info [-n]`.
    pub(super) async fn xl_info(&self, command: &Line<'_>) -> Outcome {
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
        for (key, faults) in self.side_channels.lines() {
            line(key, &faults);
        }
        line("total_memory", &(machine.total_pages / 256));
        line("free_memory", &(machine.free_pages / 256));
        line("outstanding_claims", &(machine.outstanding_pages / 256));
        line("free_cpus", &sysctl::free_cpus().map_or(0, u64::count_ones));
        if command.has("n") {
            self.places(&machine).await?;
        }
        let number = version::version().unwrap_or(0);
        let extra = version::extra_version().map(|text| text_of(&text)).unwrap_or_default();
        line("xen_major", &(number >> 16));
        line("xen_minor", &(number & 0xffff));
        line("xen_extra", &extra);
        line("xen_version", &format!("{}.{}{extra}", number >> 16, number & 0xffff));
        line("xen_caps", &version::capabilities().map(|text| text_of(&text)).unwrap_or_default());
        line("xen_scheduler", &sysctl::scheduler().map_or("unknown", scheduler_name));
        line("xen_pagesize", &4096);
        line("xen_commandline", &version::command_line().map(|text| text_of(&text)).unwrap_or_default());

        yield_now().await;
        // These figures must be the same again after all domains are gone.
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
        // Without the places for accounts: dom0 keeps as many as there ever were accounts at one time.
        line("dom0_heap_objects", &(memory.heap_objects - account::places()));
        line("dom0_account_places", &account::places());
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

/// `xl dmesg [-c]`: with `clear` there are no messages afterwards.
pub(super) async fn dmesg(clear: bool) -> Outcome {
    // All messages are read before any is printed, since dom0's output may be added to the messages.
    let messages = hypervisor_log::messages().await?;
    print::bytes(&messages).await;
    if messages.last().is_some_and(|&byte| byte != b'\n') {
        println!();
    }
    // dom0's output is kept by the hypervisor too, so the printed messages would come back.
    if clear {
        sysctl::clear_console().map_err(|errno| format!("readconsole: {errno}"))?;
    }
    Ok(())
}

/// `xl debug-keys KEYS`.
pub(super) fn debug_keys(keys: &str) -> Outcome {
    sysctl::debug_keys(keys.as_bytes()).map_err(|errno| format!("debug-keys: {errno}"))
}
