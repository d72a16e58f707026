//! `cargo xtask guest`: stock systems as guests, made from Debian's packages under `target/guests/`.
//!
//! What is in `target/guests/boot/` goes into every boot bundle of `cargo xtask run`, and the root image is
//! attached behind the disks of its command line.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::images;
use crate::machine::{Disk, Machine, Module};
use crate::packages::remove;
use crate::paths;

pub(crate) mod kernel;
mod ramdisk;
pub(crate) mod root;

/// The root image's serial number: dom0 finds it as `/dev/disk/by-id/virtio-debian`.
const ROOT_ID: &str = "debian";

/// The kernel's name under `/boot`.
const KERNEL: &str = "debian-vmlinuz";
/// The ramdisk's.
const RAMDISK: &str = "debian-initrd";
/// The configuration that needs the root image.
const ROOT_CONFIGURATION: &str = "debian.cfg";

/// The configurations, by name under `/boot`.
const CONFIGURATIONS: &[(&str, &str)] = &[
    ("debian-ramdisk.cfg", include_str!("debian-ramdisk.cfg")),
    ("debian-shell.cfg", include_str!("debian-shell.cfg")),
    (ROOT_CONFIGURATION, include_str!("debian.cfg")),
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

/// Makes a guest, or finds it made.
///
/// # Errors
/// A tool is missing, or a package cannot be fetched or unpacked.
pub fn guest(options: &GuestOptions) -> Result<()> {
    let System::Debian = options.system;
    if options.fresh {
        remove(&debian())?;
        if !options.no_root {
            remove(&root_image())?;
        }
    }
    debian_ramdisk()?;
    if !options.no_root {
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
/// As for [`guest`].
pub fn debian_ramdisk() -> Result<()> {
    let unpacked = debian_kernel()?;
    let _turn = turn()?;
    let boot = boot_directory();
    std::fs::create_dir_all(&boot).with_context(|| format!("cannot make {}", boot.display()))?;
    let image = unpacked.image()?;
    let bytes = std::fs::read(&image).with_context(|| format!("cannot read {}", image.display()))?;
    images::write(&boot.join(KERNEL), &bytes)?;
    images::write(&boot.join(RAMDISK), &ramdisk::archive(&unpacked)?)?;
    for (name, text) in CONFIGURATIONS {
        images::write(&boot.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// Debian's kernel and its ramdisk, as files.
#[derive(Clone, Debug)]
pub struct DebianBoot {
    /// The bzImage.
    pub image: PathBuf,
    /// The busybox ramdisk.
    pub ramdisk: PathBuf,
}

/// Debian's kernel and its ramdisk, made if need be.
///
/// # Errors
/// As for [`guest`].
pub fn debian_boot() -> Result<DebianBoot> {
    debian_ramdisk()?;
    let boot = boot_directory();
    Ok(DebianBoot { image: boot.join(KERNEL), ramdisk: boot.join(RAMDISK) })
}

/// The files for `/boot` of the guests that were made.
pub fn modules() -> Vec<Module> {
    let configurations = CONFIGURATIONS.iter().map(|(name, _)| *name);
    let names = [KERNEL, RAMDISK].into_iter().chain(configurations);
    // Without its disk that one only misleads.
    let names = names.filter(|name| *name != ROOT_CONFIGURATION || root_image().exists());
    let modules = names.map(|name| Module { path: boot_directory().join(name), name: name.to_string() });
    modules.filter(|module| module.path.exists()).collect()
}

/// Holds the root image for one machine while it lives: two must not write it.
#[derive(Debug)]
#[must_use = "another machine may take the image once this is dropped"]
pub struct RootInUse {
    _lock: Option<File>,
}

/// Attaches the root image, if there is one, as the machine's last disk.
///
/// # Errors
/// It is there and cannot be opened.
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
    machine.disks.push(Disk { path: path.to_path_buf(), read_only: false, id: Some(ROOT_ID.into()) });
    Ok(RootInUse { _lock: Some(file) })
}

/// Where guests are made.
fn directory() -> PathBuf {
    paths::target().join("guests")
}

/// Debian's kernel and busybox, unpacked.
///
/// # Errors
/// As for [`guest`].
pub(crate) fn debian_kernel() -> Result<kernel::Unpacked> {
    let _turn = turn()?;
    kernel::fetch(&debian())
}

/// Where the packages of Debian's kernel lie.
fn debian() -> PathBuf {
    directory().join("debian")
}

/// What goes into boot bundles.
fn boot_directory() -> PathBuf {
    directory().join("boot")
}

/// Debian's root image: a raw ext4 file system.
fn root_image() -> PathBuf {
    directory().join("debian.img")
}

/// Waits until no other process makes guests, and keeps others waiting while the file lives.
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
