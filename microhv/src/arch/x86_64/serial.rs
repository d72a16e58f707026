//! The serial console COM1, a 16550A, with the screen beside it: how output goes out is `microhv::console::output`'s matter; input
//! comes by interrupt, and is dom0's, or the debug keys'.
#![allow(unsafe_code)] // a panic breaks the lock

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use microhv::console::output::{GO_CELLS, LOG_BYTES, Output, Uart};
use microhv::console::screen::Screen;
use microhv::platform::SerialConsole;
use microhv::sync::{Mutex, rank};
use ring_abi::evtchn::VIRQ_CONSOLE;

use super::cpu::{outsb, port_in, port_out};
use super::machine::{Hv, Machine};
use super::screen::ScreenMemory;
use super::time;

const COM1: u16 = 0x3f8;
/// Registers, from the base on.
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_IDENT: u16 = 2;
const LINE_STATUS: u16 = 5;
/// Line status: a byte came in; the transmitter is empty.
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Interrupt enable: for a byte that came in; for an empty transmitter.
const ON_INPUT: u8 = 1;
const ON_EMPTY: u8 = 2;
/// Interrupt identification: nothing waits.
const NO_INTERRUPT: u8 = 1;
/// Bytes that an empty transmitter takes at once.
const FIFO_BYTES: usize = 16;
/// How soon to look at the transmitter again while bytes wait, lest its interrupts do not come: a little more than what
/// a full FIFO takes at 115200 bits a second.
const TICK_NS: u64 = 2_000_000;

/// ISA line of COM1.
pub(crate) const ISA_IRQ: u8 = 4;

/// The port's transmitter.
struct Com1;

impl Uart for Com1 {
    fn room(&mut self) -> usize {
        if IS_OFF.load(Ordering::Relaxed) {
            return LOG_BYTES;
        }
        if port_in::<u8>(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY == 0 { 0 } else { FIFO_BYTES }
    }

    fn put(&mut self, bytes: &[u8]) {
        if !IS_OFF.load(Ordering::Relaxed) {
            outsb(COM1, bytes);
        }
    }

    fn set_interrupt(&mut self, on: bool) {
        port_out::<u8>(COM1 + INTERRUPT_ENABLE, ON_INPUT | if on { ON_EMPTY } else { 0 });
    }
}

static OUTPUT: Mutex<rank::SerialOutput, Output> = Mutex::new(Output::new());
/// The command line wants no output on the line.
static IS_OFF: AtomicBool = AtomicBool::new(false);
/// Bytes wait for the line, or characters for the screen.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Sends what goes at once, and has the timer come back for the rest.
fn pump(output: &mut Output) {
    output.pump(&mut Com1, time::now_ns);
    let is_left = output.draw(&mut ScreenMemory, GO_CELLS) || output.has_more();
    // While writers wait for the line there may be no timer yet.
    let waiting = is_left && !output.is_synchronous();
    if waiting != WAITING.load(Ordering::Relaxed) {
        WAITING.store(waiting, Ordering::Relaxed);
        time::set_tick(waiting.then_some(TICK_NS));
    }
}

/// Sets the line up: 115200 8n1, FIFOs on, no interrupts yet. Until [`enable_interrupts`] writers wait for the line.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b)] {
        port_out::<u8>(COM1 + register, value);
    }
}

/// Turns the receive interrupt on; from now on no writer waits.
pub(crate) fn enable_interrupts() {
    let mut output = OUTPUT.lock();
    output.drain(&mut Com1);
    output.set_synchronous(false);
    port_out::<u8>(COM1 + INTERRUPT_ENABLE, ON_INPUT);
    pump(&mut output); // the screen may have something left
    drop(output);
    while read().is_some() {}
}

/// Lets the text go to `screen` too, with all that the hypervisor has said so far.
pub(crate) fn begin_screen(mut screen: Screen) {
    let mut output = OUTPUT.lock();
    let (mut at, mut chunk) = (0, [0; 128]);
    loop {
        let (from, count) = output.messages.kept(at, &mut chunk);
        if count == 0 {
            break;
        }
        screen.put(&chunk[..count]);
        at = from + count as u64;
    }
    screen.draw(&mut ScreenMemory, usize::MAX);
    output.screen = Some(screen);
}

/// How many bytes the hypervisor itself has written so far.
pub(crate) fn written() -> u64 {
    OUTPUT.lock().messages.kept(u64::MAX, &mut []).0
}

/// Copies what the hypervisor itself wrote from byte `from` on, as far as it fits; how many bytes that is.
pub(crate) fn copy_from(from: u64, to: &mut [u8]) -> usize {
    OUTPUT.lock().messages.kept(from, to).1
}

/// Sends nothing to the line any more.
pub(crate) fn turn_off() {
    IS_OFF.store(true, Ordering::Relaxed);
}

/// The next byte that came in.
fn read() -> Option<u8> {
    let status = port_in::<u8>(COM1 + LINE_STATUS);
    (status & DATA_READY != 0 && status != 0xff).then(|| port_in::<u8>(COM1))
}

/// Sends more of what waits: at the port's interrupt, and at the timer's for a port whose interrupts do not come.
#[inline]
pub(crate) fn send() {
    if WAITING.load(Ordering::Relaxed) {
        pump(&mut OUTPUT.lock());
    }
}

/// Writes all of `bytes`.
pub(crate) fn write(bytes: &[u8]) {
    let mut output = OUTPUT.lock();
    output.push_own(bytes);
    pump(&mut output);
}

/// Writes formatted text.
pub(crate) fn print(arguments: fmt::Arguments<'_>) {
    let mut output = OUTPUT.lock();
    let _ = fmt::Write::write_fmt(&mut *output, arguments);
    pump(&mut output);
}

/// Waits until the line and the screen have got everything: the machine is about to end.
pub(crate) fn drain() {
    let mut output = OUTPUT.lock();
    output.draw(&mut ScreenMemory, usize::MAX);
    output.drain(&mut Com1);
}

/// Breaks the lock: the machine panics or ends, and the holder of the lock never goes on. Writers wait for the line from now on.
pub(crate) fn break_lock() {
    // SAFETY: `panic::stop_others` has stopped the other CPUs, or has waited for them as long as a machine that ends does: one that
    // still wrote could spoil what is printed. Within the lock this CPU can only be by a panic, after which nothing else runs here.
    unsafe { OUTPUT.force_unlock() };
    OUTPUT.lock().set_synchronous(true);
}

impl SerialConsole for Machine {
    fn console_write(&self, bytes: &[u8]) -> usize {
        let mut output = OUTPUT.lock();
        let count = bytes.len().min(output.domain_room());
        output.push(&bytes[..count]);
        pump(&mut output);
        count
    }

    fn console_is_busy(&self) -> bool {
        OUTPUT.lock().is_busy()
    }

    fn console_log(&self, from: u64, to: &mut [u8]) -> (u64, usize) {
        OUTPUT.lock().messages.kept(from, to)
    }

    fn clear_console_log(&self) {
        OUTPUT.lock().messages.clear();
    }
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

/// `^A`, the key of the console's switch.
const SWITCH_KEY: u8 = 1;
/// How often the key must come in a row.
const SWITCH_TIMES: u8 = 3;
static SWITCH_SEEN: AtomicU8 = AtomicU8::new(0);
static INPUT_IS_OURS: AtomicBool = AtomicBool::new(false);

/// Rounds of one interrupt while the port asks for more.
const ROUNDS: usize = 4;

/// The port's interrupt: takes what was typed, sends what waits.
pub(crate) fn interrupt(hv: &Hv) {
    for _ in 0..ROUNDS {
        // Reading this register also clears the interrupt for an empty transmitter.
        let asked = port_in::<u8>(COM1 + INTERRUPT_IDENT) & NO_INTERRUPT == 0;
        take_input(hv);
        send();
        if !asked {
            return;
        }
    }
    // Makes the port raise its interrupt anew for all pending causes: the interrupt is an edge, and a cause that was
    // not served raises no further edge.
    let mut output = OUTPUT.lock();
    port_out::<u8>(COM1 + INTERRUPT_ENABLE, 0);
    Com1.set_interrupt(output.has_more());
    pump(&mut output);
}

/// Takes what was typed: to dom0, or, after three `^A`, as debug keys.
fn take_input(hv: &Hv) {
    let mut typed = false;
    while let Some(byte) = read() {
        if byte == SWITCH_KEY {
            let seen = SWITCH_SEEN.fetch_add(1, Ordering::Relaxed) + 1;
            if seen == SWITCH_TIMES {
                SWITCH_SEEN.store(0, Ordering::Relaxed);
                let ours = !INPUT_IS_OURS.fetch_xor(true, Ordering::Relaxed);
                log::info!(
                    "serial input to {} (three ^A switch)",
                    if ours { "microhv: h for help" } else { "dom0" }
                );
            }
            continue;
        }
        let held = SWITCH_SEEN.swap(0, Ordering::Relaxed);
        if INPUT_IS_OURS.load(Ordering::Relaxed) {
            // Writers wait for the line now, since the output of a debug key must be complete and may be
            // long.
            OUTPUT.lock().set_synchronous(true);
            hv.debug_key(byte);
            let mut output = OUTPUT.lock();
            output.set_synchronous(false);
            pump(&mut output);
            continue;
        }
        for _ in 0..held {
            hv.console.push(SWITCH_KEY);
        }
        hv.console.push(byte);
        typed = true;
    }
    if typed {
        hv.send_global_virq(VIRQ_CONSOLE);
    }
}
