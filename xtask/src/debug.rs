//! `cargo xtask gdb` and `cargo xtask trace`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::machine::Machine;
use crate::session::{Attach, Session};
use crate::symbols::Symbols;
use crate::{guest, images, paths, run, usage};

/// Boots `machine` stopped before its first instruction and attaches a debugger with the symbols of the
/// hypervisor and of dom0. The console goes to `target/gdb.log`.
///
/// # Errors
/// A tool is missing, a build failed, or QEMU or the debugger cannot be started.
pub fn gdb(mut machine: Machine, port: u16) -> Result<u8> {
    deps::ensure(run::needs(&machine))?;
    deps::ensure(&[Need::Gdb])?;
    images::build(&machine.images())?;
    let _root_in_use = guest::attach_root(&mut machine)?;
    let log = machine.log.get_or_insert_with(|| paths::target().join("gdb.log")).clone();
    machine.qemu_arguments.extend(["-S".into(), "-gdb".into(), format!("tcp:127.0.0.1:{port}")]);
    let session = Session::start(&machine, Attach::Program)?;
    eprintln!("the console goes to {}", log.display());
    eprintln!("stop at a function with `hbreak`: the machine has no page tables yet");
    let status = Command::new("gdb")
        .args(["-quiet", "-ex", "set confirm off", "-ex", "set pagination off"])
        .arg("-ex")
        .arg(format!("add-symbol-file {}", images::find("dom0")?.linked().display()))
        .arg("-ex")
        .arg(format!("target remote 127.0.0.1:{port}"))
        .arg(images::find("microhv")?.linked())
        .status()
        .context("cannot run gdb")?;
    drop(session);
    Ok(if status.success() { 0 } else { 5 })
}

/// Prints a serial log with names and lines behind each address in it; `-` is standard input.
///
/// # Errors
/// The log cannot be read, or addr2line is missing.
pub fn trace(log: &Path) -> Result<()> {
    deps::ensure(&[Need::Addr2line])?;
    let text = if log == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
    } else {
        let bytes = std::fs::read(log).map_err(|error| usage(format!("{}: {error}", log.display())))?;
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut explained = Symbols::of_images().annotate(&lines, 0).into_iter().peekable();
    for (number, line) in lines.iter().enumerate() {
        println!("{line}");
        while let Some((_, text)) = explained.next_if(|(at, _)| *at == number) {
            println!("    {text}");
        }
    }
    Ok(())
}
