//! The shell's text: words of a line, and the editing of lines on a terminal. What commands do is elsewhere.
//!
//! Both are pure: [`split`] turns a line into words; [`LineEditor`] takes bytes as they come, answers
//! [`EditorEvent`]s, and leaves what is to be printed in a buffer.
#![forbid(unsafe_code)]

mod editor;
mod history;
mod keys;
mod words;

pub use editor::{EditorEvent, LINE_MAX, LineEditor};
pub use history::{HISTORY_MAX, History};
pub use keys::{Key, KeyDecoder};
pub use words::{SplitError, Word, split};
