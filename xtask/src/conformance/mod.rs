//! `cargo xtask conformance`: runs the conformance cases in a place and reports the results.

mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::guest::{self, DebianBoot};
use crate::machine::{Disk, Machine, Module, Net, Way};
use crate::qemu::RunDirectory;
use crate::session::{Attach, Session};
use crate::{cargo, images, usage, xen};
pub use report::Report;

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
    /// On microhv, as the backend of Debian's Linux: its own frontends are tried.
    Linux,
    /// On Debian's Xen, as dom0 and as a guest of a Linux dom0.
    Xen,
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
    /// The kernel of `--on linux`, if not the release's own: `newer`, or a package like linux-image-6.12-cloud-amd64.
    #[arg(long, value_name = "PACKAGE")]
    pub kernel: Option<String>,
    /// Write the results to this file, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs the cases and prints the table; returns the exit status: 1 when any failed, or the run broke off.
///
/// # Errors
/// A tool is missing, a build failed or a machine cannot be started.
pub fn conformance(options: &ConformanceOptions) -> Result<u8> {
    if options.filter.as_ref().is_some_and(|filter| filter.contains([' ', '\'', '"'])) {
        return Err(usage("a filter is ids with commas between"));
    }
    if options.kernel.is_some() && options.on != Place::Linux {
        return Err(usage("--kernel is for --on linux"));
    }
    let report = report_on(options.on, options.filter.as_deref(), options.kernel.as_deref())?;
    report.print();
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(u8::from(!report.is_clean()))
}

/// Runs the cases in a place, and returns the report. `kernel`: as in `--kernel`.
///
/// # Errors
/// The errors of [`conformance`].
pub fn report_on(place: Place, filter: Option<&str>, kernel: Option<&str>) -> Result<Report> {
    let mut report = Report::default();
    let words = filter.map(|filter| format!("filter={filter}")).unwrap_or_default();
    match place {
        Place::Host => report.add("host", &host(filter)?),
        Place::Microhv => {
            deps::ensure(&[Need::Qemu])?;
            images::build(&images::ALL.iter().collect::<Vec<_>>())?;
            println!("image {IMAGE}: sha256 {}", images::find(IMAGE)?.sha256()?);
            report.add("dom0", &run(&as_dom0(&words)?)?);
            report.add("domU", &run(&as_guest(&words, &RunDirectory::new()?)?)?);
        }
        Place::Linux => {
            let kernel = kernel.map_or_else(guest::debian_boot, guest::other_debian_boot)?;
            deps::ensure(&[Need::Qemu])?;
            images::build(&images::ALL.iter().collect::<Vec<_>>())?;
            report.explain(include_str!("../../../docs/CONFORMANCE.md"));
            println!("image {IMAGE}: sha256 {}", images::find(IMAGE)?.sha256()?);
            let filter = filter.unwrap_or("blkfront");
            report.add("linux", &run(&as_backend(filter, &kernel, &RunDirectory::new()?)?)?);
        }
        Place::Xen => {
            report.explain(include_str!("../../../docs/CONFORMANCE.md"));
            let host = xen::prepare()?;
            let image = images::find(IMAGE)?;
            images::build(&[image])?;
            println!("image {IMAGE}: sha256 {}", image.sha256()?);
            let options = xen::Options {
                // Cases of several vCPUs want a second, on one CPU too.
                hypervisor_arguments: "dom0_max_vcpus=2".into(),
                timeout: TIME_LIMIT,
                ..xen::Options::default()
            };
            report.add("dom0", &host.boot_kernel_as_dom0(&image.bootable(), &words, &options)?.console);
            report.add("domU", &xen_guest(&host, &words, &RunDirectory::new()?)?);
        }
    }
    Ok(report)
}

/// Runs the cases in a process; returns its output.
fn host(filter: Option<&str>) -> Result<String> {
    let mut command = cargo::host(&[
        "test",
        "--quiet",
        "--profile",
        "checked",
        "--package",
        "conformance",
        "--test",
        "host",
    ]);
    command.env("MICROHV_CONFORMANCE", filter.unwrap_or("*"));
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn machine() -> Machine {
    Machine { cpus: 1, net: Net::None, timeout: Some(TIME_LIMIT), ..Machine::default() }
}

/// The machine that boots the cases in dom0's place.
fn as_dom0(words: &str) -> Result<Machine> {
    Ok(Machine { dom0: images::find(IMAGE)?.bootable(), dom0_arguments: words.into(), ..machine() })
}

/// The machine that boots our dom0, which runs the cases as a guest with disks of `files`.
fn as_guest(words: &str, files: &RunDirectory) -> Result<Machine> {
    let (disks, arguments) = scratch_disks(files)?;
    let line =
        format!("xl create -c /boot/conformance.cfg {GUEST_DISKS} {GUEST_VIFS} extra='vifs=mend {words}'");
    Ok(Machine { disks, qemu_arguments: arguments, script: Some(vec![line]), ..machine() })
}

/// The number of disks that Debian's Linux gets: each connection of a case needs a disk of its own.
const CONNECTIONS: u32 = 64;

/// The machine that boots our dom0 with two guests: Debian's Linux, and the cases in a driver domain that serves it.
/// When all cases have passed, dom0 destroys that Linux guest, whose disks hang, and runs another guest.
///
/// # Errors
/// The ramdisk cannot be made.
pub fn as_backend(filter: &str, kernel: &DebianBoot, files: &RunDirectory) -> Result<Machine> {
    let ramdisk = files.file("agent-initrd");
    std::fs::write(&ramdisk, guest::ramdisk_with(kernel, "blk-agent", &[])?)?;
    let mut modules = guest::modules();
    modules.push(Module { path: ramdisk, name: "agent-initrd".into() });
    let mut lines = vec![
        format!("xl create /boot/conformance.cfg extra='role=backend filter={filter}'"),
        format!(
            "xl create /boot/{} name='linux' ramdisk='/boot/agent-initrd' extra='rdinit=/bin/blk-agent'",
            kernel.configuration
        ),
    ];
    // Device numbers of the extended form, since the older form has room for sixteen disks only.
    let devices = (0..CONNECTIONS).map(|disk| 1 << 28 | disk << 8);
    lines.extend(
        devices.map(|device| {
            format!("xl block-attach linux vdev={device},backend=conformance,target=conformance")
        }),
    );
    lines.extend(["wait conformance".to_string(), "xl destroy linux".to_string()]);
    lines.push("xl create -c /boot/hello.cfg".to_string());
    Ok(Machine { modules, script: Some(lines), ..machine() })
}

/// Runs the cases as a guest on Debian's Xen; returns its console.
fn xen_guest(host: &xen::XenHost, words: &str, files: &RunDirectory) -> Result<String> {
    let (disks, qemu_arguments) = scratch_disks(files)?;
    let options = xen::Options { disks, qemu_arguments, timeout: TIME_LIMIT, ..xen::Options::default() };
    let guest = xen::Domain {
        name: "conformance".into(),
        kernel: images::find(IMAGE)?.bootable(),
        ramdisk: None,
        memory_mib: 32,
        extra: words.into(),
        lines: vec![
            GUEST_DISKS.into(),
            GUEST_VIFS.into(),
            "vcpus=2".into(),
            "max_event_channels=32768".into(),
        ],
    };
    let (ran, _) = host.run_domains(&[guest], TIME_LIMIT - Duration::from_secs(60), &options)?;
    let ran = ran.into_iter().next().context("the domain said nothing")?;
    // When the domain could not be made, the reason is in xl's output.
    Ok(if ran.console.is_empty() { ran.xl } else { ran.console })
}

/// The disks of a guest, as its configuration has them.
pub const GUEST_DISKS: &str =
    "disk=['phy:/dev/vda,xvda,w','phy:/dev/vdb,xvdb,r','phy:/dev/disk/by-id/virtio-big,xvdc,w']";

/// The network interfaces of a guest, as its configuration has them: both on the first bridge.
pub const GUEST_VIFS: &str = "vif=['mac=00:16:3e:00:05:00','mac=00:16:3e:00:05:01']";

/// Makes empty disks for the guest, and QEMU's arguments for one of them.
fn scratch_disks(files: &RunDirectory) -> Result<(Vec<Disk>, Vec<String>)> {
    let (mut disks, mut arguments) = (Vec::new(), Vec::new());
    for (name, bytes) in DISK_BYTES {
        let path = files.file(name);
        std::fs::File::create(&path)?.set_len(bytes)?;
        if name == "big" {
            arguments.extend(big_sector_disk(&path, Way::Virtio));
        } else {
            disks.push(Disk { read_only: name == "ro", ..Disk::file(&path) });
        }
    }
    Ok((disks, arguments))
}

/// QEMU's words for a disk with sectors of 4 KiB, `big` by id. QEMU has none that is reached by `Way::Ahci`.
pub fn big_sector_disk(path: &Path, way: Way) -> [String; 4] {
    let kind = if way == Way::Nvme { "nvme" } else { "virtio-blk-pci" };
    let device = format!("{kind},drive=big,serial=big,logical_block_size=4096,physical_block_size=4096");
    [
        "-drive".into(),
        format!("file={},if=none,id=big,format=raw", path.display().to_string().replace(',', ",,")),
        "-device".into(),
        device,
    ]
}

/// Boots, and returns the console's text however the machine ended: the report in the text has the results.
fn run(machine: &Machine) -> Result<String> {
    Ok(Session::start(machine, Attach::Nobody)?.wait().1)
}
