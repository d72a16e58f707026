//! Text on the machine's screen, for a person without a serial cable: a grid of characters in memory, drawn on a linear
//! framebuffer, or written as cells of a VGA text screen.
//!
//! The screen's own memory is slow to read, so the text is kept here, and with the text what of it the screen shows: a line that
//! moves up costs only the cells that differ then. What domains write comes by here, so no call draws more than some cells:
//! the timer comes back for the rest, as it does for the serial line.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;

use font8x8::legacy::BASIC_LEGACY;
use zerocopy::FromBytes;

/// Most cells that are kept in a line, and most lines: a larger screen is used from its upper left corner.
const MOST_COLUMNS: u32 = 240;
const MOST_ROWS: u32 = 100;
/// Pixels of a character. The font has 8 rows, each of which is drawn twice.
const GLYPH_WIDTH: usize = 8;
const GLYPH_HEIGHT: usize = 16;
/// The font, once: a constant is copied where it is named.
static FONT: [[u8; 8]; 128] = BASIC_LEGACY;
/// All bytes of a lit pixel: grey wherever the colours lie in a pixel.
pub const INK: u8 = 0xc0;
/// Grey on black, as VGA's text has colours.
const TEXT_COLOURS: u8 = 0x07;
/// Most bytes of a screen.
const MOST_BYTES: u64 = 64 << 20;
/// Where VGA's memory lies.
const VGA: core::ops::Range<u64> = 0xa_0000..0xc_0000;
/// Columns between tabulator stops.
const TAB: usize = 8;

/// The screen as a loader describes it.
///
/// Shape: the Multiboot2 Specification 2.0, section 3.6.12, without the colours.
#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C, packed)]
pub struct Framebuffer {
    /// Machine address.
    pub address: u64,
    /// Bytes from a line to the next.
    pub pitch: u32,
    /// Pixels in a line; characters on a text screen.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits of a pixel.
    pub bits: u8,
    /// 0: a palette; 1: red, green and blue; 2: VGA's text.
    pub kind: u8,
}

/// What a cell is to the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// A character and its colours.
    Text,
    /// Pixels of that many bytes, 3 or 4.
    Pixels(usize),
}

/// How characters lie on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Machine address of the screen's memory.
    pub address: u64,
    /// Bytes of that memory.
    pub bytes: u64,
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
    pitch: usize,
    cell: Cell,
}

impl Layout {
    /// The layout on `screen`.
    ///
    /// # Errors
    /// Why there is none, in words for the boot log.
    pub fn new(screen: &Framebuffer) -> Result<Self, &'static str> {
        let Framebuffer { address, pitch, width, height, bits, kind } = *screen;
        let (cell, columns, rows, line) = match (kind, bits) {
            (2, _) => (Cell::Text, width, height, u64::from(width) * 2),
            (1, 24 | 32) => {
                let line = u64::from(width) * u64::from(bits / 8);
                let (columns, rows) = (width / GLYPH_WIDTH as u32, height / GLYPH_HEIGHT as u32);
                (Cell::Pixels(usize::from(bits / 8)), columns, rows, line)
            }
            _ => return Err("its pixels are not of 24 or 32 bits, and it is no text screen"),
        };
        let bytes = u64::from(pitch) * u64::from(height);
        let end = address.checked_add(bytes).filter(|&end| end <= 1 << 46).ok_or("its address is none")?;
        if line > u64::from(pitch) || columns == 0 || rows == 0 || bytes > MOST_BYTES || address == 0 {
            return Err("its size is none");
        }
        if cell == Cell::Text && !(VGA.contains(&address) && end <= VGA.end) {
            return Err("its text is not in VGA's memory");
        }
        let (columns, rows) = (columns.min(MOST_COLUMNS) as usize, rows.min(MOST_ROWS) as usize);
        Ok(Self { address, bytes, columns, rows, pitch: pitch as usize, cell })
    }

    /// Whether the screen is VGA's text, whose memory is mapped as all below 1 MiB.
    pub fn is_text(&self) -> bool {
        self.cell == Cell::Text
    }

    fn draw(&self, surface: &mut impl Surface, column: usize, row: usize, byte: u8) {
        let Cell::Pixels(bytes) = self.cell else {
            return surface.write(row * self.pitch + column * 2, &[byte, TEXT_COLOURS]);
        };
        for (line, bits) in FONT[usize::from(byte & 0x7f)].into_iter().enumerate() {
            // A pixel of three bytes is written as four: the next pixel covers the fourth.
            let mut pixels = [0; GLYPH_WIDTH * 4];
            for n in 0..GLYPH_WIDTH {
                let ink = if bits >> n & 1 == 0 { 0 } else { INK };
                pixels[n * bytes..][..4].fill(ink);
            }
            let at = (row * GLYPH_HEIGHT + 2 * line) * self.pitch + column * GLYPH_WIDTH * bytes;
            surface.write(at, &pixels[..GLYPH_WIDTH * bytes]);
            surface.write(at + self.pitch, &pixels[..GLYPH_WIDTH * bytes]);
        }
    }
}

/// The screen's memory.
pub trait Surface {
    /// Writes `bytes` from byte `at` on.
    fn write(&mut self, at: usize, bytes: &[u8]);
}

/// Where the reader of a terminal's control sequences is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Text,
    Escape,
    /// Behind `ESC [`, with the first number there, and whether further ones came.
    Sequence(usize, bool),
}

/// The text, and how much of it the screen shows.
#[derive(Debug)]
pub struct Screen {
    layout: Layout,
    /// Lines of text, a ring: the screen's first is `top`.
    text: Vec<u8>,
    top: usize,
    /// What the screen shows, by its own lines.
    shown: Vec<u8>,
    column: usize,
    row: usize,
    reader: Reader,
    /// The screen's line that is compared next, and how many are to be compared until all is known to be shown.
    next: usize,
    left: usize,
}

impl Screen {
    /// An empty text; nothing is known of what the screen shows.
    pub fn new(layout: Layout) -> Self {
        let cells = layout.columns * layout.rows;
        Self {
            layout,
            text: vec![b' '; cells],
            top: 0,
            shown: vec![0; cells],
            column: 0,
            row: 0,
            reader: Reader::Text,
            next: 0,
            left: layout.rows,
        }
    }

    /// Where line `row` of the screen lies in the text.
    fn line(&self, row: usize) -> usize {
        (self.top + row) % self.layout.rows * self.layout.columns
    }

    /// Takes text, with the controls that terminals know and that dom0's shell uses.
    pub fn put(&mut self, bytes: &[u8]) {
        self.left = self.layout.rows;
        for &byte in bytes {
            self.reader = match (self.reader, byte) {
                (Reader::Text, 0x1b) => Reader::Escape,
                (Reader::Escape, b'[') => Reader::Sequence(0, false),
                (Reader::Sequence(number, false), b'0'..=b'9') => {
                    Reader::Sequence((number * 10 + usize::from(byte - b'0')).min(1000), false)
                }
                (Reader::Sequence(number, _), b' '..=b'?') => Reader::Sequence(number, true),
                (Reader::Sequence(number, _), _) => {
                    self.control(number, byte);
                    Reader::Text
                }
                (Reader::Escape, _) => Reader::Text,
                (Reader::Text, _) => {
                    self.put_byte(byte);
                    Reader::Text
                }
            };
        }
    }

    fn put_byte(&mut self, byte: u8) {
        match byte {
            b'\n' => self.begin_line(),
            b'\r' => self.column = 0,
            8 => self.column = self.column.saturating_sub(1),
            b'\t' => self.column = ((self.column / TAB + 1) * TAB).min(self.layout.columns - 1),
            b' '..=b'~' => self.put_character(byte),
            // A character beyond ASCII: the first of its bytes stands for all.
            0xc0.. => self.put_character(b'?'),
            _ => {}
        }
    }

    fn put_character(&mut self, character: u8) {
        if self.column == self.layout.columns {
            self.begin_line();
        }
        let at = self.line(self.row) + self.column;
        self.text[at] = character;
        self.column += 1;
    }

    /// Goes to the start of the next line; at the last one, all lines move up.
    fn begin_line(&mut self) {
        self.column = 0;
        if self.row + 1 < self.layout.rows {
            self.row += 1;
        } else {
            self.top = (self.top + 1) % self.layout.rows;
            self.erase(self.row, 0);
        }
    }

    fn erase(&mut self, row: usize, from: usize) {
        let at = self.line(row);
        self.text[at + from..at + self.layout.columns].fill(b' ');
    }

    /// Does what `ESC [ number command` stands for, as far as it concerns a plain text.
    fn control(&mut self, number: usize, command: u8) {
        match command {
            b'C' => self.column = (self.column + number.max(1)).min(self.layout.columns - 1),
            b'D' => self.column = self.column.saturating_sub(number.max(1)),
            b'H' => (self.column, self.row) = (0, 0),
            b'J' if number == 2 => (0..self.layout.rows).for_each(|row| self.erase(row, 0)),
            b'K' if number == 0 => self.erase(self.row, self.column),
            _ => {}
        }
    }

    /// Draws at most `most` cells of what changed; whether there may be more.
    pub fn draw(&mut self, surface: &mut impl Surface, mut most: usize) -> bool {
        let Layout { columns, rows, .. } = self.layout;
        while self.left > 0 {
            let row = self.next;
            let at = self.line(row);
            let text = &self.text[at..at + columns];
            let shown = &mut self.shown[row * columns..(row + 1) * columns];
            if text != shown {
                for (column, (text, shown)) in text.iter().zip(shown).enumerate() {
                    if text != shown {
                        if most == 0 {
                            return true;
                        }
                        most -= 1;
                        *shown = *text;
                        self.layout.draw(surface, column, row, *text);
                    }
                }
            }
            self.next = (row + 1) % rows;
            self.left -= 1;
        }
        false
    }
}
