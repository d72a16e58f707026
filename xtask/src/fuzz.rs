//! `cargo xtask fuzz`: the targets of `fuzz/`, searched with coverage as the guide.
//!
//! The stable compiler instruments every crate, and libFuzzer, linked in, mutates inputs. Inputs that reach new
//! code are kept in `target/fuzz/corpus`, a finding in `target/fuzz/findings`; each target's own output is
//! `target/fuzz/NAME.log`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::{cargo, paths, usage};

/// Seconds of each target in a long test run.
pub const SOAK_SECONDS: u32 = 600;

/// rustc's flags: what libFuzzer counts and compares by, and checks that a release build leaves out.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions=yes",
    "-Coverflow-checks=yes",
];

/// What to fuzz and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct FuzzOptions {
    /// Only these targets.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Targets side by side; one for each CPU if not given.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Fuzzes; returns the exit status: 0 when nothing was found.
///
/// # Errors
/// A tool is missing, the targets cannot be built, or there is no such target.
pub fn fuzz(options: &FuzzOptions) -> Result<u8> {
    let (clean, findings) = run(&options.targets, options.seconds, options.jobs)?;
    println!("{clean} targets without a finding, {findings} with one");
    Ok(u8::from(findings != 0))
}

/// Fuzzes the targets of these names, or all, for `seconds` each. Returns how many targets found nothing and how many
/// found something.
///
/// # Errors
/// The errors of [`fuzz`].
pub fn run(names: &[String], seconds: u32, jobs: Option<usize>) -> Result<(u64, u64)> {
    deps::ensure(&[Need::CxxCompiler])?;
    let known = targets()?;
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let known = known.join(", ");
        return Err(usage(format!("no fuzz target is called {unknown}; there are: {known}")));
    }
    let chosen: Vec<&String> = known.iter().filter(|name| names.is_empty() || names.contains(name)).collect();
    let program = build()?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(cpus).clamp(1, chosen.len()) {
            scope.spawn(|| {
                while let Some(name) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let line = one(&program, name, seconds).unwrap_or_else(|error| Err(format!("{error:#}")));
                    match line {
                        Ok(line) => println!("fuzz {name} ... ok, {line}"),
                        Err(line) => {
                            println!("fuzz {name} ... FAILED, {line}");
                            *found.lock().expect("no thread panics") += 1;
                        }
                    }
                }
            });
        }
    });
    let found = found.into_inner().expect("no thread panics");
    Ok((chosen.len() as u64 - found, found))
}

/// The targets: each has its directory of seeds.
///
/// # Errors
/// The directory cannot be read.
pub fn targets() -> Result<Vec<String>> {
    let seeds = paths::root().join("fuzz/seeds");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&seeds).with_context(|| format!("cannot read {}", seeds.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn directory() -> PathBuf {
    paths::target().join("fuzz")
}

fn build() -> Result<PathBuf> {
    let build = directory().join("build");
    let mut command =
        cargo::host(&["build", "--release", "--target", cargo::TARGET, "--package", "fuzz", "--bin", "fuzz"]);
    command.args(["--features", "libfuzzer"]);
    command.env("CARGO_TARGET_DIR", &build);
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("RUSTFLAGS");
    cargo::run(&mut command)?;
    Ok(build.join(cargo::TARGET).join("release/fuzz"))
}

/// Runs one target. The inner result is a line about it.
fn one(program: &Path, name: &str, seconds: u32) -> Result<Result<String, String>> {
    let base = directory();
    let corpus = base.join("corpus").join(name);
    let findings = base.join("findings");
    for directory in [&corpus, &findings] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let log = base.join(format!("{name}.log"));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let start = Instant::now();
    let status = Command::new(program)
        .arg(&corpus)
        .arg(paths::root().join("fuzz/seeds").join(name))
        .args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/{name}-", findings.display()),
        ])
        .args(["-max_len=8192", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .env("MICROHV_FUZZ_TARGET", name)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = std::fs::read(&log).unwrap_or_default();
    let summary = summary(&String::from_utf8_lossy(&text));
    let line = format!("{summary} in {} s", start.elapsed().as_secs());
    Ok(if status.success() { Ok(line) } else { Err(format!("{line}: {}", log.display())) })
}

/// Reads from libFuzzer's log how many inputs ran and how many edges they covered.
fn summary(log: &str) -> String {
    let runs = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    let edges = log
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or("?");
    format!("{runs} inputs, {edges} edges")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_summed_up() {
        let log = "#2\tINITED cov: 9 ft: 9\n#77 REDUCE cov: 812 ft: 2 corp: 3/1b\n\
                   stat::number_of_executed_units: 123456\nstat::peak_rss_mb: 30\n";
        assert_eq!(summary(log), "123456 inputs, 812 edges");
        assert_eq!(summary(""), "? inputs, ? edges");
    }

    #[test]
    fn there_are_targets() {
        assert!(targets().expect("a directory").contains(&"ring-back".to_owned()));
    }
}
