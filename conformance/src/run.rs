//! Running cases, and the report: one line for each on the console, made for programs to read.
//!
//! ```text
//! conformance: begin 1
//! conformance: run blkif.read.one-sector
//! conformance: result blkif.read.one-sector fail 12 status 0, not -1
//! conformance: rule A segment …
//! conformance: source io/blkif.h, …
//! conformance: time 15
//! conformance: end 1 pass 1 fail 0 skip 0 error
//! ```
//!
//! Text in front of `conformance: ` comes from the program that shows the console. The line `run` names the case
//! before it runs, so that the report names also a case that never ends. The number behind the outcome is the case's
//! time in milliseconds; `time`, which not every run prints, is the time of all cases. `rule` and `source` follow a
//! failure and an error. A case may print lines `count 1 of 300` and so on, and the report's reader checks that they
//! all arrive in order.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use pvrt::executor::time;

use crate::areas::registry;
use crate::case::Case;
pub use crate::case::PREFIX;
use crate::env::Env;
use crate::verdict::Outcome;

/// The number of cases for each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The rule is kept.
    pub passed: u32,
    /// The rule is broken.
    pub failed: u32,
    /// The rule does not apply here.
    pub skipped: u32,
    /// The case could not find out.
    pub errors: u32,
}

impl Totals {
    /// Counts the outcome of a case.
    pub fn add(&mut self, outcome: &Outcome) {
        *match outcome {
            Outcome::Pass => &mut self.passed,
            Outcome::Fail(_) => &mut self.failed,
            Outcome::Skip(_) => &mut self.skipped,
            Outcome::Error(_) => &mut self.errors,
        } += 1;
    }

    /// Nothing failed and nothing was in error.
    pub fn is_clean(&self) -> bool {
        self.failed == 0 && self.errors == 0
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, errors } = self;
        write!(f, "{passed} pass {failed} fail {skipped} skip {errors} error")
    }
}

/// Runs one case in `env`, within its time limit.
pub async fn run_case(case: &Case, env: &mut Env) -> Outcome {
    if let Some(need) = case.lacks(env) {
        return Outcome::Skip(need.missing().into());
    }
    match time::timeout(u64::from(case.limit_ms) * 1_000_000, (case.run)(env)).await {
        Ok(verdict) => verdict.into(),
        Err(_) => Outcome::Error(format!("no end within {} ms", case.limit_ms)),
    }
}

/// The cases that `filter` selects (several, with commas between). A part of the filter that selects no case is
/// reported to `line` and counts as an error, so that a typing error does not pass for success.
pub fn select(filter: Option<&str>, line: &mut impl FnMut(&str)) -> (Vec<&'static Case>, Totals) {
    let parts: Vec<&str> = filter.unwrap_or("*").split(',').collect();
    let mut totals = Totals::default();
    for part in parts.iter().filter(|part| !registry().any(|case| case.matches(part))) {
        line(&format!("{PREFIX}broken no case fits {part:?}"));
        totals.errors += 1;
    }
    let cases: Vec<_> = registry().filter(|case| parts.iter().any(|part| case.matches(part))).collect();
    line(&format!("{PREFIX}begin {}", cases.len()));
    (cases, totals)
}

/// Runs every case that `filter` selects, reporting each line to `line`.
pub async fn run(env: &mut Env, filter: Option<&str>, mut line: impl FnMut(&str) + Send) -> Totals {
    let (cases, mut totals) = select(filter, &mut line);
    for case in cases {
        line(&format!("{PREFIX}run {}", case.id));
        let start = time::now_ns();
        let outcome = run_case(case, env).await;
        let ms = time::now_ns().saturating_sub(start) / 1_000_000;
        report(case, &outcome, ms, &mut line);
        totals.add(&outcome);
        pvrt::yield_now().await;
    }
    line(&format!("{PREFIX}end {totals}"));
    totals
}

/// Reports the end of a case.
pub fn report(case: &Case, outcome: &Outcome, ms: u64, line: &mut impl FnMut(&str)) {
    let detail: String = outcome.detail().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = format!("{PREFIX}result {} {} {ms} {detail}", case.id, outcome.word());
    line(text.trim_end());
    if matches!(outcome, Outcome::Fail(_) | Outcome::Error(_)) {
        line(&format!("{PREFIX}rule {}", case.rule));
        line(&format!("{PREFIX}source {}", case.source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Need, Problem, Verdict};
    use alloc::boxed::Box;
    use alloc::string::ToString;
    use pvrt::executor::block_on_test;

    async fn fails(_: &mut Env) -> Verdict {
        Err(Problem::Fail("two\nlines".into()))
    }

    async fn hangs(_: &mut Env) -> Verdict {
        core::future::pending().await
    }

    fn case(run: crate::case::Run, needs: &'static [Need]) -> Case {
        Case { id: "a.b", title: "t", rule: "The rule.", source: "x.h", needs, limit_ms: 50, run }
    }

    #[test]
    fn a_case_that_hangs_is_an_error_and_one_without_its_needs_is_skipped() {
        let mut env = Env::default();
        let outcome = block_on_test(run_case(&case(|env| Box::pin(hangs(env)), &[]), &mut env));
        assert_eq!(outcome, Outcome::Error("no end within 50 ms".into()));
        let outcome = block_on_test(run_case(&case(|env| Box::pin(hangs(env)), &[Need::Store]), &mut env));
        assert_eq!(outcome, Outcome::Skip("no xenstore ring".into()));
    }

    #[test]
    fn a_failure_is_one_line_with_its_rule_and_source_behind() {
        let case = case(|env| Box::pin(fails(env)), &[]);
        let outcome = block_on_test(run_case(&case, &mut Env::default()));
        let mut lines = Vec::new();
        report(&case, &outcome, 3, &mut |line: &str| lines.push(line.to_string()));
        assert_eq!(
            lines,
            [
                "conformance: result a.b fail 3 two lines",
                "conformance: rule The rule.",
                "conformance: source x.h"
            ]
        );
    }

    #[test]
    fn a_filter_that_no_case_fits_is_an_error() {
        let selected = |filter| {
            let mut lines = Vec::new();
            let (cases, totals) = select(filter, &mut |line: &str| lines.push(line.to_string()));
            (cases.len(), totals.is_clean(), lines)
        };
        let all = registry().count();
        assert_eq!(selected(None), (all, true, [format!("conformance: begin {all}")].into()));
        let (some, clean, _) = selected(Some("blkif.read,xenstore.r*"));
        assert!(some > 2 && some < all && clean);
        let lines = ["conformance: broken no case fits \"xenstor\"", "conformance: begin 1"];
        assert_eq!(selected(Some("xenstor,calls.unknown")), (1, false, lines.map(String::from).into()));
    }
}
