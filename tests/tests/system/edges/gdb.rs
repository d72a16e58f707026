//! NMIs at places of the code, by QEMU's stub for debuggers.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A port that nobody has now.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Stops the machine ahead of each of the instructions, one after the other, and gives the CPU an NMI there.
pub(super) fn nmi_at(port: u16, addresses: &[u64]) -> Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut script = format!("set confirm off\nset pagination off\ntarget remote 127.0.0.1:{port}\n");
    for address in addresses {
        write!(script, "break *{address:#x}\ncontinue\nmonitor nmi\ndelete\n")?;
    }
    script += "detach\n";
    let lines = script.lines().flat_map(|line| ["-ex", line]);
    let output = Command::new("timeout")
        .args(["60", "gdb", "-nx", "-batch", "-ex", "set architecture i386:x86-64"])
        .args(lines)
        .output()
        .context("no gdb")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.matches("\nBreakpoint ").count() >= addresses.len(),
        "gdb: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
