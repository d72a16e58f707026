//! `cargo xtask bench net`: how fast packets go between guests, dom0 and the host, and what executes for them.
//!
//! Two guests with Debian's kernel stand at one bridge, on microhv and on Debian's Xen with a Linux control domain: the
//! same kernel, ramdisk and iperf3. One of them sends, and what an interface's counters grew by in a window says how much
//! came; the same between two guests of this repository, which do nothing else (`rust`). Figures of time come from
//! machines at the host's speed, all systems in turn. Instructions are counted with one instruction a tick, by the
//! plugin, between two markers around such a window.

mod linux;
mod owners;
mod rust;
mod table;

use anyhow::Result;

use super::{BenchOptions, On};
use crate::images;
use table::{Aim, Round, Unit, Way};

const fn way(name: &'static str, title: &'static str, unit: Unit, aim: Aim) -> Way {
    Way { name, title, unit, aim }
}

const NO_AIM: Aim = Aim { percent: None, instructions: None };
const ANSWER: Aim = Aim { percent: Some(30), instructions: None };

/// An aim for what goes between guests: four times Xen's figure.
const fn between(instructions: u64) -> Aim {
    Aim { percent: Some(400), instructions: Some(instructions) }
}

/// The ways of Linux guests, as `traffic.sh` calls them.
const WAYS: [Way; 10] = [
    way("guest_tcp", "guest to guest, TCP", Unit::Bytes, between(12_000)),
    way("guest_udp", "guest to guest, UDP of 1,500 bytes", Unit::Bytes, between(1_100)),
    way("guest_small", "guest to guest, UDP of 64 bytes", Unit::Packets, between(900)),
    way("guest_ping", "guest to guest, ping", Unit::Answer, ANSWER),
    way("dom0_tcp", "guest to dom0, TCP", Unit::Bytes, NO_AIM),
    way("from_dom0_tcp", "dom0 to guest, TCP", Unit::Bytes, NO_AIM),
    way("dom0_udp", "guest to dom0, UDP of 1,500 bytes to a closed port", Unit::Bytes, NO_AIM),
    way("dom0_ping", "guest to dom0, ping", Unit::Answer, ANSWER),
    way("host_tcp", "guest to host, TCP", Unit::Bytes, NO_AIM),
    way("from_host_tcp", "host to guest, TCP", Unit::Bytes, NO_AIM),
];

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    WAYS.iter().map(|way| way.name).chain(rust::names())
}

/// Whether `--only` names a way, or nothing.
fn is_wanted(options: &BenchOptions, name: &str) -> bool {
    options.only.as_deref().is_none_or(|only| only.split(',').any(|word| word == name))
}

/// Measures on the systems asked for and prints the tables; false when a figure is missing.
///
/// # Errors
/// A package cannot be fetched, a build failed, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    let mut complete = true;
    let mut json = serde_json::Map::new();
    if WAYS.iter().any(|way| is_wanted(options, way.name)) {
        complete &= between_linux_guests(options, &mut json)?;
    }
    if rust::names().any(|name| is_wanted(options, name)) {
        let mut figures = Vec::new();
        complete &= rust::bench(options, &mut figures)?;
        json.insert("rust".into(), figures.into());
    }
    if let Some(path) = &options.json {
        images::write(path, serde_json::Value::Object(json).to_string().as_bytes())?;
    }
    Ok(complete)
}

fn between_linux_guests(
    options: &BenchOptions,
    json: &mut serde_json::Map<String, serde_json::Value>,
) -> Result<bool> {
    let on = match options.on.unwrap_or(On::Microhv) {
        On::Both => vec![On::Microhv, On::Xen],
        one @ (On::Microhv | On::Xen) => vec![one],
        other => {
            return Err(crate::usage(format!("--on {}: packets go on microhv, xen or both", other.name())));
        }
    };
    let ways: Vec<&Way> = WAYS.iter().filter(|way| is_wanted(options, way.name)).collect();
    let setting = linux::Setting::prepare()?;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(round(&on, |system| setting.timed(system, &ways)));
    }
    let (text, mut complete) = table::speeds(&ways, &on, &rounds, linux::goes);
    if !rounds.is_empty() {
        println!("{text}");
    }
    let counted = round(&on, |system| setting.counted(system, &ways));
    let (text, all) =
        table::instructions(&ways, &counted, |on, way| linux::goes(on, way) && linux::counts(way));
    complete &= all;
    print!("{text}");
    json.insert("timed".into(), table::json(&rounds));
    json.insert("counted".into(), table::json(&[counted]));
    Ok(complete)
}

/// Measures each system once. A machine that broke off has no figures; the other machines' figures are kept.
fn round(on: &[On], measure: impl Fn(On) -> Result<table::Figures>) -> Round {
    let one = |system: On| {
        let figures = measure(system).unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", system.name());
            table::Figures::new()
        });
        (system, figures)
    };
    on.iter().copied().map(one).collect()
}
