//! A running machine: its console, its end, and what the end means.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::Machine;
use crate::qemu::{self, RunDirectory};
use crate::usage;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// dom0 reported that every line succeeded.
    Succeeded,
    /// dom0 reported that a line failed.
    LineFailed,
    /// The hypervisor or dom0 panicked.
    Panicked,
    /// It was ended at its time limit.
    TimedOut,
    /// It went off or was reset without a report.
    Silent,
    /// The emulator did not start or broke: why.
    Broken(String),
}

impl Outcome {
    /// From QEMU's exit status: isa-debug-exit makes 2c+1 of the code c.
    fn of(status: ExitStatus, errors: &str) -> Self {
        match status.code() {
            Some(0) => Some(Self::Silent),
            Some(code @ 1..=0xff) if code & 1 == 1 => Self::reported((code / 2) as u8),
            _ => None,
        }
        .unwrap_or_else(|| Self::Broken(format!("QEMU ended with {status}: {}", errors.trim())))
    }

    /// What the hypervisor or dom0 reported by `code`.
    pub(crate) fn reported(code: u8) -> Option<Self> {
        match code {
            0x10 => Some(Self::Succeeded),
            0x11 => Some(Self::LineFailed),
            0x13 => Some(Self::Panicked),
            _ => None,
        }
    }

    /// The status `cargo xtask run` exits with.
    ///
    /// A script that ends without a report did not end as it should: the machine crashed so hard that it was
    /// reset. At the prompt, a person may have wanted just that.
    pub fn exit_status(&self, scripted: bool) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Silent if !scripted => 0,
            Self::LineFailed => 1,
            Self::Panicked | Self::Silent => 3,
            Self::TimedOut => 4,
            Self::Broken(_) => 5,
        }
    }
}

/// What the console wrote so far.
#[derive(Default)]
struct Console {
    output: Mutex<Output>,
    grew: Condvar,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Input and output are ours: a person sits here.
    Terminal,
    /// Output is ours; there is no input.
    Output,
    /// Input by [`Session::send`], output only kept.
    Program,
    /// Output only kept; there is no input.
    Nobody,
}

/// A running machine. Dropping it ends it.
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    console: Arc<Console>,
    errors: JoinHandle<String>,
    ended: Receiver<()>,
    started: Instant,
    timeout: Option<Duration>,
    terminal: Option<SavedTerminal>,
    _files: RunDirectory,
}

impl Session {
    /// Boots `machine`. The images must have been built.
    ///
    /// # Errors
    /// The boot files cannot be made or QEMU cannot be started.
    pub fn start(machine: &Machine, attach: Attach) -> Result<Self> {
        let files = RunDirectory::new()?;
        let command = qemu::command(machine, &files)?;
        Self::spawn(command, files, attach, machine.log.as_deref(), machine.timeout)
    }

    /// Starts QEMU by `command`, whose boot files are somebody else's.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn of(command: Command, attach: Attach, timeout: Option<Duration>) -> Result<Self> {
        Self::spawn(command, RunDirectory::new()?, attach, None, timeout)
    }

    /// Starts QEMU by `command`; `files` live as long as it does.
    pub(crate) fn spawn(
        mut command: Command,
        files: RunDirectory,
        attach: Attach,
        log: Option<&Path>,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        let create = |path: &Path| {
            File::create(path).map_err(|error| usage(format!("log {}: {error}", path.display())))
        };
        let log = log.map(create).transpose()?;
        command.stdin(match attach {
            Attach::Terminal => Stdio::inherit(),
            Attach::Output | Attach::Nobody => Stdio::null(),
            Attach::Program => Stdio::piped(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let terminal = (attach == Attach::Terminal).then(SavedTerminal::save).flatten();
        let started = Instant::now();
        let mut child = command.spawn().context("cannot run QEMU")?;
        let stdout = child.stdout.take().context("QEMU's output is not piped")?;
        let stderr = child.stderr.take().context("QEMU's errors are not piped")?;
        let console = Arc::new(Console::default());
        let (at_end, ended) = mpsc::channel();
        let shown = matches!(attach, Attach::Terminal | Attach::Output);
        let copied = console.clone();
        std::thread::spawn(move || read_console(&copied, stdout, shown, log, &at_end));
        let errors = std::thread::spawn(move || read_text(stderr, shown));
        let input = child.stdin.take();
        Ok(Self { child, input, console, errors, ended, started, timeout, terminal, _files: files })
    }

    /// Types `text` on the console.
    ///
    /// # Errors
    /// The machine has ended or was not started with [`Attach::Program`].
    pub fn send(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("this machine's console has no input")?;
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).context("the machine takes no input")
    }

    /// All output so far; bytes that are no UTF-8 are replaced.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.console.lock().bytes).into_owned()
    }

    /// The output's bytes of this range, as far as they are there.
    pub fn output_bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.console.lock().bytes.get(range).unwrap_or(&[]).to_vec()
    }

    /// Waits until `text` is in the output at or behind byte `from`; gives the position behind it.
    ///
    /// # Errors
    /// It did not come before the machine ended or `limit` passed.
    pub fn expect(&self, text: &str, from: usize, limit: Duration) -> Result<usize> {
        let deadline = Instant::now() + limit;
        let mut output = self.console.lock();
        loop {
            let rest = output.bytes.get(from..).unwrap_or(&[]);
            if let Some(at) = find(rest, text.as_bytes()) {
                return Ok(from + at + text.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.ended || left.is_zero() {
                let why = if output.ended { "the machine ended" } else { "the time ran out" };
                anyhow::bail!("{why} before the console said {text:?}");
            }
            output = self.console.grew.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the machine's end, or ends it at its time limit.
    pub fn wait(mut self) -> (Outcome, String) {
        let in_time = match self.timeout {
            None => self.ended.recv().is_ok(),
            Some(limit) => {
                let left = limit.saturating_sub(self.started.elapsed());
                !matches!(self.ended.recv_timeout(left), Err(RecvTimeoutError::Timeout))
            }
        };
        if !in_time {
            // It may have ended this instant: then the status below says so.
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        let errors =
            std::mem::replace(&mut self.errors, std::thread::spawn(String::new)).join().unwrap_or_default();
        // Everything written before the end is shown before the caller goes on.
        let mut output = self.console.lock();
        while !output.ended {
            output = self.console.grew.wait(output).unwrap_or_else(PoisonError::into_inner);
        }
        drop(output);
        let outcome = match status {
            Ok(status) if in_time || status.code().is_some() => Outcome::of(status, &errors),
            Ok(_) => Outcome::TimedOut,
            Err(error) => Outcome::Broken(format!("QEMU cannot be waited for: {error}")),
        };
        let text = self.output();
        (outcome, text)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail when the machine has ended before, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(terminal) = self.terminal.take() {
            terminal.restore();
        }
    }
}

/// Copies an emulator's serial output, until it ends, to the terminal if `shown`, to the log if there is one, and to
/// `keep`.
pub(crate) fn copy_output(
    mut from: impl Read,
    shown: bool,
    mut log: Option<File>,
    mut keep: impl FnMut(&[u8]),
) {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let mut buffer = [0; 4096];
    loop {
        let bytes = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if matches!(error.kind(), Interrupted | TimedOut | WouldBlock) => continue,
            Err(_) => break,
        };
        // A closed terminal or a full log must not stop the machine.
        if shown {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
        }
        if let Some(log) = &mut log {
            let _ = log.write_all(bytes);
        }
        keep(bytes);
    }
}

/// Reads the console to its end, and says so.
fn read_console(console: &Console, from: impl Read, shown: bool, log: Option<File>, at_end: &Sender<()>) {
    copy_output(from, shown, log, |bytes| {
        console.lock().bytes.extend_from_slice(bytes);
        console.grew.notify_all();
    });
    console.lock().ended = true;
    console.grew.notify_all();
    // Nobody listens any more once the session was dropped.
    let _ = at_end.send(());
}

/// Reads QEMU's own messages to the end and shows them as they come, if at all.
fn read_text(from: impl Read, shown: bool) -> String {
    let mut text = String::new();
    for line in BufReader::new(from).split(b'\n').map_while(std::io::Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if shown {
            eprintln!("{line}");
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len().max(1)).position(|window| window == text)
}

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

    /// Hands every key on as it is typed, as QEMU does.
    pub(crate) fn make_raw() {
        // Without stty lines are handed on as the terminal makes them.
        let _ = Command::new("stty").args(["raw", "-echo"]).stdin(Stdio::inherit()).status();
    }

    pub(crate) fn restore(&self) {
        // Without stty there was nothing to save either.
        let _ = Command::new("stty").arg(&self.settings).stdin(Stdio::inherit()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(script: &str, timeout: Option<Duration>) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let files = RunDirectory::new().expect("a directory");
        Session::spawn(command, files, Attach::Program, None, timeout).expect("a shell")
    }

    #[test]
    fn exit_statuses_are_the_documented_ones() {
        let status = |outcome: Outcome| (outcome.exit_status(true), outcome.exit_status(false));
        assert_eq!(status(Outcome::Succeeded), (0, 0));
        assert_eq!(status(Outcome::LineFailed), (1, 1));
        assert_eq!(status(Outcome::Panicked), (3, 3));
        assert_eq!(status(Outcome::TimedOut), (4, 4));
        assert_eq!(status(Outcome::Silent), (3, 0));
        assert_eq!(status(Outcome::Broken(String::new())), (5, 5));
    }

    #[test]
    fn reports_are_told_from_other_ends() {
        for (code, outcome) in [
            (33, Outcome::Succeeded),
            (35, Outcome::LineFailed),
            (39, Outcome::Panicked),
            (0, Outcome::Silent),
        ] {
            assert_eq!(session(&format!("exit {code}"), None).wait().0, outcome);
        }
        let (outcome, _) = session("echo no such disk >&2; exit 1", None).wait();
        assert!(matches!(outcome, Outcome::Broken(why) if why.contains("no such disk")));
    }

    #[test]
    fn a_time_limit_ends_the_machine() {
        let (outcome, output) = session("echo up; exec sleep 60", Some(Duration::from_millis(300))).wait();
        assert_eq!(outcome, Outcome::TimedOut);
        assert_eq!(output, "up\n");
    }

    #[test]
    fn a_conversation_is_followed() {
        let mut session = session("echo ready; read a; echo got $a; exit 33", Some(Duration::from_secs(20)));
        let limit = Duration::from_secs(10);
        let at = session.expect("ready", 0, limit).expect("it says so");
        session.send("word\n").expect("it listens");
        session.expect("got word", at, limit).expect("it answers");
        assert!(session.expect("nothing more", 0, limit).is_err());
        assert_eq!(session.wait().0, Outcome::Succeeded);
    }
}
