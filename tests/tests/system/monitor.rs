//! QEMU's monitor, for what no guest can do to its machine.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// QEMU's arguments for a monitor at `socket`.
pub(crate) fn arguments(socket: &Path) -> Vec<String> {
    vec!["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display())]
}

/// QEMU's machine protocol.
pub(crate) struct Monitor {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the machine that was started with [`arguments`] of the same socket.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU's monitor")?;
        let answers = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { stream, answers };
        monitor.ask(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    /// Has QEMU execute a command, in QEMU's words.
    pub(crate) fn ask(&mut self, command: &str) -> Result<()> {
        writeln!(self.stream, "{command}")?;
        loop {
            // Events and the greeting come between.
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 || line.contains("\"error\"") {
                bail!("{command}: {line}");
            }
            if line.contains("\"return\"") {
                return Ok(());
            }
        }
    }
}
