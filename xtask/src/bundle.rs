//! The boot bundle: a cpio archive (newc) of the files that dom0 shows under `/boot`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cpio::{self, Archive};
use crate::images::{self, Image};
use crate::paths;

/// The member that holds the shell's lines.
pub const SCRIPT: &str = ".script";

/// The members of a bundle, by name. The last one given under a name wins.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    members: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// The example guests: every guest image and every `guests/*/*.cfg`.
    ///
    /// # Errors
    /// A file cannot be read; the images must have been built.
    pub fn with_guests() -> Result<Self> {
        let mut bundle = Self::default();
        for image in guest_images() {
            bundle.add_file(image.name, &image.bootable())?;
        }
        for (name, file) in configurations()? {
            bundle.add_file(&name, &file)?;
        }
        Ok(bundle)
    }

    /// The names of the example guests' files, which need not have been built.
    ///
    /// # Errors
    /// The sources cannot be read.
    pub fn guest_names() -> Result<BTreeSet<String>> {
        let configurations = configurations()?.into_iter().map(|(name, _)| name);
        Ok(guest_images().map(|image| image.name.to_string()).chain(configurations).collect())
    }

    /// Adds the file at `path` as `/boot/NAME`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(name, bytes)
    }

    /// Adds `bytes` as `/boot/NAME`.
    ///
    /// # Errors
    /// Not a name for a file, or larger than the format can say (4 GiB).
    pub fn add(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        check_name(name)?;
        if u32::try_from(bytes.len()).is_err() {
            bail!("{name}: a member of the boot bundle must be smaller than 4 GiB");
        }
        self.members.insert(name.to_string(), bytes);
        Ok(())
    }

    /// Adds the lines that dom0's shell runs.
    ///
    /// # Errors
    /// The errors of [`Bundle::add`].
    pub fn add_script(&mut self, lines: &[String]) -> Result<()> {
        let mut text = lines.join("\n");
        text.push('\n');
        self.add(SCRIPT, text.into_bytes())
    }

    /// The archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for (name, bytes) in &self.members {
            archive.add(cpio::FILE, name, bytes);
        }
        archive.finish()
    }
}

/// Every image that runs as a guest.
fn guest_images() -> impl Iterator<Item = &'static Image> {
    images::ALL.iter().filter(|image| !matches!(image.name, "microhv" | "dom0"))
}

/// Every `guests/*/*.cfg`, with its name.
fn configurations() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for guest in sorted(&paths::root().join("guests"))? {
        if !guest.is_dir() {
            continue;
        }
        for file in sorted(&guest)? {
            if file.extension().is_some_and(|extension| extension == "cfg") {
                let name = file.file_name().and_then(|name| name.to_str()).context("a name is not UTF-8")?;
                found.push((name.to_string(), file));
            }
        }
    }
    Ok(found)
}

/// The entries of a directory in order of name, so that equal trees make equal bundles.
fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read {}", directory.display());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(cannot)? {
        entries.push(entry.with_context(cannot)?.path());
    }
    entries.sort();
    Ok(entries)
}

/// Whether `name` can stand in `/boot`.
///
/// # Errors
/// Empty, longer than 255 bytes, a path, or with bytes that no shell line can name.
pub fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty() && name.len() <= 255 && !matches!(name, "." | ".." | "TRAILER!!!");
    if !plain || name.contains('/') || name.chars().any(char::is_control) {
        bail!("{name:?} is no name for a file under /boot");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_sorted_and_the_last_of_a_name_wins() {
        let mut bundle = Bundle::default();
        bundle.add("b", vec![1; 5]).expect("a name");
        bundle.add("a", b"old".to_vec()).expect("a name");
        bundle.add("a", b"new".to_vec()).expect("a name");
        let archive = bundle.archive();
        assert_eq!(&archive[54..62], b"00000003");
        assert_eq!(&archive[110..122], b"a\0new\x00070701");
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["", "/etc", "a/b", ".", "..", "a\nb", "TRAILER!!!", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in [".script", "hello", "vm linuz", &"x".repeat(255)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_script_ends_every_line() {
        let mut bundle = Bundle::default();
        bundle.add_script(&["xl list".into(), "poweroff".into()]).expect("a name");
        let archive = bundle.archive();
        let text = b"xl list\npoweroff\n";
        assert!(archive.windows(text.len()).any(|window| window == text));
    }
}
