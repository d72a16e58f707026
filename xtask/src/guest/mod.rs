//! `cargo xtask guest`: stock systems as guests, made from Debian's packages under `target/guests/`.
//!
//! What is in `target/guests/boot/` goes into every boot bundle of `cargo xtask run`, and the root image is
//! attached behind the disks of its command line.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use self::kernel::Kernel;
use crate::cargo::run;
use crate::machine::{Disk, Machine, Module};
use crate::packages::{self, remove};
use crate::{images, paths, usage};

pub(crate) mod kernel;
mod program;
mod ramdisk;
pub(crate) mod root;
pub mod stock;
mod tools;

pub use self::program::ramdisk_with;
pub(crate) use self::program::{Iperf, build as build_program, iperf};

/// The root image's serial number: dom0 finds it as `/dev/disk/by-id/virtio-debian`.
const ROOT_ID: &str = "debian";

/// What follows a kernel's stem in its name under `/boot`.
const KERNEL: &str = "-vmlinuz";
/// What follows a kernel's stem in its ramdisk's name.
const RAMDISK: &str = "-initrd";

/// PV GRUB's name under `/boot`.
const LOADER: &str = "debian-pvgrub";
/// The package that holds PV GRUB, and the file's path in the package.
const LOADER_PACKAGE: &str = "grub-xen-host";
const LOADER_FILE: &str = "usr/lib/grub-xen/grub-x86_64-xen.bin";
/// The configuration that boots by PV GRUB. There is one for all kernels, since the disk determines which
/// kernel runs.
const LOADER_CONFIGURATION: (&str, &str) = ("debian-grub.cfg", include_str!("debian-grub.cfg"));

/// The configurations, by what follows the stem in their names under `/boot`. The files' text is for the stem
/// `debian`.
const CONFIGURATIONS: &[(&str, &str)] = &[
    ("-ramdisk.cfg", include_str!("debian-ramdisk.cfg")),
    ("-shell.cfg", include_str!("debian-shell.cfg")),
    (".cfg", include_str!("debian.cfg")),
];

/// Which guest, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct GuestOptions {
    /// The guest.
    #[arg(value_enum)]
    system: System,
    /// Leave out the root image: only what boots with a ramdisk.
    #[arg(long)]
    no_root: bool,
    /// Another kernel beside the release's own: `newer`, or a package like linux-image-6.12-cloud-amd64.
    #[arg(long, value_name = "PACKAGE")]
    kernel: Option<String>,
    /// Make it anew from packages fetched now. The root image loses what guests wrote.
    #[arg(long)]
    fresh: bool,
}

/// The systems that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum System {
    /// Debian's kernel, with a busybox ramdisk and with a Debian root image.
    Debian,
}

/// Makes a guest, unless the guest exists.
///
/// # Errors
/// A tool is missing, or a package cannot be fetched or unpacked.
pub fn guest(options: &GuestOptions) -> Result<()> {
    let System::Debian = options.system;
    let mut kernels = vec![Kernel::current()];
    if let Some(name) = &options.kernel {
        kernels.push(kernel_named(name)?);
    }
    if options.fresh {
        for kernel in &kernels {
            remove(&packages_of(kernel))?;
        }
        if !options.no_root {
            remove(&directory().join("grub"))?;
            remove(&root_image())?;
        }
    }
    for kernel in &kernels {
        with_ramdisk(kernel, &unpacked(kernel)?)?;
    }
    if !options.no_root {
        debian_loader()?;
        let _turn = turn()?;
        root::debian(&root_image())?;
    }
    for module in modules().iter().filter(|module| module.name.ends_with(".cfg")) {
        eprintln!("cargo xtask run --cmd \"xl create -c /boot/{}\"", module.name);
    }
    Ok(())
}

/// Makes what Debian's kernel needs to boot with the busybox ramdisk.
///
/// # Errors
/// The errors of [`guest`].
pub fn debian_ramdisk() -> Result<()> {
    with_ramdisk(&Kernel::current(), &debian_kernel()?)
}

/// Makes what another of Debian's kernels needs to boot with the ramdisk: `name` as in `--kernel`.
///
/// # Errors
/// The errors of [`guest`].
pub fn other_debian_ramdisk(name: &str) -> Result<()> {
    let kernel = kernel_named(name)?;
    with_ramdisk(&kernel, &unpacked(&kernel)?)
}

/// `iperf3` and `ethtool` with their libraries: an archive that can follow that of a ramdisk.
///
/// # Errors
/// A package cannot be fetched, or is not as expected.
pub fn network_tools() -> Result<Vec<u8>> {
    let _turn = turn()?;
    tools::archive(&directory().join("tools"))
}

fn kernel_named(name: &str) -> Result<Kernel> {
    Kernel::named(name).map_err(|error| usage(error.to_string()))
}

fn with_ramdisk(kernel: &Kernel, unpacked: &kernel::Unpacked) -> Result<()> {
    let stem = kernel.stem();
    let _turn = turn()?;
    let boot = boot_directory();
    std::fs::create_dir_all(&boot).with_context(|| format!("cannot make {}", boot.display()))?;
    let image = unpacked.image()?;
    let bytes = std::fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    images::write(&boot.join(format!("{stem}{KERNEL}")), &bytes)?;
    images::write(&boot.join(format!("{stem}{RAMDISK}")), &ramdisk::archive(unpacked)?)?;
    for (name, text) in CONFIGURATIONS {
        images::write(&boot.join(format!("{stem}{name}")), configuration(text, &stem).as_bytes())?;
    }
    Ok(())
}

/// One of Debian's kernels and its ramdisk, as files.
#[derive(Clone, Debug)]
pub struct DebianBoot {
    /// The bzImage.
    pub image: PathBuf,
    /// The busybox ramdisk.
    pub ramdisk: PathBuf,
    /// The name of the guest's configuration for the ramdisk, below `/boot`.
    pub configuration: String,
}

impl DebianBoot {
    fn of(kernel: &Kernel) -> Self {
        let (boot, stem) = (boot_directory(), kernel.stem());
        Self {
            image: boot.join(format!("{stem}{KERNEL}")),
            ramdisk: boot.join(format!("{stem}{RAMDISK}")),
            configuration: format!("{stem}-ramdisk.cfg"),
        }
    }
}

/// Debian's kernel and its ramdisk, made if need be.
///
/// # Errors
/// The errors of [`guest`].
pub fn debian_boot() -> Result<DebianBoot> {
    debian_ramdisk()?;
    Ok(DebianBoot::of(&Kernel::current()))
}

/// Another of Debian's kernels and its ramdisk, made if need be: `name` as in `--kernel`.
///
/// # Errors
/// The errors of [`guest`].
pub fn other_debian_boot(name: &str) -> Result<DebianBoot> {
    other_debian_ramdisk(name)?;
    Ok(DebianBoot::of(&kernel_named(name)?))
}

/// Makes what boots by PV GRUB: the loader, as `debian-pvgrub`, and the configuration for the root image.
///
/// # Errors
/// The errors of [`guest`].
pub fn debian_loader() -> Result<()> {
    let _turn = turn()?;
    let tree = packages::fetch(&directory().join("grub"), || Ok(vec![LOADER_PACKAGE.into()]))?;
    let loader = tree.join(LOADER_FILE);
    let bytes = std::fs::read(&loader).with_context(|| format!("cannot read {}", loader.display()))?;
    images::write(&boot_directory().join(LOADER), &bytes)?;
    let (name, text) = LOADER_CONFIGURATION;
    images::write(&boot_directory().join(name), text.as_bytes())
}

/// The file of PV GRUB, fetched if need be.
///
/// # Errors
/// The errors of [`guest`].
pub fn loader() -> Result<PathBuf> {
    debian_loader()?;
    Ok(boot_directory().join(LOADER))
}

/// A configuration for the kernel whose files' names begin with `stem`.
fn configuration(text: &str, stem: &str) -> String {
    text.replace("/boot/debian", &format!("/boot/{stem}")).replace("\"debian", &format!("\"{stem}"))
}

/// The files for `/boot` of the guests that were made.
pub fn modules() -> Vec<Module> {
    modules_in(&boot_directory(), root_image().exists())
}

fn modules_in(directory: &Path, with_root: bool) -> Vec<Module> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Leaves out files that another process is writing just now.
    names.retain(|name| [KERNEL, RAMDISK, LOADER, ".cfg"].iter().any(|end| name.ends_with(end)));
    names.sort();
    let modules = names.into_iter().map(|name| Module { path: directory.join(&name), name });
    // A configuration without its disk would only mislead, so it is left out.
    modules.filter(|module| with_root || !needs_root(&module.path)).collect()
}

/// Whether a file is a configuration of a guest on the root image.
fn needs_root(path: &Path) -> bool {
    let disk = format!("by-id/virtio-{ROOT_ID}");
    path.extension().is_some_and(|end| end == "cfg")
        && std::fs::read_to_string(path).is_ok_and(|text| text.contains(&disk))
}

/// A lock on the root image, since two machines must not write it. Drop gives the lock back.
#[derive(Debug)]
#[must_use = "another machine may take the image once this is dropped"]
pub struct RootInUse {
    _lock: Option<File>,
}

/// Attaches the root image, if there is one, as the machine's last disk.
///
/// # Errors
/// The root image exists and cannot be opened.
pub fn attach_root(machine: &mut Machine) -> Result<RootInUse> {
    attach_image(machine, &root_image())
}

fn attach_image(machine: &mut Machine, path: &Path) -> Result<RootInUse> {
    let named = |disk: &Disk| disk.id.as_deref() == Some(ROOT_ID);
    if !path.exists() || machine.disks.iter().any(named) {
        return Ok(RootInUse { _lock: None });
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("{} is another machine's now: not attached", path.display());
            return Ok(RootInUse { _lock: None });
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    machine.disks.push(Disk { id: Some(ROOT_ID.into()), ..Disk::file(path) });
    Ok(RootInUse { _lock: Some(file) })
}

/// Makes Debian's kernel, ramdisk and root image, and copies the root image to `copy`, holes and all. Waits for a
/// machine that has it.
///
/// # Errors
/// The errors of [`guest`], or the copy cannot be made.
pub fn copy_root(copy: &Path) -> Result<()> {
    debian_ramdisk()?;
    let image = root_image();
    {
        let _turn = turn()?;
        root::debian(&image)?;
    }
    let file = File::open(&image).with_context(|| format!("cannot open {}", image.display()))?;
    if file.try_lock_shared().is_err() {
        eprintln!("{} is another machine's now: waiting for it", image.display());
        file.lock_shared().with_context(|| format!("cannot lock {}", image.display()))?;
    }
    run(Command::new("cp").arg("--sparse=always").arg(&image).arg(copy))
}

/// Where guests are made.
fn directory() -> PathBuf {
    paths::target().join("guests")
}

/// Debian's kernel and busybox, unpacked.
///
/// # Errors
/// The errors of [`guest`].
pub(crate) fn debian_kernel() -> Result<kernel::Unpacked> {
    unpacked(&Kernel::current())
}

fn unpacked(kernel: &Kernel) -> Result<kernel::Unpacked> {
    let _turn = turn()?;
    kernel::fetch(kernel, &packages_of(kernel))
}

/// Where the packages of a kernel lie.
fn packages_of(kernel: &Kernel) -> PathBuf {
    directory().join(kernel.stem())
}

/// What goes into boot bundles.
fn boot_directory() -> PathBuf {
    directory().join("boot")
}

/// Debian's root image: a raw ext4 file system.
fn root_image() -> PathBuf {
    directory().join("debian.img")
}

/// Waits until no other process makes guests. Other processes wait until the file is dropped.
fn turn() -> Result<File> {
    let directory = directory();
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this test's own.
    struct Image(PathBuf);

    impl Image {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("microhv-{name}-{}", std::process::id()));
            std::fs::write(&path, b"x").expect("writable");
            Self(path)
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn configurations_name_their_own_kernel() {
        let (_, text) = CONFIGURATIONS[2];
        assert_eq!(configuration(text, "debian"), text);
        let other = configuration(text, "debian-6.12");
        for line in [
            "name        = \"debian-6.12\"",
            "kernel      = \"/boot/debian-6.12-vmlinuz\"",
            "ramdisk     = \"/boot/debian-6.12-initrd\"",
            "disk        = [ 'phy:/dev/disk/by-id/virtio-debian,xvda,w' ]",
        ] {
            assert!(other.contains(line), "{line} is not in {other}");
        }
    }

    #[test]
    fn what_needs_the_root_image_comes_with_it() {
        let directory = std::env::temp_dir().join(format!("microhv-boot-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("writable");
        for (name, text) in CONFIGURATIONS {
            std::fs::write(directory.join(format!("debian{name}")), text).expect("writable");
        }
        for other in ["debian-vmlinuz", "debian-initrd", "debian-vmlinuz.77.new"] {
            std::fs::write(directory.join(other), "").expect("writable");
        }
        let names = |with_root| {
            modules_in(&directory, with_root).into_iter().map(|module| module.name).collect::<Vec<_>>()
        };
        let (without, with) = (names(false), names(true));
        std::fs::remove_dir_all(&directory).expect("there");
        assert_eq!(without, ["debian-initrd", "debian-ramdisk.cfg", "debian-shell.cfg", "debian-vmlinuz"]);
        assert_eq!(with.len(), 5);
        assert!(with.contains(&"debian.cfg".to_string()));
    }

    #[test]
    fn the_root_image_is_the_last_disk() {
        let image = Image::new("last-disk");
        let mut machine = Machine { disks: vec!["d.img".parse().expect("a disk")], ..Machine::default() };
        let _held = attach_image(&mut machine, &image.0).expect("free");
        assert_eq!(machine.disks.len(), 2);
        assert_eq!(machine.disks[1].id.as_deref(), Some("debian"));
        assert!(!machine.disks[1].read_only);
    }

    #[test]
    fn one_machine_at_a_time_has_it() {
        let image = Image::new("one-at-a-time");
        let (mut one, mut two) = (Machine::default(), Machine::default());
        let held = attach_image(&mut one, &image.0).expect("free");
        let _none = attach_image(&mut two, &image.0).expect("no error");
        assert!(two.disks.is_empty());
        drop(held);
        let _held = attach_image(&mut two, &image.0).expect("free again");
        assert_eq!(two.disks.len(), 1);
    }

    #[test]
    fn a_disk_of_that_name_stands_in_its_place() {
        let image = Image::new("in-place");
        let disk: Disk = "mine.img,id=debian".parse().expect("a disk");
        let mut machine = Machine { disks: vec![disk], ..Machine::default() };
        let _none = attach_image(&mut machine, &image.0).expect("no error");
        assert_eq!(machine.disks.len(), 1);
    }

    #[test]
    fn without_an_image_nothing_is_attached() {
        let mut machine = Machine::default();
        let _none = attach_image(&mut machine, Path::new("/no/such/image")).expect("no error");
        assert!(machine.disks.is_empty());
    }
}
