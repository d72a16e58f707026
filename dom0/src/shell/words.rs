//! Words of a command line.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A word and where it begins in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word, without its quotes.
    pub text: String,
    /// Offset of its first byte, quote included: `repeat 3 LINE` runs the line from there on.
    pub at: usize,
}

/// Words that a line may have: many times what commands take.
pub const WORDS_MAX: usize = 1024;

/// Why a line cannot be split into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// A quote, bracket or `\` is not closed.
    Open {
        /// `'`, `"`, `[` or `\`.
        opened: char,
        /// The column of that character, from 1.
        column: usize,
    },
    /// There are more than [`WORDS_MAX`].
    TooMany,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { opened: '\\', column } => write!(f, "column {column}: nothing after `\\`"),
            Self::Open { opened, column } => write!(f, "column {column}: `{opened}` is not closed"),
            Self::TooMany => write!(f, "more than {WORDS_MAX} words"),
        }
    }
}

impl core::error::Error for SplitError {}

/// What is open at some point of a line.
#[derive(Clone, Copy)]
enum Open {
    Quote(char),
    /// The depth of brackets; within them, a quote that hides brackets.
    Brackets(usize, Option<char>),
}

/// Splits a line into words at blanks.
///
/// Quotes of both kinds group, and are removed. `\` outside single quotes makes the next character literal, and is
/// removed. Within `[...]` everything stays as it is, quotes and blanks too. From a `#` that begins a word, the line
/// is a comment.
///
/// # Errors
/// A quote or bracket that is not closed, or a `\` at the end.
pub fn split(line: &str) -> Result<Vec<Word>, SplitError> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut open: Option<(Open, usize)> = None;
    let mut chars = line.char_indices().enumerate();
    while let Some((column, (at, c))) = chars.next() {
        if word.is_none() {
            if c.is_whitespace() {
                continue;
            }
            if c == '#' {
                break;
            }
            if words.len() == WORDS_MAX {
                return Err(SplitError::TooMany);
            }
        }
        let text = &mut word.get_or_insert_with(|| Word { text: String::new(), at }).text;
        match open {
            Some((Open::Brackets(depth, quote), opened)) => {
                text.push(c);
                let (depth, quote) = match (quote, c) {
                    (Some(closing), _) => (depth, (c != closing).then_some(closing)),
                    (None, '\'' | '"') => (depth, Some(c)),
                    (None, '[') => (depth + 1, None),
                    (None, ']') => (depth - 1, None),
                    (None, _) => (depth, None),
                };
                open = (depth > 0).then_some((Open::Brackets(depth, quote), opened));
            }
            Some((Open::Quote(closing), _)) if c == closing => open = None,
            None if c == '\'' || c == '"' => open = Some((Open::Quote(c), column)),
            None if c == '[' => {
                text.push(c);
                open = Some((Open::Brackets(1, None), column));
            }
            None if c.is_whitespace() => words.extend(word.take()),
            None | Some((Open::Quote('"'), _)) if c == '\\' => {
                let (_, (_, next)) =
                    chars.next().ok_or(SplitError::Open { opened: '\\', column: column + 1 })?;
                text.push(next);
            }
            _ => text.push(c),
        }
    }
    match open {
        Some((Open::Quote(opened), column)) => Err(SplitError::Open { opened, column: column + 1 }),
        Some((Open::Brackets(..), column)) => Err(SplitError::Open { opened: '[', column: column + 1 }),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::*;

    fn texts(line: &str) -> Vec<String> {
        split(line).unwrap().into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn blanks_and_quotes() {
        assert!(texts("").is_empty());
        assert!(texts("  \t ").is_empty());
        assert_eq!(texts(" xl  list\t-l "), ["xl", "list", "-l"]);
        assert_eq!(texts(r#"a 'b c' "d 'e'" f'g'"h" '' "#), ["a", "b c", "d 'e'", "fgh", ""]);
        assert_eq!(texts(r#"a\ b "c\"d" 'e\f' \[x"#), ["a b", "c\"d", "e\\f", "[x"]);
        assert_eq!(texts("a #b c"), ["a"]);
        assert_eq!(texts("a#b '#c'"), ["a#b", "#c"]);
        assert_eq!(texts("xenstore-write /ä 'ö ü'"), ["xenstore-write", "/ä", "ö ü"]);
    }

    #[test]
    fn brackets_keep_everything() {
        for kept in [
            "disk=['phy:/dev/vda,xvda,w']",
            "disk=[ 'a', \"b\" ]",
            "a=[['x'],[]]",
            "a=['with ] in it' , # no comment\n]",
            r"a=[\]",
        ] {
            assert_eq!(texts(&format!("xl create c {kept} z")), ["xl", "create", "c", kept, "z"]);
        }
        assert_eq!(texts("name='x y' memory=64"), ["name=x y", "memory=64"]);
        assert_eq!(texts("'[' ]"), ["[", "]"]);
    }

    #[test]
    fn offsets_are_of_the_first_byte() {
        let at: Vec<usize> = split(" ä 'b' c").unwrap().iter().map(|word| word.at).collect();
        assert_eq!(at, [1, 4, 8]);
    }

    #[test]
    fn what_is_open_is_an_error() {
        for (line, opened, column) in [
            ("a 'b", '\'', 3),
            ("ä \"b", '"', 3),
            ("a=[b", '[', 3),
            ("a=[']", '[', 3),
            ("a\\", '\\', 2),
            ("[[]", '[', 1),
        ] {
            assert_eq!(split(line), Err(SplitError::Open { opened, column }), "{line}");
        }
    }

    #[test]
    fn a_line_has_no_more_words_than_is_stated() {
        assert_eq!(texts(&"a ".repeat(WORDS_MAX)).len(), WORDS_MAX);
        assert_eq!(texts(&("a ".repeat(WORDS_MAX) + "# b")).len(), WORDS_MAX);
        assert_eq!(split(&"a ".repeat(WORDS_MAX + 1)), Err(SplitError::TooMany));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(line in r#"[ab'"\\\[\] #é]{0,40}"#) {
            let _ = split(&line);
        }

        #[test]
        fn quoting_brings_any_words_through(words in prop::collection::vec("[a-z \\[\\]\"#é]{0,8}", 0..6)) {
            let line: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            assert_eq!(texts(&line.join(" ")), words);
        }
    }
}
