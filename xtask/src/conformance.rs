//! `cargo xtask conformance`: runs the conformance cases somewhere and says what came of them.

mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::machine::{Disk, Machine, Net};
use crate::qemu::RunDirectory;
use crate::session::{Attach, Session};
use crate::{cargo, images, usage};
use report::Report;

/// The image that runs the cases.
pub const IMAGE: &str = "conformance-guest";

/// A machine whose cases take longer hangs.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// Bytes of the disk that cases may write, of the one that they may not, and of the one with large sectors.
const DISK_BYTES: [(&str, u64); 3] = [("rw", 16 << 20), ("ro", 4 << 20), ("big", 4 << 20)];

/// Where to run the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// In one process, against our own backends and frontends.
    Host,
    /// On microhv, as dom0 and as a guest of our dom0.
    Microhv,
}

/// What to run, and where the results go.
#[derive(Clone, Debug, clap::Args)]
pub struct ConformanceOptions {
    /// Where.
    #[arg(long, value_enum, default_value_t = Place::Host)]
    pub on: Place,
    /// Only these cases: ids, or beginnings of them up to a dot, with commas between; `xenbus.c*` takes any beginning.
    #[arg(long)]
    pub filter: Option<String>,
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs the cases and prints the table; gives the exit status: 1 when any failed, or the run broke off.
///
/// # Errors
/// A tool is missing, a build failed or a machine cannot be started.
pub fn conformance(options: &ConformanceOptions) -> Result<u8> {
    if options.filter.as_ref().is_some_and(|filter| filter.contains([' ', '\'', '"'])) {
        return Err(usage("a filter is ids with commas between"));
    }
    let mut report = Report::default();
    match options.on {
        Place::Host => report.add("host", &host(options.filter.as_deref())?),
        Place::Microhv => {
            deps::ensure(&[Need::Qemu])?;
            images::build(&images::ALL.iter().collect::<Vec<_>>())?;
            println!("image {IMAGE}: sha256 {}", images::find(IMAGE)?.sha256()?);
            let filter = options.filter.as_deref();
            report.add("dom0", &run(&as_dom0(filter)?)?);
            let files = RunDirectory::new()?;
            report.add("domU", &run(&as_guest(filter, &files)?)?);
        }
    }
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(u8::from(!report.is_clean()))
}

/// Runs the cases in a process; gives its output.
fn host(filter: Option<&str>) -> Result<String> {
    let mut command = cargo::host(&["test", "--quiet", "--package", "conformance", "--test", "host"]);
    command.env("MICROHV_CONFORMANCE", filter.unwrap_or("*"));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn machine() -> Machine {
    Machine { cpus: 1, net: Net::None, timeout: Some(TIME_LIMIT), ..Machine::default() }
}

/// The machine that boots the cases in dom0's place.
fn as_dom0(filter: Option<&str>) -> Result<Machine> {
    let words = filter.map(|filter| format!("filter={filter}")).unwrap_or_default();
    Ok(Machine { dom0: images::find(IMAGE)?.bootable(), dom0_arguments: words, ..machine() })
}

/// The machine that boots our dom0, which runs the cases as a guest with disks of `files`.
fn as_guest(filter: Option<&str>, files: &RunDirectory) -> Result<Machine> {
    let mut machine = machine();
    for (name, bytes) in DISK_BYTES {
        let path = files.file(name);
        std::fs::File::create(&path)?.set_len(bytes)?;
        if name == "big" {
            machine.qemu_arguments.extend(big_sector_disk(&path));
        } else {
            machine.disks.push(Disk { path, read_only: name == "ro", id: None });
        }
    }
    let extra = filter.map(|filter| format!(" extra='filter={filter}'")).unwrap_or_default();
    let disks = "disk=['phy:/dev/vda,xvda,w','phy:/dev/vdb,xvdb,r','phy:/dev/disk/by-id/virtio-big,xvdc,w']";
    machine.script = Some(vec![format!("xl create -c /boot/conformance.cfg {disks}{extra}")]);
    Ok(machine)
}

/// QEMU's words for a disk with sectors of 4 KiB, `virtio-big` by id.
pub fn big_sector_disk(path: &Path) -> [String; 4] {
    let device = "virtio-blk-pci,drive=big,serial=big,logical_block_size=4096,physical_block_size=4096";
    [
        "-drive".into(),
        format!("file={},if=none,id=big,format=raw", path.display().to_string().replace(',', ",,")),
        "-device".into(),
        device.into(),
    ]
}

/// Boots and gives the console, however the machine ended: the report on it says how it went.
fn run(machine: &Machine) -> Result<String> {
    Ok(Session::start(machine, Attach::Nobody)?.wait().1)
}
