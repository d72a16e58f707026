//! Editing a line on a terminal.

mod search;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::history::History;
use super::keys::{Key, KeyDecoder};
use search::Search;

/// The most characters of a line; for further ones the bell rings.
pub const LINE_MAX: usize = 4096;
/// The assumed width of a terminal, until another is set.
const WIDTH: usize = 80;
/// Columns that are left for the line, however long the prompt is.
const WINDOW_MIN: usize = 10;

/// What the user has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditorEvent {
    /// A line was entered; the history has it.
    Line(String),
    /// `^C`: the editor has dropped the line.
    Interrupt,
    /// `^D` on an empty line.
    EndOfInput,
    /// Tab: answer with [`LineEditor::complete`].
    Complete,
}

/// An editor of one line at a time.
///
/// Terminals: VT100 and its successors. A line longer than the terminal is wide is shown in part, around the cursor.
pub struct LineEditor {
    keys: KeyDecoder,
    history: History,
    prompt: String,
    width: usize,
    line: Vec<char>,
    /// Place in `line`, from 0 to its length.
    cursor: usize,
    /// First character of `line` that is shown.
    first: usize,
    killed: Vec<char>,
    search: Option<Search>,
    output: Vec<u8>,
}

impl LineEditor {
    /// An editor that shows this prompt.
    pub fn new(prompt: &str) -> LineEditor {
        LineEditor {
            keys: KeyDecoder::default(),
            history: History::default(),
            prompt: String::from(prompt),
            width: WIDTH,
            line: Vec::new(),
            cursor: 0,
            first: 0,
            killed: Vec::new(),
            search: None,
            output: Vec::new(),
        }
    }

    /// Sets the width of the terminal.
    pub fn set_width(&mut self, columns: usize) {
        self.width = columns;
    }

    /// Shows the prompt and the line typed so far: at the beginning, and after an event.
    pub fn show(&mut self) {
        self.redraw();
    }

    /// Removes prompt and line from the screen, so that something else can be printed; [`LineEditor::show`] brings
    /// them back.
    pub fn hide(&mut self) {
        self.print("\r\x1b[K");
    }

    /// Takes what is to be printed.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.output)
    }

    /// The lines entered before.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The text before the cursor, for completion.
    pub fn before_cursor(&self) -> String {
        self.line[..self.cursor].iter().collect()
    }

    /// Takes the next byte from the terminal.
    pub fn feed(&mut self, byte: u8) -> Option<EditorEvent> {
        let mut key = self.keys.feed(byte)?;
        if self.search.is_some() {
            key = self.search_key(key)?;
        }
        match key {
            Key::Enter => {
                let line: String = self.line.iter().collect();
                self.cursor = self.line.len();
                self.print("\r\n");
                self.history.push(&line);
                self.clear();
                return Some(EditorEvent::Line(line));
            }
            Key::Interrupt => {
                self.print("^C\r\n");
                self.history.leave();
                self.clear();
                return Some(EditorEvent::Interrupt);
            }
            Key::EndOfInput if self.line.is_empty() => {
                self.print("\r\n");
                return Some(EditorEvent::EndOfInput);
            }
            Key::Tab => return Some(EditorEvent::Complete),
            Key::Char(c) => self.insert(&[c]),
            Key::Backspace => self.remove(self.cursor.saturating_sub(1), self.cursor, false),
            Key::Delete | Key::EndOfInput => self.remove(self.cursor, self.cursor + 1, false),
            Key::Left => self.go(self.cursor.saturating_sub(1)),
            Key::Right => self.go(self.cursor + 1),
            Key::Home => self.go(0),
            Key::End => self.go(self.line.len()),
            Key::WordLeft => self.go(self.word_left()),
            Key::WordRight => self.go(self.word_right()),
            Key::KillWordLeft => self.remove(self.blank_left(), self.cursor, true),
            Key::KillWordRight => self.remove(self.cursor, self.word_right(), true),
            Key::KillToStart => self.remove(0, self.cursor, true),
            Key::KillToEnd => self.remove(self.cursor, self.line.len(), true),
            Key::Yank => {
                let killed = self.killed.clone();
                self.insert(&killed);
            }
            Key::Up => {
                let now: String = self.line.iter().collect();
                let older = self.history.older(&now).map(|line| line.chars().collect());
                self.replace(older);
            }
            Key::Down => {
                let newer = self.history.newer().map(|line| line.chars().collect());
                self.replace(newer);
            }
            Key::ClearScreen => {
                self.print("\x1b[H\x1b[2J");
                self.redraw();
            }
            Key::Search => self.begin_search(),
            Key::Cancel => self.bell(),
        }
        None
    }

    /// Completes the word before the cursor. A single candidate replaces the word. Of several candidates the
    /// common beginning does; if that adds nothing, the candidates are listed.
    pub fn complete(&mut self, candidates: &[String]) {
        let start = self.blank_start(self.cursor);
        let typed: Vec<char> = self.line[start..self.cursor].to_vec();
        let fitting: Vec<Vec<char>> = candidates
            .iter()
            .map(|candidate| candidate.chars().collect::<Vec<char>>())
            .filter(|candidate| candidate.starts_with(&typed))
            .collect();
        let Some(first) = fitting.first() else { return self.bell() };
        let common = fitting.iter().fold(first.len(), |len, other| {
            first.iter().zip(other).take(len).take_while(|(a, b)| a == b).count()
        });
        let mut more: Vec<char> = first[typed.len()..common].to_vec();
        if fitting.len() == 1 && first.last() != Some(&'/') {
            more.push(' ');
        }
        if !more.is_empty() {
            return self.insert(&more);
        }
        if fitting.len() == 1 {
            return;
        }
        self.print("\r\n");
        for candidate in &fitting {
            let text: String = candidate.iter().collect();
            self.print(&text);
            self.print("  ");
        }
        self.print("\r\n");
        self.redraw();
    }

    fn print(&mut self, text: &str) {
        self.output.extend_from_slice(text.as_bytes());
    }

    fn bell(&mut self) {
        self.output.push(0x07);
    }

    fn clear(&mut self) {
        self.line.clear();
        self.cursor = 0;
        self.first = 0;
    }

    /// The prompt, or the search's prompt.
    fn shown_prompt(&self) -> String {
        self.search.as_ref().map_or_else(|| self.prompt.clone(), Search::prompt)
    }

    /// The columns for the line. One is left free, since terminals differ in how they treat the last column.
    fn window(&self) -> usize {
        self.width.saturating_sub(self.shown_prompt().chars().count() + 1).max(WINDOW_MIN)
    }

    fn insert(&mut self, chars: &[char]) {
        if self.line.len() + chars.len() > LINE_MAX {
            return self.bell();
        }
        let at_end = self.cursor == self.line.len();
        self.line.splice(self.cursor..self.cursor, chars.iter().copied());
        self.cursor += chars.len();
        if at_end && self.cursor - self.first <= self.window() {
            // Characters at the end of a line that fits are printed alone, without drawing the whole line
            // anew.
            let text: String = chars.iter().collect();
            self.print(&text);
        } else {
            self.redraw();
        }
    }

    /// Removes characters, as far as there are any; with `keep`, for a later yank.
    fn remove(&mut self, from: usize, to: usize, keep: bool) {
        let to = to.min(self.line.len());
        if from >= to {
            return;
        }
        let removed: Vec<char> = self.line.drain(from..to).collect();
        if keep {
            self.killed = removed;
        }
        self.cursor = from;
        self.redraw();
    }

    fn go(&mut self, to: usize) {
        let to = to.min(self.line.len());
        if to != self.cursor {
            self.cursor = to;
            self.redraw();
        }
    }

    fn replace(&mut self, line: Option<Vec<char>>) {
        let Some(line) = line else { return self.bell() };
        self.line = line;
        self.cursor = self.line.len();
        self.redraw();
    }

    /// Where the word before the cursor begins, by letters and digits.
    fn word_left(&self) -> usize {
        let before = &self.line[..self.cursor];
        let word = before.iter().rposition(|c| c.is_alphanumeric()).unwrap_or(0);
        before[..word].iter().rposition(|c| !c.is_alphanumeric()).map_or(0, |at| at + 1)
    }

    /// Where the word after the cursor ends, by letters and digits.
    fn word_right(&self) -> usize {
        let after = &self.line[self.cursor..];
        let word = after.iter().position(|c| c.is_alphanumeric()).unwrap_or(after.len());
        let length = after[word..].iter().position(|c| !c.is_alphanumeric());
        self.cursor + word + length.unwrap_or(after.len() - word)
    }

    /// Where the word before the cursor begins, by blanks.
    fn blank_left(&self) -> usize {
        let before = &self.line[..self.cursor];
        self.blank_start(before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |at| at + 1))
    }

    fn blank_start(&self, end: usize) -> usize {
        self.line[..end].iter().rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1)
    }

    fn redraw(&mut self) {
        let window = self.window();
        if self.cursor < self.first {
            self.first = self.cursor;
        }
        if self.cursor - self.first > window {
            self.first = self.cursor - window;
        }
        self.first = self.first.min(self.line.len().saturating_sub(window));
        let end = self.line.len().min(self.first + window);
        let shown: String = self.line[self.first..end].iter().collect();
        let back = end - self.cursor;
        let prompt = self.shown_prompt();
        self.print("\r");
        self.print(&prompt);
        self.print(&shown);
        self.print("\x1b[K");
        if back > 0 {
            self.print(&format!("\x1b[{back}D"));
        }
    }
}

#[cfg(test)]
mod tests;
