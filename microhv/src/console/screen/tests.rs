//! Text drawn into memory, and read back from there.

use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// The screen's memory, all bytes of which begin as no character's.
struct Memory(Vec<u8>);

impl Surface for Memory {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

const RGB: Framebuffer =
    Framebuffer { address: 0x8000_0000, pitch: 100 * 4, width: 97, height: 70, bits: 32, kind: 1 };
const RGB24: Framebuffer = Framebuffer { pitch: 97 * 3, bits: 24, ..RGB };
const VGA_TEXT: Framebuffer =
    Framebuffer { address: 0xb_8000, pitch: 24, width: 12, height: 4, bits: 16, kind: 2 };

fn begun(screen: &Framebuffer) -> (Screen, Memory) {
    let layout = Layout::new(screen).unwrap();
    (Screen::new(layout), Memory(std::vec![0x55; layout.bytes as usize]))
}

/// Reads a character of pixels back: the font's character that has this picture.
fn glyph(layout: &Layout, memory: &[u8], column: usize, row: usize, bytes: usize) -> u8 {
    let line = |y: usize| {
        let at = (row * GLYPH_HEIGHT + y) * layout.pitch + column * GLYPH_WIDTH * bytes;
        let pixels = memory[at..at + GLYPH_WIDTH * bytes].chunks(bytes);
        pixels.enumerate().fold(0u8, |bits, (n, pixel)| {
            assert!(pixel.iter().all(|&byte| byte == pixel[0] && [0, INK].contains(&byte)), "{pixel:x?}");
            bits | u8::from(pixel[0] != 0) << n
        })
    };
    let rows: [u8; 8] = core::array::from_fn(|n| {
        assert_eq!(line(2 * n), line(2 * n + 1));
        line(2 * n)
    });
    (b' '..=b'~').find(|&byte| BASIC_LEGACY[usize::from(byte)] == rows).expect("a character")
}

/// The lines that the screen shows, without blanks at their ends.
fn lines(layout: &Layout, memory: &Memory) -> Vec<String> {
    let cell = |column, row| match layout.cell {
        Cell::Pixels(bytes) => glyph(layout, &memory.0, column, row, bytes),
        Cell::Text => {
            let at = row * layout.pitch + 2 * column;
            assert_eq!(memory.0[at + 1], TEXT_COLOURS);
            memory.0[at]
        }
    };
    let line = |row| (0..layout.columns).map(|column| char::from(cell(column, row))).collect::<String>();
    (0..layout.rows).map(|row| line(row).trim_end().into()).collect()
}

/// What the screen shows of `text`.
fn shows(framebuffer: &Framebuffer, text: &str) -> Vec<String> {
    let (mut screen, mut memory) = begun(framebuffer);
    screen.put(text.as_bytes());
    assert!(!screen.draw(&mut memory, usize::MAX));
    lines(&screen.layout, &memory)
}

#[test]
fn text_is_drawn_on_each_kind_of_screen() {
    for framebuffer in [RGB, RGB24, VGA_TEXT] {
        assert_eq!(shows(&framebuffer, "Hello,\n\nworld ~!"), ["Hello,", "", "world ~!", ""]);
    }
}

#[test]
fn lines_move_up_and_long_ones_go_on_below() {
    for framebuffer in [RGB, RGB24, VGA_TEXT] {
        assert_eq!(shows(&framebuffer, "1\n2\n3\n4\n5"), ["2", "3", "4", "5"]);
        assert_eq!(shows(&framebuffer, "a\n0123456789abcde"), ["a", "0123456789ab", "cde", ""]);
        assert_eq!(shows(&framebuffer, "0123456789ab\nx"), ["0123456789ab", "x", "", ""]);
    }
}

#[test]
fn controls_do_what_the_shell_means_by_them() {
    for (text, first) in [
        ("abc\rX", "Xbc"),
        ("abc\x08X", "abX"),
        ("\x08X", "X"),
        ("a\tb", "a       b"),
        ("abc\r\x1b[Kx", "x"),
        ("abcd\x1b[2DX", "abXd"),
        ("abcd\x1b[DX", "abcX"),
        ("ab\x1b[99DX", "Xb"),
        ("a\x1b[3CX", "a   X"),
        ("junk\njunk\x1b[H\x1b[2Jnew", "new"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[?25lx", "x"),
        ("\x1b[99999999999999999999Dx", "x"),
        ("\x1bZx", "x"),
        ("gr\u{fc}n \u{20ac}\u{1f600}", "gr?n ??"),
        ("a\x07\0b", "ab"),
    ] {
        assert_eq!(shows(&RGB, text)[0], first, "{text:?}");
    }
}

/// What a large screen would cost at once is done in pieces, and only what differs is drawn.
#[test]
fn no_more_is_drawn_at_once_than_asked_for_and_nothing_twice() {
    struct Counted(usize);
    impl Surface for Counted {
        fn write(&mut self, _: usize, _: &[u8]) {
            self.0 += 1;
        }
    }
    let (mut screen, _) = begun(&VGA_TEXT);
    let mut writes = Counted(0);
    assert!(screen.draw(&mut writes, 47));
    assert_eq!(writes.0, 47);
    assert!(!screen.draw(&mut writes, 47));
    assert_eq!(writes.0, 48);
    screen.put(b"ab\nab\nab\nab\nab");
    assert!(screen.draw(&mut writes, 5));
    assert!(!screen.draw(&mut writes, 5));
    assert_eq!(writes.0, 48 + 8);
    // All lines moved up, and look as before.
    screen.put(b"\nab");
    assert!(!screen.draw(&mut writes, 1));
    assert_eq!(writes.0, 48 + 8);
}

#[test]
fn screens_that_contradict_themselves_are_refused() {
    for screen in [
        Framebuffer { kind: 0, ..RGB },
        Framebuffer { bits: 16, ..RGB },
        Framebuffer { kind: 3, ..RGB },
        Framebuffer { pitch: 97 * 4 - 1, ..RGB },
        Framebuffer { pitch: 97 * 3 - 1, ..RGB24 },
        Framebuffer { width: u32::MAX, ..RGB },
        Framebuffer { height: u32::MAX, ..RGB },
        Framebuffer { height: u32::MAX, pitch: u32::MAX, ..RGB },
        Framebuffer { width: 7, ..RGB },
        Framebuffer { height: 15, ..RGB },
        Framebuffer { address: 0, ..RGB },
        Framebuffer { address: u64::MAX - 5, ..RGB },
        Framebuffer { address: 1 << 46, ..RGB },
        Framebuffer { address: 0x10_0000, ..VGA_TEXT },
        Framebuffer { address: 0xb_ffff, ..VGA_TEXT },
        Framebuffer { pitch: 23, ..VGA_TEXT },
    ] {
        assert!(Layout::new(&screen).is_err(), "{screen:?}");
    }
}

#[test]
fn of_a_screen_too_large_the_upper_left_is_used() {
    let layout = Layout::new(&Framebuffer { width: 3840, height: 2160, pitch: 3840 * 4, ..RGB }).unwrap();
    assert_eq!((layout.columns, layout.rows), (240, 100));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Drawn in whatever pieces, the picture is that of the text; nothing is written beside the screen.
    #[test]
    fn pieces_make_the_same_picture(
        pieces in proptest::collection::vec((proptest::collection::vec(
            prop_oneof![any::<u8>(), b'a'..=b'c', Just(b'\n'), Just(0x1b), Just(b'['), b'0'..=b'9', b'A'..=b'K'],
            0..40,
        ), 0usize..30), 1..12),
        kind in 0usize..3,
    ) {
        let framebuffer = [RGB, RGB24, VGA_TEXT][kind];
        let (mut screen, mut memory) = begun(&framebuffer);
        let (mut whole, mut at_once) = begun(&framebuffer);
        for (bytes, most) in &pieces {
            screen.put(bytes);
            whole.put(bytes);
            screen.draw(&mut memory, *most);
        }
        while screen.draw(&mut memory, 7) {}
        whole.draw(&mut at_once, usize::MAX);
        prop_assert_eq!(lines(&screen.layout, &memory), lines(&whole.layout, &at_once));
    }
}
