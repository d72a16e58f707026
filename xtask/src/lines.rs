//! The second serial port: by this port dom0's shell reports each line that it takes, and gets lines from our
//! standard input. No guest reaches the port.
//!
//! dom0 writes [`NEXT`] before it takes a line, of its script or from this port. To one that comes from this port,
//! the host answers with a line or [`END`]. So a machine that starts again loses no line on its way.

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
/// The line that says that there are no more lines.
const END: u8 = 0x04;
/// The socket's name among a run's files.
pub const SOCKET: &str = "lines";

/// Where lines come from. The buffer keeps what was read ahead when the machine starts again.
pub type Source = Arc<Mutex<dyn BufRead + Send>>;

/// Our standard input.
pub fn standard_input() -> Source {
    Arc::new(Mutex::new(BufReader::new(std::io::stdin())))
}

/// The host's end of the port.
#[derive(Debug)]
pub struct Lines(JoinHandle<usize>);

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
            let mut taken = 0;
            if let Ok((port, _)) = listener.accept() {
                // The port ends when the machine ends, so its errors are ignored.
                let _ = serve(port, &mut taken, scripted, source.as_ref());
            }
            taken
        })))
    }

    /// How many lines dom0 took, once the machine has ended. A line counts once dom0 has begun it.
    pub fn taken(self) -> usize {
        self.0.join().unwrap_or(0)
    }
}

/// Counts the lines that dom0 takes, and sends a line from `source` for each one behind the `scripted` ones.
fn serve(
    mut port: UnixStream,
    taken: &mut usize,
    scripted: usize,
    source: Option<&Source>,
) -> std::io::Result<()> {
    let mut byte = [0];
    while port.read(&mut byte)? == 1 {
        if byte[0] != NEXT {
            continue;
        }
        *taken += 1;
        if let Some(source) = source
            && *taken > scripted
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
            drop(port);
            assert_eq!(lines.taken(), 3);
        }
    }
}
