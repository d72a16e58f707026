//! The second serial port: by this port dom0's shell reports each line that it takes, and gets lines from our
//! standard input. No guest reaches the port.
//!
//! dom0 writes [`NEXT`] before it takes a line, of its script or from this port. To one that comes from this port,
//! the host answers with a line or [`END`]. dom0 writes [`FAILED`] when a line failed and further lines run. So a machine
//! that starts again loses no line on its way, and no failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::usage;

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

/// The most bytes of one line: more than dom0's shell takes, which says so of a line that it refuses.
const LINE_MAX: usize = 64 * 1024;
/// The most MiB of a script that is read at once.
const SCRIPT_MAX_MIB: u64 = 16;

/// Lines that come; what was read ahead of them stays here, for the next machine.
pub struct Input {
    from: Box<dyn BufRead + Send>,
    /// A line was so long that no other is taken.
    over: bool,
}

/// Where lines come from.
pub type Source = Arc<Mutex<Input>>;

/// The lines of `from`.
pub fn source(from: impl BufRead + Send + 'static) -> Source {
    Arc::new(Mutex::new(Input { from: Box::new(from), over: false }))
}

/// Our standard input.
pub fn standard_input() -> Source {
    source(BufReader::new(std::io::stdin()))
}

/// Reads the whole of an input that is called `name`, which may have no end.
///
/// # Errors
/// Wrong usage: the input cannot be read, or has more than `most_mib` MiB.
pub fn read_whole(from: impl Read, name: &str, most_mib: u64) -> Result<Vec<u8>> {
    let (most, mut bytes) = (most_mib << 20, Vec::new());
    from.take(most + 1).read_to_end(&mut bytes).map_err(|error| usage(format!("{name}: {error}")))?;
    if bytes.len() as u64 > most {
        return Err(usage(format!("{name}: more than {most_mib} MiB")));
    }
    Ok(bytes)
}

/// Reads the whole of a script that is called `name`.
///
/// # Errors
/// Wrong usage: it cannot be read, is too long or is not UTF-8.
pub fn read_script(from: impl Read, name: &str) -> Result<String> {
    let bytes = read_whole(from, name, SCRIPT_MAX_MIB)?;
    String::from_utf8(bytes).map_err(|_| usage(format!("{name}: not UTF-8")))
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

    /// What dom0 reported, once the machine has ended.
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
            port.write_all(&source.lock().unwrap_or_else(PoisonError::into_inner).next()?)?;
        }
    }
    Ok(())
}

impl Input {
    /// The next line with its end, or the sign that there is none. A line that is too long is cut, dom0 refuses it, and
    /// none comes behind it: such input may be no lines at all, and without an end.
    fn next(&mut self) -> std::io::Result<Vec<u8>> {
        let mut line = Vec::new();
        if !self.over {
            (&mut self.from).take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        }
        if line.is_empty() {
            line.push(END);
        }
        if line.len() > LINE_MAX && !line.ends_with(b"\n") {
            self.over = true;
            eprintln!(
                "\r\nerror: standard input: a line has more than {LINE_MAX} bytes: the rest is not read\r"
            );
        }
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        Ok(line)
    }
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
        let source = source(&b"one\n\ntwo \xff\nlast"[..]);
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
    #[test]
    fn a_line_without_an_end_is_cut_and_the_last() {
        let mut longest = vec![b'x'; LINE_MAX];
        longest.push(b'\n');
        let read = |from: Box<dyn BufRead + Send>| Input { from, over: false };
        let lines = [&longest[..], b"and on\n"].concat();
        let mut input = read(Box::new(std::io::Cursor::new(lines)));
        assert_eq!(input.next().expect("a line"), longest);
        assert_eq!(input.next().expect("a line"), b"and on\n");
        for mut input in [
            read(Box::new(BufReader::new(std::io::repeat(0)))),
            read(Box::new(std::io::Cursor::new([&[0][..], &longest, b"and on\n"].concat()))),
        ] {
            let cut = input.next().expect("a line");
            assert_eq!((cut.len(), cut.last()), (LINE_MAX + 2, Some(&b'\n')));
            for _ in 0..2 {
                assert_eq!(input.next().expect("the end"), [END, b'\n']);
            }
        }
    }

    #[test]
    fn a_script_has_an_end() {
        assert_eq!(read_script(&b"a\nb"[..], "s").expect("a script"), "a\nb");
        let told = |from: &mut dyn Read| read_script(from, "standard input").expect_err("no script");
        let endless = told(&mut std::io::repeat(0));
        assert!(endless.is::<crate::Usage>(), "{endless}");
        assert_eq!(endless.to_string(), "standard input: more than 16 MiB");
        assert_eq!(told(&mut &b"\xff"[..]).to_string(), "standard input: not UTF-8");
    }
}
