//! Several guests of one image on a machine, on either system.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bench::{On, machine, run};
use crate::images;
use crate::machine::Machine;
use crate::qemu::ICOUNT;
use crate::xen;

/// The guest's image.
const IMAGE: &str = "bench";
/// Where a machine is certainly stuck: Xen's control domain takes its time to make five domains.
const LIMIT: Duration = Duration::from_secs(1500);

/// A guest.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    /// The domain's name.
    pub(super) name: String,
    pub(super) vcpus: u32,
    /// More words of the configuration, such as `cap=50`.
    pub(super) words: Vec<String>,
    /// The guest's command line.
    pub(super) extra: String,
    /// The guest goes on until it is destroyed.
    pub(super) is_endless: bool,
}

impl Guest {
    pub(super) fn new(name: &str, extra: &str) -> Self {
        let (name, extra) = (name.to_string(), extra.to_string());
        Self { name, vcpus: 1, words: Vec::new(), extra, is_endless: false }
    }

    /// The same guest with a word of the configuration more.
    pub(super) fn with(mut self, word: &str) -> Self {
        self.words.push(word.into());
        self
    }
}

/// How the machine runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    pub(super) cpus: u32,
    /// One instruction a tick, not at the host's speed.
    pub(super) is_virtual: bool,
    /// In the order of their creation. All of them, but for the endless, end at about the same time, the last one last.
    pub(super) guests: &'a [Guest],
}

impl Scene<'_> {
    /// The text of the guests' consoles, by guest.
    ///
    /// # Errors
    /// Xen cannot be made, or the machine did not run to its end.
    pub(super) fn consoles(&self, system: On) -> Result<Vec<String>> {
        if system == On::Xen { self.on_xen() } else { self.on_microhv() }
    }

    fn on_microhv(&self) -> Result<Vec<String>> {
        let qemu_arguments = if self.is_virtual { ICOUNT.map(str::to_string).to_vec() } else { Vec::new() };
        let console = run(&Machine {
            cpus: self.cpus,
            hypervisor_arguments: format!("maxcpus={}", self.cpus),
            script: Some(self.script()),
            qemu_arguments,
            timeout: Some(LIMIT),
            ..machine()
        })?;
        Ok(self.guests.iter().map(|guest| of_guest(&console, &guest.name)).collect())
    }

    /// dom0's lines.
    fn script(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for guest in self.guests {
            let mut line = format!("xl create /boot/{IMAGE}.cfg name='{}' vcpus={}", guest.name, guest.vcpus);
            for word in &guest.words {
                let _ = write!(line, " {word}");
            }
            lines.push(format!("{line} extra='{}'", guest.extra));
        }
        let ending = self.guests.iter().filter(|guest| !guest.is_endless);
        lines.extend(ending.map(|guest| format!("wait {}", guest.name)));
        let endless = self.guests.iter().filter(|guest| guest.is_endless);
        lines.extend(endless.map(|guest| format!("xl destroy {}", guest.name)));
        lines
    }

    fn on_xen(&self) -> Result<Vec<String>> {
        let kernel = images::find(IMAGE)?.bootable();
        let domain = |guest: &Guest| {
            let mut lines = guest.words.clone();
            lines.push(format!("vcpus={}", guest.vcpus));
            xen::Domain {
                name: guest.name.clone(),
                kernel: kernel.clone(),
                ramdisk: None,
                memory_mib: 8,
                extra: guest.extra.clone(),
                lines,
            }
        };
        let domains: Vec<_> = self.guests.iter().map(domain).collect();
        let host = xen::Options {
            cpus: self.cpus,
            icount: self.is_virtual,
            timeout: LIMIT,
            ..xen::Options::default()
        };
        let control = xen::Control { after: "sleep 2\n".into(), ..xen::Control::default() };
        let (ran, _) = xen::prepare()?.run_domains_beside(&domains, LIMIT, &host, &control)?;
        let mut ending = ran.iter().zip(self.guests).filter(|(_, guest)| !guest.is_endless);
        if let Some((failed, _)) = ending.find(|(ran, _)| ran.console.is_empty()) {
            bail!("a domain of Xen's said nothing: {}", failed.xl);
        }
        Ok(ran.into_iter().map(|domain| domain.console).collect())
    }
}

/// The lines of a guest on the machine's console, which stand behind the guest's number and name.
fn of_guest(console: &str, name: &str) -> String {
    let mark = format!(" {name}) ");
    let own = |line: &str| Some(format!("{}\n", line.split_once(&mark)?.1.trim_end()));
    console.lines().filter(|line| line.starts_with("(d")).filter_map(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_created_and_waited_for_in_order() {
        let hog = Guest { is_endless: true, ..Guest::new("hog", "role=hog") };
        let guests = [hog.with("cap=50"), Guest::new("last", "role=sleeper wakes=9")];
        let scene = Scene { cpus: 2, is_virtual: true, guests: &guests };
        assert_eq!(
            scene.script(),
            [
                "xl create /boot/bench.cfg name='hog' vcpus=1 cap=50 extra='role=hog'",
                "xl create /boot/bench.cfg name='last' vcpus=1 extra='role=sleeper wakes=9'",
                "wait last",
                "xl destroy hog",
            ]
        );
    }

    #[test]
    fn a_guests_lines_are_its_own() {
        let console = "(d1 a) one\r\n(d2 b) two\r\nd1 a) no\r\n(d1 a) three\r\n(d3 aa) no\r\n";
        assert_eq!(of_guest(console, "a"), "one\nthree\n");
    }
}
