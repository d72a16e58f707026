//! Paths in the repository and in its target directory.

use std::path::{Path, PathBuf};

/// The repository's root: the parent of this package's directory.
///
/// The directory cargo reports at run time wins over the one compiled in, so that a moved checkout with a
/// kept target directory does not build into the old place.
pub fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let from_cargo =
        own.as_deref().and_then(Path::parent).filter(|dir| dir.join("xtask/Cargo.toml").exists());
    let compiled_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    from_cargo.or(compiled_in).expect("a package lies in a directory").to_path_buf()
}

/// The host's target directory, `target` unless `CARGO_TARGET_DIR` says otherwise.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The target directory of freestanding builds. That directory is separate from the host's, so that neither
/// kind of build invalidates the other.
pub fn freestanding() -> PathBuf {
    target().join("freestanding")
}
