//! A copy of the sources under `target/defects`, with its own target directories: kept, so that only what a patch
//! touches is built again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use xtask::paths;

use super::Catcher;

/// One at a time: they share the copy.
static LOCK: Mutex<()> = Mutex::new(());

/// Time to build and run one test. A defect that makes it hang is not caught: tests have limits of their own.
const LIMIT_SECONDS: &str = "600";

/// The copy, as long as one defect is looked at.
pub(crate) struct Scratch {
    sources: PathBuf,
    _one: MutexGuard<'static, ()>,
}

fn directory() -> PathBuf {
    paths::target().join("defects")
}

/// The files of the repository: what git knows, and what it would.
fn files() -> Result<Vec<String>, String> {
    let listed = run(Command::new("git").current_dir(paths::root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let files = listed.split('\0').filter(|name| !name.is_empty());
    Ok(files.filter(|name| paths::root().join(name).is_file()).map(str::to_owned).collect())
}

impl Scratch {
    /// Brings the copy up to date. A file that is the same keeps its time, so that cargo does not build it again.
    pub(crate) fn open() -> Result<Self, String> {
        let one = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sources = directory().join("sources");
        let files = files()?;
        for name in &files {
            let (from, to) = (paths::root().join(name), sources.join(name));
            let read = |path: &Path| {
                let rights = std::fs::metadata(path).ok()?.permissions();
                Some((std::fs::read(path).ok()?, rights))
            };
            if read(&to) == read(&from) {
                continue;
            }
            std::fs::create_dir_all(to.parent().unwrap_or(&sources)).map_err(|error| error.to_string())?;
            std::fs::copy(&from, &to).map_err(|error| format!("{}: {error}", to.display()))?;
        }
        remove_others(&sources, &sources, &files.into_iter().collect())?;
        Ok(Self { sources, _one: one })
    }

    pub(crate) fn apply(&self, patch: &Path) -> Result<(), String> {
        git_apply(&self.sources, &[], patch)
    }

    pub(crate) fn restore(&self, patch: &Path) -> Result<(), String> {
        git_apply(&self.sources, &["--reverse"], patch)
    }

    /// What the named test prints, whether it passes or not.
    pub(crate) fn run(&self, catcher: &Catcher) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.arg(LIMIT_SECONDS).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.sources).args(["test", "--package", &catcher.package]);
        let (loom, target) = match catcher.target.strip_prefix("loom:") {
            Some(target) => (true, target),
            None => (false, catcher.target.as_str()),
        };
        match target {
            "lib" => command.arg("--lib"),
            test => command.args(["--test", test]),
        };
        // What this test was started with is for its own sources.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_") && text != "CARGO_HOME" || text == xtask::test::SOAK {
                command.env_remove(&name);
            }
        }
        if loom {
            command.arg("--release").env("RUSTFLAGS", "--cfg loom");
        }
        command.env("CARGO_TARGET_DIR", directory().join(if loom { "loom" } else { "target" }));
        command.args(["--", &catcher.name]);
        // libtest-mimic matches parts of names, too.
        command.arg("--exact");
        let output = command.output().map_err(|error| format!("cargo: {error}"))?;
        let text = [output.stderr, output.stdout].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Removes what lies in the copy and not in the repository.
fn remove_others(root: &Path, directory: &Path, files: &BTreeSet<String>) -> Result<(), String> {
    let entries =
        std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.is_dir() {
            remove_others(root, &path, files)?;
        } else if let Ok(name) = path.strip_prefix(root)
            && !files.contains(&*name.to_string_lossy())
        {
            std::fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Would the patch apply to the repository as it is?
pub(crate) fn applies(patch: &Path) -> Result<(), String> {
    git_apply(&paths::root(), &["--check"], patch)
}

fn git_apply(directory: &Path, options: &[&str], patch: &Path) -> Result<(), String> {
    let mut command = Command::new("git");
    // As if there were no repository: else paths are taken from its root.
    command.current_dir(directory).env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap_or(directory));
    run(command.arg("apply").args(options).arg(patch)).map(drop)
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}
