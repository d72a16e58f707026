//! `cargo xtask gdb` and `cargo xtask trace`.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::machine::{Emulator, Machine};
use crate::session::{Attach, Session};
use crate::symbols::Symbols;
use crate::{bochs, guest, images, lines, paths, run, usage};

/// The most MiB of a log: what is kept of each of its lines takes some 60 bytes more.
const LOG_MAX_MIB: u64 = 64;

/// Boots `machine` stopped before its first instruction and attaches a debugger with the symbols of the
/// hypervisor and of dom0. The console goes to `target/gdb.log`.
///
/// # Errors
/// Wrong usage: Bochs has no port for a debugger. A tool is missing, a build failed, or QEMU or the debugger cannot be
/// started.
pub fn gdb(mut machine: Machine, port: u16) -> Result<u8> {
    if machine.emulator == Emulator::Bochs {
        return Err(usage("gdb: `--on bochs`: only QEMU takes a debugger"));
    }
    deps::ensure(run::needs(&machine))?;
    deps::ensure(&[Need::Gdb])?;
    images::build(&machine.images())?;
    let _root_in_use = guest::attach_root(&mut machine)?;
    let log = machine.log.get_or_insert_with(|| paths::target().join("gdb.log")).clone();
    machine.qemu_arguments.extend(["-S".into(), "-gdb".into(), format!("tcp:127.0.0.1:{port}")]);
    let session = Session::start(&machine, Attach::Debugger)?;
    eprintln!("the console goes to {}", log.display());
    eprintln!("stop at a function with `hbreak`: the machine has no page tables yet");
    let words = [
        "gdb".into(),
        "-quiet".into(),
        "-ex".into(),
        "set confirm off".into(),
        "-ex".into(),
        "set pagination off".into(),
        "-ex".into(),
        format!("add-symbol-file {}", images::find("dom0")?.linked().display()),
        "-ex".into(),
        format!("target remote 127.0.0.1:{port}"),
        images::find("microhv")?.linked().display().to_string(),
    ];
    let status = alone_at_the_terminal(&words).status().context("cannot run gdb")?;
    drop(session);
    Ok(if status.success() { 0 } else { 5 })
}

/// A command with a terminal of its own within ours. `^C` reaches only that command: gdb then stops the machine, and
/// neither QEMU nor `xtask` ends.
fn alone_at_the_terminal(words: &[String]) -> Command {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    let mut command = Command::new(bochs::TERMINAL);
    command.args(["-qec", &format!("exec {}", quoted.join(" ")), "/dev/null"]);
    command
}

/// Prints a serial log with names and lines behind each address in it; `-` is standard input. A log may hold any
/// bytes, which are printed unchanged.
///
/// # Errors
/// The log cannot be read or is too long, or addr2line is missing.
pub fn trace(log: &Path) -> Result<()> {
    deps::ensure(&[Need::Addr2line])?;
    let bytes = read_log(log, std::io::stdin())?;
    match explained(&bytes, &Symbols::of_images(), std::io::stdout().lock()) {
        // The reader of the pipe has closed it.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the log"),
    }
}

/// The bytes of a log; those of `input` where `log` is `-`.
fn read_log(log: &Path, input: impl Read) -> Result<Vec<u8>> {
    if log == Path::new("-") {
        return lines::read_whole(input, "standard input", LOG_MAX_MIB);
    }
    let name = log.display().to_string();
    let file = File::open(log).map_err(|error| usage(format!("{name}: {error}")))?;
    lines::read_whole(file, &name, LOG_MAX_MIB)
}

/// Writes a log's lines, and behind each the symbols for its addresses.
fn explained(bytes: &[u8], symbols: &Symbols, mut to: impl Write) -> std::io::Result<()> {
    let raw: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let texts: Vec<_> = raw.iter().map(|line| String::from_utf8_lossy(line)).collect();
    let lines: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let mut explained = symbols.annotate(&lines, 0).into_iter().peekable();
    for (number, line) in raw.iter().enumerate() {
        to.write_all(line)?;
        if !line.ends_with(b"\n") {
            to.write_all(b"\n")?;
        }
        while let Some((_, text)) = explained.next_if(|(at, _)| *at == number) {
            writeln!(to, "    {text}")?;
        }
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::process::Stdio;

    /// A person at a terminal, which `script` makes, presses `^C` while a shell waits for a debugger.
    #[test]
    fn an_interrupt_is_the_debuggers_alone() {
        let debugger = "trap 'echo caught; exit 7' INT; echo ready; for n in $(seq 300); do sleep 0.1; done";
        // The tests may run with SIGINT ignored, which a child process would inherit.
        let words = ["env", "--default-signal=INT", "sh", "-c", debugger].map(str::to_string);
        let inner = alone_at_the_terminal(&words);
        let inner: Vec<String> = inner
            .get_args()
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
            .collect();
        let outer = format!("{} {}; echo status $?", bochs::TERMINAL, inner.join(" "));
        let outer = format!("exec env --default-signal=INT sh -c '{}'", outer.replace('\'', r"'\''"));
        let mut child = Command::new(bochs::TERMINAL)
            .args(["-qec", &outer, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is always there");
        let mut keys = child.stdin.take().expect("piped");
        let mut screen = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut seen = String::new();
        while !seen.contains("ready") {
            assert_ne!(screen.read_line(&mut seen).expect("a screen"), 0, "{seen}");
        }
        keys.write_all(b"\x03").expect("a keyboard");
        screen.read_to_string(&mut seen).expect("a screen");
        child.wait().expect("it ends");
        assert!(seen.contains("caught") && seen.contains("status 7"), "{seen}");
    }

    #[test]
    fn a_machine_without_a_debugger_is_refused() {
        let told =
            gdb(Machine { emulator: Emulator::Bochs, ..Machine::default() }, 1).expect_err("no debugger");
        assert!(told.is::<crate::Usage>() && told.to_string().contains("bochs"), "{told}");
    }

    #[test]
    fn a_log_without_an_end_is_refused() {
        for (log, name) in [("-", "standard input"), ("/dev/zero", "/dev/zero")] {
            let told = read_log(Path::new(log), std::io::repeat(b'\n')).expect_err("no log");
            assert!(told.is::<crate::Usage>(), "{told}");
            assert_eq!(told.to_string(), format!("{name}: more than {LOG_MAX_MIB} MiB"));
        }
        assert_eq!(read_log(Path::new("-"), &b"a\nb"[..]).expect("a log"), b"a\nb");
    }

    #[test]
    fn a_log_of_any_bytes_is_printed_as_it_is() {
        for log in [&b""[..], b"\xff\xfe\n", b"a\r\n\0\x1b[2J\xc3\n", b"\n\n"] {
            let mut printed = Vec::new();
            explained(log, &Symbols::none(), &mut printed).expect("memory takes all");
            assert_eq!(printed, log);
        }
        let mut printed = Vec::new();
        explained(b"no end \xff", &Symbols::none(), &mut printed).expect("memory takes all");
        assert_eq!(printed, b"no end \xff\n");
    }
}
