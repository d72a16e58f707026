//! `cargo xtask`: builds, checks, boots and tests microhv.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::cargo::{self, Diagnostics};
use xtask::options::RunOptions;
use xtask::{Usage, images, run};

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

/// Does the task; gives the exit status.
fn perform(task: Task) -> anyhow::Result<u8> {
    match task {
        Task::Run { options } => return run::run(&options.machine()?),
        Task::Build { images } => images::build(&selected(&images)?)?,
        Task::Check { images } => {
            let names: Vec<&str> = selected(&images)?.iter().map(|image| image.name).collect();
            cargo::freestanding("check", &names, &[], Diagnostics::Rendered)?;
        }
    }
    Ok(0)
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
