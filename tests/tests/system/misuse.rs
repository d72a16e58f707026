//! The machine as a person misuses it: lines from a pipe, restarts, words that mean nothing, what is asked for afterwards.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::{Machine, Scratch};
use xtask::session::Outcome;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![misuse:
        lines_come_from_a_pipe_to_its_end,
        a_script_that_restarts_the_machine_is_no_failure,
        a_line_that_failed_before_a_restart_counts,
        input_that_is_no_lines_ends,
        a_full_host_disk_fails_the_guests_request,
        what_the_hypervisor_cannot_read_is_named,
        a_domain_is_called_by_its_name_and_its_console_is_kept,
        the_hypervisors_messages_are_its_own,
        what_shows_for_ever_ends_at_an_interrupt,
    ])
}

fn lines_come_from_a_pipe_to_its_end() -> Result<()> {
    let good = Machine::new("pipe").run_with_input("echo first\r\n\nsleep 1\necho la\u{fc}st")?;
    good.succeeded()?.says("dom0# echo first")?.says("\nla\u{fc}st\r\n")?;
    // What fails is told, and the others run; their end is the machine's.
    let bad = Machine::new("pipe-bad").line("echo scripted").run_with_input("frobnicate\necho and on\n")?;
    bad.line_failed()?.says("error: frobnicate: no such command")?.says("\nand on\r\n")?;
    // Many lines at once: none is lost, whatever the port holds.
    let lines: String =
        (0..300).map(|n| format!("echo number {n} of many that wait in the pipe\n")).collect();
    let run = Machine::new("pipe-full").run_with_input(&lines)?.succeeded()?;
    let answers = run.console().lines().filter(|line| line.starts_with("number ")).count();
    run.require(answers == 300, &format!("{answers} of 300 lines ran"))
}

fn a_script_that_restarts_the_machine_is_no_failure() -> Result<()> {
    let run = Machine::new("restart").line("echo before").line("reboot").line("echo behind").run()?;
    let run = run.ended_with(&Outcome::Restarts)?.says("\nbefore\r\n")?;
    run.require(!run.console().contains("behind"), "the line behind the restart was run before it")
}

fn a_line_that_failed_before_a_restart_counts() -> Result<()> {
    let lines = |first: &str| format!("{first}\nreboot\necho behind\n");
    let bad = Machine::new("restart-bad").run_with_input(&lines("frobnicate"))?;
    let bad = bad.line_failed()?.says("\nbehind\r\n")?;
    bad.require(!bad.console().contains("frobnicate"), "the line before the restart ran again")?;
    Machine::new("restart-good").run_with_input(&lines("echo first"))?.succeeded()?.says("\nbehind\r\n")?;
    Ok(())
}

fn input_that_is_no_lines_ends() -> Result<()> {
    let input = format!("echo first\n{}", "\0".repeat(1 << 20));
    let run = Machine::new("no-lines").run_with_input(&input)?;
    run.line_failed()?.says("\nfirst\r\n")?.says("error: a line has more than")?;
    Ok(())
}

fn a_full_host_disk_fails_the_guests_request() -> Result<()> {
    let scratch = Scratch::new("full")?;
    let full = SmallFileSystem::mount(scratch.directory("mnt")?)?;
    let disk = full.path.join("disk");
    // All holes: what the guest reads takes no room, and what it writes does.
    std::fs::File::create(&disk)?.set_len(4 << 20)?;
    let filler = full.fill()?;
    let mut machine = Machine::new("full").disk(&disk).start()?;
    machine.expect("dom0# ", 60)?;
    let create = "xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,w']";
    machine.type_line(create)?;
    machine.expect("hello: FAILED: disk: ", 120)?;
    machine.expect("dom0# ", 60)?;
    // The machine is none the worse for that: once there is room, the same disk is written.
    std::fs::remove_file(filler)?;
    machine.type_line(create)?;
    machine.expect("hello: goodbye", 120)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// A file system of one MiB; dropped, it goes.
struct SmallFileSystem {
    path: PathBuf,
}

impl SmallFileSystem {
    fn mount(path: PathBuf) -> Result<Self> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&path).status()?;
        ensure!(mounted.success(), "no tmpfs can be mounted at {}: this test is root's", path.display());
        Ok(Self { path })
    }

    /// Writes a file until there is no room for more.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.path.join("filler");
        let mut file = std::fs::File::create(&path)?;
        while let Ok(count @ 1..) = file.write(&[1; 4096]) {
            ensure!(count <= 4096 && file.metadata()?.len() <= 1 << 20, "it has no limit");
        }
        Ok(path)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // The machine that used it has ended.
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

fn what_the_hypervisor_cannot_read_is_named() -> Result<()> {
    Machine::new("words")
        .with(|machine| machine.hypervisor_arguments = "frobnicate dom0_mem=banana".into())
        .line("xl dmesg")
        .run()?
        .succeeded()?
        .says("warning: command line: frobnicate is ignored: no such option")?
        .says("warning: command line: dom0_mem=banana is ignored: expected a size, such as 24M")?;
    Ok(())
}

fn a_domain_is_called_by_its_name_and_its_console_is_kept() -> Result<()> {
    let run = Machine::new("renamed")
        .line("xl create -p /boot/hello.cfg")
        .line("xl rename hello other")
        .line("xl unpause other")
        .line("wait --all")
        .line("xl console --log other")
        .line("try xl console --log hello")
        .run()?
        .succeeded()?
        .says("(d1 other) hello: goodbye")?
        .says("Z] hello: goodbye\r\n")?
        .says("--- other has ended\r\n")?
        .says("error: hello: no such domain, and no log of one")?;
    run.require(!run.console().contains("(d1 hello)"), "lines still have the former name")
}

fn the_hypervisors_messages_are_its_own() -> Result<()> {
    let run =
        Machine::new("messages").line("echo a mark").line("xl dmesg").line("xl dmesg").run()?.succeeded()?;
    let console = run.console();
    // As the boot log shows it, and twice in answer.
    let own = console.matches("dom0 built: ").count();
    run.require(own == 3, &format!("the hypervisor's message is there {own} times"))?;
    // The line, its echo, and the answer: no message of the hypervisor's.
    let marks = console.matches("a mark").count();
    run.require(marks == 2, &format!("dom0's line is there {marks} times"))
}

fn what_shows_for_ever_ends_at_an_interrupt() -> Result<()> {
    let mut machine = Machine::new("interrupted").start()?;
    machine.expect("dom0# ", 60)?;
    for line in ["xl top -d 0", "xenstore-watch /", "sleep 100000", "repeat 1000000 echo x"] {
        machine.type_line(line)?;
        let first = match line {
            "xl top -d 0" => "Domain-0",
            "repeat 1000000 echo x" => "\nx\r\nx\r\n",
            _ => "\n",
        };
        machine.expect(first, 60)?;
        machine.type_text("\x03")?;
        machine.expect("^C\r\n", 60)?;
        machine.expect("dom0# ", 60)?;
    }
    // A line that was entered before is found again.
    machine.type_text("\x12top\x05 -i 1")?;
    machine.expect(" -i 1", 20)?;
    machine.type_line("")?;
    machine.expect("Domain-0", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}
