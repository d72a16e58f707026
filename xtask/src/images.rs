//! The images: which there are, how one is built, checked and stripped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::elf::{FileHeader64, PT_LOAD};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::cargo::{self, Diagnostics};
use crate::image_check::{self, Returns, Rules};
use crate::paths;
use crate::usage;

/// One bootable image: a package's binary.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The binary and the file.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
    /// The limits for the image check.
    pub rules: Rules,
}

/// The hypervisor runs on one small stack per CPU.
const HYPERVISOR: Rules = Rules {
    max_frame_bytes: 2048,
    fpu_switch: &["microhv::arch::x86_64::fpu::"],
    indirect_branches: false,
    returns: Some(Returns {
        fill: "fill_return_stack",
        indirect: "__llvm_retpoline_r11",
        interrupting: &["trap_from_hypervisor", "trap_on_own_stack"],
        // Seven calls deep, and the return stack is filled behind it.
        by_hand: &["clear_history"],
    }),
};

/// A kernel with stacks of its own choice: decompressors take frames of some 11 KiB.
const KERNEL: Rules =
    Rules { max_frame_bytes: 16 * 1024, fpu_switch: &[], indirect_branches: false, returns: None };

/// A kernel of tests, which jumps where it pleases, to see what comes of that.
const ATTACKER: Rules = Rules { indirect_branches: true, ..KERNEL };

/// Every image of the repository.
pub const ALL: &[Image] = &[
    image("microhv", HYPERVISOR),
    image("dom0", KERNEL),
    image("hello", KERNEL),
    image("bench", KERNEL),
    image("hostile", ATTACKER),
    image("conformance-guest", ATTACKER),
    image("web", KERNEL),
    image("talk", KERNEL),
    image("netload", KERNEL),
    Image { name: "netload-peer", package: "netload", rules: KERNEL },
];

/// An image whose package has its name.
const fn image(name: &'static str, rules: Rules) -> Image {
    Image { name, package: name, rules }
}

/// The image called `name`.
///
/// # Errors
/// There is no such image: the message names those that exist.
pub fn find(name: &str) -> Result<&'static Image> {
    let known = || ALL.iter().map(|image| image.name).collect::<Vec<_>>().join(", ");
    let found = ALL.iter().find(|image| image.name == name);
    found.ok_or_else(|| usage(format!("no image {name}: there are {}", known())))
}

impl Image {
    /// The linked file with symbols and line tables, for the debugger and for traces.
    pub fn linked(&self) -> PathBuf {
        paths::freestanding().join(cargo::TARGET).join(cargo::PROFILE).join(self.name)
    }

    /// The file that is booted: the linked one without sections.
    pub fn bootable(&self) -> PathBuf {
        paths::freestanding().join("boot").join(self.name)
    }

    /// The SHA-256 of the bootable file: two systems that ran the same image printed the same.
    ///
    /// # Errors
    /// The file cannot be read; it must have been built.
    pub fn sha256(&self) -> Result<String> {
        let path = self.bootable();
        let output = Command::new("sha256sum").arg(&path).output().context("cannot run sha256sum")?;
        match String::from_utf8_lossy(&output.stdout).split_whitespace().next() {
            Some(sum) if output.status.success() => Ok(sum.to_string()),
            _ => bail!("sha256sum {}: {}", path.display(), output.status),
        }
    }
}

/// Builds `images`, checks each and writes its bootable copy.
///
/// # Errors
/// The build, the image check or a file operation failed.
pub fn build(images: &[&Image]) -> Result<()> {
    let packages: BTreeSet<&str> = images.iter().map(|image| image.package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let mut tail = Vec::new();
    for image in images {
        tail.extend(["--bin", image.name]);
    }
    cargo::freestanding("build", &packages, &tail, Diagnostics::Rendered)?;
    for image in images {
        finish(image)?;
    }
    Ok(())
}

/// Checks a linked image and strips it, unless this very file was checked before.
fn finish(image: &Image) -> Result<()> {
    let linked = image.linked();
    let bytes = std::fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let stripped = strip(&bytes).with_context(|| format!("{}: cannot strip", linked.display()))?;
    let bootable = image.bootable();
    // Only a passed check writes the bootable copy, so an equal and newer copy proves that the check has
    // passed.
    if newer(&bootable, &linked) && std::fs::read(&bootable).is_ok_and(|old| old == stripped) {
        return Ok(());
    }
    let report = image_check::check(&bytes, &image.rules).with_context(|| format!("image {}", image.name))?;
    eprintln!("{}: {report}", image.name);
    if !report.problems.is_empty() {
        // A later build must not take the old copy for a checked one.
        let _ = std::fs::remove_file(&bootable);
        bail!("image {} fails the image check", image.name);
    }
    write(&bootable, &stripped)
}

/// Whether `made` exists and is not older than `source`.
fn newer(made: &Path, source: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified()).ok();
    match (modified(made), modified(source)) {
        (Some(made), Some(source)) => made >= source,
        _ => false,
    }
}

/// Writes `bytes` to `path` by way of a rename, so that a running QEMU never sees half a file.
///
/// # Errors
/// A directory or file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(cannot)?;
    }
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&fresh, bytes).with_context(cannot)?;
    std::fs::rename(&fresh, path).with_context(cannot)
}

/// The file up to the last byte that is loaded, with no section table.
///
/// A loader wants the program headers alone. Most of the file goes (symbols, line tables). What stays keeps
/// its offset, as the multiboot1 header needs.
///
/// # Errors
/// Not a 64-bit little-endian ELF file, or a segment lies outside it.
pub fn strip(bytes: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<LittleEndian>::parse(bytes)?;
    let endian = header.endian()?;
    let mut end = header.e_phoff.get(endian) as usize
        + usize::from(header.e_phnum.get(endian)) * usize::from(header.e_phentsize.get(endian));
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) == PT_LOAD {
            let (offset, size) = segment.file_range(endian);
            end = end.max(offset.checked_add(size).context("a segment wraps")? as usize);
        }
    }
    let mut stripped = bytes.get(..end).context("a segment lies outside the file")?.to_vec();
    // e_shoff at 40 (8 bytes); e_shentsize, e_shnum and e_shstrndx at 58 (2 bytes each).
    stripped[40..48].fill(0);
    stripped[58..64].fill(0);
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header, one program header and `tail` bytes behind the segment.
    fn elf(segment_bytes: usize, tail: usize) -> Vec<u8> {
        let mut file = vec![0u8; 64 + 56 + segment_bytes + tail];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[40..48].copy_from_slice(&9u64.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[60..62].copy_from_slice(&5u16.to_le_bytes());
        file[64..68].copy_from_slice(&1u32.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[96..104].copy_from_slice(&(segment_bytes as u64).to_le_bytes());
        file
    }

    #[test]
    fn strip_keeps_the_segments_and_drops_the_rest() {
        let stripped = strip(&elf(100, 300)).expect("a sound file");
        assert_eq!(stripped.len(), 64 + 56 + 100);
        assert_eq!(stripped[40..48], [0; 8]);
        assert_eq!(stripped[58..64], [0; 6]);
        assert_eq!(strip(&stripped).expect("still sound"), stripped);
    }

    #[test]
    fn strip_refuses_a_truncated_file() {
        let file = elf(100, 0);
        assert!(strip(&file[..file.len() - 1]).is_err());
        assert!(strip(b"").is_err());
    }

    #[test]
    fn who_serves_others_has_no_indirect_branch() {
        for name in ["microhv", "dom0"] {
            assert!(!find(name).expect("an image").rules.indirect_branches, "{name}");
        }
    }

    #[test]
    fn unknown_image_is_named_with_the_known_ones() {
        let error = find("nothing").expect_err("there is no such image").to_string();
        assert!(error.contains("nothing") && error.contains("microhv"), "{error}");
    }
}
