//! Parsed files, where everything in them stands, and what is said about it.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::syntax;

/// A place in a file or a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file's name, or `command line`.
    pub source: Arc<str>,
    /// Line, from 1; on a command line, the number of the word.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source, self.line, self.column)
    }
}

/// An error or a warning about a configuration: prints as `file:line:column: key: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where; `None` about something that is nowhere, such as a missing key.
    pub position: Option<Position>,
    /// The key it is about.
    pub key: Option<String>,
    /// What is wrong, or was expected.
    pub text: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = &self.position {
            write!(f, "{position}: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.text)
    }
}

impl core::error::Error for Diagnostic {}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its first character.
    pub position: Position,
    /// What it is.
    pub kind: ValueKind,
}

/// The kinds of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// In quotes; or on a command line, bare.
    Text(String),
    /// Bare digits: the number, and how it was written.
    Number(u64, String),
    /// In brackets.
    List(Vec<Value>),
}

impl ValueKind {
    fn name(&self) -> &'static str {
        match self {
            ValueKind::Text(_) => "a string",
            ValueKind::Number(..) => "a number",
            ValueKind::List(_) => "a list",
        }
    }
}

impl Value {
    /// As text: a string, or a number as it was written.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            ValueKind::Text(text) | ValueKind::Number(_, text) => Some(text),
            ValueKind::List(_) => None,
        }
    }
}

/// `key = value`, after all additions to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// Where the key stands that was read last.
    pub position: Position,
    /// The value.
    pub value: Value,
}

/// What a file says, with the words of a command line put after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file's name.
    pub name: Arc<str>,
    settings: Vec<Setting>,
    words: u32,
}

impl Config {
    /// A configuration that says nothing yet.
    pub fn empty(name: &str) -> Config {
        Config { name: Arc::from(name), settings: Vec::new(), words: 0 }
    }

    /// Reads a file; `name` is how messages call it.
    ///
    /// # Errors
    /// The first place where the text is not of the language, and what was expected there.
    pub fn parse(name: &str, text: &[u8]) -> Result<Config, Diagnostic> {
        let mut config = Config::empty(name);
        let source = config.name.clone();
        let text = match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let valid = core::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default();
                let position = Locator::new(&source, valid, 1).at(valid.len());
                return Err(Diagnostic { position: Some(position), key: None, text: "not UTF-8".to_owned() });
            }
        };
        let locator = Locator::new(&source, text, 1);
        for statement in syntax::file(text).map_err(|expected| locator.expected(text, &expected))? {
            config.apply(statement, &locator)?;
        }
        Ok(config)
    }

    /// Adds one word of a command line, `key=value` or `key+=value`. The value may be bare: then it is a
    /// number if it can be read as one, else a string; a list without quotes is a list of one string.
    ///
    /// # Errors
    /// It is no such word, or its list is not of the language.
    pub fn add_word(&mut self, word: &str) -> Result<(), Diagnostic> {
        self.words += 1;
        let source: Arc<str> = Arc::from("command line");
        let locator = Locator::new(&source, word, self.words);
        let statement = syntax::word(word).map_err(|expected| locator.expected(word, &expected))?;
        self.apply(statement, &locator)
    }

    /// The setting of `key`.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    /// All settings, in the order of their first appearance.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    fn apply(&mut self, statement: syntax::Statement, locator: &Locator<'_>) -> Result<(), Diagnostic> {
        let position = locator.at(statement.at);
        let value = locator.value(statement.value);
        let key = statement.key;
        let Some(old) = self.settings.iter_mut().find(|setting| setting.key == key) else {
            self.settings.push(Setting { key, position, value });
            return Ok(());
        };
        old.position = position;
        if !statement.add {
            old.value = value;
            return Ok(());
        }
        match (&mut old.value.kind, value.kind) {
            (ValueKind::List(list), ValueKind::List(more)) => list.extend(more),
            (ValueKind::Text(text), ValueKind::Text(more)) => text.push_str(&more),
            (kind, more) => {
                let text = alloc::format!("{} cannot be added to {}", more.name(), kind.name());
                return Err(Diagnostic { position: Some(value.position), key: Some(key), text });
            }
        }
        Ok(())
    }
}

/// Is this word of a command line a setting and not a file or an option?
pub fn is_setting_word(word: &str) -> bool {
    syntax::is_setting(word)
}

/// Turns offsets in a text into positions.
struct Locator<'a> {
    source: &'a Arc<str>,
    text: &'a str,
    first_line: u32,
}

impl<'a> Locator<'a> {
    fn new(source: &'a Arc<str>, text: &'a str, first_line: u32) -> Locator<'a> {
        Locator { source, text, first_line }
    }

    fn at(&self, offset: usize) -> Position {
        let before = &self.text[..offset];
        let line = before.matches('\n').count() as u32 + self.first_line;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1;
        Position { source: self.source.clone(), line, column }
    }

    fn value(&self, raw: syntax::Raw) -> Value {
        let kind = match raw.kind {
            syntax::RawKind::Text(text) => ValueKind::Text(text),
            syntax::RawKind::Number(number, text) => ValueKind::Number(number, text),
            syntax::RawKind::List(list) => {
                ValueKind::List(list.into_iter().map(|value| self.value(value)).collect())
            }
        };
        Value { position: self.at(raw.at), kind }
    }

    fn expected(&self, text: &str, expected: &syntax::Expected) -> Diagnostic {
        let found = match text[expected.at..].chars().next() {
            None => "the end".to_owned(),
            Some('\n') => "the end of the line".to_owned(),
            Some(c) if c.is_control() => alloc::format!("`{}`", c.escape_default()),
            Some(c) => alloc::format!("`{c}`"),
        };
        let text = alloc::format!("expected {}, found {found}", expected.what);
        Diagnostic { position: Some(self.at(expected.at)), key: None, text }
    }
}
