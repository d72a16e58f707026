//! Debian's packages: fetched by apt and unpacked; nothing is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::cargo::run;
use crate::deps::{self, Need};

/// Fetches the packages that `names` gives and unpacks them into the tree `directory`/unpacked, unless the tree
/// exists; returns the tree.
///
/// # Errors
/// `names` failed, a tool is missing, or apt has or gives no such package.
pub fn fetch(directory: &Path, names: impl FnOnce() -> Result<Vec<String>>) -> Result<PathBuf> {
    unpacked(directory, |packages| {
        let names = names()?;
        download(packages, &names.iter().map(String::as_str).collect::<Vec<_>>())
    })
}

/// Unpacks the packages that `download` puts into its directory into the tree `directory`/unpacked, unless the tree exists;
/// returns the tree.
///
/// # Errors
/// `download` failed, or a tool is missing.
pub fn unpacked(directory: &Path, download: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tree = directory.join("unpacked");
    if tree.exists() {
        return Ok(tree);
    }
    deps::ensure(&[Need::Packages])?;
    let packages = directory.join("packages");
    let partial = directory.join("partial");
    for fresh in [&packages, &partial] {
        remove(fresh)?;
        std::fs::create_dir_all(fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    }
    download(&packages)?;
    for entry in std::fs::read_dir(&packages)? {
        let package = entry?.path();
        eprintln!("unpacking {}", package.file_name().unwrap_or_default().display());
        run(Command::new("dpkg-deb").arg("-x").args([&package, &partial]))?;
    }
    // The tree appears whole or not at all, so a run after an interrupted one starts over.
    std::fs::rename(&partial, &tree).with_context(|| format!("cannot make {}", tree.display()))?;
    remove(&packages)?;
    Ok(tree)
}

/// Fetches packages, as they are, into `directory`.
///
/// # Errors
/// A tool is missing, or apt has or gives no such package.
pub fn download(directory: &Path, names: &[&str]) -> Result<()> {
    deps::ensure(&[Need::Packages])?;
    eprintln!("fetching {}", names.join(", "));
    let fetch = || {
        let mut command = Command::new("apt-get");
        // apt's own user `_apt` cannot write to this directory, and apt would print a warning.
        command.args(["-o", "APT::Sandbox::User=root", "download"]).args(names).current_dir(directory);
        run(&mut command)
    };
    // Package lists that are too old name packages that no longer exist, and a fresh container has no lists.
    fetch().or_else(|_| deps::update_package_lists().and_then(|()| fetch()))
}

/// The first package that `package` depends on and whose name begins with `prefix`.
///
/// # Errors
/// apt knows no such package, even by lists fetched now, or the package has no such dependency.
pub fn dependency(package: &str, prefix: &str) -> Result<String> {
    deps::ensure(&[Need::Packages])?;
    let known = || {
        let mut command = Command::new("apt-cache");
        command.args(["depends", "--important", package]).env("LC_ALL", "C").stderr(Stdio::null());
        let output = command.output().ok()?;
        dependency_in(&String::from_utf8_lossy(&output.stdout), prefix).map(str::to_string)
    };
    if let Some(name) = known() {
        return Ok(name);
    }
    deps::update_package_lists()?;
    known().with_context(|| format!("apt knows no package {package}"))
}

/// The name that begins with `prefix` in what `apt-cache depends` prints.
fn dependency_in<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with(prefix)))
}

/// Removes a file or a directory, if it is there.
///
/// # Errors
/// The file or directory exists and cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_package_depends_on() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n  Suggests: linux-image-none\n";
        let kernel = |text| dependency_in(text, "linux-image-");
        assert_eq!(kernel(text), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(kernel("linux-image-amd64\n"), None);
        assert_eq!(kernel(""), None);
    }

    #[test]
    fn what_is_not_there_is_removed() {
        assert!(remove(Path::new("/no/such/file")).is_ok());
    }
}
