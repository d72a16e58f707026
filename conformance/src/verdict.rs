//! What a case needs of the place where it runs, and the outcome of a case.

use alloc::string::String;
use core::fmt;

/// What a case needs of the place where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A xenstore ring.
    Store,
    /// A disk that can be written, and may be overwritten.
    Disk,
    /// A disk that was given read-only.
    ReadOnlyDisk,
    /// A disk whose sectors are larger than 512 bytes.
    BigSectorDisk,
    /// Two network interfaces on one bridge.
    Vifs,
    /// The two interfaces, with a backend that serves them again after a frontend ruined a ring.
    MendingVifs,
    /// A console ring.
    Console,
    /// A hypervisor, which answers all hypercalls.
    Hypervisor,
    /// To be the control domain.
    Dom0,
    /// Not to be the control domain.
    DomU,
    /// Another domain's frontends, with the backend's end of a device within reach.
    Frontend,
    /// The case reaches the other end of each ring and the whole store, and may break all of it: each case gets
    /// its own, fresh.
    BothEnds,
}

impl Need {
    /// The message for a case that is skipped since the need is not met.
    pub fn missing(self) -> &'static str {
        match self {
            Self::Store => "no xenstore ring",
            Self::Disk => "no disk that can be written",
            Self::ReadOnlyDisk => "no read-only disk",
            Self::BigSectorDisk => "no disk with sectors larger than 512 bytes",
            Self::Vifs => "no two network interfaces",
            Self::MendingVifs => "no network interfaces that outlive a ruined ring",
            Self::Console => "no console ring",
            Self::Hypervisor => "no hypervisor",
            Self::Dom0 => "not the control domain",
            Self::DomU => "this is the control domain",
            Self::Frontend => "no frontend of another domain to try",
            Self::BothEnds => "only one end of the rings is here",
        }
    }

    /// The need's name in a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Store => "xenstore",
            Self::Disk => "disk",
            Self::ReadOnlyDisk => "read-only disk",
            Self::BigSectorDisk => "4 KiB sector disk",
            Self::Vifs => "two vifs",
            Self::MendingVifs => "two vifs that mend",
            Self::Console => "console",
            Self::Hypervisor => "hypervisor",
            Self::Dom0 => "dom0",
            Self::DomU => "domU",
            Self::Frontend => "frontend",
            Self::BothEnds => "both ends",
        }
    }
}

/// The result of a case's function: nothing, or why the case did not pass.
pub type Verdict<T = ()> = Result<T, Problem>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The rule is broken; the text says what the case saw and what it should have seen.
    Fail(String),
    /// The rule does not apply here: why.
    Skip(String),
    /// The case could not find out.
    Error(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Fail(text) | Self::Skip(text) | Self::Error(text)) = self;
        f.write_str(text)
    }
}

/// The outcome of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The rule is kept.
    Pass,
    /// The rule is broken: how.
    Fail(String),
    /// The rule does not apply, or cannot be tried here: why.
    Skip(String),
    /// The case could not find out: why.
    Error(String),
}

impl Outcome {
    /// `pass`, `fail`, `skip` or `error`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Skip(_) => "skip",
            Self::Error(_) => "error",
        }
    }

    /// The text that explains the outcome; empty for a pass.
    pub fn detail(&self) -> &str {
        match self {
            Self::Pass => "",
            Self::Fail(text) | Self::Skip(text) | Self::Error(text) => text,
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Ok(()) => Self::Pass,
            Err(Problem::Fail(text)) => Self::Fail(text),
            Err(Problem::Skip(text)) => Self::Skip(text),
            Err(Problem::Error(text)) => Self::Error(text),
        }
    }
}
