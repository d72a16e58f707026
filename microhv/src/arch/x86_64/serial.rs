//! The serial console COM1: polled output that is also kept in a ring, interrupt-driven input.
#![allow(unsafe_code)] // a panic breaks the lock

use core::fmt;

use spin::Mutex;

use super::cpu::{inb, outb};

const COM1: u16 = 0x3f8;
/// Bytes that the transmitter takes at once when it says that it is empty.
const FIFO_BYTES: usize = 16;
/// Kept output, for `xl dmesg`.
const LOG_BYTES: usize = 32768;

/// ISA line of COM1.
pub(crate) const ISA_IRQ: u8 = 4;

struct Serial {
    /// Room in the transmitter since it last was empty.
    room: usize,
    log: [u8; LOG_BYTES],
    /// Bytes ever kept: the next goes to this modulo the size.
    written: u64,
    /// Output before this was forgotten.
    cleared: u64,
}

static SERIAL: Mutex<Serial> = Mutex::new(Serial { room: 0, log: [0; LOG_BYTES], written: 0, cleared: 0 });

impl Serial {
    fn put(&mut self, byte: u8) {
        if self.room == 0 {
            // Bounded: a port without a UART reads all ones or zeros and must not hang the machine.
            let mut tries = 0;
            while inb(COM1 + 5) & 0x20 == 0 && tries < 1_000_000 {
                core::hint::spin_loop();
                tries += 1;
            }
            self.room = FIFO_BYTES;
        }
        outb(COM1, byte);
        self.room -= 1;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.log[(self.written % LOG_BYTES as u64) as usize] = byte;
            self.written += 1;
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// Sets the line up: 115200 8n1, FIFOs on, no interrupts yet.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        outb(COM1 + register, value);
    }
}

/// Turns the receive interrupt on.
pub(crate) fn enable_input() {
    outb(COM1 + 1, 1);
    while read().is_some() {}
}

/// The next byte that came in.
pub(crate) fn read() -> Option<u8> {
    let status = inb(COM1 + 5);
    (status & 1 != 0 && status != 0xff).then(|| inb(COM1))
}

/// Writes bytes.
pub(crate) fn write(bytes: &[u8]) {
    SERIAL.lock().write(bytes);
}

/// Writes formatted text.
pub(crate) fn print(arguments: fmt::Arguments<'_>) {
    let _ = fmt::Write::write_fmt(&mut *SERIAL.lock(), arguments);
}

/// Breaks the lock: the machine panics, and whoever held it never goes on.
pub(crate) fn break_lock() {
    // SAFETY: only from a panic, after which nothing else runs on this CPU.
    unsafe { SERIAL.force_unlock() };
}

/// Kept output from byte `from` on: where it really starts, and its length.
pub(crate) fn kept(from: u64, to: &mut [u8]) -> (u64, usize) {
    let serial = SERIAL.lock();
    let first =
        from.max(serial.cleared).max(serial.written.saturating_sub(LOG_BYTES as u64)).min(serial.written);
    let mut count = 0;
    for (place, byte) in (first..serial.written).zip(to.iter_mut()) {
        *byte = serial.log[(place % LOG_BYTES as u64) as usize];
        count += 1;
    }
    (first, count)
}

/// Forgets the kept output.
pub(crate) fn clear_kept() {
    let mut serial = SERIAL.lock();
    serial.cleared = serial.written;
}

/// The `log` crate's sink: a line for each record.
#[derive(Debug)]
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let word = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        print(format_args!("(microhv) {word}{}\n", record.args()));
    }

    fn flush(&self) {}
}

/// Makes this the sink of all log records.
pub(crate) fn install_logger(level: log::LevelFilter) {
    static LOGGER: Logger = Logger;
    // The only caller runs once; a second logger would be refused, which harms nothing.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}
