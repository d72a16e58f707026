//! Debian's kernel and busybox, fetched by apt and unpacked; nothing is installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lzma_rust2::{Read as _, XzReader};
use object::{Object, ObjectSection};

use crate::cpio::{self, Archive};
use crate::{images, packages};

/// The prefix of the names of kernel packages.
const KERNEL_PREFIX: &str = "linux-image-";

/// The suffix of the names of kernel packages.
const KERNEL_SUFFIX: &str = "-amd64";

/// The package with the one program of the ramdisk.
const BUSYBOX: &str = "busybox-static";

/// One of Debian's kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The kernel's own package, or one that depends on the newest of a series.
    package: String,
}

impl Kernel {
    /// The release's own kernel.
    pub(crate) fn current() -> Self {
        Self { package: format!("{KERNEL_PREFIX}amd64") }
    }

    /// The kernel called `name`: a package, or `newer` for the later series that the release offers beside its
    /// own.
    ///
    /// # Errors
    /// `name` is not the name of a kernel's package.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let package = match name {
            "newer" => format!("{KERNEL_PREFIX}6.12{KERNEL_SUFFIX}"),
            package => package.to_string(),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._~".contains(&byte);
        if !package.starts_with(KERNEL_PREFIX) || !package.bytes().all(plain) {
            bail!("no kernel {name:?}: `newer`, or a package like {KERNEL_PREFIX}6.12{KERNEL_SUFFIX}");
        }
        Ok(Self { package })
    }

    /// The package that holds the kernel itself.
    fn own_package(&self) -> Result<String> {
        // A package of one kernel release has a version of three numbers, such as 6.12.117+deb12. Other
        // packages only depend on one.
        let version = self.package.trim_start_matches(KERNEL_PREFIX).split('-').next().unwrap_or_default();
        if version.split('.').count() > 2 {
            return Ok(self.package.clone());
        }
        packages::dependency(&self.package, KERNEL_PREFIX)
    }

    /// The prefix of the kernel's files: `debian`, or `debian-6.12` for a kernel that is not the release's
    /// own.
    pub(crate) fn stem(&self) -> String {
        let series = self.package.trim_start_matches(KERNEL_PREFIX);
        match series.strip_suffix(KERNEL_SUFFIX).unwrap_or(series) {
            "amd64" => "debian".into(),
            series => format!("debian-{series}"),
        }
    }
}

/// Packages as they lie unpacked: one tree with `boot`, `lib` and `bin`.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    root: PathBuf,
}

/// Fetches and unpacks a kernel and busybox under `directory`, unless they are there.
///
/// # Errors
/// A tool is missing, or apt has or gives no such package.
pub(super) fn fetch(kernel: &Kernel, directory: &Path) -> Result<Unpacked> {
    let names = || Ok(vec![kernel.own_package()?, BUSYBOX.into()]);
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

    /// The files of the modules `names` and of all that they need, none of them compressed, in the order to load them
    /// in.
    ///
    /// # Errors
    /// There is no such module, or a file is no module.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = BTreeMap::new();
        for path in files_below(&self.root.join("lib/modules"))? {
            if let Some(name) = module_name(&path) {
                files.insert(name, path);
            }
        }
        let mut order = Vec::new();
        for name in names {
            load(name, &files, &mut order)?;
        }
        Ok(order)
    }

    /// Puts the modules `names`, and all that they need, into a ramdisk as `modules/FILE`, and the files' names in the
    /// order to load them in as `modules/order`, one a line.
    ///
    /// # Errors
    /// The errors of [`Unpacked::modules`].
    pub(crate) fn add_modules(&self, names: &[&str], archive: &mut Archive) -> Result<()> {
        let mut order = String::new();
        for path in self.modules(names)? {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = named(&path);
            archive.add(cpio::FILE, &format!("modules/{name}"), &bytes);
            order.push_str(name);
            order.push('\n');
        }
        archive.add(cpio::FILE, "modules/order", order.as_bytes());
        Ok(())
    }
}

/// Puts a module behind those it needs, once.
fn load(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) -> Result<()> {
    let path = files.get(&name.replace('-', "_")).with_context(|| format!("no kernel module {name}"))?;
    let path = inflated(path)?;
    if order.contains(&path) {
        return Ok(());
    }
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{}", path.display()))?;
    let Some(section) = file.section_by_name(".modinfo") else {
        bail!("{}: no kernel module", path.display());
    };
    for needed in needs(section.data()?) {
        load(&needed, files, order)?;
    }
    order.push(path);
    Ok(())
}

/// The kernel's name for the module in this file; `None` for another file.
fn module_name(path: &Path) -> Option<String> {
    let name = named(path);
    let name = name.strip_suffix(".xz").unwrap_or(name);
    Some(name.strip_suffix(".ko")?.replace('-', "_"))
}

/// Decompresses the xz file at `path` into a file beside it, unless that exists; returns the path of the
/// latter.
fn inflated(path: &Path) -> Result<PathBuf> {
    if path.extension().is_none_or(|end| end != "xz") {
        return Ok(path.to_path_buf());
    }
    let plain = path.with_extension("");
    if !plain.exists() {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        images::write(&plain, &unxz(&bytes).with_context(|| format!("{}", path.display()))?)?;
    }
    Ok(plain)
}

/// Decompresses an xz stream.
fn unxz(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut reader = XzReader::new(bytes, false);
    let (mut whole, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match reader.read(&mut buffer).map_err(|error| anyhow!("xz: {error:?}"))? {
            0 => return Ok(whole),
            got => whole.extend_from_slice(&buffer[..got]),
        }
    }
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
    fn kernels_are_named_by_their_series() {
        let stem = |name| Kernel::named(name).map(|kernel| kernel.stem());
        assert_eq!(Kernel::current().stem(), "debian");
        assert_eq!(stem("newer").expect("known"), "debian-6.12");
        assert_eq!(stem("linux-image-amd64").expect("a package"), "debian");
        let own = "linux-image-6.12.117+deb12-amd64";
        assert_eq!(stem(own).expect("a package"), "debian-6.12.117+deb12");
        for wrong in ["", "newest", "busybox-static", "linux-image-../x", "linux-image-6 -amd64"] {
            assert!(stem(wrong).is_err(), "{wrong:?}");
        }
        let kernel = Kernel::named(own).expect("a package");
        assert_eq!(kernel.own_package().expect("nobody needs to be asked"), own);
    }

    #[test]
    fn compressed_modules_are_modules() {
        assert_eq!(module_name(Path::new("/m/fs/ext4.ko.xz")), Some("ext4".into()));
        assert_eq!(module_name(Path::new("/m/xen-blkfront.ko")), Some("xen_blkfront".into()));
        assert_eq!(module_name(Path::new("/m/modules.dep")), None);
        // What `printf module | xz --check=crc32` gives.
        let xz: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\x00\
            \x74\x2f\xe5\xa3\x01\x00\x05\x6d\x6f\x64\x75\x6c\x65\x00\x00\x00\x28\x26\x24\x0c\
            \x00\x01\x1a\x06\xc5\xea\xc8\x79\x90\x42\x99\x0d\x01\x00\x00\x00\x00\x01\x59\x5a";
        assert_eq!(unxz(xz).expect("sound"), b"module");
        assert!(unxz(&xz[..xz.len() - 30]).is_err());
        assert!(unxz(b"\x7fELF").is_err());
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let modinfo = b"license=GPL\0depends=mbcache,jbd2\0softdep=pre: crc32c\0name=ext4\0";
        assert_eq!(needs(modinfo), ["mbcache", "jbd2"]);
        assert!(needs(b"depends=\0").is_empty());
        assert!(needs(b"").is_empty());
    }
}
