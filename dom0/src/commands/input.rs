//! Lines that `xtask`, which runs the emulator, sends through a serial port of the machine when no person sits at
//! the console.
//!
//! dom0 asks for each line by a byte, so that a line is only sent when dom0 wants it. The same byte reports which
//! lines of a script have begun.

use alloc::vec::Vec;

use pvrt::executor::time;
use pvrt::{pio, print, println};

use super::Shell;
use super::machine::Ending;
use crate::shell::print::shown;
use crate::shell::{LINE_BYTES_MAX, PROMPT};

/// The byte that asks for a line, or reports that one of the script has begun.
const NEXT: u8 = 0x1f;
/// Alone on a line, this byte says that no other line comes.
const END: u8 = 0x04;
/// The FIFO control register, and the value that turns both FIFOs on, clears them, and sets the receiver's
/// highest trigger level.
const FIFO_CONTROL: u16 = 2;
const FIFOS_ON: u8 = 0xc7;
/// The line status register, and its bit "data ready".
const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 1;
/// The value read from a port that does not exist.
const NO_PORT: u8 = 0xff;
/// The time between polls of an empty port: while no line comes, and within a line.
const LOOK_EVERY_NS: u64 = 5_000_000;
const SOON_NS: u64 = 100_000;
/// Bytes that are taken from the port between two yields.
const BYTES_IN_A_ROW: usize = 256;

/// A source of received bytes.
trait Input {
    /// Takes the next byte, if there is one.
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

/// What was received.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Text(Vec<u8>),
    TooLong,
    End,
}

/// Waits for the next line. Bytes over the limit are taken and dropped.
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
    /// Reports that a line has begun.
    pub(super) fn note_line(self) {
        if let Some(port) = self.lines {
            pio::write_u8(port, NEXT);
        }
    }
}

impl Shell {
    /// Runs the received lines, as at the prompt, and powers off after the last.
    pub(super) async fn run_input(&self, port: u16) -> ! {
        pio::write_u8(port + FIFO_CONTROL, FIFOS_ON);
        let input = &mut Port(port);
        loop {
            print!("{PROMPT}");
            self.ending.note_line();
            let line = next_line(input).await;
            if line == Line::End {
                println!();
                self.power_off(true).await
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
        self.ending.note_failure();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::shell;
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
    fn a_line_that_failed_is_told_at_once() {
        const PORT: u16 = 0x2f8;
        for (line, told) in [
            (Line::Text(b"echo well".to_vec()), &[][..]),
            (Line::Text(b"frobnicate".to_vec()), &[0x1e]),
            (Line::Text(b"\xff".to_vec()), &[0x1e]),
            (Line::TooLong, &[0x1e]),
        ] {
            let mut shell = shell();
            shell.ending.lines = Some(PORT);
            pvrt::host::take_port_writes(PORT);
            block_on_test(async move { shell.run_line_of_input(line).await });
            assert_eq!(pvrt::host::take_port_writes(PORT), told);
        }
    }

    #[test]
    fn an_absent_port_has_no_lines() {
        assert_eq!(Port(0x2f8).take(), None);
    }
}
