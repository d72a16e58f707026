//! What a case is, and how a module writes its list of them.

use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;

use crate::env::Env;
use crate::verdict::{Need, Verdict};

/// What begins each line of the report on cases.
pub const PREFIX: &str = "conformance: ";

/// One rule of the ABI, and what finds out whether it is kept.
pub struct Case {
    /// The case's name, which never changes: area, subject, rule, in lower case with dots between.
    pub id: &'static str,
    /// What is tried, in half a line.
    pub title: &'static str,
    /// The rule, one sentence.
    pub rule: &'static str,
    /// Where the rule stands: a public header under `xen/include/public`, or a document of Xen's.
    pub source: &'static str,
    /// What must be there.
    pub needs: &'static [Need],
    /// A case that takes longer is in error: what it runs on does not answer.
    pub limit_ms: u32,
    /// Runs it.
    pub run: Run,
}

/// The time limit of cases that state none.
pub const LIMIT_MS: u32 = 20_000;

/// A case's function, boxed.
pub type Run = for<'a> fn(&'a mut Env) -> Running<'a>;

/// A running case.
pub type Running<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

impl Case {
    /// The part of the id before the first dot.
    pub fn area(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }

    /// The first need that `env` does not meet.
    pub fn lacks(&self, env: &Env) -> Option<Need> {
        self.needs.iter().copied().find(|need| !env.has(*need))
    }

    /// Whether `filter` selects the case: the id, or the beginning of it up to a dot; with a `*` at its end, any beginning.
    pub fn matches(&self, filter: &str) -> bool {
        match filter.strip_suffix('*') {
            Some(start) => self.id.starts_with(start),
            None => self.id.strip_prefix(filter).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
        }
    }
}

/// A list of cases, `CASES`, with common needs:
///
/// ```text
/// cases! {
///     needs [Store, Disk];
///     "blkif.read.one-sector" = one_sector {
///         title: "one sector is read",
///         rule: "A segment from first_sect to last_sect, both inclusive, moves that many sectors.",
///         source: "io/blkif.h, struct blkif_request_segment",
///     }
/// }
/// ```
///
/// Behind `source`, `also: [Need, …],` adds needs and `limit_ms: N,` sets another time limit. The function is
/// `async fn(&mut Env) -> Verdict`.
macro_rules! cases {
    (
        $(#[$meta:meta])*
        needs $needs:tt;
        $(
            $id:literal = $function:path {
                title: $title:literal,
                rule: $rule:literal,
                source: $source:literal,
                $(also: [$($also:ident),* $(,)?],)?
                $(limit_ms: $limit:expr,)?
            }
        )*
    ) => {
        $(#[$meta])*
        /// The cases of this module.
        pub(crate) const CASES: &[$crate::Case] = &[$(
            $crate::Case {
                id: $id,
                title: $title,
                rule: $rule,
                source: $source,
                needs: cases!(@needs $needs $([$($also),*])?),
                limit_ms: cases!(@limit $($limit)?),
                run: |env| alloc::boxed::Box::pin($function(env)),
            },
        )*];
    };
    (@needs [$($need:ident),* $(,)?]) => { &[$($crate::Need::$need),*] };
    (@needs [$($need:ident),* $(,)?] [$($also:ident),*]) => {
        &[$($crate::Need::$need,)* $($crate::Need::$also),*]
    };
    (@limit) => { $crate::case::LIMIT_MS };
    (@limit $limit:expr) => { $limit };
}

/// Ends the case as failed unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err($crate::Problem::Fail(alloc::format!($($text)*)));
        }
    };
}

/// Ends the case as failed unless two values are equal; the text says what they are.
macro_rules! ensure_eq {
    ($got:expr, $wanted:expr, $($text:tt)*) => {
        match (&$got, &$wanted) {
            (got, wanted) => {
                if *got != *wanted {
                    let what = alloc::format!($($text)*);
                    return Err($crate::Problem::Fail(alloc::format!("{what}: {got:?}, not {wanted:?}")));
                }
            }
        }
    };
}

/// Ends the case as skipped unless the condition holds.
macro_rules! require {
    ($holds:expr, $($text:tt)*) => {
        if !$holds {
            return Err($crate::Problem::Skip(alloc::format!($($text)*)));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn nothing(_: &mut Env) -> Verdict {
        Ok(())
    }

    mod list {
        use super::nothing;

        cases! {
            needs [Store];
            "a.b.c" = nothing { title: "t", rule: "r", source: "s", }
            "a.bc" = nothing { title: "t", rule: "r", source: "s", also: [Disk], limit_ms: 7, }
        }
    }

    #[test]
    fn filters_select_whole_parts_or_beginnings() {
        let selected = |filter: &str| list::CASES.iter().filter(|case| case.matches(filter)).count();
        assert_eq!(selected("a"), 2);
        assert_eq!(selected("a.b"), 1);
        assert_eq!(selected("a.b*"), 2);
        assert_eq!(selected("*"), 2);
        assert_eq!(selected("a.b.c"), 1);
        assert_eq!(selected("a.b.c.d"), 0);
        assert_eq!(selected("b"), 0);
    }

    #[test]
    fn needs_and_limits_add_up() {
        assert_eq!(list::CASES[0].needs, [Need::Store]);
        assert_eq!(list::CASES[1].needs, [Need::Store, Need::Disk]);
        assert_eq!((list::CASES[0].limit_ms, list::CASES[1].limit_ms), (LIMIT_MS, 7));
    }
}
