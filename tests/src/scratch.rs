//! Scratch files of one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A directory of one test's own, empty at its start and removed at its end.
pub struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    /// The directory of the test called `name`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let own = format!("{name}-{}", std::process::id());
        let directory = xtask::paths::target().join("tmp").join(own);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// A file with these bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The path of `name`, which may be there or not.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A directory with those above it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A disk of `bytes` bytes that follow from `seed` and repeat nowhere.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn disk(&self, name: &str, bytes: usize, seed: u64) -> Result<PathBuf> {
        self.file(name, &noise(bytes, seed))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed lies in the target directory and harms nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Bytes without a pattern (xorshift64*).
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        noise.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// The SHA-256 of a file in hexadecimal digits, by the system's own tool.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let output =
        Command::new("sha256sum").arg("--binary").arg(path).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        // A name with a backslash in it puts one before the digits.
        Some(digits) if output.status.success() => Ok(digits.trim_start_matches('\\').to_string()),
        _ => bail!("sha256sum {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_follows_from_its_seed_and_has_no_short_period() {
        assert_eq!(noise(100, 7), noise(100, 7));
        assert_ne!(noise(100, 7), noise(100, 8));
        let bytes = noise(8192, 1);
        assert_ne!(bytes[..4096], bytes[4096..]);
        assert!(noise(0, 0).is_empty());
        assert_eq!(noise(13, 0).len(), 13);
    }

    #[test]
    fn sums_are_those_of_the_bytes() {
        let scratch = Scratch::new("sums").expect("a directory");
        let path = scratch.file("empty", b"").expect("writable");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(&path).expect("readable"), empty);
        assert!(sha256(&path.with_extension("none")).is_err());
    }

    #[test]
    fn a_scratch_directory_goes_away() {
        let scratch = Scratch::new("goes-away").expect("a directory");
        let path = scratch.disk("d", 10, 1).expect("writable");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 10);
        drop(scratch);
        assert!(!path.exists());
    }
}
