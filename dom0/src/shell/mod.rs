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
pub use history::{HISTORY_BYTES_MAX, HISTORY_MAX, History};
pub use keys::{Key, KeyDecoder};
pub use words::{SplitError, WORDS_MAX, Word, split};

/// Bytes that a line may have, typed or of a script.
pub const LINE_BYTES_MAX: usize = 4 * LINE_MAX;
