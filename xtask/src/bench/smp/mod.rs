//! `cargo xtask bench smp`: what several CPUs give to several guests, and how one CPU is shared among many.
//!
//! The guest is `guests/bench` with a role; the same image runs on Debian's Xen. Storms run at the host's speed, with a CPU of
//! the host for each of the machine's, and a figure is a ratio within one run. Shares and wake-ups are measured in virtual time,
//! one instruction a tick, where the host's load does not count.

mod scene;
mod shares;
mod storms;

use anyhow::Result;

use super::{BenchOptions, On};
use crate::{images, usage};

/// What `--only` knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    storms::names().chain(shares::names())
}

/// Whether `--only` names this, or nothing.
fn is_wanted(options: &BenchOptions, name: &str) -> bool {
    options.only.as_deref().is_none_or(|only| only.split(',').any(|word| word == name))
}

/// Measures on the systems asked for and prints the tables; false when a figure is missing.
///
/// # Errors
/// Xen cannot be made, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    let on = match options.on.unwrap_or(On::Microhv) {
        On::Both => vec![On::Microhv, On::Xen],
        one @ (On::Microhv | On::Xen) => vec![one],
        other => {
            return Err(usage(format!("--on {}: several guests run on microhv, xen or both", other.name())));
        }
    };
    let mut json = serde_json::Map::new();
    let mut complete = shares::bench(options, &on, &mut json)?;
    if options.rounds > 0 {
        complete &= storms::bench(options, &on, &mut json)?;
    }
    if let Some(path) = &options.json {
        images::write(path, serde_json::Value::Object(json).to_string().as_bytes())?;
    }
    Ok(complete)
}
