//! The terminal of the person who runs a machine.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

/// The terminal's settings before QEMU makes it raw: QEMU restores them itself unless it is killed.
pub(crate) struct SavedTerminal {
    settings: String,
}

impl SavedTerminal {
    pub(crate) fn save() -> Option<Self> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let output = Command::new("stty").arg("-g").stdin(Stdio::inherit()).output().ok()?;
        let settings = String::from_utf8(output.stdout).ok()?.trim().to_string();
        (output.status.success() && !settings.is_empty()).then_some(Self { settings })
    }

    /// Puts the terminal into raw mode, so that each key is read as it is typed, as QEMU does.
    pub(crate) fn make_raw() {
        // Without stty the terminal stays in line mode.
        let _ = Command::new("stty").args(["raw", "-echo"]).stdin(Stdio::inherit()).status();
    }

    pub(crate) fn restore(&self) {
        // Without stty there was nothing to save either.
        let _ = Command::new("stty").arg(&self.settings).stdin(Stdio::inherit()).status();
    }
}
