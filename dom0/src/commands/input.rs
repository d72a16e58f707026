//! Lines that the emulator's caller sends through a serial port of the machine, while nobody sits at the console.
//!
//! A byte there asks for the next line, so that a line is only on its way when it is wanted. The same byte tells which lines
//! of a script have begun.

use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::{pio, print, println};

use super::Shell;
use super::machine::Ending;
use crate::shell::print::shown;
use crate::shell::{LINE_BYTES_MAX, PROMPT};

/// Asks for a line, or says that one is taken.
const NEXT: u8 = 0x1f;
/// Alone on a line: no other comes.
const END: u8 = 0x04;
/// FIFO control register, and what turns both FIFOs on, empty, and lets the receiver's fill.
const FIFO_CONTROL: u16 = 2;
const FIFOS_ON: u8 = 0xc7;
/// Line status register, and its bit for a byte that came in.
const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 1;
/// What a port reads as where there is none.
const NO_PORT: u8 = 0xff;
/// How often an empty port is looked at: while nothing comes, and within a line.
const LOOK_EVERY_NS: u64 = 5_000_000;
const SOON_NS: u64 = 100_000;
/// Bytes that are taken of the port before others run.
const BYTES_IN_A_ROW: usize = 256;

/// The bytes that came in.
trait Input {
    /// The next, if there is one.
    fn take(&mut self) -> Option<u8>;
}

/// A 16550's receiver.
struct Port(u16);

impl Input for Port {
    fn take(&mut self) -> Option<u8> {
        let status = pio::read_u8(self.0 + LINE_STATUS);
        (status != NO_PORT && status & DATA_READY != 0).then(|| pio::read_u8(self.0))
    }
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Waits for the next line. What is over the limit is taken and dropped.
async fn next_line(input: &mut impl Input) -> Line {
    let mut line = Vec::new();
    let (mut too_long, mut in_a_row) = (false, 0);
    loop {
        match input.take() {
            Some(b'\n') => break,
            Some(_) if line.len() > LINE_BYTES_MAX => too_long = true,
            Some(byte) => line.push(byte),
            None => {
                time::sleep(if line.is_empty() { LOOK_EVERY_NS } else { SOON_NS }).await;
                continue;
            }
        }
        in_a_row += 1;
        if in_a_row % BYTES_IN_A_ROW == 0 {
            pvrt::yield_now().await;
        }
    }
    if line == [END] {
        return Line::End;
    }
    if line.ends_with(b"\r") {
        line.pop();
    }
    if too_long || line.len() > LINE_BYTES_MAX { Line::TooLong } else { Line::Text(line) }
}

impl Ending {
    /// Tells that a line is taken.
    pub(super) fn note_line(self) {
        if let Some(port) = self.lines {
            pio::write_u8(port, NEXT);
        }
    }
}

impl Shell {
    /// Runs the lines that come, as at the prompt, and powers off behind the last.
    pub(super) async fn run_input(&self, port: u16) -> ! {
        pio::write_u8(port + FIFO_CONTROL, FIFOS_ON);
        let input = &mut Port(port);
        loop {
            print!("{PROMPT}");
            self.ending.note_line();
            let line = next_line(input).await;
            if line == Line::End {
                println!();
                self.ending.power_off(true)
            }
            self.run_line_of_input(line).await;
        }
    }

    async fn run_line_of_input(&self, line: Line) {
        let error = match line {
            Line::TooLong => alloc::format!("a line has more than {LINE_BYTES_MAX} bytes"),
            Line::Text(bytes) => match core::str::from_utf8(&bytes) {
                Ok(text) => {
                    println!("{}", shown(text));
                    match self.interruptible(text).await {
                        Some(Ok(())) => return,
                        Some(Err(error)) => error,
                        None => "interrupted".into(),
                    }
                }
                Err(_) => "a line is not UTF-8".into(),
            },
            Line::End => return,
        };
        println!("error: {}", shown(&error));
        Ending::note_failure();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use pvrt::executor::block_on_test;

    /// Bytes that come in pieces: a zero is a pause.
    impl Input for VecDeque<u8> {
        fn take(&mut self) -> Option<u8> {
            self.pop_front().filter(|&byte| byte != 0)
        }
    }

    #[test]
    fn lines_come_in_any_pieces_up_to_the_end() {
        let long =
            [&[b'x'; LINE_BYTES_MAX][..], b"\n", &[b'x'; LINE_BYTES_MAX + 1], b"\n", &[b'x'; 99_999], b"\n"];
        let bytes = [&b"xl \0list\r\n\0\n\xff\n a\x04\n"[..], &long.concat()[..], b"\x04\0\n"].concat();
        let mut input = VecDeque::from(bytes);
        block_on_test(async move {
            let text = |text: &[u8]| Line::Text(text.to_vec());
            for line in [text(b"xl list"), text(b""), text(b"\xff"), text(b" a\x04"), text(long[0])] {
                assert_eq!(next_line(&mut input).await, line);
            }
            assert_eq!(next_line(&mut input).await, Line::TooLong);
            assert_eq!(next_line(&mut input).await, Line::TooLong);
            assert_eq!(next_line(&mut input).await, Line::End);
        });
    }

    #[test]
    fn an_absent_port_has_no_lines() {
        assert_eq!(Port(0x2f8).take(), None);
    }
}
