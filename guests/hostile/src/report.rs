//! What came of each case.

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

    /// A case whose outcome is `got`, which is as it must be if `holds`.
    pub(crate) fn case(&mut self, name: &str, holds: bool, got: impl Debug) {
        if holds {
            self.passed += 1;
            println!("hostile: {}/{name} ok", self.group);
        } else {
            self.failed += 1;
            println!("hostile: FAIL {}/{name}: {got:x?}", self.group);
        }
    }

    /// A hypercall that must give one of `wanted`.
    pub(crate) fn refused(&mut self, name: &str, got: i64, wanted: &[Errno]) {
        let holds = wanted.iter().any(|errno| errno.negated() == got);
        self.case(name, holds, Got(got));
    }

    /// A hypercall that must succeed.
    pub(crate) fn succeeds(&mut self, name: &str, got: i64) {
        self.case(name, got >= 0, Got(got));
    }

    /// Prints the sum; true if all is well.
    pub(crate) fn end(&self) -> bool {
        if self.failed == 0 {
            println!("hostile: PASS {}", self.passed);
        } else {
            println!("hostile: FAILED {} of {}", self.failed, self.failed + self.passed);
        }
        self.failed == 0
    }
}

/// rax, with the name of the error.
pub(crate) struct Got(pub(crate) i64);

impl Debug for Got {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match Errno::check(self.0) {
            Err(errno) if errno.negated() == self.0 => write!(f, "-{}", errno.name()),
            _ => write!(f, "{:#x}", self.0),
        }
    }
}
