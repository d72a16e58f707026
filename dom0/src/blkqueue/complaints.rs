//! What the log hears of commands that fail: a worn-out disk fails many.

use core::fmt;

use pvrt::executor::time;

/// Time between two messages about one disk.
const TELL_NS: u64 = 1_000_000_000;

/// When something was last said of a disk, and how much was not said since.
#[derive(Debug, Default)]
pub struct Complaints {
    last: Option<u64>,
    untold: u64,
}

impl Complaints {
    /// Tells of a failure of the disk `name`, unless one was told of a moment ago.
    pub fn tell(&mut self, name: &str, failure: &dyn fmt::Display) {
        if let Some(untold) = self.next() {
            let more = Untold(untold);
            log::error!("{name}: {failure}{more}");
        }
    }

    /// How many failures were not told of before this one; `None`: nor is this one.
    fn next(&mut self) -> Option<u64> {
        let now = time::now_ns();
        if self.last.is_some_and(|at| now < at.saturating_add(TELL_NS)) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(core::mem::take(&mut self.untold))
    }
}

/// How many failures nothing was said of.
struct Untold(u64);

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            more => write!(f, ", and {more} before that were not told of"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrt::executor::block_on_test;

    #[test]
    fn one_message_a_second_counts_the_others() {
        let mut complaints = Complaints::default();
        assert_eq!(complaints.next(), Some(0));
        for _ in 0..5 {
            assert_eq!(complaints.next(), None);
        }
        block_on_test(time::sleep(TELL_NS));
        assert_eq!([complaints.next(), complaints.next()], [Some(5), None]);
    }
}
