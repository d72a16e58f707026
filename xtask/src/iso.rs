//! A bootable CD image, for a BIOS and for UEFI: GRUB, the hypervisor and its modules, by multiboot2.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::images;

/// The tool that makes the image, with GRUB's files for each platform that the host has them for.
pub const PROGRAM: &str = "grub-mkrescue";

/// What goes into the image.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The hypervisor, stripped.
    pub hypervisor: &'a Path,
    /// The dom0 kernel.
    pub dom0: &'a Path,
    /// The boot bundle.
    pub bundle: &'a Path,
}

/// Makes the CD image `image`.
///
/// # Errors
/// A file cannot be read or written, or GRUB's tool fails: its output is in the error.
pub fn make(image: &Path, files: &Files<'_>, hypervisor_line: &str, dom0_line: &str) -> Result<()> {
    let tree = image.with_extension("tree");
    lay_out(&tree, files, hypervisor_line, dom0_line)?;
    let output = Command::new(PROGRAM)
        .arg("--output")
        .arg(image)
        .arg(&tree)
        .output()
        .with_context(|| format!("cannot run {PROGRAM}"))?;
    if !output.status.success() {
        bail!("{PROGRAM} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    std::fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

/// Puts the files and GRUB's menu into a directory, as an image is to have them.
///
/// # Errors
/// A file cannot be read or written.
pub fn lay_out(tree: &Path, files: &Files<'_>, hypervisor_line: &str, dom0_line: &str) -> Result<()> {
    let boot = tree.join("boot");
    std::fs::create_dir_all(&boot).with_context(|| format!("cannot make {}", boot.display()))?;
    for (from, name) in [(files.hypervisor, "microhv"), (files.dom0, "dom0"), (files.bundle, "boot.cpio")] {
        std::fs::copy(from, boot.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let configuration = configuration(hypervisor_line, dom0_line);
    images::write(&boot.join("grub/grub.cfg"), configuration.as_bytes())
}

/// GRUB's configuration: one entry, at once, on the serial line too.
///
/// Under UEFI there is no text screen, so GRUB gets what it takes to hand over a framebuffer. With a BIOS the screen stays VGA's text.
///
/// GRUB hands over what follows the file, without its name.
fn configuration(hypervisor_line: &str, dom0_line: &str) -> String {
    let (hypervisor_words, dom0_words) = (quoted(hypervisor_line), quoted(dom0_line));
    format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input console serial\n\
         terminal_output console serial\n\
         if [ \"$grub_platform\" = efi ]; then insmod all_video; fi\n\
         set timeout=0\n\
         set default=0\n\
         menuentry microhv {{\n\
         \x20 multiboot2 /boot/microhv{hypervisor_words}\n\
         \x20 module2 /boot/dom0{dom0_words}\n\
         \x20 module2 /boot/boot.cpio\n\
         \x20 if [ \"$grub_platform\" = pc ]; then set gfxpayload=text; fi\n\
         }}\n"
    )
}

/// The words of a line, each behind a space and in quotes that GRUB's shell leaves alone.
fn quoted(line: &str) -> String {
    line.split_whitespace().map(|word| format!(" '{}'", word.replace('\'', "'\\''"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_loaders_shell() {
        assert_eq!(quoted(""), "");
        assert_eq!(quoted("a  $b"), " 'a' '$b'");
        assert_eq!(quoted("it's"), " 'it'\\''s'");
    }

    #[test]
    fn modules_get_their_words() {
        let text = configuration("com1", "x=1");
        assert!(text.contains("multiboot2 /boot/microhv 'com1'\n"), "{text}");
        assert!(text.contains("module2 /boot/dom0 'x=1'\n"), "{text}");
    }
}
