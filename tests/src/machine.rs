//! A machine as a test describes it, and what came of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use xtask::machine::{Boot, Disk, Emulator, Machine as Description, Module, Net, Way};
use xtask::session::{Attach, Outcome, Session};
use xtask::{lines, run, test};

use crate::kinds;

/// How long a machine may run unless the test says otherwise. A hang is what it is for, not a slow host.
const TIME_LIMIT: Duration = Duration::from_secs(240);

/// How long the firmware and GRUB may take beside other machines, until the hypervisor begins: a test's time limit is for
/// what comes after them.
const LOADING: Duration = Duration::from_secs(60);

/// How many times as long a machine may run in Bochs.
const IN_BOCHS: u32 = 4;

/// How much of the console a failure shows.
const SHOWN_LINES: usize = 60;

/// What `cargo xtask test` asks for by the variable `name`.
fn asked(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The emulator of machines whose test does not choose one.
pub fn emulator() -> Emulator {
    asked(test::ON).and_then(|name| Emulator::named(&name)).unwrap_or_default()
}

/// A machine to be booted: the standard one (1024 MiB, 2 CPUs, `qemu64`) without a network card.
#[derive(Clone, Debug)]
#[must_use]
pub struct Machine {
    name: String,
    description: Description,
}

impl Machine {
    /// A machine for the test called `name`; its console goes to `target/tmp/NAME.log` too.
    pub fn new(name: &str) -> Self {
        let log = xtask::paths::target().join("tmp").join(format!("{name}.log"));
        let (standard, emulator) = (Description::default(), emulator());
        let description = Description {
            emulator,
            net: Net::None,
            cpus: asked(test::SMP).and_then(|cpus| cpus.parse().ok()).unwrap_or(standard.cpus),
            cpu_model: asked(test::CPU).unwrap_or_else(|| emulator.standard_cpu().into()),
            boot: asked(test::BOOT).and_then(|name| Boot::named(&name)).unwrap_or(standard.boot),
            timeout: Some(TIME_LIMIT),
            log: Some(log),
            ..standard
        };
        Self { name: name.to_string(), description }
    }

    /// dom0's shell runs `line`, after those given before.
    pub fn line(mut self, line: &str) -> Self {
        self.description.script.get_or_insert_default().push(line.to_string());
        self
    }

    /// The file at `path` is dom0's next disk.
    pub fn disk(self, path: &Path) -> Self {
        self.disk_as(path, Way::Virtio)
    }

    /// The file at `path` is dom0's next disk of the kind that `way` names.
    pub fn disk_as(mut self, path: &Path, way: Way) -> Self {
        self.description.disks.push(Disk { way, ..Disk::file(path) });
        self
    }

    /// The file at `path` is dom0's next disk, and cannot be written; but by AHCI QEMU has writable disks alone.
    pub fn read_only_disk(mut self, path: &Path) -> Self {
        let read_only = kinds::disks() != Way::Ahci;
        self.description.disks.push(Disk { read_only, ..Disk::file(path) });
        self
    }

    /// The file at `path` is `/boot/NAME`.
    pub fn module(mut self, path: &Path, name: &str) -> Self {
        self.description.modules.push(Module { path: path.to_path_buf(), name: name.to_string() });
        self
    }

    /// Another loader.
    pub fn boot(mut self, boot: Boot) -> Self {
        self.description.boot = boot;
        self
    }

    /// A network card behind QEMU's user-mode NAT.
    pub fn network(mut self) -> Self {
        self.description.net = Net::User;
        self
    }

    /// Another time limit.
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.description.timeout = Some(Duration::from_secs(seconds));
        self
    }

    /// Whatever else: the description itself.
    pub fn with(mut self, change: impl FnOnce(&mut Description)) -> Self {
        change(&mut self.description);
        self
    }

    /// Boots, waits for the end.
    ///
    /// # Errors
    /// The machine cannot be started; how it ended is in the [`Run`].
    pub fn run(mut self) -> Result<Run> {
        // The output is kept, not shown: tests run side by side.
        let (outcome, console) = match self.description.emulator {
            Emulator::Qemu => self.session(Attach::Nobody)?.wait(),
            Emulator::Bochs => {
                self.prepare()?;
                self.description.timeout = self.description.timeout.map(|limit| limit * IN_BOCHS);
                let (outcome, console, _) = xtask::bochs::run(&self.description, false)?;
                (outcome, console)
            }
        };
        Ok(Run { name: self.name, outcome, console })
    }

    /// The same; behind the script, dom0's shell takes lines from `text`, as of a standard input. A machine that is to
    /// start again does so, and the console is that of the last start.
    ///
    /// # Errors
    /// The machine cannot be started.
    pub fn run_with_input(mut self, text: &str) -> Result<Run> {
        self.description.from_input = true;
        self.prepare()?;
        let text = kinds::renamed(text, kinds::disks());
        let source = lines::source(std::io::Cursor::new(text.into_bytes()));
        let (outcome, console) = run::boots(self.description, Attach::Nobody, Some(source))?;
        Ok(Run { name: self.name, outcome, console })
    }

    /// Boots and leaves the test at the console.
    ///
    /// # Errors
    /// The machine cannot be started.
    pub fn start(mut self) -> Result<Live> {
        let session = self.session(Attach::Program)?;
        Ok(Live { name: self.name, session, seen: 0 })
    }

    fn prepare(&mut self) -> Result<()> {
        let Description { cpus, qemu_arguments, .. } = &mut self.description;
        if qemu_arguments.iter().any(|argument| argument == "-icount") {
            // Where time is what was executed, QEMU's CPUs take turns of tens of milliseconds, and none gets an answer of
            // another meanwhile.
            *cpus = 1;
        }
        let way = kinds::disks();
        kinds::choose(&mut self.description, way);
        kinds::check(&self.description, way)?;
        if self.description.boot != Boot::Direct
            && let Some(limit) = &mut self.description.timeout
        {
            *limit += LOADING;
        }
        self.description.check()?;
        if let Some(directory) = self.description.log.as_deref().and_then(Path::parent) {
            std::fs::create_dir_all(directory)?;
        }
        Ok(())
    }

    fn session(&mut self, attach: Attach) -> Result<Session> {
        self.prepare()?;
        Session::start(&self.description, attach)
    }
}

/// What came of a machine that ran to its end.
#[derive(Debug)]
pub struct Run {
    name: String,
    outcome: Outcome,
    console: String,
}

impl Run {
    /// Every line succeeded and the machine powered off.
    ///
    /// # Errors
    /// It did not; the end of the console is in the error.
    pub fn succeeded(self) -> Result<Self> {
        self.ended(&Outcome::Succeeded)
    }

    /// A line of the script failed.
    ///
    /// # Errors
    /// None did, or the machine ended in another way.
    pub fn line_failed(self) -> Result<Self> {
        self.ended(&Outcome::LineFailed)
    }

    /// The hypervisor or dom0 panicked, and said so through the report port.
    ///
    /// # Errors
    /// Neither did.
    pub fn panicked(self) -> Result<Self> {
        self.ended(&Outcome::Panicked)
    }

    /// It ended in another way, which the test names.
    ///
    /// # Errors
    /// It did not.
    pub fn ended_with(self, outcome: &Outcome) -> Result<Self> {
        self.ended(outcome)
    }

    /// It ran until its time was up.
    ///
    /// # Errors
    /// It ended before.
    pub fn timed_out(self) -> Result<Self> {
        self.ended(&Outcome::TimedOut)
    }

    fn ended(self, expected: &Outcome) -> Result<Self> {
        if self.outcome != *expected {
            bail!("{}: ended with {:?}, not {expected:?}{}", self.name, self.outcome, self.tail());
        }
        Ok(self)
    }

    /// The console says `text` somewhere.
    ///
    /// # Errors
    /// It does not.
    pub fn says(self, text: &str) -> Result<Self> {
        if !self.console.contains(text) {
            bail!("{}: the console never said {text:?}{}", self.name, self.tail());
        }
        Ok(self)
    }

    /// One of the console's last `lines` lines with any text on them says `text`.
    ///
    /// # Errors
    /// None does.
    pub fn says_at_the_end(self, lines: usize, text: &str) -> Result<Self> {
        let mut last = self.console.lines().rev().filter(|line| !line.trim().is_empty()).take(lines);
        if !last.any(|line| line.contains(text)) {
            bail!("{}: the console did not say {text:?} at its end{}", self.name, self.tail());
        }
        Ok(self)
    }

    /// All the machine wrote.
    pub fn console(&self) -> &str {
        &self.console
    }

    /// Fails with `why` and the end of the console unless `holds`.
    ///
    /// # Errors
    /// `holds` is false.
    pub fn require(&self, holds: bool, why: &str) -> Result<()> {
        if !holds {
            bail!("{}: {why}{}", self.name, self.tail());
        }
        Ok(())
    }

    fn tail(&self) -> String {
        tail(&self.console)
    }
}

/// A running machine with the test at its console. Dropping it ends it.
pub struct Live {
    name: String,
    session: Session,
    seen: usize,
}

impl Live {
    /// Waits until the console says `text`, behind what was waited for before; gives what came up to it.
    ///
    /// # Errors
    /// It did not within `seconds`, or the machine ended.
    pub fn expect(&mut self, text: &str, seconds: u64) -> Result<String> {
        match self.session.expect(text, self.seen, Duration::from_secs(seconds)) {
            Ok(behind) => {
                let bytes = self.session.output_bytes(self.seen..behind);
                self.seen = behind;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Err(error) => bail!("{}: {error}{}", self.name, tail(&self.session.output())),
        }
    }

    /// Types `text` and the return key.
    ///
    /// # Errors
    /// The machine ended.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.session.send(&format!("{}\r", kinds::renamed(text, kinds::disks())))
    }

    /// Types bytes as they are.
    ///
    /// # Errors
    /// The machine ended.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.session.send(text)
    }

    /// Waits for the machine's end.
    pub fn finish(self) -> Run {
        let (outcome, console) = self.session.wait();
        Run { name: self.name, outcome, console }
    }
}

/// What a failure's message shows of a console: which conformance cases failed, wherever they say so, and the end.
fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let shown = lines.len().saturating_sub(SHOWN_LINES);
    let failed = lines[..shown].iter().filter(|line| is_failed_case(line));
    let failed: String = failed.map(|line| format!("{line}\n")).collect();
    format!("\n{failed}--- the console's end ---\n{}\n---", lines[shown..].join("\n"))
}

/// A line `conformance: result ID fail MS DETAIL`, or with `error`.
fn is_failed_case(line: &str) -> bool {
    let words = line.split_once("conformance: result ").map(|(_, words)| words.split(' ').nth(1));
    matches!(words, Some(Some("fail" | "error")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcome: Outcome, console: &str) -> Run {
        Run { name: "t".into(), outcome, console: console.into() }
    }

    #[test]
    fn a_failure_shows_the_consoles_end() {
        let console: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let error = run(Outcome::Panicked, &console).succeeded().expect_err("it panicked").to_string();
        assert!(
            error.contains("Panicked") && error.contains("line 99") && !error.contains("line 39\n"),
            "{error}"
        );
    }

    #[test]
    fn a_failure_names_the_conformance_cases_that_failed() {
        let mut console =
            String::from("conformance: result smp.up pass 0\nconformance: result smp.down fail 4 why\n");
        console.extend((0..100).map(|line| format!("line {line}\n")));
        let error = run(Outcome::Panicked, &console).succeeded().expect_err("it panicked").to_string();
        assert!(error.contains("smp.down fail 4 why\n---") && !error.contains("smp.up"), "{error}");
    }

    #[test]
    fn the_end_is_the_last_lines_with_text() {
        let ended = || run(Outcome::LineFailed, "early\nmiddle\n\nlate\n\n");
        assert!(ended().says_at_the_end(1, "late").is_ok());
        assert!(ended().says_at_the_end(2, "middle").is_ok());
        assert!(ended().says_at_the_end(2, "early").is_err());
        assert!(ended().says("early").is_ok());
        assert!(ended().line_failed().is_ok());
    }
}
