//! Waiting, and the machine's end.

use alloc::format;
use core::sync::atomic::{AtomicBool, Ordering};

use pvrt::executor::time;
use pvrt::hypercall::sched;
use ring_abi::sched::{SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};

use super::Outcome;

/// Reported through the emulator's exit device: every line succeeded.
const EXIT_SUCCESS: u8 = 0x10;
/// A line failed.
const EXIT_FAILURE: u8 = 0x11;

/// Tells at the port of lines that a line failed after which others run. (Five bits, as each byte there.)
const LINE_FAILED: u8 = 0x1e;

/// How the machine goes off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending {
    /// Port of QEMU's isa-debug-exit, through which dom0 reports success or failure.
    pub debug_exit: Option<u16>,
    /// First port of the serial line by which dom0 reports lines to `xtask` and gets lines.
    pub lines: Option<u16>,
}

/// Whether a line from `xtask` has failed.
static FAILED: AtomicBool = AtomicBool::new(false);

impl Ending {
    /// Remembers that a line failed after which others run: the machine's end tells it. The emulator's caller hears it at
    /// once, since a machine that starts again forgets.
    pub(super) fn note_failure(self) {
        FAILED.store(true, Ordering::Relaxed);
        if let Some(port) = self.lines {
            pvrt::pio::write_u8(port, LINE_FAILED);
        }
    }

    /// Powers the machine off.
    pub fn power_off(self, success: bool) -> ! {
        let success = success && !FAILED.load(Ordering::Relaxed);
        if let Some(port) = self.debug_exit {
            pvrt::pio::write_u8(port, if success { EXIT_SUCCESS } else { EXIT_FAILURE });
        }
        sched::shutdown(SHUTDOWN_POWEROFF)
    }

    /// Restarts the machine. The hypervisor reports that through isa-debug-exit.
    pub fn reboot(self) -> ! {
        sched::shutdown(SHUTDOWN_REBOOT)
    }
}

/// `sleep SECONDS`, with decimals if wanted.
pub(super) async fn sleep(arguments: &[&str]) -> Outcome {
    let [text] = arguments else { return Err("usage: sleep SECONDS".into()) };
    let ns = nanoseconds(text).ok_or_else(|| format!("sleep: `{text}` is no number of seconds"))?;
    time::sleep(ns).await;
    Ok(())
}

/// Reads `3`, `0.25`.
pub(super) fn nanoseconds(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 9 {
        return None;
    }
    let scale = 10u64.pow(9 - decimals.len() as u32);
    let fraction = decimals.parse::<u64>().ok()? * scale;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::nanoseconds;

    #[test]
    fn seconds_with_decimals() {
        assert_eq!(nanoseconds("0"), Some(0));
        assert_eq!(nanoseconds("2"), Some(2_000_000_000));
        assert_eq!(nanoseconds("0.25"), Some(250_000_000));
        assert_eq!(nanoseconds("1.000000001"), Some(1_000_000_001));
        for bad in ["", ".", "1.", ".5", "-1", "1e3", "+2", "1.0000000001", "99999999999999"] {
            assert_eq!(nanoseconds(bad), None, "{bad}");
        }
    }
}
