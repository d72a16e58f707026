//! A Debian system on its own disk, with a test logged in at its console.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tests::linux::{command, no_complaints};
use tests::{Live, Machine, Run, Scratch};
use xtask::machine::Disk;

/// How long a boot to the login may take, in seconds: twenty on an idle host.
const BOOT_SECONDS: u64 = 600;

/// How long a machine with a Debian system in it may run.
const MACHINE_SECONDS: u64 = 3600;

/// What a kernel says when its host kept it waiting, which is no fault of anything here.
const LATE: &[&str] = &["hrtimer: interrupt took", "clocksource: Long readout interval"];

/// What a command of a logged-in test did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit status.
    pub(crate) status: u32,
    /// All that the console showed meanwhile.
    pub(crate) output: String,
}

/// A test's own copy of the Debian root image, made from packages if need be.
pub(crate) fn root_copy(scratch: &Scratch) -> Result<PathBuf> {
    let copy = scratch.file("debian.img", b"")?;
    xtask::guest::copy_root(&copy)?;
    Ok(copy)
}

/// A machine that has Debian's configurations in its bundle, `others` as its first disks, and behind them `root` as
/// the one that `debian.cfg` names.
pub(crate) fn machine(name: &str, root: &Path, others: &[&Path]) -> Machine {
    let disk = Disk { id: Some("debian".into()), ..Disk::file(root) };
    let machine = Machine::new(name).seconds(MACHINE_SECONDS);
    let machine = others.iter().fold(machine, |machine, path| machine.disk(path));
    machine.with(|machine| {
        machine.modules.extend(xtask::guest::modules());
        machine.disks.push(disk);
    })
}

/// The file system in `image` is whole, as the host's own `e2fsck` sees it.
pub(crate) fn check_file_system(image: &Path) -> Result<()> {
    let (status, said) = fsck(image, "-fn")?;
    if status != Some(0) {
        bail!("e2fsck -fn: {status:?}: {said}");
    }
    Ok(())
}

/// Does to the file system in `image` what the next mount would: the journal is replayed, files that were removed
/// while open go. Nothing else is wrong.
pub(crate) fn recover_file_system(image: &Path) -> Result<()> {
    const USUAL: &[&str] =
        &["recovering journal", "Clearing orphaned inode", "Setting free ", "clean, ", "orphan"];
    let (status, said) = fsck(image, "-p")?;
    let other = said.lines().find(|line| !USUAL.iter().any(|usual| line.contains(usual)));
    if let Some(other) = other {
        bail!("e2fsck -p: {other}");
    }
    // 1: it changed something.
    if !matches!(status, Some(0 | 1)) {
        bail!("e2fsck -p: {status:?}: {said}");
    }
    Ok(())
}

/// Runs the host's `e2fsck`: its status, and all that it says.
fn fsck(image: &Path, option: &str) -> Result<(Option<i32>, String)> {
    let output = Command::new("/sbin/e2fsck").arg(option).arg(image).output().context("cannot run e2fsck")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

/// A running Debian domain and the test at its shell, as root.
pub(crate) struct Debian {
    machine: Live,
    /// How often the test went to dom0's prompt and came back.
    visits: u32,
}

impl Debian {
    /// Boots the machine and creates the domain. `settings`: what follows the file in `xl create`.
    pub(crate) fn boot(machine: Machine, settings: &str) -> Result<Self> {
        let mut machine = machine.start()?;
        machine.expect("dom0# ", 60)?;
        Self::create(machine, settings)
    }

    /// Creates the domain in a machine that waits at dom0's prompt.
    pub(crate) fn create(mut machine: Live, settings: &str) -> Result<Self> {
        machine.type_line(&format!("xl create -c /boot/debian.cfg {settings}"))?;
        Self::log_in(machine)
    }

    /// Logs in at a console where Debian boots.
    pub(crate) fn log_in(mut machine: Live) -> Result<Self> {
        machine.expect("debian login: ", BOOT_SECONDS)?;
        machine.type_line("root")?;
        machine.expect("root@debian:~# ", 60)?;
        // A shell without line editing, and no kernel message between what commands print: dmesg has them all.
        machine.type_line("exec sh -c 'stty -echo; dmesg -n 1; echo rea\"\"dy; PS1= PS2= exec sh'")?;
        machine.expect("ready", 60)?;
        Ok(Self { machine, visits: 0 })
    }

    /// Runs a command of at most a few thousand characters.
    pub(crate) fn run(&mut self, command: &str, seconds: u64) -> Result<Ran> {
        self.machine.type_line(&format!("{{ {command}\n}}; echo \"<status $?>\""))?;
        let output = self.machine.expect("<status ", seconds)?;
        let status = self.machine.expect(">", 10)?;
        let status = status.trim_end_matches('>').parse().context("a shell's status")?;
        Ok(Ran { status, output })
    }

    /// Runs a command that succeeds; gives what it printed.
    pub(crate) fn succeed(&mut self, command: &str, seconds: u64) -> Result<String> {
        let ran = self.run(command, seconds)?;
        if ran.status != 0 {
            bail!("`{command}` ended with status {}:\n{}", ran.status, ran.output);
        }
        Ok(ran.output)
    }

    /// Since the kernel's buffer was last cleared it has said nothing.
    pub(crate) fn silent(&mut self) -> Result<()> {
        let said = self.succeed("dmesg", 60)?;
        let said = said.trim_end_matches("<status ");
        let meant = |line: &&str| !line.trim().is_empty() && !LATE.iter().any(|late| line.contains(late));
        let said: Vec<&str> = said.lines().filter(meant).collect();
        ensure!(said.is_empty(), "the kernel said:\n{}", said.join("\n"));
        Ok(())
    }

    /// Starts a command and leaves it running.
    pub(crate) fn start(&mut self, command: &str) -> Result<()> {
        self.succeed(&format!("({command}) > /tmp/started.log 2>&1 < /dev/null &"), 60)?;
        Ok(())
    }

    /// Runs a line at dom0's prompt and comes back; gives what it printed.
    pub(crate) fn at_dom0(&mut self, line: &str) -> Result<String> {
        self.visits += 1;
        let (left, back) = (format!("<left {}>", self.visits), format!("<back {}>", self.visits));
        self.succeed(&format!("echo '{left}'"), 60)?;
        self.machine.type_text("\x1d")?;
        let printed = command(&mut self.machine, line, 60)?;
        self.machine.type_line("xl console debian")?;
        // The console shows again what it has shown, the very last too; what is typed before that is dom0's.
        self.machine.expect(&left, 60)?;
        self.machine.type_line(&format!("echo '{back}'"))?;
        self.machine.expect(&back, 60)?;
        Ok(printed)
    }

    /// Leaves the domain running and goes to dom0's prompt.
    pub(crate) fn leave(mut self) -> Result<Live> {
        self.machine.type_text("\x1d")?;
        self.machine.expect("dom0# ", 30)?;
        Ok(self.machine)
    }

    /// Powers the domain off from inside; gives the machine at dom0's prompt.
    pub(crate) fn power_off_domain(mut self) -> Result<Live> {
        self.machine.type_line("poweroff")?;
        self.machine.expect("dom0# ", 120)?;
        Ok(self.machine)
    }

    /// Powers off the domain, then the machine. The kernel has not complained.
    pub(crate) fn power_off(self) -> Result<Run> {
        let mut machine = self.power_off_domain()?;
        machine.type_line("poweroff")?;
        let run = machine.finish().succeeded()?;
        no_complaints(&run)?;
        Ok(run)
    }
}
