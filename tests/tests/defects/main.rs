//! Planted defects: each patch in `tests/defects` puts one into a copy of the sources, and the tests that it names must
//! fail there. A suite that does not notice is the defect.
//!
//! A patch begins with lines of text, among them at least one `Caught-by: PACKAGE TARGET NAME`: a test that must fail.
//! `TARGET` is `lib` or an integration test; `loom:TARGET` runs under the model checker. That each patch still applies
//! is always tested; that it is caught, in long runs or by `cargo test -p tests --test defects -- --ignored`.

mod scratch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use scratch::Scratch;

/// A patch and the tests that must fail with it.
struct Defect {
    name: String,
    path: PathBuf,
    catchers: Vec<Catcher>,
}

/// A test, by package, target and name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Catcher {
    package: String,
    target: String,
    name: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let long = std::env::var_os(xtask::test::SOAK).is_some();
    let mut trials = Vec::new();
    let directory = xtask::paths::root().join("tests/defects");
    let mut names: Vec<PathBuf> = std::fs::read_dir(&directory)
        .map(|files| files.filter_map(|file| Some(file.ok()?.path())).collect())
        .unwrap_or_default();
    names.sort();
    for path in names {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let defect = match read(&name, path) {
            Ok(defect) => Arc::new(defect),
            Err(error) => {
                trials.push(Trial::test(format!("{name}: applies"), move || Err(error.into())));
                continue;
            }
        };
        let one = Arc::clone(&defect);
        trials.push(Trial::test(format!("{name}: applies"), move || Ok(scratch::applies(&one.path)?)));
        let caught = Trial::test(format!("{name}: is caught"), move || is_caught(&defect));
        trials.push(caught.with_ignored_flag(!long));
    }
    if trials.is_empty() {
        trials.push(Trial::test("there are defects", || Err("no patch was found".into())));
    }
    trials.push(Trial::test("verdicts are read", read_verdicts));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn read(name: &str, path: PathBuf) -> Result<Defect, String> {
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let head = text.split("diff --git").next().unwrap_or_default();
    let mut catchers = Vec::new();
    for line in head.lines() {
        let Some(words) = line.strip_prefix("Caught-by: ") else { continue };
        let mut words = words.splitn(3, ' ').map(str::to_owned);
        let (Some(package), Some(target), Some(name)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("not a package, a target and a name: {line}"));
        };
        catchers.push(Catcher { package, target, name });
    }
    if catchers.is_empty() {
        return Err("it names no test that catches it".into());
    }
    Ok(Defect { name: name.to_owned(), path, catchers })
}

/// Did this one test run, and fail? The model checker cannot always unwind: then the process aborts.
fn failed(name: &str, output: &str) -> bool {
    let ran = output.lines().any(|line| line == "running 1 test");
    let reported = output.lines().any(|line| {
        let line = line.strip_prefix("test ").and_then(|line| line.strip_suffix("FAILED"));
        let told = line.map(|line| line.trim_end().trim_end_matches("...").trim_end());
        // libtest says so of a test that is to panic.
        told.is_some_and(|told| told.strip_suffix(" - should panic").unwrap_or(told) == name)
    });
    ran && (reported || output.contains("signal: 6, SIGABRT"))
}

/// What test programs print, and whether test `a::b` failed by that.
fn read_verdicts() -> Result<(), Failed> {
    for (output, expected) in [
        ("running 1 test\ntest a::b ... FAILED\n", true),
        ("running 1 test\ntest a::b - should panic ... FAILED\n", true),
        // libtest-mimic's way, with names in a column.
        ("running 1 test\ntest a::b   ... FAILED\n", true),
        (
            "running 1 test\nprocess didn't exit successfully (signal: 6, SIGABRT: process abort signal)\n",
            true,
        ),
        ("running 1 test\ntest a::b ... ok\n", false),
        ("running 1 test\ntest a::b - should panic ... ok\n", false),
        ("running 1 test\ntest a::b::c ... FAILED\n", false),
        ("running 0 tests\n", false),
        ("error: could not compile\nprocess didn't exit successfully (signal: 6, SIGABRT)\n", false),
    ] {
        if failed("a::b", output) != expected {
            return Err(format!("read otherwise than as {expected}: {output}").into());
        }
    }
    Ok(())
}

/// Each test that the patch names must fail with it: not merely be missing, nor fail to compile.
fn is_caught(defect: &Defect) -> Result<(), Failed> {
    let scratch = Scratch::open()?;
    scratch.apply(&defect.path)?;
    let result = defect.catchers.iter().try_for_each(|catcher| {
        let output = scratch.run(catcher)?;
        if failed(&catcher.name, &output) {
            return Ok(());
        }
        let lines: Vec<String> = output.lines().map(|line| line.chars().take(200).collect()).collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        Err(format!("{}: {catcher:?} does not notice it\n{}", defect.name, tail.join("\n")))
    });
    scratch.restore(&defect.path)?;
    Ok(result?)
}
