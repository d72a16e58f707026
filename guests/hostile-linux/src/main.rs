//! The cases of `guests/hostile`, run by root of a Linux guest: hypercalls go through `/dev/xen/privcmd`, `/proc`
//! shows frames and tables, and traps arrive as signals.
//!
//! `hostile-linux [GROUP...]` runs the groups named, or all but `wild`; prints as `hostile` does; status 0 if all
//! passed. The group `wild` may crash the guest's own kernel. The program needs the module `xen-privcmd` with
//! `unrestricted=1`.

extern crate alloc;

#[path = "../../hostile/src/calls.rs"]
mod calls;
#[path = "../../hostile/src/descriptors.rs"]
mod descriptors;
#[path = "../../hostile/src/events.rs"]
mod events;
#[path = "../../hostile/src/grants.rs"]
mod grants;
mod ground;
#[path = "../../hostile/src/memory.rs"]
mod memory;
#[path = "../../hostile/src/report.rs"]
mod report;
#[path = "../../hostile/src/stale.rs"]
mod stale;
#[path = "../../hostile/src/tables.rs"]
mod tables;
#[path = "../../hostile/src/wild.rs"]
mod wild;

use std::process::ExitCode;

use report::Report;

/// A group of cases: its name, and what runs it.
type Group = (&'static str, fn(&mut Report));

/// The groups in order. The last one runs only when named.
const GROUPS: [Group; 8] = [
    ("calls", calls::run),
    ("tables", tables::run),
    ("descriptors", descriptors::run),
    ("events", events::run),
    ("grants", grants::run),
    ("memory", memory::run),
    ("stale", stale::run),
    (WILD, wild::run),
];
const WILD: &str = "wild";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|word| !GROUPS.iter().any(|(name, _)| name == word)) {
        eprintln!("hostile-linux: no group {unknown}");
        return ExitCode::from(2);
    }
    if let Err(error) = ground::install() {
        eprintln!("hostile-linux: {error}");
        return ExitCode::from(2);
    }
    let mut report = Report::new(false);
    for (name, run) in GROUPS {
        let asked = if wanted.is_empty() { name != WILD } else { wanted.iter().any(|word| word == name) };
        if asked {
            println!("hostile: group {name}");
            report.group(name);
            run(&mut report);
        }
    }
    ground::finish();
    ExitCode::from(u8::from(!report.end()))
}
