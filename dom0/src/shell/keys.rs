//! Decodes keys from a terminal's bytes.

/// The most bytes of a control sequence's parameters; longer sequences are ignored.
const PARAMETERS_MAX: usize = 8;

/// What the user pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character to insert.
    Char(char),
    /// Return.
    Enter,
    /// Tab.
    Tab,
    /// Backspace, `^H`.
    Backspace,
    /// Delete, without the other meaning of `^D`.
    Delete,
    /// Left, `^B`.
    Left,
    /// Right, `^F`.
    Right,
    /// Up, `^P`.
    Up,
    /// Down, `^N`.
    Down,
    /// Home, `^A`.
    Home,
    /// End, `^E`.
    End,
    /// Ctrl-Left, Alt-B.
    WordLeft,
    /// Ctrl-Right, Alt-F.
    WordRight,
    /// `^W`, Alt-Backspace.
    KillWordLeft,
    /// Alt-D.
    KillWordRight,
    /// `^U`
    KillToStart,
    /// `^K`
    KillToEnd,
    /// `^Y`: inserts the text that was killed last.
    Yank,
    /// `^C`
    Interrupt,
    /// `^D`
    EndOfInput,
    /// `^L`
    ClearScreen,
    /// `^R`
    Search,
    /// `^G`
    Cancel,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Ground,
    /// After a carriage return: a line feed belongs to it.
    AfterReturn,
    Escape,
    /// After `ESC O`.
    Ss3,
    /// After `ESC [`: parameters so far, and how many there were.
    Csi([u8; PARAMETERS_MAX], usize),
    /// Within a character of several bytes: what there is, and how many bytes there will be.
    Utf8([u8; 4], usize, usize),
}

/// The decoder. A sequence may come in pieces, at any time.
#[derive(Clone, Debug, Default)]
pub struct KeyDecoder {
    state: State,
}

impl KeyDecoder {
    /// Takes the next byte.
    pub fn feed(&mut self, byte: u8) -> Option<Key> {
        match core::mem::take(&mut self.state) {
            State::Ground => self.ground(byte),
            State::AfterReturn if byte == b'\n' => None,
            State::AfterReturn => self.ground(byte),
            State::Escape => self.escape(byte),
            State::Ss3 => match byte {
                0x20.. => final_key(byte, &[]),
                _ => self.ground(byte),
            },
            State::Csi(mut parameters, count) => match byte {
                b'0'..=b'?' | b' '..=b'/' => {
                    if let Some(slot) = parameters.get_mut(count) {
                        *slot = byte;
                    }
                    self.state = State::Csi(parameters, (count + 1).min(PARAMETERS_MAX + 1));
                    None
                }
                b'@'..=b'~' => final_key(byte, parameters.get(..count)?),
                // The sequence was cut off, so the byte begins another key.
                _ => self.ground(byte),
            },
            State::Utf8(mut bytes, count, whole) => {
                if byte & 0xc0 != 0x80 {
                    return self.ground(byte);
                }
                bytes[count] = byte;
                if count + 1 < whole {
                    self.state = State::Utf8(bytes, count + 1, whole);
                    return None;
                }
                let text = core::str::from_utf8(&bytes[..whole]).ok()?;
                text.chars().next().filter(|c| !c.is_control()).map(Key::Char)
            }
        }
    }

    fn ground(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b'\r' => {
                self.state = State::AfterReturn;
                Key::Enter
            }
            b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            0x01 => Key::Home,
            0x02 => Key::Left,
            0x03 => Key::Interrupt,
            0x04 => Key::EndOfInput,
            0x05 => Key::End,
            0x06 => Key::Right,
            0x07 => Key::Cancel,
            0x08 | 0x7f => Key::Backspace,
            0x0b => Key::KillToEnd,
            0x0c => Key::ClearScreen,
            0x0e => Key::Down,
            0x10 => Key::Up,
            0x12 => Key::Search,
            0x15 => Key::KillToStart,
            0x17 => Key::KillWordLeft,
            0x19 => Key::Yank,
            0x1b => {
                self.state = State::Escape;
                return None;
            }
            0x20..=0x7e => Key::Char(char::from(byte)),
            0xc2..=0xf4 => {
                let whole = match byte {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    _ => 4,
                };
                self.state = State::Utf8([byte, 0, 0, 0], 1, whole);
                return None;
            }
            _ => return None,
        })
    }

    fn escape(&mut self, byte: u8) -> Option<Key> {
        match byte {
            b'[' => self.state = State::Csi([0; PARAMETERS_MAX], 0),
            b'O' => self.state = State::Ss3,
            b'b' => return Some(Key::WordLeft),
            b'f' => return Some(Key::WordRight),
            b'd' => return Some(Key::KillWordRight),
            0x08 | 0x7f => return Some(Key::KillWordLeft),
            0x20..=0x7e => {}
            // The escape stood alone, so the byte begins another key.
            _ => return self.ground(byte),
        }
        None
    }
}

/// The key of a sequence by its last byte and the parameters before that.
fn final_key(last: u8, parameters: &[u8]) -> Option<Key> {
    let control = parameters.ends_with(b";5") || parameters.ends_with(b";3");
    Some(match (last, parameters) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) if control => Key::WordRight,
        (b'D', _) if control => Key::WordLeft,
        (b'C', _) => Key::Right,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', b"1" | b"7") => Key::Home,
        (b'F', _) | (b'~', b"4" | b"8") => Key::End,
        (b'~', b"3") => Key::Delete,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = KeyDecoder::default();
        bytes.iter().filter_map(|&byte| decoder.feed(byte)).collect()
    }

    #[test]
    fn known_keys() {
        use Key::*;
        for (bytes, want) in [
            (&b"a"[..], vec![Char('a')]),
            (b"\r", vec![Enter]),
            (b"\n", vec![Enter]),
            (b"\r\n", vec![Enter]),
            (b"\r\r\n\n", vec![Enter, Enter, Enter]),
            (b"\x1b[A\x1bOB\x1b[C\x1b[D", vec![Up, Down, Right, Left]),
            (b"\x1b[H\x1b[1~\x1b[7~\x1bOH", vec![Home; 4]),
            (b"\x1b[F\x1b[4~\x1b[8~\x1bOF", vec![End; 4]),
            (b"\x1b[3~\x1b[1;5C\x1b[1;5D\x1bb\x1bf", vec![Delete, WordRight, WordLeft, WordLeft, WordRight]),
            (
                b"\x7f\x08\x17\x1b\x7f\x1bd",
                vec![Backspace, Backspace, KillWordLeft, KillWordLeft, KillWordRight],
            ),
            (b"\x12\x07", vec![Search, Cancel]),
            ("ü€🙂".as_bytes(), vec![Char('ü'), Char('€'), Char('🙂')]),
        ] {
            assert_eq!(keys(bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn unknown_and_broken_sequences_are_left_out() {
        use Key::*;
        for (bytes, want) in [
            (&b"\x1b[5~x"[..], vec![Char('x')]),
            (b"\x1b[200;1234567890~x", vec![Char('x')]),
            (b"\x1b[99999999999Ax", vec![Char('x')]),
            (b"\x1b\x1b[A", vec![Up]),
            (b"\x1b[\x03x", vec![Interrupt, Char('x')]),
            (b"\x1bO\rx", vec![Enter, Char('x')]),
            (b"\xc3x", vec![Char('x')]),
            (b"\xe2\x82\x1b[A", vec![Up]),
            (b"\xff\x80\x00x", vec![Char('x')]),
            (b"\xed\xa0\x80x", vec![Char('x')]),
            (b"\xc2\x85x", vec![Char('x')]),
            (b"\x1bqx", vec![Char('x')]),
        ] {
            assert_eq!(keys(bytes), want, "{bytes:?}");
        }
    }
}
