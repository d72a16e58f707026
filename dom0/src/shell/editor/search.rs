//! `^R`: looking for a line that was entered before, while its text is typed.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Key, LineEditor};

/// The most characters of a search, so that its prompt leaves room for the line.
const TEXT_MAX: usize = 30;

/// A running search, which shows the line that was found.
pub(super) struct Search {
    text: String,
    /// The place of the line found in the history.
    at: usize,
    /// No line has the text.
    failed: bool,
    /// The line that was being written.
    before: Vec<char>,
}

impl Search {
    /// The search's prompt.
    pub(super) fn prompt(&self) -> String {
        format!("({}search) '{}': ", if self.failed { "failed " } else { "" }, self.text)
    }
}

impl LineEditor {
    /// Begins a search from the latest line.
    pub(super) fn begin_search(&mut self) {
        let before = self.line.clone();
        self.search = Some(Search { text: String::new(), at: usize::MAX, failed: false, before });
        self.redraw();
    }

    /// Takes a key during a search. Returns the key if it ends the search and must now edit the line that was
    /// found.
    pub(super) fn search_key(&mut self, key: Key) -> Option<Key> {
        let search = self.search.as_mut()?;
        match key {
            Key::Char(_) if search.text.chars().count() == TEXT_MAX => self.bell(),
            Key::Char(c) => {
                search.text.push(c);
                // With a longer text the same line may still match, so it is searched too.
                let count = search.at.saturating_add(1);
                self.look_for(count);
            }
            Key::Backspace => {
                search.text.pop();
                self.look_for(usize::MAX);
            }
            Key::Search => {
                let count = search.at;
                self.look_for(count);
            }
            Key::Cancel => {
                self.line = self.search.take().map(|search| search.before).unwrap_or_default();
                self.cursor = self.line.len();
                self.redraw();
            }
            _ => {
                self.search = None;
                self.redraw();
                return Some(key);
            }
        }
        None
    }

    /// Shows the latest matching line among the history's first `count`.
    fn look_for(&mut self, count: usize) {
        let Some(search) = &mut self.search else { return };
        let found = self.history.find(&search.text, count).filter(|_| !search.text.is_empty());
        search.failed = found.is_none() && !search.text.is_empty();
        if let Some((at, line)) = found.map(|(at, line)| (at, line.to_string())) {
            search.at = at;
            self.line = line.chars().collect();
            self.cursor = self.line.len();
        } else if search.failed {
            self.bell();
        }
        self.redraw();
    }
}
