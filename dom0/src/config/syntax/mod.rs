//! The grammar: statements of a file and words of a command line.
//!
//! ```text
//! file      = { newline | ";" | statement end }
//! statement = key ( "=" | "+=" ) value
//! value     = string | number | "[" [ value { "," value } [ "," ] ] "]"
//! ```
//!
//! Blanks and `\` at a line's end may stand between tokens, newlines and comments within brackets too.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use winnow::Parser;
use winnow::combinator::{alt, opt};
use winnow::error::ParserError;
use winnow::stream::{LocatingSlice, Location, Stateful, Stream};
use winnow::token::{any, literal, one_of, take_while};

/// Bytes that a string may have: twice what a kernel has of its command line.
pub(super) const TEXT_MAX: usize = 2048;
const TOO_LONG: &str = "a string of at most 2048 bytes";
const _: () = assert!(TEXT_MAX == 2048, "as TOO_LONG says");

/// What an error says where a value is one too many.
pub(super) const TOO_MANY: &str = "no more than 512 values in all";

/// Lists within lists; more is nothing but an attack on the stack.
const DEPTH_MAX: usize = 16;

/// A text, and how many values may still come.
type Input<'i> = Stateful<LocatingSlice<&'i str>, usize>;

fn input(text: &str, room: usize) -> Input<'_> {
    Stateful { input: LocatingSlice::new(text), state: room }
}

/// What the text should have gone on with.
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
    Text(String),
    Number(u64, String),
    List(Vec<Raw>),
}

/// The statements of a file, one at a time: a file may be longer than what is to be read at once.
pub(super) struct Statements<'i>(Input<'i>);

impl<'i> Statements<'i> {
    /// Of a file that has at most `room` values.
    pub(super) fn new(text: &'i str, room: usize) -> Statements<'i> {
        Statements(input(text, room))
    }

    /// Reads the next; `None` at the file's end.
    pub(super) fn next(&mut self) -> Parsed<Option<Statement>> {
        let input = &mut self.0;
        skip(input, &['\n', ';'])?;
        if input.is_empty() {
            return Ok(None);
        }
        let statement = statement(input, value)?;
        skip(input, &[])?;
        if !input.is_empty() {
            expect(input, one_of(['\n', ';']), "a new line or `;`")?;
        }
        Ok(Some(statement))
    }

    /// How many values may still come.
    pub(super) fn room(&self) -> usize {
        self.0.state
    }
}

/// Reads a word of a command line, which has at most `room` values; gives how many may still come.
pub(super) fn word(text: &str, room: usize) -> Parsed<(Statement, usize)> {
    let input = &mut input(text, room);
    let statement = statement(input, bare_value)?;
    Ok((statement, input.state))
}

/// Does the word begin as [`word`] wants it?
pub(super) fn is_setting(text: &str) -> bool {
    let input = &mut input(text, 0);
    key(input).is_ok() && assign(input).is_ok()
}

fn statement(input: &mut Input<'_>, value: fn(&mut Input<'_>, usize) -> Parsed<Raw>) -> Parsed<Statement> {
    let at = input.current_token_start();
    let key = key(input)?;
    skip(input, &[])?;
    let add = assign(input)?;
    skip(input, &[])?;
    Ok(Statement { at, key, add, value: value(input, 0)? })
}

fn key(input: &mut Input<'_>) -> Parsed<String> {
    let start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = (one_of(start), take_while(0.., rest)).take().map(str::to_owned);
    expect(input, name, "a key")
}

/// `=` or `+=`: is it the latter?
fn assign(input: &mut Input<'_>) -> Parsed<bool> {
    expect(input, alt((literal("+=").value(true), literal("=").value(false))), "`=` or `+=`")
}

fn value(input: &mut Input<'_>, depth: usize) -> Parsed<Raw> {
    let at = input.current_token_start();
    count(input)?;
    let kind = match peek(input) {
        Some(quote @ ('"' | '\'')) => RawKind::Text(string(input, quote)?),
        Some('0'..='9') => number(input)?,
        Some('[') if depth < DEPTH_MAX => RawKind::List(list(input, depth)?),
        Some('[') => return Err(Expected { at, what: "fewer lists within lists" }),
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
        skip(input, &['\n'])?;
        if token(input, "]")? {
            return Ok(values);
        }
        values.push(value(input, depth + 1)?);
        skip(input, &['\n'])?;
        if !token(input, ",")? {
            expect(input, literal("]"), "`,` or `]`")?;
            return Ok(values);
        }
    }
}

fn number(input: &mut Input<'_>) -> Parsed<RawKind> {
    let at = input.current_token_start();
    let text = expect(input, take_while(1.., |c: char| c.is_ascii_alphanumeric() || c == '_'), "a number")?;
    let number = parse_number(text).ok_or(Expected { at, what: "a number of at most 64 bits" })?;
    Ok(RawKind::Number(number, text.to_owned()))
}

/// As C reads numbers: `0x` hexadecimal, `0` octal, else decimal.
fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() }
}

fn string(input: &mut Input<'_>, quote: char) -> Parsed<String> {
    let what = if quote == '"' { "a closing `\"`" } else { "a closing `'`" };
    let at = input.current_token_start();
    expect(input, one_of(quote), what)?;
    let mut text = String::new();
    loop {
        // By bytes: all three are ASCII.
        let rest = input.peek_finish();
        let special = |byte: u8| byte == quote as u8 || byte == b'\\' || byte == b'\n';
        let end = rest.bytes().take(TEXT_MAX + 1).position(special);
        let end = if rest.len() > TEXT_MAX { end } else { end.or(Some(rest.len())) };
        let Some(end) = end.filter(|end| text.len() + end <= TEXT_MAX) else {
            return Err(Expected { at, what: TOO_LONG });
        };
        text.push_str(input.next_slice(end));
        if token(input, "\\")? {
            text.extend(escape(input)?);
        } else {
            expect(input, one_of(quote), what)?;
            return Ok(text);
        }
    }
}

/// What stands for the characters after a backslash; nothing, for a line that goes on in the next.
fn escape(input: &mut Input<'_>) -> Parsed<Option<char>> {
    let what = "one of `\\` `'` `\"` `a` `b` `f` `n` `r` `t` `v`, `x` and two digits, or three octal digits";
    let at = input.current_token_start();
    match peek(input) {
        Some('0'..='7') => return code(input, 3, 8).map(Some),
        Some('x') => {
            expect(input, any, what)?;
            return code(input, 2, 16).map(Some);
        }
        _ => {}
    }
    let letter = expect(input, any, what)?;
    Ok(Some(match letter {
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        '\\' | '\'' | '"' => letter,
        '\n' => return Ok(None),
        _ => return Err(Expected { at, what }),
    }))
}

/// A character by its code, of at most `count` digits.
fn code(input: &mut Input<'_>, count: usize, radix: u32) -> Parsed<char> {
    let at = input.current_token_start();
    let what = "the code of an ASCII character";
    let digits = expect(input, take_while(1..=count, move |c: char| c.is_digit(radix)), what)?;
    let code = u32::from_str_radix(digits, radix).ok().filter(|code| (1..=0x7f).contains(code));
    code.and_then(char::from_u32).ok_or(Expected { at, what })
}

/// A word's value: as in a file if it begins so, else bare.
fn bare_value(input: &mut Input<'_>, depth: usize) -> Parsed<Raw> {
    let (start, room) = (input.checkpoint(), input.state);
    let at = input.current_token_start();
    let quoted = matches!(peek(input), Some('"' | '\'' | '['));
    let whole = value(input, depth).and_then(|value| {
        skip(input, &['\n'])?;
        let end = input.current_token_start();
        if input.is_empty() { Ok(value) } else { Err(Expected { at: end, what: "the end of the word" }) }
    });
    let error = match whole {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    input.reset(&start);
    input.state = room;
    count(input)?;
    let text: &str = input.finish();
    if !quoted {
        return Ok(Raw { at, kind: RawKind::Text(text.to_owned()) });
    }
    // Quotes around the elements may have been lost on the way.
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) if !inner.contains(['\'', '"', '[', ']']) => {
            let inner = Raw { at: at + 1, kind: RawKind::Text(inner.trim().to_owned()) };
            Ok(Raw { at, kind: RawKind::List(Vec::from([inner])) })
        }
        _ => Err(error),
    }
}

/// Skips blanks, comments, lines that go on, and what is in `also`.
fn skip(input: &mut Input<'_>, also: &[char]) -> Parsed<()> {
    loop {
        // By bytes, since a file may be nothing else: all these are ASCII.
        let rest = input.peek_finish();
        let blank = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r') || also.contains(&char::from(byte));
        input.next_slice(rest.bytes().position(|byte| !blank(byte)).unwrap_or(rest.len()));
        if peek(input) == Some('#') {
            let rest = input.peek_finish();
            input.next_slice(rest.find('\n').unwrap_or(rest.len()));
        } else if take(input, opt(alt((literal("\\\n"), literal("\\\r\n")))))?.is_none() {
            return Ok(());
        }
    }
}

fn token(input: &mut Input<'_>, text: &'static str) -> Parsed<bool> {
    Ok(take(input, opt(literal(text)))?.is_some())
}

fn peek(input: &Input<'_>) -> Option<char> {
    input.peek_token()
}

fn take<'i, T>(input: &mut Input<'i>, mut parser: impl Parser<Input<'i>, T, Expected>) -> Parsed<T> {
    parser.parse_next(input)
}

/// Runs a parser; if it fails, `what` was expected where it began.
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
