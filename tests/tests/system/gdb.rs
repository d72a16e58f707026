//! QEMU's stub for debuggers, by gdb: stops the machine anywhere, and has QEMU's monitor.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::machine::Machine as Description;
use xtask::qemu::RunDirectory;

/// A machine's stub, at a socket of its own.
pub(crate) struct Stub {
    directory: RunDirectory,
}

impl Stub {
    /// A stub for a machine to come.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { directory: RunDirectory::new()? })
    }

    fn socket(&self) -> String {
        self.directory.file("gdb").display().to_string()
    }

    /// Gives the stub to a machine that is to be started.
    pub(crate) fn add_to(&self, machine: &mut Description) {
        machine.qemu_arguments.extend(["-gdb".into(), format!("unix:{},server=on,wait=off", self.socket())]);
    }

    /// Stops the machine, has gdb execute the commands, and lets the machine go on. Gives what gdb said.
    pub(crate) fn run(&self, commands: &[String]) -> Result<String> {
        let target = format!("target remote {}", self.socket());
        let before = ["set confirm off", "set pagination off", "set architecture i386:x86-64", &target];
        let all = before.into_iter().chain(commands.iter().map(String::as_str)).chain(["detach"]);
        let output = Command::new("timeout")
            .args(["60", "gdb", "-nx", "-batch"])
            .args(all.flat_map(|command| ["-ex", command]))
            .output()
            .context("no gdb")?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(text.contains("detached"), "gdb: {text}");
        Ok(text.into_owned())
    }

    /// Stops the machine ahead of each of the instructions, one after the other, and gives its CPUs an NMI there.
    pub(crate) fn nmi_at(&self, addresses: &[u64]) -> Result<()> {
        let at = |address: &u64| {
            [format!("break *{address:#x}"), "continue".into(), "monitor nmi".into(), "delete".into()]
        };
        let commands: Vec<String> = addresses.iter().flat_map(at).collect();
        let text = self.run(&commands)?;
        let count = text.matches("\nBreakpoint ").count();
        // One line tells that a breakpoint is set, one that the breakpoint was reached.
        ensure!(count >= 2 * addresses.len(), "gdb: {text}");
        Ok(())
    }
}
