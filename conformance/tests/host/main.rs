//! Every case in this process: the case on one end, our own xenstored, backends and frontends on the other, each in a
//! world of its own. As a test each case is one; with `MICROHV_CONFORMANCE` set to a filter (or `*`) the report is
//! printed instead, as the guest prints it, for `cargo xtask conformance`.

mod disk;
mod document;
mod fronts;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use conformance::run::{self, PREFIX};
use conformance::{Case, Outcome, registry};
use libtest_mimic::{Arguments, Failed, Trial};

/// Runs one case in a thread of its own, which is a kernel of its own.
fn run_alone(case: &'static Case) -> Outcome {
    let thread = thread::spawn(move || world::run(case));
    thread.join().unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Outcome::Error(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Runs cases, as many at a time as there are CPUs; gives each one's place in the list, outcome and milliseconds, in the
/// order in which they end.
fn run_all<'a>(
    scope: &'a thread::Scope<'a, '_>,
    cases: &'a [&'static Case],
) -> mpsc::Receiver<(usize, Outcome, u64)> {
    let (results, receiver) = mpsc::channel();
    let next = std::sync::Arc::new(AtomicUsize::new(0));
    for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
        let (results, next) = (results.clone(), next.clone());
        scope.spawn(move || {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(place) else { break };
                let start = Instant::now();
                let outcome = run_alone(case);
                // Nobody listens any more when the report has broken off.
                let _ = results.send((place, outcome, start.elapsed().as_millis() as u64));
            }
        });
    }
    receiver
}

fn report(filter: &str) -> ExitCode {
    let mut line = |text: &str| println!("{text}");
    let (selected, mut totals) = run::select(Some(filter), &mut line);
    let start = Instant::now();
    thread::scope(|scope| {
        let results = run_all(scope, &selected);
        let mut early = BTreeMap::new();
        for (place, case) in selected.iter().enumerate() {
            line(&format!("{PREFIX}run {}", case.id));
            let (outcome, ms) = loop {
                if let Some(result) = early.remove(&place) {
                    break result;
                }
                let (place, outcome, ms) = results.recv().expect("each case has a result");
                early.insert(place, (outcome, ms));
            };
            run::report(case, &outcome, ms, &mut line);
            totals.add(&outcome);
        }
    });
    line(&format!("{PREFIX}time {}", start.elapsed().as_millis()));
    line(&format!("{PREFIX}end {totals}"));
    if totals.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn trial(case: &'static Case) -> Trial {
    Trial::test(case.id, move || match run_alone(case) {
        Outcome::Pass | Outcome::Skip(_) => Ok(()),
        outcome => Err(Failed::from(format!(
            "{}: {}\nrule: {}\nsource: {}",
            outcome.word(),
            outcome.detail(),
            case.rule,
            case.source
        ))),
    })
}

fn main() -> ExitCode {
    if let Ok(filter) = std::env::var("MICROHV_CONFORMANCE") {
        return report(&filter);
    }
    let arguments = Arguments::from_args();
    let mut trials: Vec<_> = registry().map(trial).collect();
    trials.push(Trial::test("document_is_current", || document::check().map_err(Failed::from)));
    libtest_mimic::run(&arguments, trials).exit_code()
}
