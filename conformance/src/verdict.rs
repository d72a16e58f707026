//! What a case needs of the place where it runs, and what comes of it.

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
    /// The other end of each ring and the whole store within reach, and nothing to lose: each case gets a world of
    /// its own.
    BothEnds,
}

impl Need {
    /// What is said where it is not there.
    pub fn missing(self) -> &'static str {
        match self {
            Self::Store => "no xenstore ring",
            Self::Disk => "no disk that can be written",
            Self::ReadOnlyDisk => "no read-only disk",
            Self::BigSectorDisk => "no disk with sectors larger than 512 bytes",
            Self::Console => "no console ring",
            Self::Hypervisor => "no hypervisor",
            Self::Dom0 => "not the control domain",
            Self::DomU => "this is the control domain",
            Self::Frontend => "no frontend of another domain to try",
            Self::BothEnds => "only one end of the rings is here",
        }
    }

    /// The need in a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Store => "xenstore",
            Self::Disk => "disk",
            Self::ReadOnlyDisk => "read-only disk",
            Self::BigSectorDisk => "4 KiB sector disk",
            Self::Console => "console",
            Self::Hypervisor => "hypervisor",
            Self::Dom0 => "dom0",
            Self::DomU => "domU",
            Self::Frontend => "frontend",
            Self::BothEnds => "both ends",
        }
    }
}

/// What a case's function gives: nothing, or why it did not pass.
pub type Verdict<T = ()> = Result<T, Problem>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The rule is broken: what was seen, and what was to be seen.
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

/// What came of a case.
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

    /// What there is to say about it.
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
