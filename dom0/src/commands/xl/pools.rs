//! `xl cpupool-list`: all CPUs are in one pool.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::hypercall::sysctl;

use super::Line;
use super::list::domain_list;
use crate::commands::Outcome;
use crate::shell::print::Printer;

/// The pool's name.
pub(super) const ONLY: &str = "Pool-0";

/// Fails unless `name` is the pool's, or its number.
pub(super) fn check(name: Option<&str>) -> Outcome {
    match name {
        None | Some(ONLY | "0") => Ok(()),
        Some(other) => Err(format!("{other}: no such CPU pool; there is {ONLY} alone")),
    }
}

/// `xl cpupool-list [-c] [POOL]`.
pub(super) async fn list(line: &Line<'_>) -> Outcome {
    check(line.operands.first().copied())?;
    let cpus = sysctl::physinfo().map_err(|errno| format!("physinfo: {errno}"))?.nr_cpus;
    let domains = domain_list()?.len();
    let mut printer = Printer::default();
    if line.has("c") {
        let all: Vec<String> = (0..cpus).map(|cpu| format!("{cpu}")).collect();
        printer.line(&format!("{:<19}CPU list", "Name")).await;
        printer.line(&format!("{ONLY:<19}{}", all.join(","))).await;
    } else {
        printer.line(&format!("{:<19}CPUs   Sched     Active   Domain count", "Name")).await;
        printer.line(&format!("{ONLY:<19}{cpus:>3} {:>9}       y       {domains:>4}", "credit2")).await;
    }
    printer.end().await;
    Ok(())
}
