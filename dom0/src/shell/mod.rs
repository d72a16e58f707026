//! The shell's text: the words of a line, the editing of lines, the terminal that shows them. [`crate::commands`] carries
//! lines out.
//!
//! Words and editing are pure: [`split`] turns a line into words; [`LineEditor`] takes bytes as they come, answers
//! [`EditorEvent`]s, and leaves what is to be printed in a buffer. A [`Terminal`] joins the editor to dom0's console, and
//! [`print`](mod@print) prints long output in steps.
#![forbid(unsafe_code)]

mod editor;
mod history;
mod keys;
pub(crate) mod print;
mod terminal;
mod words;

pub use editor::{EditorEvent, LINE_MAX, LineEditor};
pub use history::{HISTORY_BYTES_MAX, HISTORY_MAX, History};
pub use keys::{Key, KeyDecoder};
pub use terminal::{PROMPT, Terminal};
pub use words::{SplitError, WORDS_MAX, Word, split};

/// Bytes that a line may have, typed or of a script.
pub const LINE_BYTES_MAX: usize = 4 * LINE_MAX;
