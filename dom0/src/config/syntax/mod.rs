//! The grammar: statements of a file and words of a command line.
//!
//! ```text
//! file      = { newline | ";" | statement end }
//! statement = key ( "=" | "+=" ) value
//! value     = string | number | "[" [ value { "," value } [ "," ] ] "]"
//! ```
//!
//! Blanks and `\` at a line's end may stand between tokens, newlines and comments within brackets too. The text is
//! bytes: files are older than UTF-8, and comments and strings may have any byte but zero. Each word of a command
//! line is parsed as a separate text.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use winnow::Parser;
use winnow::combinator::{alt, opt};
use winnow::error::ParserError;
use winnow::stream::{LocatingSlice, Location, Stateful, Stream};
use winnow::token::{any, literal, one_of, take_while};

/// Bytes that a string may have: twice the room for a kernel's command line.
pub(super) const TEXT_MAX: usize = 2048;
const TOO_LONG: &str = "a string of at most 2048 bytes";
const _: () = assert!(TEXT_MAX == 2048, "as TOO_LONG says");

/// The error for one value too many.
pub(super) const TOO_MANY: &str = "no more than 512 values in all";

/// The depth of lists within lists. Deeper nesting would only serve an attack on the stack.
const DEPTH_MAX: usize = 16;

/// A text, and how many values may still come.
type Input<'i> = Stateful<LocatingSlice<&'i [u8]>, usize>;

fn input(text: &[u8], room: usize) -> Input<'_> {
    Stateful { input: LocatingSlice::new(text), state: room }
}

/// A syntax error: what the parser expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Offset of the place, in bytes.
    pub(super) at: usize,
    /// In words.
    pub(super) what: &'static str,
}

impl ParserError<Input<'_>> for Expected {
    type Inner = Expected;

    fn from_input(input: &Input<'_>) -> Expected {
        Expected { at: input.current_token_start(), what: "something else" }
    }

    fn into_inner(self) -> Result<Expected, Expected> {
        Ok(self)
    }
}

type Parsed<T> = Result<T, Expected>;

/// One `key = value`.
pub(super) struct Statement {
    /// Offset of the key.
    pub(super) at: usize,
    pub(super) key: String,
    /// `+=`
    pub(super) add: bool,
    pub(super) value: Raw,
}

/// A value and its offset.
pub(super) struct Raw {
    pub(super) at: usize,
    pub(super) kind: RawKind,
}

/// As `ValueKind`, with offsets.
pub(super) enum RawKind {
    Text(Vec<u8>),
    Number(u64, String),
    List(Vec<Raw>),
}

/// The statements of a file, one at a time: a file may be longer than what one poll may read.
pub(super) struct Statements<'i>(Input<'i>);

impl<'i> Statements<'i> {
    /// Begins with a file that may have at most `room` values.
    pub(super) fn new(text: &'i [u8], room: usize) -> Statements<'i> {
        Statements(input(text, room))
    }

    /// Reads the next; `None` at the file's end.
    pub(super) fn next(&mut self) -> Parsed<Option<Statement>> {
        let input = &mut self.0;
        skip(input, b"\n;")?;
        if input.is_empty() {
            return Ok(None);
        }
        let statement = statement(input, value)?;
        skip(input, b"")?;
        if !input.is_empty() {
            expect(input, one_of([b'\n', b';']), "a new line or `;`")?;
        }
        Ok(Some(statement))
    }

    /// How many values may still come.
    pub(super) fn room(&self) -> usize {
        self.0.state
    }
}

/// Parses a word of a command line, which may have at most `room` values. Returns its statements, and how many values
/// may still come. A value without quotes and brackets is the rest of the word.
pub(super) fn word(text: &[u8], room: usize) -> Parsed<(Vec<Statement>, usize)> {
    let mut all = Vec::new();
    let mut statements = Statements::new(text, room);
    let error = loop {
        match statements.next() {
            Ok(Some(statement)) => all.push(statement),
            Ok(None) if !all.is_empty() => return Ok((all, statements.room())),
            Ok(None) => return Err(Expected { at: text.len(), what: "a key" }),
            Err(error) => break error,
        }
    };
    let bare = if all.is_empty() { bare(text, room)? } else { None };
    bare.map(|(statement, room)| (Vec::from([statement]), room)).ok_or(error)
}

/// Whether the word begins like a setting, as [`word`] needs.
pub(super) fn is_setting(text: &[u8]) -> bool {
    let input = &mut input(text, 0);
    skip(input, b"\n;").is_ok() && key(input).is_ok() && skip(input, b"").is_ok() && assign(input).is_ok()
}

fn statement(input: &mut Input<'_>, value: fn(&mut Input<'_>, usize) -> Parsed<Raw>) -> Parsed<Statement> {
    let at = input.current_token_start();
    let key = key(input)?;
    skip(input, b"")?;
    let add = assign(input)?;
    skip(input, b"")?;
    Ok(Statement { at, key, add, value: value(input, 0)? })
}

fn key(input: &mut Input<'_>) -> Parsed<String> {
    let start = |b: u8| b.is_ascii_lowercase();
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    expect(input, (one_of(start), take_while(0.., rest)).take().map(ascii), "a key")
}

/// A text of ASCII characters.
fn ascii(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Reads `=` or `+=`; true for the latter.
fn assign(input: &mut Input<'_>) -> Parsed<bool> {
    expect(input, alt((literal("+=").value(true), literal("=").value(false))), "`=` or `+=`")
}

fn value(input: &mut Input<'_>, depth: usize) -> Parsed<Raw> {
    let at = input.current_token_start();
    count(input)?;
    let kind = match peek(input) {
        Some(quote @ (b'"' | b'\'')) => RawKind::Text(string(input, quote)?),
        Some(b'0'..=b'9') => number(input)?,
        Some(b'[') if depth < DEPTH_MAX => RawKind::List(list(input, depth)?),
        Some(b'[') => return Err(Expected { at, what: "fewer lists within lists" }),
        _ => return Err(Expected { at, what: "a string in quotes, a number or a list" }),
    };
    Ok(Raw { at, kind })
}

/// Counts a value.
fn count(input: &mut Input<'_>) -> Parsed<()> {
    let at = input.current_token_start();
    input.state = input.state.checked_sub(1).ok_or(Expected { at, what: TOO_MANY })?;
    Ok(())
}

fn list(input: &mut Input<'_>, depth: usize) -> Parsed<Vec<Raw>> {
    expect(input, literal("["), "`[`")?;
    let mut values = Vec::new();
    loop {
        skip(input, b"\n")?;
        if token(input, "]")? {
            return Ok(values);
        }
        values.push(value(input, depth + 1)?);
        skip(input, b"\n")?;
        if !token(input, ",")? {
            expect(input, literal("]"), "`,` or `]`")?;
            return Ok(values);
        }
    }
}

fn number(input: &mut Input<'_>) -> Parsed<RawKind> {
    let at = input.current_token_start();
    let digits = take_while(1.., |b: u8| b.is_ascii_alphanumeric() || b == b'_').map(ascii);
    let text = expect(input, digits, "a number")?;
    let number = parse_number(&text).ok_or(Expected { at, what: "a number of at most 64 bits" })?;
    Ok(RawKind::Number(number, text))
}

/// Reads a number as C does: `0x` hexadecimal, `0` octal, else decimal.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    if digits.starts_with(['+', '-']) { None } else { u64::from_str_radix(digits, radix).ok() }
}

fn string(input: &mut Input<'_>, quote: u8) -> Parsed<Vec<u8>> {
    let what = if quote == b'"' { "a closing `\"`" } else { "a closing `'`" };
    let at = input.current_token_start();
    expect(input, one_of(quote), what)?;
    let mut text = Vec::new();
    loop {
        let rest = input.peek_finish();
        // A zero byte is refused, since it would end the string for its reader.
        let special = |byte: &u8| *byte == quote || matches!(byte, b'\\' | b'\n' | 0);
        let end = rest.iter().take(TEXT_MAX + 1).position(special);
        let end = if rest.len() > TEXT_MAX { end } else { end.or(Some(rest.len())) };
        let Some(end) = end.filter(|end| text.len() + end <= TEXT_MAX) else {
            return Err(Expected { at, what: TOO_LONG });
        };
        text.extend_from_slice(input.next_slice(end));
        if token(input, "\\")? {
            text.extend(escape(input)?);
        } else {
            expect(input, one_of(quote), what)?;
            return Ok(text);
        }
    }
}

/// Reads the characters after a backslash and returns the byte for which they stand; `None` for a line that
/// continues on the next.
fn escape(input: &mut Input<'_>) -> Parsed<Option<u8>> {
    let what = "one of `\\` `'` `\"` `a` `b` `f` `n` `r` `t` `v`, `x` and two digits, or three octal digits";
    let at = input.current_token_start();
    match peek(input) {
        Some(b'0'..=b'7') => return code(input, 3, 8).map(Some),
        Some(b'x') => {
            expect(input, any, what)?;
            return code(input, 2, 16).map(Some);
        }
        _ => {}
    }
    let letter = expect(input, any, what)?;
    Ok(Some(match letter {
        b'a' => b'\x07',
        b'b' => b'\x08',
        b'f' => b'\x0c',
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => b'\x0b',
        b'\\' | b'\'' | b'"' => letter,
        b'\n' => return Ok(None),
        _ => return Err(Expected { at, what }),
    }))
}

/// A byte by its number, of at most `count` digits.
fn code(input: &mut Input<'_>, count: usize, radix: u32) -> Parsed<u8> {
    let at = input.current_token_start();
    let what = "the number of a byte, not zero";
    let digits = take_while(1..=count, move |b: u8| char::from(b).is_digit(radix)).map(ascii);
    let digits = expect(input, digits, what)?;
    let code = u8::from_str_radix(&digits, radix).ok().filter(|code| *code != 0);
    code.ok_or(Expected { at, what })
}

/// A word's one statement with a bare value; `None` where quotes or brackets show that the word is written as in a
/// file. A shell may have removed the quotes around the elements of a list.
fn bare(text: &[u8], room: usize) -> Parsed<Option<(Statement, usize)>> {
    let input = &mut input(text, room);
    skip(input, b"\n;")?;
    let statement = statement(input, bare_value)?;
    let as_in_a_file = match &statement.value.kind {
        RawKind::Text(text) => matches!(text.first(), Some(b'"' | b'\'' | b'[')),
        _ => false,
    };
    Ok((!as_in_a_file).then_some((statement, input.state)))
}

/// Reads the rest of a word as one value.
fn bare_value(input: &mut Input<'_>, _depth: usize) -> Parsed<Raw> {
    let at = input.current_token_start();
    count(input)?;
    let text: &[u8] = input.finish();
    let inner = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]"));
    let kind = match inner.map(<[u8]>::trim_ascii) {
        Some(inner) if !inner.iter().any(|byte| b"'\"[]".contains(byte)) => {
            let inner = Raw { at: at + 1, kind: RawKind::Text(inner.to_owned()) };
            RawKind::List(Vec::from([inner]))
        }
        _ => RawKind::Text(text.to_owned()),
    };
    Ok(Raw { at, kind })
}

/// Skips blanks, comments, lines that go on, and what is in `also`.
fn skip(input: &mut Input<'_>, also: &[u8]) -> Parsed<()> {
    loop {
        let rest = input.peek_finish();
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r') || also.contains(byte);
        input.next_slice(rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len()));
        if peek(input) == Some(b'#') {
            let rest = input.peek_finish();
            input.next_slice(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
        } else if take(input, opt(alt((literal("\\\n"), literal("\\\r\n")))))?.is_none() {
            return Ok(());
        }
    }
}

fn token(input: &mut Input<'_>, text: &'static str) -> Parsed<bool> {
    Ok(take(input, opt(literal(text)))?.is_some())
}

fn peek(input: &Input<'_>) -> Option<u8> {
    input.peek_token()
}

fn take<'i, T>(input: &mut Input<'i>, mut parser: impl Parser<Input<'i>, T, Expected>) -> Parsed<T> {
    parser.parse_next(input)
}

/// Runs a parser. If the parser fails, the error says that `what` was expected where the parser began.
fn expect<'i, T>(
    input: &mut Input<'i>,
    mut parser: impl Parser<Input<'i>, T, Expected>,
    what: &'static str,
) -> Parsed<T> {
    let at = input.current_token_start();
    parser.parse_next(input).map_err(|_| Expected { at, what })
}

#[cfg(test)]
mod tests;
