//! Lines that were entered before.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};

/// Lines that are kept.
pub const HISTORY_MAX: usize = 100;

/// The most bytes of kept lines, not counting the latest.
pub const HISTORY_BYTES_MAX: usize = 64 << 10;

/// The last lines entered, and where the user is in them.
#[derive(Clone, Debug, Default)]
pub struct History {
    lines: VecDeque<String>,
    /// The bytes of all lines.
    bytes: usize,
    /// The line shown, counted from the latest; `None`: the one being written.
    back: Option<usize>,
    /// What was being written when the user went back.
    draft: String,
}

impl History {
    /// Keeps a line, unless it is blank or the latest; the oldest goes when there are too many.
    pub fn push(&mut self, line: &str) {
        self.back = None;
        self.draft.clear();
        if line.trim().is_empty() || self.lines.back().is_some_and(|last| last == line) {
            return;
        }
        self.bytes += line.len();
        while self.lines.len() == HISTORY_MAX || self.bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        self.lines.push_back(line.to_string());
    }

    /// All lines, the oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// The latest line with `text` in it among the first `count`, and its place.
    pub fn find(&self, text: &str, count: usize) -> Option<(usize, &str)> {
        let lines = self.lines.iter().enumerate().take(count);
        lines.rev().map(|(at, line)| (at, line.as_str())).find(|(_, line)| line.contains(text))
    }

    /// Leaves the history: the next step back shows the latest line again.
    pub fn leave(&mut self) {
        self.back = None;
        self.draft.clear();
    }

    /// The line before the one shown, which is `now`; `None` at the oldest.
    pub fn older(&mut self, now: &str) -> Option<&str> {
        let back = self.back.map_or(0, |back| back + 1);
        let at = self.lines.len().checked_sub(back + 1)?;
        if self.back.is_none() {
            self.draft = now.to_string();
        }
        self.back = Some(back);
        self.lines.get(at).map(String::as_str)
    }

    /// The line after the one shown; after the latest, what was being written; `None` if that is shown.
    pub fn newer(&mut self) -> Option<&str> {
        let back = self.back?;
        self.back = back.checked_sub(1);
        match self.back {
            Some(back) => self.lines.get(self.lines.len() - 1 - back).map(String::as_str),
            None => Some(&self.draft),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_back_and_forth() {
        let mut history = History::default();
        assert_eq!(history.older("x"), None);
        assert_eq!(history.newer(), None);
        for line in ["one", "two", "two", "  ", "three"] {
            history.push(line);
        }
        assert_eq!(history.older("draft"), Some("three"));
        assert_eq!(history.older("three"), Some("two"));
        assert_eq!(history.older("two"), Some("one"));
        assert_eq!(history.older("one"), None);
        assert_eq!(history.newer(), Some("two"));
        assert_eq!(history.newer(), Some("three"));
        assert_eq!(history.newer(), Some("draft"));
        assert_eq!(history.newer(), None);
    }

    #[test]
    fn is_searched_from_the_latest_line() {
        let mut history = History::default();
        ["xl list", "ls /boot", "xl info"].iter().for_each(|line| history.push(line));
        assert_eq!(history.find("xl", usize::MAX), Some((2, "xl info")));
        assert_eq!(history.find("xl", 2), Some((0, "xl list")));
        assert_eq!(history.find("xl", 0), None);
        assert_eq!(history.find("frob", usize::MAX), None);
    }

    #[test]
    fn is_bounded() {
        let mut history = History::default();
        for at in 0..=HISTORY_MAX {
            history.push(&format!("{at}"));
        }
        assert_eq!(history.lines().count(), HISTORY_MAX);
        assert_eq!(history.lines().next(), Some("1"));
        let bytes = |history: &History| history.lines().map(str::len).sum::<usize>();
        for at in 0..20 {
            history.push(&format!("{at}{}", "x".repeat(10_000)));
            assert!(bytes(&history) <= HISTORY_BYTES_MAX);
        }
        assert_eq!(history.lines().count(), 6);
        assert_eq!(history.bytes, bytes(&history));
    }
}
