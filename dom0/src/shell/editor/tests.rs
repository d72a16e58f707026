//! The editor, on a terminal of one line.

use proptest::prelude::{any, prop, proptest};

use super::*;

/// A terminal with the features that the editor uses: one line and a cursor.
#[derive(Default)]
struct Screen {
    line: Vec<char>,
    column: usize,
}

impl Screen {
    fn print(&mut self, bytes: &[u8]) {
        let text = std::str::from_utf8(bytes).unwrap();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => *self = Screen::default(),
                '\x07' => {}
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let mut digits = String::new();
                    let last = loop {
                        match chars.next().unwrap() {
                            digit @ '0'..='9' => digits.push(digit),
                            last => break last,
                        }
                    };
                    let count: usize = digits.parse().unwrap_or(0);
                    match last {
                        'K' => self.line.truncate(self.column),
                        'D' => self.column -= count,
                        'H' => self.column = 0,
                        'J' => self.line.clear(),
                        other => panic!("{other}"),
                    }
                }
                _ => {
                    if self.column == self.line.len() {
                        self.line.push(c);
                    } else {
                        self.line[self.column] = c;
                    }
                    self.column += 1;
                }
            }
        }
    }

    fn text(&self) -> String {
        self.line.iter().collect()
    }
}

struct Bed {
    editor: LineEditor,
    screen: Screen,
}

impl Bed {
    fn new() -> Bed {
        let mut bed = Bed { editor: LineEditor::new("> "), screen: Screen::default() };
        bed.editor.show();
        bed.update();
        bed
    }

    fn update(&mut self) {
        let output = self.editor.take_output();
        self.screen.print(&output);
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<EditorEvent> {
        let events = bytes.iter().filter_map(|&byte| self.editor.feed(byte)).collect();
        self.update();
        events
    }

    fn line(&mut self, bytes: &[u8]) -> String {
        match &self.feed(&[bytes, b"\r"].concat())[..] {
            [EditorEvent::Line(line)] => line.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn edits() {
    for (bytes, want) in [
        (&b"xl list"[..], "xl list"),
        (b"xl lsit\x1b[D\x1b[D\x1b[D\x1b[3~\x06s", "xl list"),
        (b"l list\x01x", "xl list"),
        (b"abc\x02\x7fX", "aXc"),
        (b"abc\x02\x02\x04", "ac"),
        (b"one two  \x17x", "one x"),
        (b"/a/b.c\x1bb\x1bbX", "/a/Xb.c"),
        (b"one two\x01\x1bf!", "one! two"),
        (b"one two\x01\x1bd", " two"),
        (b"one two\x15three", "three"),
        (b"one two\x01\x1bf\x0b", "one"),
        (b"one two\x17\x01\x19", "twoone "),
        (b"a\x1b[H\x7f\x1b[Db\x1b[F\x1b[C\x04c", "bac"),
        ("äö\u{7f}ü".as_bytes(), "äü"),
    ] {
        assert_eq!(Bed::new().line(bytes), want, "{bytes:?}");
    }
}

#[test]
fn the_screen_shows_the_line() {
    let mut bed = Bed::new();
    bed.feed(b"hello\x1b[D\x1b[DX");
    assert_eq!((bed.screen.text().as_str(), bed.screen.column), ("> helXlo", 6));
    bed.feed(b"\x0c");
    assert_eq!((bed.screen.text().as_str(), bed.screen.column), ("> helXlo", 6));
    bed.editor.hide();
    bed.update();
    assert_eq!(bed.screen.text(), "");
    bed.editor.show();
    bed.update();
    assert_eq!(bed.screen.text(), "> helXlo");
}

#[test]
fn events() {
    let mut bed = Bed::new();
    assert_eq!(bed.feed(b"abc\x03"), [EditorEvent::Interrupt]);
    assert_eq!(bed.feed(b"\x04"), [EditorEvent::EndOfInput]);
    assert_eq!(bed.feed(b"\r\n"), [EditorEvent::Line(String::new())]);
    assert_eq!(bed.feed(b"\t"), [EditorEvent::Complete]);
    assert_eq!(bed.line(b"x"), "x");
}

#[test]
fn a_line_is_looked_for() {
    let mut bed = Bed::new();
    for line in ["xl list", "ls /boot", "xl info"] {
        bed.line(line.as_bytes());
    }
    bed.feed(b"draft\x12l");
    assert_eq!(bed.screen.text(), "(search) 'l': xl info");
    // The search's text grows, then the search goes on to an earlier line.
    bed.feed(b"s");
    assert_eq!(bed.screen.text(), "(search) 'ls': ls /boot");
    bed.feed(b"\x7f\x12");
    assert_eq!(bed.screen.text(), "(search) 'l': ls /boot");
    bed.feed(b"\x12\x12");
    assert_eq!(bed.screen.text(), "(failed search) 'l': xl list");
    // Nothing is lost when the user leaves.
    bed.feed(b"\x07");
    assert_eq!(bed.screen.text(), "> draft");
    // Return enters the line found; another key edits it.
    assert_eq!(bed.line(b"\x12boot"), "ls /boot");
    assert_eq!(bed.line(b"\x12info\x01echo \x05!"), "echo xl info!");
    assert_eq!(bed.feed(b"\x12list\x03"), [EditorEvent::Interrupt]);
    assert_eq!(bed.line(&[&b"\x12"[..], &[b'x'; 100], b"\x07a"].concat()), "a");
}

#[test]
fn history() {
    let mut bed = Bed::new();
    assert_eq!(bed.line(b"one"), "one");
    assert_eq!(bed.line(b"two"), "two");
    assert_eq!(bed.line(b"\x1b[A"), "two");
    assert_eq!(bed.line(b"\x1b[A\x1b[A\x1b[A!"), "one!");
    assert_eq!(bed.line(b"draft\x10\x10\x0e\x0e"), "draft");
    bed.feed(b"\x10\x03");
    assert_eq!(bed.line(b"\x10"), "draft");
}

#[test]
fn long_lines_scroll() {
    let mut bed = Bed::new();
    bed.editor.set_width(23);
    bed.feed(b"0123456789abcdefghijklmnop");
    assert_eq!((bed.screen.text().as_str(), bed.screen.column), ("> 6789abcdefghijklmnop", 22));
    bed.feed(b"\x01");
    assert_eq!((bed.screen.text().as_str(), bed.screen.column), ("> 0123456789abcdefghij", 2));
    bed.feed(b"\x05\x7f");
    assert_eq!(bed.screen.text(), "> 56789abcdefghijklmno");
    assert_eq!(bed.line(b""), "0123456789abcdefghijklmno");
    let long = vec![b'x'; LINE_MAX + 5];
    assert_eq!(bed.line(&long).len(), LINE_MAX);
}

#[test]
fn completion() {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let mut bed = Bed::new();
    bed.feed(b"xl cre");
    bed.editor.complete(&words(&["create", "list"]));
    bed.feed(b"/boot/h");
    assert_eq!(bed.editor.before_cursor(), "xl create /boot/h");
    bed.editor.complete(&words(&["/boot/hello.cfg", "/boot/hello"]));
    assert_eq!(bed.editor.before_cursor(), "xl create /boot/hello");
    bed.editor.complete(&words(&["/boot/hello.cfg", "/boot/hello"]));
    let output = String::from_utf8(bed.editor.take_output()).unwrap();
    assert!(output.contains("/boot/hello.cfg  /boot/hello  \r\n"), "{output:?}");
    bed.feed(b"\x17/b");
    bed.editor.complete(&words(&["/boot/"]));
    assert_eq!(bed.editor.before_cursor(), "xl create /boot/");
    bed.editor.complete(&words(&["nothing"]));
    assert!(bed.editor.take_output().ends_with(&[7]));
    bed.editor.complete(&[]);
    assert_eq!(bed.editor.before_cursor(), "xl create /boot/");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), width in 0usize..40) {
        let mut editor = LineEditor::new("> ");
        editor.set_width(width);
        for byte in bytes {
            if editor.feed(byte) == Some(EditorEvent::Complete) {
                editor.complete(&["abc".to_string(), "abd".to_string()]);
            }
        }
    }

    #[test]
    fn the_screen_always_shows_the_line(
        keys in prop::collection::vec(
            prop::sample::select(vec![
                &b"a"[..], b"b ", b"\x1b[D", b"\x1b[C", b"\x01", b"\x05", b"\x7f", b"\x04", b"\x17", b"\x0b", b"\x19",
                b"\x1bb", b"\x1bf", b"\x10", b"\x0e", b"\r", "é".as_bytes(),
            ]),
            0..120,
        ),
    ) {
        let mut bed = Bed::new();
        bed.editor.set_width(20);
        for key in keys {
            let events = bed.feed(key);
            if !events.is_empty() {
                bed.editor.show();
                bed.update();
            }
            let editor = &bed.editor;
            let end = editor.line.len().min(editor.first + editor.window());
            let shown: String = editor.line[editor.first..end].iter().collect();
            assert_eq!(bed.screen.text(), format!("> {shown}"));
            assert_eq!(bed.screen.column, 2 + editor.cursor - editor.first);
        }
    }
}
