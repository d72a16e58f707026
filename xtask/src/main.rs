//! `cargo xtask`: builds, checks, boots and tests microhv.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::cargo::{self, Diagnostics};
use xtask::images;

/// Builds, checks, boots and tests microhv.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and check the images.
    Build {
        /// Only these images: microhv, dom0, hello, bench.
        images: Vec<String>,
    },
    /// Check the types of the images' code, in seconds.
    Check {
        /// Only these images.
        images: Vec<String>,
    },
}

fn selected(names: &[String]) -> anyhow::Result<Vec<&'static images::Image>> {
    if names.is_empty() {
        return Ok(images::ALL.iter().collect());
    }
    names.iter().map(|name| images::find(name)).collect()
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Build { images } => images::build(&selected(&images)?),
        Task::Check { images } => {
            let names: Vec<&str> = selected(&images)?.iter().map(|image| image.name).collect();
            cargo::freestanding("check", &names, &[], Diagnostics::Rendered)
        }
    }
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(5)
        }
    }
}
