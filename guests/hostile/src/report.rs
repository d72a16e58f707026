//! The report: the result of each case.

use core::fmt::Debug;

use ring_abi::errno::Errno;

use crate::ground::println;

/// Counts and prints results.
pub(crate) struct Report {
    /// This is the control domain, which may do more.
    pub(crate) privileged: bool,
    group: &'static str,
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) fn new(privileged: bool) -> Self {
        Self { privileged, group: "", passed: 0, failed: 0 }
    }

    /// Names the cases that follow.
    pub(crate) fn group(&mut self, name: &'static str) {
        self.group = name;
    }

    /// Reports a case with the outcome `got`, which is right if `holds`.
    pub(crate) fn case(&mut self, name: &str, holds: bool, got: impl Debug) {
        if holds {
            self.passed += 1;
            println!("hostile: {}/{name} ok", self.group);
        } else {
            self.failed += 1;
            println!("hostile: FAIL {}/{name}: {got:x?}", self.group);
        }
    }

    /// Reports a hypercall that must return one of the errors `wanted`.
    pub(crate) fn refused(&mut self, name: &str, got: i64, wanted: &[Errno]) {
        let holds = wanted.iter().any(|errno| errno.negated() == got);
        self.case(name, holds, Got(got));
    }

    /// Reports a hypercall that must succeed.
    pub(crate) fn succeeds(&mut self, name: &str, got: i64) {
        self.case(name, got >= 0, Got(got));
    }

    /// Prints the totals; true if no case failed.
    pub(crate) fn end(&self) -> bool {
        if self.failed == 0 {
            println!("hostile: PASS {}", self.passed);
        } else {
            println!("hostile: FAILED {} of {}", self.failed, self.failed + self.passed);
        }
        self.failed == 0
    }
}

/// A value of rax, printed with the name of the error.
pub(crate) struct Got(pub(crate) i64);

impl Debug for Got {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match Errno::check(self.0) {
            Err(errno) if errno.negated() == self.0 => write!(f, "-{}", errno.name()),
            _ => write!(f, "{:#x}", self.0),
        }
    }
}
