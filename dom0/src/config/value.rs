//! Parsed files: values with their positions, and messages about them.

use alloc::borrow::{Cow, ToOwned};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

use pvrt::account::RESERVE_BYTES;
use pvrt::yield_now;

use super::syntax;

/// Bytes that a file may have. Files of hundreds of bytes are usual. This limit bounds the memory and work
/// for a file.
pub const FILE_MAX: usize = 64 << 10;
/// Values that a configuration may have, those in lists and lists themselves counted.
pub const VALUES_MAX: usize = 512;
const _: () = assert!(VALUES_MAX == 512, "as syntax::TOO_MANY says");
// The most that dom0 keeps for a file: each text at most twice while a vector grows; and for each value the parsed
// form, the kept form, the setting with its key, and unused room in a growing vector or a tree.
const KEPT_MAX: usize = 2 * FILE_MAX
    + VALUES_MAX * (2 * size_of::<syntax::Raw>() + 2 * size_of::<Value>() + 2 * size_of::<Setting>() + 192);
const _: () = assert!(KEPT_MAX <= RESERVE_BYTES / 2);

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
    /// The position; `None` for a message about something absent, such as a missing key.
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
    /// The position of the first character.
    pub position: Position,
    /// The value itself.
    pub kind: ValueKind,
}

/// The kinds of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// In quotes; or on a command line, bare. Any bytes but zero.
    Text(Vec<u8>),
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
    /// As text: a string, or a number as it was written. A string that is not UTF-8 is read as Latin-1: older files
    /// have that encoding, and a terminal then shows the intended characters.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match &self.kind {
            ValueKind::Text(text) => Some(match core::str::from_utf8(text) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => Cow::Owned(text.iter().map(|&byte| char::from(byte)).collect()),
            }),
            ValueKind::Number(_, text) => Some(Cow::Borrowed(text)),
            ValueKind::List(_) => None,
        }
    }

    /// As the bytes of a text: a string, or a number as it was written.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.kind {
            ValueKind::Text(text) => Some(text),
            ValueKind::Number(_, text) => Some(text.as_bytes()),
            ValueKind::List(_) => None,
        }
    }
}

/// `key = value`, after all additions to the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// The position of the key where it was last read.
    pub position: Position,
    /// The value.
    pub value: Value,
}

/// The settings of a file, with the words of a command line added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file's name.
    pub name: Arc<str>,
    settings: Vec<Setting>,
    /// Where in `settings` each key is.
    places: BTreeMap<String, usize>,
    words: u32,
    /// How many values may still come.
    room: usize,
}

impl Config {
    /// A configuration without settings.
    pub fn empty(name: &str) -> Config {
        Config {
            name: Arc::from(name),
            settings: Vec::new(),
            places: BTreeMap::new(),
            words: 0,
            room: VALUES_MAX,
        }
    }

    /// Reads a file at once; messages call the file `name`.
    ///
    /// # Errors
    /// The file is too long, or the first place where the text is not of the language, and what was expected there.
    pub fn parse(name: &str, text: &[u8]) -> Result<Config, Diagnostic> {
        let mut reading = Reading::begin(name, text)?;
        while reading.step()? {}
        Ok(reading.config)
    }

    /// Reads a file as [`Config::parse`] does, and lets others run between its statements.
    ///
    /// # Errors
    /// The errors of [`Config::parse`].
    pub async fn read(name: &str, text: &[u8]) -> Result<Config, Diagnostic> {
        let mut reading = Reading::begin(name, text)?;
        loop {
            // The work for a statement grows with its length, and all together is bounded by the limits of a
            // file.
            yield_now().await;
            for _ in 0..STATEMENTS_AT_A_TIME {
                if !reading.step()? {
                    return Ok(reading.config);
                }
            }
        }
    }

    /// Adds one word of a command line, written as in a file: `name="x";memory=16`, also in several lines. The value
    /// of a single `key=value` or `key+=value` may be bare: such a value is a number if it reads as one, else a
    /// string; a list without quotes is a list of one string.
    ///
    /// # Errors
    /// The word is no setting, or its text is not of the language.
    pub fn add_word(&mut self, word: &str) -> Result<(), Diagnostic> {
        self.words += 1;
        let (source, word): (Arc<str>, _) = (Arc::from("command line"), word.as_bytes());
        let locator = Locator { one_line: true, ..Locator::new(&source, word, self.words) };
        let read = syntax::word(word, self.room).map_err(|expected| locator.expected(&expected))?;
        let (statements, room) = read;
        self.room = room;
        statements.into_iter().try_for_each(|statement| self.apply(statement, &locator))
    }

    /// The setting of `key`.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.places.get(key).and_then(|&place| self.settings.get(place))
    }

    /// All settings, in the order of their first appearance.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    fn apply(&mut self, statement: syntax::Statement, locator: &Locator<'_>) -> Result<(), Diagnostic> {
        let position = locator.at(statement.at);
        let value = locator.value(statement.value);
        let key = statement.key;
        let place = self.places.get(&key);
        let Some(old) = place.and_then(|&place| self.settings.get_mut(place)) else {
            self.places.insert(key.clone(), self.settings.len());
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
            (ValueKind::Text(text), ValueKind::Text(more)) => text.extend(more),
            (kind, more) => {
                let text = alloc::format!("{} cannot be added to {}", more.name(), kind.name());
                return Err(Diagnostic { position: Some(value.position), key: Some(key), text });
            }
        }
        Ok(())
    }
}

/// Whether this word of a command line is a setting, not a file or an option.
pub fn is_setting_word(word: &str) -> bool {
    syntax::is_setting(word.as_bytes())
}

/// Statements that are read between two yields.
const STATEMENTS_AT_A_TIME: usize = 16;

/// A file that is being read.
struct Reading<'a> {
    config: Config,
    locator: Locator<'a>,
    statements: syntax::Statements<'a>,
}

impl<'a> Reading<'a> {
    fn begin(name: &str, text: &'a [u8]) -> Result<Reading<'a>, Diagnostic> {
        let config = Config::empty(name);
        if text.len() > FILE_MAX {
            let text = alloc::format!("{name}: {} bytes: a configuration has at most {FILE_MAX}", text.len());
            return Err(Diagnostic { position: None, key: None, text });
        }
        let locator = Locator::new(&config.name, text, 1);
        let statements = syntax::Statements::new(text, config.room);
        Ok(Reading { config, locator, statements })
    }

    /// Reads a statement; `false`: the file has ended.
    fn step(&mut self) -> Result<bool, Diagnostic> {
        let next = self.statements.next().map_err(|expected| self.locator.expected(&expected))?;
        self.config.room = self.statements.room();
        let Some(statement) = next else { return Ok(false) };
        self.config.apply(statement, &self.locator)?;
        Ok(true)
    }
}

/// Turns offsets in a text into positions.
struct Locator<'a> {
    source: Arc<str>,
    text: &'a [u8],
    /// The last position found: offset, line, column. Positions are asked for in ascending order, and each search
    /// goes on from the last, so that the text is read once and not once for each value.
    last: Cell<(usize, u32, u32)>,
    first_line: u32,
    /// The text is a word of a command line, so a line break does not raise the number of the word.
    one_line: bool,
}

impl<'a> Locator<'a> {
    fn new(source: &Arc<str>, text: &'a [u8], first_line: u32) -> Locator<'a> {
        let last = Cell::new((0, first_line, 1));
        Locator { source: source.clone(), text, last, first_line, one_line: false }
    }

    fn at(&self, offset: usize) -> Position {
        let (from, line, column) = match self.last.get() {
            last if last.0 <= offset => last,
            _ => (0, self.first_line, 1),
        };
        let between = &self.text[from..offset];
        let ends = |byte: &&u8| **byte == b'\n' && !self.one_line;
        let lines = between.iter().filter(ends).count() as u32;
        let behind = if lines > 0 { between.rsplit(|byte| *byte == b'\n').next() } else { None };
        let (behind, column) = behind.map_or((between, column), |behind| (behind, 1));
        // Continuation bytes of UTF-8 have no column of their own.
        let column = column + behind.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u32;
        self.last.set((offset, line + lines, column));
        Position { source: self.source.clone(), line: line + lines, column }
    }

    fn value(&self, raw: syntax::Raw) -> Value {
        // A list's own position is asked for before those of its entries, to keep the ascending order.
        let position = self.at(raw.at);
        let kind = match raw.kind {
            syntax::RawKind::Text(text) => ValueKind::Text(text),
            syntax::RawKind::Number(number, text) => ValueKind::Number(number, text),
            syntax::RawKind::List(list) => {
                ValueKind::List(list.into_iter().map(|value| self.value(value)).collect())
            }
        };
        Value { position, kind }
    }

    fn expected(&self, expected: &syntax::Expected) -> Diagnostic {
        if expected.what == syntax::TOO_MANY {
            let text = alloc::format!("{}: more than {VALUES_MAX} values", self.source);
            return Diagnostic { position: Some(self.at(expected.at)), key: None, text };
        }
        let rest = &self.text[expected.at..];
        let first = rest[..rest.len().min(4)].utf8_chunks().next();
        let found = match first.and_then(|chunk| chunk.valid().chars().next()) {
            None if rest.is_empty() => "the end".to_owned(),
            None => alloc::format!("the byte {:#04x}", rest[0]),
            Some('\n') => "the end of the line".to_owned(),
            Some(c) if c.is_control() => alloc::format!("`{}`", c.escape_default()),
            Some(c) => alloc::format!("`{c}`"),
        };
        let text = alloc::format!("expected {}, found {found}", expected.what);
        Diagnostic { position: Some(self.at(expected.at)), key: None, text }
    }
}
