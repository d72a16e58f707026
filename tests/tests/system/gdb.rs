//! QEMU's stub for debuggers, by gdb: stops the machine anywhere, and has QEMU's monitor.

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::machine::Machine as Description;

/// A machine's stub.
pub(crate) struct Stub {
    port: u16,
}

impl Stub {
    /// A stub at a port that nobody has now.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { port: TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port() })
    }

    /// Gives the stub to a machine that is to be started.
    pub(crate) fn add_to(&self, machine: &mut Description) {
        machine.qemu_arguments.extend(["-gdb".into(), format!("tcp:127.0.0.1:{}", self.port)]);
    }

    /// Stops the machine, has gdb execute the commands, and lets the machine go on. Gives what gdb said.
    pub(crate) fn run(&self, commands: &[String]) -> Result<String> {
        let target = format!("target remote 127.0.0.1:{}", self.port);
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
