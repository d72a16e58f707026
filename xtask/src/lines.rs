//! The second serial port: by this port dom0's shell reports each line that it takes, and gets lines from our
//! standard input. No guest reaches the port.
//!
//! dom0 writes [`NEXT`] before each line, of its script or from here. If lines come from here, the answer is a line, or
//! [`END`]. It writes [`FAILED`] behind a line that failed, if others run after that. So nothing is on its way that a machine could lose which starts again.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// The port's first register.
pub const PORT: u16 = 0x2f8;
/// What dom0 writes before a line. The value fits five bits, since Bochs's serial port begins with five bits
/// a byte.
pub const NEXT: u8 = 0x1f;
/// What dom0 writes when a line has failed after which others run: a machine that starts again would forget.
const FAILED: u8 = 0x1e;
/// Stands alone on a line, for: there is no more.
const END: u8 = 0x04;
/// The socket's name among a run's files.
pub const SOCKET: &str = "lines";

/// Where lines come from. The buffer keeps what was read ahead when the machine starts again.
pub type Source = Arc<Mutex<dyn BufRead + Send>>;

/// Our standard input.
pub fn standard_input() -> Source {
    Arc::new(Mutex::new(BufReader::new(std::io::stdin())))
}

/// What dom0 has told of its lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How many lines it took. Each had begun.
    pub taken: usize,
    /// One of them failed, and others were to run after it.
    pub failed: bool,
}

/// The host's end of the port.
#[derive(Debug)]
pub struct Lines(JoinHandle<Told>);

impl Lines {
    /// Listens at `path` for the emulator, which may connect from now on. The first `scripted` lines that dom0 takes
    /// are its script's; the lines after those come from `source`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(path: &Path, scripted: usize, source: Option<Source>) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        Ok(Self(std::thread::spawn(move || {
            let mut told = Told::default();
            if let Ok((port, _)) = listener.accept() {
                // An end of the port is the machine's end.
                let _ = serve(port, &mut told, scripted, source.as_ref());
            }
            told
        })))
    }

    /// What dom0 told, once the machine has ended. It had begun, and waited for no line.
    pub fn told(self) -> Told {
        self.0.join().unwrap_or_default()
    }
}

/// Notes what dom0 tells of its lines, and answers where a line behind the `scripted` ones comes from here.
fn serve(
    mut port: UnixStream,
    told: &mut Told,
    scripted: usize,
    source: Option<&Source>,
) -> std::io::Result<()> {
    let mut byte = [0];
    while port.read(&mut byte)? == 1 {
        match byte[0] {
            NEXT => told.taken += 1,
            FAILED => {
                told.failed = true;
                continue;
            }
            _ => continue,
        }
        if let Some(source) = source
            && told.taken > scripted
        {
            port.write_all(&next(&mut *source.lock().unwrap_or_else(PoisonError::into_inner))?)?;
        }
    }
    Ok(())
}

/// The next line with its end, or the sign that there is none.
fn next(source: &mut dyn BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    if source.read_until(b'\n', &mut line)? == 0 {
        line.push(END);
    }
    if !line.ends_with(b"\n") {
        line.push(b'\n');
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::RunDirectory;

    fn answer(port: &mut UnixStream) -> Vec<u8> {
        port.write_all(&[NEXT]).expect("a listener");
        let mut line = Vec::new();
        BufReader::new(port).read_until(b'\n', &mut line).expect("an answer");
        line
    }

    #[test]
    fn lines_come_one_by_one_and_outlive_the_machine() {
        let files = RunDirectory::new().expect("a directory");
        let source: Source = Arc::new(Mutex::new(std::io::Cursor::new(b"one\n\ntwo \xff\nlast")));
        for (socket, answers) in
            [("a", [&b"one\n"[..], b"\n"]), ("b", [b"two \xff\n", b"last\n"]), ("c", [b"\x04\n"; 2])]
        {
            let lines = Lines::listen(&files.file(socket), 1, Some(source.clone())).expect("a socket");
            let mut port = UnixStream::connect(files.file(socket)).expect("it listens");
            // dom0 takes a line of its script, for which the host sends nothing.
            port.write_all(&[NEXT]).expect("a listener");
            for expected in answers {
                assert_eq!(&answer(&mut port), expected);
            }
            // Of the second machine's lines one fails.
            if socket == "b" {
                port.write_all(&[FAILED, 0]).expect("a listener");
            }
            drop(port);
            assert_eq!(lines.told(), Told { taken: 3, failed: socket == "b" });
        }
    }
}
