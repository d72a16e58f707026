//! The files that Debian's Xen boots from, made once under `target/xen/`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cpio::{self, Archive};
use crate::deps::{self, Need};
use crate::guest::root::{self, Root};
use crate::guest::{self, kernel::Unpacked};
use crate::{images, packages, paths};

/// The package with the hypervisor, and the file in it.
const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";
const HYPERVISOR_FILE: &str = "boot/xen-4.17-amd64.gz";

/// The control domain's root file system: the tool stack, and what measures.
const ROOT: Root = Root {
    label: "xen-root",
    size_mib: 1024,
    packages: "xen-utils-4.17,xen-utils-common,xenstore-utils,iproute2,bridge-utils,e2fsprogs,fio",
    settle: "set -e",
};

/// Modules of the control domain's kernel: its disks and network card, and the devices and back ends of Xen.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "loop",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xen-blkback",
    "xen-netback",
    "bridge",
];

const INITRD: &str = include_str!("initrd.sh");
const DOM0: &str = include_str!("dom0.sh");

/// Where the files lie.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) hypervisor: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) kernel_bzimage: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) root: PathBuf,
}

/// Makes the files that do not exist yet. Each file appears whole or not at all.
///
/// # Errors
/// A tool is missing, or a package cannot be fetched, unpacked or installed.
pub(super) fn make() -> Result<Files> {
    let directory = paths::target().join("xen");
    let unpacked = guest::debian_kernel()?;
    let _turn = turn(&directory)?;
    let tree = packages::fetch(&directory, || Ok(vec![HYPERVISOR.into()]))?;
    let files = Files {
        hypervisor: directory.join("xen"),
        kernel: directory.join("vmlinux"),
        kernel_bzimage: unpacked.image()?,
        initrd: directory.join("initrd"),
        root: directory.join("root.img"),
    };
    if !files.hypervisor.exists() {
        images::write(&files.hypervisor, &decompress(&read(&tree.join(HYPERVISOR_FILE))?)?)?;
    }
    if !newer(&files.kernel, &files.kernel_bzimage) {
        eprintln!("decompressing the kernel");
        images::write(&files.kernel, &elf_in(&read(&files.kernel_bzimage)?)?)?;
    }
    images::write(&files.initrd, &initrd(&unpacked)?)?;
    root::make(&ROOT, &files.root)?;
    Ok(files)
}

/// Waits until no other process makes these files. Other processes wait until the file is dropped.
fn turn(directory: &Path) -> Result<File> {
    let path = directory.join(".lock");
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn initrd(unpacked: &Unpacked) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "root", "sys"] {
        archive.add(cpio::DIRECTORY, directory, &[]);
    }
    archive.add(cpio::PROGRAM, "init", INITRD.as_bytes());
    archive.add(cpio::FILE, "dom0.sh", DOM0.as_bytes());
    archive.add(cpio::PROGRAM, "bin/busybox", &read(&unpacked.busybox())?);
    unpacked.add_modules(MODULES, &mut archive)?;
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Whether `made` exists and is not older than `source`.
fn newer(made: &Path, source: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    modified(made).is_some_and(|made| modified(source).is_some_and(|source| made >= source))
}

/// The ELF file inside a bzImage, unpacked here since Xen and its tools would spend seconds on that at every
/// boot.
///
/// The header's fields are those of the x86 boot protocol: `setup_sects` at 0x1f1, `payload_offset` at 0x248 (from
/// the end of the set-up sectors), `payload_length` at 0x24c. The payload's last four bytes are its plain length.
fn elf_in(bzimage: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| {
        let bytes = bzimage.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let payload = || {
        let start = (usize::from(*bzimage.get(0x1f1)?) + 1) * 512 + word(0x248)?;
        bzimage.get(start..start.checked_add(word(0x24c)?)?.checked_sub(4)?)
    };
    let elf = decompress(payload().context("not a bzImage")?)?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("the bzImage holds no ELF file");
    }
    Ok(elf)
}

/// Decompresses bytes by a program of the host.
fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => bail!("neither gzip nor xz"),
    };
    deps::ensure(&[Need::Decompressors])?;
    let mut command = Command::new(program);
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let mut input = child.stdin.take().context("its input is not piped")?;
    let output = std::thread::scope(|scope| {
        // A write error is ignored: a program that stops reading fails, and its status is checked.
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{program} failed: {}", output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compresses `bytes` by `program -c`.
    fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a program of every Debian");
        child.stdin.take().expect("piped").write_all(bytes).expect("it reads");
        child.wait_with_output().expect("it ends").stdout
    }

    #[test]
    fn the_kernel_comes_out_of_its_bzimage() {
        let elf = [b"\x7fELF".as_slice(), &[7; 3000]].concat();
        let payload = compressed("gzip", &elf);
        let mut image = vec![0; 512 * 3 + 16];
        image[0x1f1] = 2;
        image[0x248] = 16;
        let length = payload.len() as u32 + 4;
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&payload);
        image.extend_from_slice(&[0; 4]);
        assert_eq!(elf_in(&image).expect("sound"), elf);
        assert!(elf_in(&image[..image.len() - 5]).is_err());
        assert!(elf_in(&image[..100]).is_err());
    }

    #[test]
    fn what_is_not_compressed_is_refused() {
        assert!(decompress(b"").is_err());
        assert!(decompress(b"plain").is_err());
        assert!(decompress(&compressed("gzip", b"text")[..12]).is_err());
    }
}
