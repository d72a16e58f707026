//! A running machine: its console, its end, and what the end means.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lines::{self, Lines, Source};
use crate::machine::Machine;
pub use crate::outcome::Outcome;
use crate::qemu::{self, RunDirectory};
use crate::terminal::SavedTerminal;
use crate::usage;

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
    /// Why the log is incomplete.
    log_error: Option<String>,
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
    /// The same as [`Attach::Program`], but `^C` at our terminal does not reach the emulator.
    Debugger,
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
    lines: Option<Lines>,
    _files: RunDirectory,
}

impl Session {
    /// Boots `machine`. The images must have been built.
    ///
    /// # Errors
    /// The boot files cannot be made or QEMU cannot be started.
    pub fn start(machine: &Machine, attach: Attach) -> Result<Self> {
        Self::start_with(machine, attach, None)
    }

    /// Boots `machine` as [`Session::start`] does; lines of [`Machine::from_input`] come from `source`.
    ///
    /// # Errors
    /// The errors of [`Session::start`].
    pub fn start_with(machine: &Machine, attach: Attach, source: Option<Source>) -> Result<Self> {
        let files = RunDirectory::new()?;
        let command = qemu::command(machine, &files)?;
        let scripted = machine.script.as_ref().map_or(0, Vec::len);
        let listen = || Lines::listen(&files.file(lines::SOCKET), scripted, source);
        let lines = machine.has_lines().then(listen).transpose()?;
        let log = Log::of(machine)?;
        let mut session = Self::spawn(command, files, attach, log, machine.timeout)?;
        session.lines = lines;
        Ok(session)
    }

    /// Starts QEMU by `command`, whose boot files the caller keeps.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn of(command: Command, attach: Attach, timeout: Option<Duration>) -> Result<Self> {
        Self::spawn(command, RunDirectory::new()?, attach, None, timeout)
    }

    /// Starts QEMU as [`Session::of`] does; the file at `log` gets a copy of the output.
    ///
    /// # Errors
    /// The errors of [`Session::of`], and the file cannot be made.
    pub fn logged(command: Command, attach: Attach, timeout: Option<Duration>, log: &Path) -> Result<Self> {
        Self::spawn(command, RunDirectory::new()?, attach, Some(Log::open(log, false)?), timeout)
    }

    /// Starts QEMU by `command`; `files` live as long as it does.
    pub(crate) fn spawn(
        mut command: Command,
        files: RunDirectory,
        attach: Attach,
        log: Option<Log>,
        timeout: Option<Duration>,
    ) -> Result<Self> {
        command.stdin(match attach {
            Attach::Terminal => Stdio::inherit(),
            Attach::Output | Attach::Nobody => Stdio::null(),
            Attach::Program | Attach::Debugger => Stdio::piped(),
        });
        if attach == Attach::Debugger {
            command.process_group(0);
        }
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
        Ok(Self {
            child,
            input,
            console,
            errors,
            ended,
            started,
            timeout,
            terminal,
            lines: None,
            _files: files,
        })
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

    /// The output's bytes in this range, as far as they have come.
    pub fn output_bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.console.lock().bytes.get(range).unwrap_or(&[]).to_vec()
    }

    /// Waits until `text` is in the output at or behind byte `from`; returns the position behind it.
    ///
    /// # Errors
    /// The text did not come before the machine ended or `limit` passed.
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
    pub fn wait(self) -> (Outcome, String) {
        let (outcome, output, _) = self.wait_with_lines();
        (outcome, output)
    }

    /// Waits as [`Session::wait`] does; also returns the [`Lines`] that know how many lines of its script
    /// dom0 took.
    pub(crate) fn wait_with_lines(mut self) -> (Outcome, String, Option<Lines>) {
        let in_time = match self.timeout {
            None => self.ended.recv().is_ok(),
            Some(limit) => {
                let left = limit.saturating_sub(self.started.elapsed());
                !matches!(self.ended.recv_timeout(left), Err(RecvTimeoutError::Timeout))
            }
        };
        if !in_time {
            // The machine may end at this moment: then the status below says so.
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        let errors =
            std::mem::replace(&mut self.errors, std::thread::spawn(String::new)).join().unwrap_or_default();
        // Waits until all output has been read and shown.
        let mut output = self.console.lock();
        while !output.ended {
            output = self.console.grew.wait(output).unwrap_or_else(PoisonError::into_inner);
        }
        let log_error = output.log_error.take();
        drop(output);
        let outcome = match status {
            Ok(status) if in_time || status.code().is_some() => Outcome::of(status, &errors),
            Ok(_) => Outcome::TimedOut,
            Err(error) => Outcome::Broken(format!("QEMU cannot be waited for: {error}")),
        };
        let outcome = with_log(outcome, log_error);
        let text = self.output();
        (outcome, text, self.lines.take())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both calls fail when the machine has ended before, which is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(terminal) = self.terminal.take() {
            terminal.restore();
        }
    }
}

/// A copy of the serial output in a file.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log that a machine is to have: an empty file, unless the machine starts again.
    ///
    /// # Errors
    /// Wrong usage: the file cannot be made.
    pub(crate) fn of(machine: &Machine) -> Result<Option<Self>> {
        machine.log.as_deref().map(|path| Self::open(path, machine.starts_again)).transpose()
    }

    /// Opens the file at `path`, and empties the file unless `goes_on`.
    ///
    /// # Errors
    /// Wrong usage: the file cannot be made.
    pub(crate) fn open(path: &Path, goes_on: bool) -> Result<Self> {
        let mut options = File::options();
        options.create(true).write(true).append(goes_on).truncate(!goes_on);
        match options.open(path) {
            Ok(file) => Ok(Self { path: path.to_path_buf(), file }),
            Err(error) => Err(usage(format!("log {}: {error}", path.display()))),
        }
    }
}

/// A run whose log is incomplete has failed. A run that failed for another reason keeps that reason.
pub(crate) fn with_log(outcome: Outcome, log_error: Option<String>) -> Outcome {
    match (outcome, log_error) {
        (Outcome::Succeeded | Outcome::PoweredOff | Outcome::Silent | Outcome::Restarts, Some(error)) => {
            Outcome::Broken(error)
        }
        (outcome, _) => outcome,
    }
}

/// Copies an emulator's serial output, until it ends, to the terminal if `shown`, to the log if there is one, and to
/// `keep`. Returns why the log is incomplete.
pub(crate) fn copy_output(
    mut from: impl Read,
    shown: bool,
    mut log: Option<Log>,
    mut keep: impl FnMut(&[u8]),
) -> Option<String> {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    let mut buffer = [0; 4096];
    let mut log_error = None;
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
        if let Some(to) = &mut log
            && let Err(error) = to.file.write_all(bytes)
        {
            let why = format!("log {}: {error}: the log is not whole", to.path.display());
            eprintln!("\r\nerror: {why}\r");
            (log, log_error) = (None, Some(why));
        }
        keep(bytes);
    }
    log_error
}

/// Reads the console to its end, then signals the end.
fn read_console(console: &Console, from: impl Read, shown: bool, log: Option<Log>, at_end: &Sender<()>) {
    let log_error = copy_output(from, shown, log, |bytes| {
        console.lock().bytes.extend_from_slice(bytes);
        console.grew.notify_all();
    });
    let mut output = console.lock();
    (output.log_error, output.ended) = (log_error, true);
    drop(output);
    console.grew.notify_all();
    // After the session was dropped there is no receiver, so an error is ignored.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn session(script: &str, timeout: Option<Duration>) -> Session {
        logged(script, timeout, None)
    }

    fn logged(script: &str, timeout: Option<Duration>, log: Option<&Path>) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let files = RunDirectory::new().expect("a directory");
        let log = log.map(|path| Log::open(path, false).expect("it opens"));
        Session::spawn(command, files, Attach::Program, log, timeout).expect("a shell")
    }

    #[test]
    fn a_log_that_cannot_be_written_fails_the_run() {
        // `/dev/full` opens, and each write to it fails since the disk is full.
        let full = Path::new("/dev/full");
        let (outcome, output) = logged("echo up; exit 33", None, Some(full)).wait();
        assert!(matches!(&outcome, Outcome::Broken(why) if why.contains("/dev/full")), "{outcome:?}");
        assert_eq!(output, "up\n", "the machine itself went on");
        assert_eq!(logged("echo up; exit 35", None, Some(full)).wait().0, Outcome::LineFailed);
        assert_eq!(logged("exit 33", None, Some(full)).wait().0, Outcome::Succeeded, "nothing to write");
        assert!(Log::open(Path::new("/no/such/log"), false).is_err_and(|error| error.is::<crate::Usage>()));
    }

    #[test]
    fn reports_are_told_from_other_ends() {
        for (code, outcome) in [
            (15, Outcome::Status(7)),
            (33, Outcome::Succeeded),
            (35, Outcome::LineFailed),
            (37, Outcome::Restarts),
            (39, Outcome::Panicked),
            (41, Outcome::PoweredOff),
            (43, Outcome::Refused),
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
