//! Runs cargo: as it is for the host, with the image flags for the bare machine.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// The target of every image build. Named explicitly, so that the flags do not reach build scripts.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The profile of every image, from the root manifest.
pub const PROFILE: &str = "image";

/// rustc's flags for images; docs/ARCHITECTURE.md says why each is there.
const FLAGS: &[&str] = &[
    "--cfg=freestanding",
    // sha2 asks CPUID, not CR4, and would run vector code in a kernel.
    "--cfg=sha2_backend=\"soft\"",
    "-Ctarget-feature=-sse,-sse2,-x87,+retpoline",
    "-Cjump-tables=no",
    "-Crelro-level=off",
    "-Crelocation-model=pic",
    "-Cno-redzone=yes",
    "-Cforce-frame-pointers=yes",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=sha1,-z,max-page-size=4096,-z,noexecstack",
];

/// rustc's notices about the flags above. These notices are no lints, so no `allow` silences them.
const NOTICES: &[&str] = &[
    "target feature `",
    "unstable feature specified for `-Ctarget-feature`",
    "unknown and unstable feature specified for `-Ctarget-feature`: `retpoline`",
];

/// How a freestanding build's diagnostics are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnostics {
    /// Rendered for a person, on standard error.
    Rendered,
    /// cargo's own JSON lines on standard output, for an editor.
    Json,
}

/// The cargo that runs us, or the one in the path.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(paths::root());
    command
}

/// A cargo command for the host, in the repository's root.
pub fn host(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.args(arguments);
    command
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or did not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}");
    }
    Ok(())
}

/// Runs `cargo VERB` for `packages` with the image flags, and shows cargo's output without rustc's notices
/// about those flags. `tail` goes behind cargo's own arguments.
///
/// # Errors
/// cargo cannot be started, or did not succeed.
pub fn freestanding(verb: &str, packages: &[&str], tail: &[&str], shown: Diagnostics) -> Result<()> {
    let coloured = shown == Diagnostics::Rendered && std::io::stderr().is_terminal();
    let format = if coloured { "json-diagnostic-rendered-ansi" } else { "json" };
    let mut command = cargo();
    command.args([verb, "--target", TARGET, "--profile", PROFILE, "--message-format", format]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.args(tail);
    command.env("CARGO_TARGET_DIR", paths::freestanding());
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    command.env_remove("RUSTFLAGS");
    command.stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo's output is not piped")?;
    for line in BufReader::new(stdout).lines() {
        show(&line?, shown);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo {verb} of {} failed: {status}", packages.join(", "));
    }
    Ok(())
}

/// Shows one line of cargo's JSON output, unless it is noise.
fn show(line: &str, shown: Diagnostics) {
    let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
        println!("{line}");
        return;
    };
    let text = message["message"]["message"].as_str().unwrap_or("");
    if is_noise(text) {
        return;
    }
    if shown == Diagnostics::Json {
        println!("{line}");
    } else if let Some(rendered) = message["message"]["rendered"].as_str() {
        eprint!("{rendered}");
    }
}

/// A notice about the image flags, or the count of warnings that includes them.
fn is_noise(text: &str) -> bool {
    NOTICES.iter().any(|notice| text.starts_with(notice))
        || text.ends_with("warning emitted")
        || text.ends_with("warnings emitted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_noise_and_warnings_are_not() {
        assert!(is_noise("target feature `sse2` must be enabled to ensure ..."));
        assert!(is_noise("unknown and unstable feature specified for `-Ctarget-feature`: `retpoline`"));
        assert!(!is_noise("unknown and unstable feature specified for `-Ctarget-feature`: `retpolin`"));
        assert!(is_noise("3 warnings emitted"));
        assert!(is_noise("1 warning emitted"));
        assert!(!is_noise("unused variable: `x`"));
        assert!(!is_noise(""));
    }
}
