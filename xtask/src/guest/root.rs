//! A Debian root image: what `mmdebstrap` installs, in an ext4 file system made without mounting it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::run;
use crate::deps::{self, Need};

/// The release.
const SUITE: &str = "bookworm";

/// The image's size in MiB. The file is sparse.
const SIZE_MIB: u32 = 2048;

/// What is installed besides the base: an init system with a login, the kernel for a loader inside the guest to
/// find, programs that put a load on disk, memory and scheduler, a C compiler, and the 32-bit C library.
const PACKAGES: &str = "systemd-sysv,udev,dbus,login,kmod,e2fsprogs,iproute2,procps,fio,stress-ng,\
                        python3-minimal,gcc,libc6-dev,make,libc6-i386,linux-image-amd64";

/// A script that completes the new system after everything is installed; `$1` is the system's directory. The script
/// writes the menu that PV GRUB looks for.
const SETTLE: &str = concat!(
    r#"set -e
echo debian > "$1/etc/hostname"
echo "127.0.0.1 localhost debian" > "$1/etc/hosts"
echo "/dev/xvda / ext4 defaults 0 1" > "$1/etc/fstab"
chroot "$1" passwd -q -d root
mkdir -p "$1/boot/grub"
cat > "$1/boot/grub/grub.cfg" <<'END'
"#,
    include_str!("grub.cfg"),
    "END\n"
);

/// The machine's own package sources, which may be nearer than Debian's.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

/// A root image to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    /// The file system's label.
    pub(crate) label: &'static str,
    /// The image's size in MiB. The file is sparse.
    pub(crate) size_mib: u32,
    /// What is installed besides the base, separated by commas.
    pub(crate) packages: &'static str,
    /// A shell script that runs when everything is installed; `$1` is the new system's directory.
    pub(crate) settle: &'static str,
}

/// Makes Debian's image, unless it is there.
///
/// # Errors
/// The errors of [`make`].
pub(super) fn debian(image: &Path) -> Result<()> {
    make(&Root { label: "debian", size_mib: SIZE_MIB, packages: PACKAGES, settle: SETTLE }, image)
}

/// Makes an image, unless it is there.
///
/// # Errors
/// A tool is missing, there is no way to be root, or a package cannot be fetched or installed.
pub(crate) fn make(root: &Root, image: &Path) -> Result<()> {
    if image.exists() {
        return Ok(());
    }
    deps::ensure(&[Need::RootImage])?;
    let prefix = deps::privilege().context("a root image takes root's rights: run as root, or let sudo")?;
    let (tree, partial) = (image.with_extension("tree"), image.with_extension("partial"));
    let as_root = |program: &str| {
        let mut line = prefix.iter().copied().chain([program]);
        let mut command = Command::new(line.next().unwrap_or(program));
        command.args(line);
        command
    };
    // Removes what an interrupted run has left.
    run(as_root("rm").arg("-rf").args([&tree, &partial]))?;

    eprintln!("installing a Debian root file system: a few minutes");
    let mut install = as_root("mmdebstrap");
    install.args(["--variant=minbase", "--mode=root", "--aptopt=Acquire::Languages \"none\""]);
    install.arg(format!("--include={}", root.packages)).arg(format!("--customize-hook={}", root.settle));
    install.arg(SUITE).arg(&tree);
    if Path::new(SOURCES).exists() && std::fs::read_to_string(SOURCES)?.contains(SUITE) {
        install.arg(SOURCES);
    }
    run(&mut install)?;

    eprintln!("making {}", image.display());
    // The user makes the file and root fills it, so the image belongs to the user.
    std::fs::File::create(&partial)?.set_len(u64::from(root.size_mib) << 20)?;
    run(as_root("/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", root.label, "-d"])
        .args([&tree, &partial]))?;
    run(as_root("rm").arg("-rf").arg(&tree))?;
    std::fs::rename(&partial, image).with_context(|| format!("cannot make {}", image.display()))
}
