//! How a machine ended, and the exit status for it.

use std::fmt;
use std::process::ExitStatus;

/// The last code that is a kernel's own: it becomes the exit status as it is.
const LAST_OWN: u8 = 0x0f;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// dom0 reported that every line succeeded.
    Succeeded,
    /// dom0 reported that a line failed.
    LineFailed,
    /// A kernel in dom0's place ended with a status of its own, 1 to 15.
    Status(u8),
    /// dom0 powered the machine off, and reported nothing: a kernel in its place that knows of no reports.
    PoweredOff,
    /// The machine is to start again.
    Restarts,
    /// The hypervisor or dom0 panicked.
    Panicked,
    /// The hypervisor refused dom0's kernel, and said why.
    Refused,
    /// The machine was ended at its time limit.
    TimedOut,
    /// The machine powered off or was reset without a report.
    Silent,
    /// Why the emulator did not start, broke, or had output that could not be kept.
    Broken(String),
}

impl Outcome {
    /// From QEMU's exit status: isa-debug-exit makes 2c+1 of the code c.
    pub(crate) fn of(status: ExitStatus, errors: &str) -> Self {
        match status.code() {
            // An emulator that a signal ends has status 0 as well, and says so.
            Some(0) if errors.contains("terminating on signal") => None,
            Some(0) => Some(Self::Silent),
            Some(code @ 1..=0xff) if code & 1 == 1 => Self::reported((code / 2) as u8),
            _ => None,
        }
        .unwrap_or_else(|| Self::Broken(format!("QEMU ended with {status}: {}", errors.trim())))
    }

    /// What the hypervisor or dom0 reported by `code`.
    pub(crate) fn reported(code: u8) -> Option<Self> {
        match code {
            1..=LAST_OWN => Some(Self::Status(code)),
            0x10 => Some(Self::Succeeded),
            0x11 => Some(Self::LineFailed),
            0x12 => Some(Self::Restarts),
            0x13 => Some(Self::Panicked),
            0x14 => Some(Self::PoweredOff),
            0x15 => Some(Self::Refused),
            _ => None,
        }
    }

    /// The same end, of a run in whose former boots a line had failed.
    #[must_use]
    pub(crate) fn with_a_failed_line(self) -> Self {
        match self {
            Self::Succeeded => Self::LineFailed,
            other => other,
        }
    }

    /// The status `cargo xtask run` exits with.
    ///
    /// A script's machine that ends without a report has crashed so hard that it was reset. At the prompt a
    /// person may have wanted the reset.
    pub fn exit_status(&self, scripted: bool) -> u8 {
        match self {
            Self::Succeeded | Self::PoweredOff => 0,
            Self::Silent | Self::Restarts if !scripted => 0,
            Self::LineFailed => 1,
            Self::Status(status) => *status,
            Self::Panicked | Self::Silent | Self::Restarts => 3,
            Self::TimedOut => 4,
            Self::Refused | Self::Broken(_) => 5,
        }
    }
}

impl fmt::Display for Outcome {
    /// What the machine did, as a continuation of the words "the machine".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Succeeded => "ended as it should",
            Self::LineFailed => "ended at a line that failed",
            Self::Status(status) => return write!(f, "ended with a status of its own, {status}"),
            Self::PoweredOff => "powered off",
            Self::Restarts => "was to start again",
            Self::Panicked => "panicked",
            Self::Refused => "refused dom0's kernel",
            Self::TimedOut => "was ended at its time limit",
            Self::Silent => "went off or was reset without a report",
            Self::Broken(why) => return write!(f, "broke: {why}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn exit_statuses_are_the_documented_ones() {
        let status = |outcome: Outcome| (outcome.exit_status(true), outcome.exit_status(false));
        assert_eq!(status(Outcome::Succeeded), (0, 0));
        assert_eq!(status(Outcome::PoweredOff), (0, 0));
        assert_eq!(status(Outcome::LineFailed), (1, 1));
        assert_eq!(status(Outcome::Status(9)), (9, 9));
        assert_eq!(status(Outcome::Panicked), (3, 3));
        assert_eq!(status(Outcome::TimedOut), (4, 4));
        assert_eq!(status(Outcome::Silent), (3, 0));
        assert_eq!(status(Outcome::Refused), (5, 5));
        assert_eq!(status(Outcome::Broken(String::new())), (5, 5));
    }

    #[test]
    fn an_emulator_ended_by_a_signal_is_no_machine_that_went_off() {
        let done = ExitStatus::from_raw(0);
        assert_eq!(Outcome::of(done, "warning: x\n"), Outcome::Silent);
        let ended = Outcome::of(done, "qemu-system-x86_64: terminating on signal 15 from pid 7 (timeout)\n");
        assert!(matches!(&ended, Outcome::Broken(why) if why.contains("signal 15")), "{ended:?}");
    }

    #[test]
    fn a_code_is_one_report() {
        for code in 1..=0x0f {
            assert_eq!(Outcome::reported(code), Some(Outcome::Status(code)));
        }
        // 0 would look like an error of QEMU's own.
        for code in [0, 0x16, 0x7f, 0xff] {
            assert_eq!(Outcome::reported(code), None);
        }
    }
}
