//! Timing one operation.

use pvrt::marker::mark;
use pvrt::println;
use pvrt::time::tsc;

/// Runs before the clock starts, so that everything is faulted in and cached.
pub(crate) const WARM_UP: u64 = 16;

/// Runs between two marks.
pub(crate) struct Clock(u64);

impl Clock {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        mark::<200>();
        Self(tsc())
    }

    /// Returns the ticks since the start.
    pub(crate) fn stop(self) -> u64 {
        let ticks = tsc() - self.0;
        mark::<201>();
        ticks
    }
}

/// Prints the ticks that `ops` operations took.
pub(crate) fn report(name: &str, ticks: u64, ops: u64) {
    println!("bench {name} {} ticks-per-op {ops} ops", (ticks + ops / 2) / ops);
}

/// How the operations are timed.
pub(crate) struct Bench {
    ops: u64,
    only: Option<&'static str>,
}

impl Bench {
    pub(crate) fn new(ops: u64, only: Option<&'static str>) -> Self {
        Self { ops: ops.max(1), only }
    }

    /// True when the operation is asked for.
    fn wanted(&self, name: &str) -> bool {
        self.only.is_none_or(|only| only == name)
    }

    /// Times `operation`, done once a call.
    pub(crate) fn time(&self, name: &str, mut operation: impl FnMut()) {
        self.time_loop(name, |count| {
            for _ in 0..count {
                operation();
            }
        });
    }

    /// Times `operations`, which does the number of operations that it is given.
    pub(crate) fn time_loop(&self, name: &str, mut operations: impl FnMut(u64)) {
        if !self.wanted(name) {
            return;
        }
        operations(WARM_UP);
        let clock = Clock::start();
        operations(self.ops);
        report(name, clock.stop(), self.ops);
    }

    /// How many operations to do, at most `limit`; `None` when the command line does not ask for this one.
    pub(crate) fn count(&self, name: &str, limit: u64) -> Option<u64> {
        self.wanted(name).then(|| self.ops.min(limit))
    }

    /// Prints why an operation could not be timed.
    pub(crate) fn skip(&self, name: &str, why: impl core::fmt::Debug) {
        if self.wanted(name) {
            println!("bench {name} skipped: {why:?}");
        }
    }
}
