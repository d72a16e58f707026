//! Debian's kernel and busybox, fetched by apt and unpacked; nothing is installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::packages;

/// The package that depends on the current kernel's.
const KERNEL: &str = "linux-image-amd64";

/// What the names of kernels' packages begin with.
const KERNEL_PREFIX: &str = "linux-image-";

/// The package with the one program of the ramdisk.
const BUSYBOX: &str = "busybox-static";

/// Packages as they lie unpacked: one tree with `boot`, `lib` and `bin`.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    root: PathBuf,
}

/// Fetches and unpacks the packages under `directory`, unless they are there.
///
/// # Errors
/// A tool is missing, or apt has or gives no such package.
pub(super) fn fetch(directory: &Path) -> Result<Unpacked> {
    let names = || Ok(vec![packages::dependency(KERNEL, KERNEL_PREFIX)?, BUSYBOX.into()]);
    let root = packages::fetch(directory, names)?;
    Ok(Unpacked { root })
}

impl Unpacked {
    /// The kernel's image: a bzImage.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn image(&self) -> Result<PathBuf> {
        let boot = self.root.join("boot");
        let mut files = files_below(&boot)?;
        files.retain(|path| named(path).starts_with("vmlinuz-"));
        files.pop().with_context(|| format!("no kernel in {}", boot.display()))
    }

    /// The program of the ramdisk.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// The files of the modules `names` and of all that they need, in the order to load them in.
    ///
    /// # Errors
    /// There is no such module, or a file is none.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = BTreeMap::new();
        for path in files_below(&self.root.join("lib/modules"))? {
            if let Some(name) = named(&path).strip_suffix(".ko") {
                files.insert(name.replace('-', "_"), path);
            }
        }
        let mut order = Vec::new();
        for name in names {
            load(name, &files, &mut order)?;
        }
        Ok(order)
    }
}

/// Puts a module behind those it needs, once.
fn load(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = files.get(&name.replace('-', "_")).with_context(|| format!("no kernel module {name}"))?;
    if order.contains(path) {
        return Ok(());
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{}", path.display()))?;
    let Some(section) = file.section_by_name(".modinfo") else {
        bail!("{}: no kernel module", path.display());
    };
    for needed in needs(section.data()?) {
        load(&needed, files, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The modules that a `.modinfo` section says must be loaded before. Modules do not depend in circles.
fn needs(modinfo: &[u8]) -> Vec<String> {
    let entries = modinfo.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    let lists = entries.filter_map(|entry| entry.strip_prefix("depends="));
    lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(str::to_string).collect()
}

/// A path's last part.
fn named(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("")
}

/// Every file of a tree, in order of path.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        if entry.file_type().with_context(cannot)?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let modinfo = b"license=GPL\0depends=mbcache,jbd2\0softdep=pre: crc32c\0name=ext4\0";
        assert_eq!(needs(modinfo), ["mbcache", "jbd2"]);
        assert!(needs(b"depends=\0").is_empty());
        assert!(needs(b"").is_empty());
    }
}
