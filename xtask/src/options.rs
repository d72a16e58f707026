//! The command line of `cargo xtask run`: stable, since scripts depend on it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::machine::{Boot, Card, Disk, Emulator, Forward, Machine, Module, Net};
use crate::{checks, guest, lines, usage};

/// Options of `run`, and of whatever else boots a machine.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    /// dom0's shell runs this line; then power off (repeatable).
    #[arg(long = "cmd", value_name = "LINE", allow_hyphen_values = true)]
    commands: Vec<String>,
    /// dom0's shell runs the lines of this file, before those of --cmd.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Stay at the prompt after the last line.
    #[arg(long)]
    keep: bool,
    /// Add a host file to the boot bundle as /boot/NAME (repeatable).
    #[arg(long = "module", value_name = "PATH[=NAME]")]
    modules: Vec<Module>,
    /// Attach a raw file as a disk: of virtio, or of the kind that `as` names (repeatable).
    #[arg(long = "disk", value_name = "PATH[,ro][,id=NAME][,as=virtio|nvme|ahci]")]
    disks: Vec<Disk>,
    /// dom0's network card: user, none, tap=INTERFACE or socket:OPTIONS.
    #[arg(long, default_value = "user")]
    net: Net,
    /// The kind of the network card.
    #[arg(long, value_enum, default_value_t)]
    card: Card,
    /// No network card, as --net none.
    #[arg(long, conflicts_with_all = ["net", "forwards"])]
    no_net: bool,
    /// TCP port HOST of 127.0.0.1 leads to port PORT of the domain GUEST (repeatable).
    #[arg(long = "forward", value_name = "HOST:GUEST:PORT")]
    forwards: Vec<Forward>,
    /// Packets that dom0 carries go to this file, in the format of pcap.
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// What emulates the machine: QEMU, or Bochs, which boots a CD image and has no disks and no network.
    #[arg(long = "on", value_enum, default_value_t)]
    emulator: Emulator,
    /// Memory in MiB.
    #[arg(long = "mem", value_name = "MIB", default_value_t = 1024, value_parser = checks::memory)]
    memory_mib: u32,
    /// CPUs.
    #[arg(long = "smp", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// CPU model: qemu64 in QEMU, ryzen in Bochs unless given.
    #[arg(long = "cpu", value_name = "MODEL")]
    cpu_model: Option<String>,
    /// Copy all serial output to this file.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// End the machine that many seconds after QEMU's start; the run failed.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Pass an argument to QEMU (repeatable).
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_arguments: Vec<String>,
    /// Multiboot1 by QEMU itself, or multiboot2 through a GRUB image that a BIOS or UEFI starts.
    #[arg(long, value_enum, default_value_t = Boot::Direct)]
    boot: Boot,
    /// Words for the hypervisor's command line.
    #[arg(long = "append", value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    hypervisor_arguments: String,
    /// Words for dom0's command line.
    #[arg(long = "dom0-append", value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    dom0_arguments: String,
    /// Boot this PV ELF kernel in dom0's place.
    #[arg(long, value_name = "PATH")]
    dom0: Option<PathBuf>,
}

impl RunOptions {
    /// The machine these options describe, checked.
    ///
    /// # Errors
    /// Wrong usage: a file that is not there, an empty script.
    pub fn machine(self) -> Result<Machine> {
        let script = self.script_lines()?;
        let standard = Machine::default();
        // The command line's own come last: of two with one name the last stays.
        let mut modules = guest::modules();
        modules.extend(self.modules);
        let machine = Machine {
            emulator: self.emulator,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            cpu_model: self.cpu_model.unwrap_or_else(|| self.emulator.standard_cpu().into()),
            disks: self.disks,
            net: if self.no_net { Net::None } else { self.net },
            card: self.card,
            forwards: self.forwards,
            capture: self.capture,
            boot: self.boot,
            dom0: self.dom0.unwrap_or(standard.dom0),
            hypervisor_arguments: self.hypervisor_arguments,
            dom0_arguments: self.dom0_arguments,
            modules,
            script,
            keep: self.keep,
            from_input: false,
            qemu_arguments: self.qemu_arguments,
            one_host_cpu: false,
            log: self.log,
            starts_again: false,
            timeout: self.timeout.map(Duration::from_secs),
        };
        machine.check()?;
        Ok(machine)
    }

    /// The shell's lines, in order; `None` without `--cmd` and `--script`.
    fn script_lines(&self) -> Result<Option<Vec<String>>> {
        if self.commands.is_empty() && self.script.is_none() {
            return Ok(None);
        }
        let mut text = String::new();
        if let Some(path) = &self.script {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|error| usage(format!("{name}: {error}")))?;
            text = lines::read_script(file, &name)?;
        }
        let from_file = text.lines();
        // A line break inside a --cmd makes two lines of it, as it would at the prompt.
        let from_options = self.commands.iter().flat_map(|line| line.lines());
        Ok(Some(from_file.chain(from_options).map(str::to_string).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: RunOptions,
    }

    fn machine(words: &[&str]) -> Result<Machine> {
        let line = ["run"].iter().chain(words);
        Line::try_parse_from(line).map_err(|error| usage(error.to_string()))?.options.machine()
    }

    #[test]
    fn without_options_a_person_gets_the_standard_machine() {
        let machine = machine(&[]).expect("no option is needed");
        assert_eq!((machine.memory_mib, machine.cpus, machine.cpu_model.as_str()), (1024, 2, "qemu64"));
        assert!(machine.interactive() && machine.script.is_none() && machine.timeout.is_none());
    }

    #[test]
    fn commands_become_lines_in_order() {
        let machine = machine(&["--cmd", "xl list", "--cmd", "-x\ny"]).expect("sound");
        assert_eq!(machine.script, Some(vec!["xl list".into(), "-x".into(), "y".into()]));
        assert!(!machine.interactive());
    }

    #[test]
    fn qemu_arguments_may_begin_with_a_hyphen() {
        let machine = machine(&["--qemu-arg=-d", "--qemu-arg=int", "--timeout", "5"]).expect("sound");
        assert_eq!(machine.qemu_arguments, ["-d", "int"]);
        assert_eq!(machine.timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn the_network_may_be_left_out_or_lead_to_guests() {
        assert_eq!(machine(&["--no-net"]).expect("sound").net, Net::None);
        assert_eq!(machine(&["--net", "none"]).expect("sound").net, Net::None);
        let machine_with =
            machine(&["--forward", "18080:web:80", "--forward", "18081:b:8080"]).expect("sound");
        assert_eq!(machine_with.net, Net::User);
        let guests =
            machine_with.forwards.iter().map(|forward| (forward.host, &*forward.guest, forward.port));
        assert_eq!(guests.collect::<Vec<_>>(), [(18080, "web", 80), (18081, "b", 8080)]);
        for words in [
            &["--no-net", "--net", "user"][..],
            &["--no-net", "--forward", "18080:web:80"],
            &["--net", "none", "--forward", "18080:web:80"],
            &["--on", "bochs", "--forward", "18080:web:80"],
            &["--forward", "18080:web:80", "--forward", "18080:b:80"],
        ] {
            let error = machine(words).expect_err(words[0]);
            assert!(error.is::<crate::Usage>(), "{words:?}: {error}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for words in [
            ["--disk", "/no/such/file"],
            ["--module", "/no/such/file"],
            ["--script", "/no/such/file"],
            ["--mem", "0"],
            ["--mem", "31"],
            ["--smp", "0"],
            ["--smp", "256"],
            ["--timeout", "0"],
            ["--net", "tap"],
            ["--net", "tap=no-such-tap"],
            ["--forward", "8080:web"],
            ["--forward", "0:web:80"],
            ["--boot", "floppy"],
            ["--nothing", "x"],
        ] {
            let error = machine(&words).expect_err(words[0]);
            assert!(error.is::<crate::Usage>(), "{words:?}: {error}");
        }
    }
}
