//! The hypervisor's messages, and what those of the boot say of side channels.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::executor::yield_now;
use pvrt::hypercall::sysctl;

/// The hypervisor's messages are at most this many bytes: a ring that grows while it is read must not delay
/// the command for ever.
const MESSAGES_BYTES: usize = 1 << 20;

/// All messages that the hypervisor still has.
///
/// # Errors
/// What the hypervisor refuses.
pub(super) async fn messages() -> Result<Vec<u8>, String> {
    let mut messages = Vec::new();
    let mut index = 0;
    let mut buffer = alloc::vec![0; 4096];
    while messages.len() < MESSAGES_BYTES {
        let (count, next) =
            sysctl::read_console(index, &mut buffer).map_err(|errno| format!("readconsole: {errno}"))?;
        if count == 0 {
            break;
        }
        messages.extend_from_slice(&buffer[..count]);
        index = next;
        yield_now().await;
    }
    Ok(messages)
}

/// How the hypervisor begins a line about a fault of the CPU: then come its name, what is done and why.
const LINE: &str = "(microhv) side channels: ";
/// What may be done, and how `xl info` calls that.
const STATES: [(&str, &str); 4] = [
    ("MISSING", "side_channels_missing"),
    ("off", "side_channels_off"),
    ("on", "side_channels_on"),
    ("not needed", "side_channels_unneeded"),
];

/// Faults of the CPU that open side channels, by what the hypervisor does against each.
#[derive(Default)]
pub struct SideChannels([String; STATES.len()]);

impl SideChannels {
    /// Reads the hypervisor's messages, before later ones take the place of the boot's.
    pub async fn read() -> Self {
        let messages = messages().await.unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&messages))
    }

    fn parse(messages: &str) -> Self {
        let mut all = Self::default();
        for line in messages.lines() {
            let Some((fault, rest)) = line.strip_prefix(LINE).and_then(|line| line.split_once(": ")) else {
                continue;
            };
            let said = rest.split([':', '(']).next().unwrap_or_default().trim_end();
            if let Some(names) = STATES.iter().position(|(state, _)| *state == said) {
                let comma = if all.0[names].is_empty() { "" } else { ", " };
                all.0[names] += &[comma, fault].concat();
            }
        }
        all
    }

    /// The lines of `xl info`, each a key and names of faults.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let told = STATES.iter().zip(&self.0).filter(|(_, names)| !names.is_empty());
        let lines: Vec<_> = told.map(|((_, key), names)| (*key, names.clone())).collect();
        if lines.is_empty() {
            return [("side_channels", "the boot log says nothing".to_string())].into();
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_listed_by_what_is_done() {
        let text = "(microhv) CPU GenuineIntel, XCR0 0x7\n\
            (microhv) side channels: Meltdown: MISSING (page tables of the hypervisor's own): the CPU does not say RDCL_NO\n\
            (microhv) side channels: Spectre v2: on (retpolines): the CPU speculates\n\
            (microhv) side channels: L1TF: off (no cacheable address): by choice\n\
            (microhv) side channels: MDS: not needed: the CPU says MDS_NO\n\
            (microhv) side channels: TAA: not needed: the CPU has no transactions\n\
            (microhv) side channels: wrong: perhaps: no such word\n\
            (d1) (microhv) side channels: SSB: on (a guest's word): no\n";
        let lines = SideChannels::parse(text).lines();
        let expected = [
            ("side_channels_missing", "Meltdown"),
            ("side_channels_off", "L1TF"),
            ("side_channels_on", "Spectre v2"),
            ("side_channels_unneeded", "MDS, TAA"),
        ];
        assert_eq!(lines, expected.map(|(key, names)| (key, names.to_string())));
    }

    #[test]
    fn an_emulator_has_one_line_and_silence_is_told() {
        let lines =
            SideChannels::parse("(microhv) side channels: all: not needed: QEMU's emulator\n").lines();
        assert_eq!(lines, [("side_channels_unneeded", "all".to_string())]);
        let lines = SideChannels::parse("(microhv) CPU\n").lines();
        assert_eq!(lines, [("side_channels", "the boot log says nothing".to_string())]);
    }
}
