//! Fuzz targets: each takes bytes and plays them as everything a hostile peer can do, or as a file.
//!
//! A target panics when the code under it breaks a promise; an error that the code reports is no finding. The bytes
//! are the peer's writes at every moment: a ring page here is one whose words may change between any two reads.
//!
//! `cargo xtask fuzz` searches with the coverage of the instrumented code as its guide, and keeps what it learns under
//! `target/fuzz/corpus`. `cargo test` plays what lies under `fuzz/seeds`, and random changes of it for a second or so.
//! An input that was a finding becomes a seed.

mod blkback;
mod blkfront;
mod config;
mod console;
mod devices;
mod gateway;
mod guests;
mod input;
mod kernel;
mod net;
mod netback;
mod netfront;
mod packets;
mod page;
mod rings;
mod saved;
mod store_client;
mod vbd;
mod xenstored;

/// One target.
pub struct Target {
    /// Its name, that of its directory of seeds.
    pub name: &'static str,
    /// Plays one input.
    pub run: fn(&[u8]),
    /// Longest input worth playing, in bytes.
    pub longest: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "ring-back", run: rings::back, longest: 1024 },
    Target { name: "ring-front", run: rings::front, longest: 1024 },
    Target { name: "ring-bytes", run: rings::bytes, longest: 1024 },
    Target { name: "blkback", run: blkback::run, longest: 4096 },
    Target { name: "blkfront", run: blkfront::run, longest: 1024 },
    Target { name: "console", run: console::run, longest: 2048 },
    Target { name: "xenstored", run: xenstored::run, longest: 4096 },
    Target { name: "store-client", run: store_client::run, longest: 2048 },
    Target { name: "vbd", run: vbd::run, longest: 512 },
    Target { name: "netback", run: netback::run, longest: 8192 },
    Target { name: "netback-control", run: netback::control, longest: 2048 },
    Target { name: "netfront", run: netfront::run, longest: 2048 },
    Target { name: "config", run: config::run, longest: 2048 },
    Target { name: "guests", run: guests::one_cpu, longest: 4096 },
    Target { name: "guests-smp", run: guests::five_cpus, longest: 4096 },
    Target { name: "kernel", run: kernel::run, longest: 8192 },
    Target { name: "net-headers", run: net::headers, longest: 512 },
    Target { name: "net-switch", run: net::switch, longest: 4096 },
    Target { name: "net-segment", run: packets::segment, longest: 2048 },
    Target { name: "net-capture", run: packets::capture, longest: 1024 },
    Target { name: "saved", run: saved::run, longest: 16384 },
    Target { name: "net-gateway", run: gateway::run, longest: 4096 },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
