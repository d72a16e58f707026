//! The serial console's interrupt; its input: dom0's, or the debug keys'.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use ring_abi::evtchn::VIRQ_CONSOLE;

use super::machine::Hv;
use super::serial;

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
        let asked = serial::acknowledge();
        input(hv);
        serial::send();
        if !asked {
            return;
        }
    }
    serial::ask_again();
}

/// Takes what was typed: to dom0, or, after three `^A`, as debug keys.
fn input(hv: &Hv) {
    let mut typed = false;
    while let Some(byte) = serial::read() {
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
            serial::synchronously(|| {
                hv.debug_key(byte);
            });
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
