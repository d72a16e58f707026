//! `cargo xtask check` and `cargo xtask clippy`: the host's code and the images', without booting anything.

use anyhow::Result;

use crate::cargo::{self, Diagnostics};

/// Every package whose code goes into an image.
const FREESTANDING: &[&str] = &[
    "ring-abi",
    "microhv",
    "pvrt",
    "frontends",
    "backends",
    "conformance",
    "dom0",
    "hello",
    "bench",
    "hostile",
    "conformance-guest",
    "web",
    "netload",
    "talk",
];

/// Which packages to check, and how to print the diagnostics.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LintOptions {
    /// Only these packages, as image code.
    packages: Vec<String>,
    /// cargo's JSON lines on standard output, without rustc's notices about the image flags: for an editor.
    #[arg(long)]
    json: bool,
}

impl LintOptions {
    fn diagnostics(&self) -> Diagnostics {
        if self.json { Diagnostics::Json } else { Diagnostics::Rendered }
    }

    fn packages(&self) -> Vec<&str> {
        if self.packages.is_empty() {
            FREESTANDING.to_vec()
        } else {
            self.packages.iter().map(String::as_str).collect()
        }
    }
}

/// Checks types: the images' code, and all of the host's unless packages are named.
///
/// # Errors
/// Something does not compile.
pub fn check(options: &LintOptions) -> Result<()> {
    cargo::freestanding("check", &options.packages(), &[], options.diagnostics())?;
    if options.packages.is_empty() && !options.json {
        cargo::run(&mut cargo::host(&["check", "--workspace", "--all-targets"]))?;
    }
    Ok(())
}

/// Lints the same code; any warning is an error.
///
/// # Errors
/// Something does not compile, or there is a warning.
pub fn clippy(options: &LintOptions) -> Result<()> {
    let deny = ["--", "-D", "warnings"];
    cargo::freestanding("clippy", &options.packages(), &deny, options.diagnostics())?;
    if options.packages.is_empty() && !options.json {
        let host = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        cargo::run(&mut cargo::host(&host))?;
    }
    Ok(())
}
