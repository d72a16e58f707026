//! Timing one operation.

use pvrt::marker::mark;
use pvrt::println;
use pvrt::time::tsc;

/// Runs before the clock starts, so that everything is faulted in and cached.
const WARM_UP: u64 = 16;

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

    /// Times `operations`, which does as many as it is told.
    pub(crate) fn time_loop(&self, name: &str, mut operations: impl FnMut(u64)) {
        if !self.wanted(name) {
            return;
        }
        operations(WARM_UP);
        mark::<200>();
        let start = tsc();
        operations(self.ops);
        let ticks = tsc() - start;
        mark::<201>();
        println!("bench {name} {} ticks-per-op {} ops", (ticks + self.ops / 2) / self.ops, self.ops);
    }

    /// Says why an operation could not be timed.
    pub(crate) fn skip(&self, name: &str, why: impl core::fmt::Debug) {
        if self.wanted(name) {
            println!("bench {name} skipped: {why:?}");
        }
    }
}
