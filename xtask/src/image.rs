//! `cargo xtask image`: a bootable image of a CD or of a disk, for a machine with a BIOS or with UEFI.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::deps::{self, Need};
use crate::machine::{Machine, Module};
use crate::qemu::RunDirectory;
use crate::{disk_image, guest, images, install, iso, paths, usage};

/// What goes into the image, and where it goes.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageOptions {
    /// Add a host file to the boot bundle as /boot/NAME (repeatable).
    #[arg(long = "module", value_name = "PATH[=NAME]")]
    modules: Vec<Module>,
    /// The hypervisor's command line.
    #[arg(long = "append", value_name = "WORDS", default_value = "com1", allow_hyphen_values = true)]
    hypervisor_line: String,
    /// dom0's command line.
    #[arg(long = "dom0-append", value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    dom0_line: String,
    /// Make the image of a disk (a stick), whose files can be replaced later, and not of a CD.
    #[arg(long)]
    disk: bool,
    /// Make no image, but a directory for a Debian machine: its install.sh puts microhv into that machine's GRUB menu, and
    /// the machine's own system becomes the first guest.
    #[arg(long, conflicts_with_all = ["disk", "hypervisor_line", "dom0_line"])]
    install: bool,
    /// The image, or the directory; target/microhv.iso, target/microhv.img or target/microhv-install by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Builds everything and makes the image.
///
/// # Errors
/// Wrong usage, a missing tool, or a failed build.
pub fn image(options: ImageOptions) -> Result<()> {
    let mut machine = Machine { modules: options.modules, ..Machine::default() };
    if options.install {
        // In the bundle, since the loader starts the machine's own system.
        machine.modules.push(Module { path: guest::loader()?, name: install::LOADER.into() });
    }
    machine.check()?;
    if !options.install {
        deps::ensure(&[Need::Grub])?;
    }
    images::build(&machine.images())?;
    let run = RunDirectory::new()?;
    let bundle = run.file("boot.cpio");
    images::write(&bundle, &machine.bundle()?.archive())?;
    let hypervisor = images::find("microhv")?.bootable();
    let files = iso::Files { hypervisor: &hypervisor, dom0: &machine.dom0, bundle: &bundle };
    if options.install {
        let directory = options.output.unwrap_or_else(|| paths::target().join("microhv-install"));
        install::make(&directory, &files)?;
        eprintln!("{}", directory.display());
        return Ok(());
    }
    let name = if options.disk { "microhv.img" } else { "microhv.iso" };
    let output = options.output.unwrap_or_else(|| paths::target().join(name));
    // Made beside the boot files first, so that a failure leaves an older image alone.
    let made = run.file(name);
    let make = if options.disk { disk_image::make } else { iso::make };
    make(&made, &files, &options.hypervisor_line, &options.dom0_line)?;
    place(&made, &output)?;
    eprintln!("{}", output.display());
    Ok(())
}

/// Gives the image its name, under which another program sees the older image or the whole new one: an emulator that has
/// the older one open keeps it. A device or another special file is written in place.
fn place(made: &Path, output: &Path) -> Result<()> {
    // The file that a link leads to is replaced, and not the link.
    let output = &std::fs::canonicalize(output).unwrap_or_else(|_| output.to_path_buf());
    let special = std::fs::metadata(output).is_ok_and(|old| !old.is_file());
    let mut beside = output.as_os_str().to_owned();
    if !special {
        beside.push(format!(".{}.new", std::process::id()));
    }
    let beside = PathBuf::from(beside);
    let copied = std::fs::copy(made, &beside);
    let placed =
        if special { copied.map(|_| ()) } else { copied.and_then(|_| std::fs::rename(&beside, output)) };
    if placed.is_err() && !special {
        // What was copied so far; there may be nothing.
        let _ = std::fs::remove_file(&beside);
    }
    match placed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(usage(format!("{}: {error}", output.display())))
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", output.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_older_image_that_is_in_use_stays_as_it_was() {
        let run = RunDirectory::new().expect("a directory");
        let (made, output) = (run.file("made"), run.file("out"));
        std::fs::write(&made, b"new").expect("writable");
        std::fs::write(&output, b"older").expect("writable");
        let mut used = std::fs::File::open(&output).expect("it is there");
        place(&made, &output).expect("it can be replaced");
        let mut text = String::new();
        used.read_to_string(&mut text).expect("readable");
        assert_eq!((text.as_str(), std::fs::read(&output).expect("readable")), ("older", b"new".to_vec()));
        let error = place(&made, &run.file("none/out")).expect_err("no such directory");
        assert!(error.is::<crate::Usage>(), "{error}");
        let names = std::fs::read_dir(made.parent().expect("a directory")).expect("readable").count();
        assert_eq!(names, 2, "nothing is left beside the image");
    }
}
