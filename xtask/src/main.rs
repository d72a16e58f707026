//! `cargo xtask`: builds, checks, boots and tests microhv.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::bench::BenchOptions;
use xtask::conformance::ConformanceOptions;
use xtask::fuzz::FuzzOptions;
use xtask::guest::GuestOptions;
use xtask::image::ImageOptions;
use xtask::lint::LintOptions;
use xtask::options::RunOptions;
use xtask::test::TestOptions;
use xtask::xen::XenOptions;
use xtask::{Usage, bench, conformance, debug, fuzz, guest, image, images, lint, run, test, xen};

/// Builds, checks, boots and tests microhv.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything and boot it: a person gets dom0's prompt, a script its exit status.
    Run {
        #[command(flatten)]
        options: Box<RunOptions>,
    },
    /// Run the tests: on the host, of the images, and in booted machines.
    Test {
        #[command(flatten)]
        options: TestOptions,
    },
    /// Measure what docs/PERFORMANCE.md states.
    Bench {
        #[command(flatten)]
        options: BenchOptions,
    },
    /// Run the conformance cases and say which rules are kept.
    Conformance {
        #[command(flatten)]
        options: ConformanceOptions,
    },
    /// Search for inputs that break a promise, guided by coverage.
    Fuzz {
        #[command(flatten)]
        options: FuzzOptions,
    },
    /// Build and check the images.
    Build {
        /// Only these images: microhv, dom0, hello, bench, hostile, conformance-guest, web, talk, netload,
        /// netload-peer.
        images: Vec<String>,
    },
    /// Check types, in seconds.
    Check {
        #[command(flatten)]
        options: LintOptions,
    },
    /// Lint; any warning is an error.
    Clippy {
        #[command(flatten)]
        options: LintOptions,
    },
    /// Make a bootable image of a CD, or of a disk, for a machine with a BIOS or UEFI.
    Image {
        #[command(flatten)]
        options: ImageOptions,
    },
    /// Make a guest of another system's: its kernel, ramdisk, disk and configurations.
    Guest {
        #[command(flatten)]
        options: GuestOptions,
    },
    /// Boot Debian's Xen 4.17, for comparison: made from Debian's packages, with a Linux control domain and its xl.
    Xen {
        #[command(flatten)]
        options: Box<XenOptions>,
    },
    /// Boot stopped and attach gdb with symbols.
    Gdb {
        #[command(flatten)]
        options: Box<RunOptions>,
        /// The debugger's TCP port.
        #[arg(long, default_value_t = 1234, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Put names and lines to the addresses of a serial log.
    Trace {
        /// The log; - is standard input.
        log: PathBuf,
    },
}

fn selected(names: &[String]) -> anyhow::Result<Vec<&'static images::Image>> {
    if names.is_empty() {
        return Ok(images::ALL.iter().collect());
    }
    names.iter().map(|name| images::find(name)).collect()
}

/// Does the task; returns the exit status.
fn perform(task: Task) -> anyhow::Result<u8> {
    match task {
        Task::Run { options } => run::run(&options.machine()?),
        Task::Test { options } => test::test(&options),
        Task::Bench { options } => bench::bench(&options),
        Task::Conformance { options } => conformance::conformance(&options),
        Task::Fuzz { options } => fuzz::fuzz(&options),
        Task::Build { images } => images::build(&selected(&images)?).map(|()| 0),
        Task::Check { options } => lint::check(&options).map(|()| 0),
        Task::Clippy { options } => lint::clippy(&options).map(|()| 0),
        Task::Image { options } => image::image(options).map(|()| 0),
        Task::Guest { options } => guest::guest(&options).map(|()| 0),
        Task::Xen { options } => xen::xen(*options),
        Task::Gdb { options, port } => debug::gdb(options.machine()?, port),
        Task::Trace { log } => debug::trace(&log).map(|()| 0),
    }
}

fn main() -> ExitCode {
    match perform(Options::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 5 })
        }
    }
}
