//! `cargo xtask gdb`, as a person at a terminal has it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::Scratch;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![debugger: an_interrupt_stops_the_machine])
}

/// How long any step may take; the first builds what is not built.
const LIMIT: Duration = Duration::from_secs(120);

fn an_interrupt_stops_the_machine() -> Result<()> {
    let scratch = Scratch::new("gdb")?;
    let log = scratch.path("log");
    let mut terminal = Terminal::start(&log)?;
    terminal.wait_for("Remote debugging using", "(gdb) ")?;
    terminal.press(b"continue\n")?;
    let prompt = || std::fs::read(&log).is_ok_and(|text| String::from_utf8_lossy(&text).contains("dom0# "));
    wait_until("dom0's prompt", prompt)?;
    // Once to the machine that waits, and once more: neither gdb nor the machine nor xtask has gone.
    for _ in 0..2 {
        terminal.press(b"\x03")?;
        terminal.wait_for("SIGINT", "(gdb) ")?;
        terminal.press(b"continue\n")?;
        terminal.wait_for("Continuing.", "")?;
    }
    terminal.press(b"\x03")?;
    terminal.wait_for("SIGINT", "(gdb) ")?;
    terminal.press(b"quit\n")?;
    let mut ended = None;
    wait_until("the end of xtask", || {
        ended = terminal.child.try_wait().ok().flatten();
        ended.is_some()
    })?;
    ensure!(ended.is_some_and(|status| status.success()), "xtask ended with {ended:?}: {}", terminal.text());
    Ok(())
}

/// `cargo xtask gdb` at a terminal, which `script` makes. Dropped, it ends.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
}

impl Terminal {
    fn start(log: &Path) -> Result<Self> {
        let xtask = xtask::paths::target().join("debug").join("xtask");
        ensure!(xtask.exists(), "{}: `cargo xtask` makes it", xtask.display());
        // A port that nobody has now.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let command =
            format!("exec '{}' gdb --net none --port {port} --log '{}'", xtask.display(), log.display());
        let mut child = Command::new(xtask::bochs::TERMINAL)
            .args(["-qec", &command, "/dev/null"])
            .current_dir(xtask::paths::root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("no terminal")?;
        let keys = child.stdin.take().context("no keyboard")?;
        let mut output = child.stdout.take().context("no screen")?;
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..count]);
            }
        });
        Ok(Self { child, keys, screen, seen: 0 })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        self.keys.write_all(keys).context("nobody listens")
    }

    /// Waits until the screen has `first`, and behind that `second`, which it had not before.
    fn wait_for(&mut self, first: &str, second: &str) -> Result<()> {
        let mut end = None;
        let found = wait_until(first, || {
            let text = self.text();
            let at = text.get(self.seen..).and_then(|new| Some(new.find(first)? + first.len()));
            let rest = at.and_then(|at| Some(at + text.get(self.seen + at..)?.find(second)? + second.len()));
            end = rest.map(|rest| self.seen + rest);
            end.is_some()
        });
        match end {
            Some(end) => self.seen = end,
            None => return found.with_context(|| format!("the screen: {}", self.text())),
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its end takes gdb, xtask and the machine with it; both fail when it has ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > LIMIT {
            bail!("{what} did not come within {} seconds", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
