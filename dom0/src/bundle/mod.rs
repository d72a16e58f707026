//! The boot bundle: the files that a loader handed over, shown read-only under `/boot`.
//!
//! Format: cpio, "newc" (`070701`). A member is a header of 110 hexadecimal characters, the name with its final zero,
//! and the bytes; the header with the name, and the bytes, are each padded to a multiple of 4. The files are not
//! copied: they stay where the loader put the archive.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;

/// The member whose lines the shell runs at start.
pub const SCRIPT: &str = ".script";
/// Where the files are.
pub const ROOT: &str = "/boot";

const HEADER_BYTES: usize = 110;
const MODE_FIELD: usize = 1;
const SIZE_FIELD: usize = 6;
const NAME_FIELD: usize = 11;
const MODE_TYPE: u32 = 0o170_000;
const MODE_REGULAR: u32 = 0o100_000;

/// A file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// The file's name below `/boot`.
    pub name: &'static str,
    /// The file's content.
    pub bytes: &'static [u8],
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// Why an archive cannot be read; each variant has the offset of the byte where the archive goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// The archive ends inside a member, or ends without a trailer.
    Truncated(usize),
    /// No header of this format.
    BadHeader(usize),
    /// A name that is not UTF-8, or that does not end with a zero.
    BadName(usize),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated(at) => write!(f, "truncated in the member at byte {at}"),
            Self::BadHeader(at) => write!(f, "no cpio (newc) header at byte {at}"),
            Self::BadName(at) => write!(f, "a bad name in the member at byte {at}"),
        }
    }
}

/// The files of `/boot`, in the order of the archive.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    files: Vec<File>,
    bytes: usize,
}

impl Bundle {
    /// Reads an archive. Members that are no regular files are left out.
    ///
    /// # Errors
    /// - [`BundleError::Truncated`]: the archive ends inside a member, or ends without a trailer.
    /// - [`BundleError::BadHeader`]: a member begins with no header of this format.
    /// - [`BundleError::BadName`]: a name is not UTF-8, or does not end with a zero.
    pub fn parse(archive: &'static [u8]) -> Result<Self, BundleError> {
        let mut files = Vec::new();
        let mut at = 0;
        loop {
            let header = archive.get(at..at + HEADER_BYTES).ok_or(BundleError::Truncated(at))?;
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err(BundleError::BadHeader(at));
            }
            let field = |index: usize| field(header, index).ok_or(BundleError::BadHeader(at));
            let name_start = at + HEADER_BYTES;
            let name_end = name_start + field(NAME_FIELD)? as usize;
            let name = archive.get(name_start..name_end).ok_or(BundleError::Truncated(at))?;
            let name = name.strip_suffix(b"\0").and_then(|name| core::str::from_utf8(name).ok());
            let name = name.ok_or(BundleError::BadName(at))?;
            if name == "TRAILER!!!" {
                return Ok(Self { files, bytes: archive.len() });
            }
            let start = name_end.next_multiple_of(4);
            let end = start + field(SIZE_FIELD)? as usize;
            let bytes = archive.get(start..end).ok_or(BundleError::Truncated(at))?;
            if field(MODE_FIELD)? & MODE_TYPE == MODE_REGULAR {
                files.push(File { name: name.trim_start_matches("./").trim_start_matches('/'), bytes });
            }
            at = end.next_multiple_of(4);
        }
    }

    /// Makes a bundle of `files`.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&'static str, &'static [u8])]) -> Self {
        Self { files: files.iter().map(|&(name, bytes)| File { name, bytes }).collect(), bytes: 0 }
    }

    /// All files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Bytes of the whole archive, which stays in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The file at `path`: `/boot/NAME`, or just `NAME`. Of several files with one name, this is the last.
    pub fn find(&self, path: &str) -> Option<File> {
        let name = path.strip_prefix(ROOT).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path);
        self.files.iter().rev().find(|file| file.name == name).copied()
    }
}

/// Field `index` of a header, eight hexadecimal digits.
fn field(header: &[u8], index: usize) -> Option<u32> {
    let digits = header.get(6 + index * 8..14 + index * 8)?;
    let digits = core::str::from_utf8(digits).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(archive: &mut Vec<u8>, mode: u32, name: &str, bytes: &[u8]) {
        let fields = [1, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut archive = Vec::new();
        member(&mut archive, 0o40755, "dir", b"");
        member(&mut archive, 0o100644, "a", b"old");
        member(&mut archive, 0o100644, "./a", b"12345");
        member(&mut archive, 0o100644, "empty", b"");
        member(&mut archive, 0, "TRAILER!!!", b"");
        archive
    }

    #[test]
    fn members_are_found_by_path_and_by_name() {
        let bundle = Bundle::parse(sample().leak()).unwrap();
        assert_eq!(bundle.files().len(), 3);
        assert_eq!(bundle.find("/boot/a").unwrap().bytes, b"12345");
        assert_eq!(bundle.find("empty").unwrap().bytes, b"");
        assert!(bundle.find("/boot/dir").is_none());
        assert!(bundle.find("/boot/").is_none());
        assert!(bundle.find("/bootx/a").is_none());
    }

    #[test]
    fn every_cut_is_an_error_and_never_a_panic() {
        let archive: &'static [u8] = sample().leak();
        // Only the padding behind the trailer's name may be missing.
        let trailer = b"TRAILER!!!\0";
        let whole =
            archive.windows(trailer.len()).position(|bytes| bytes == trailer).unwrap() + trailer.len();
        assert!(Bundle::parse(&archive[..whole]).is_ok());
        for end in 0..whole {
            assert!(Bundle::parse(&archive[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn broken_headers_are_named() {
        let mut archive = sample();
        archive[0] = b'1';
        assert_eq!(Bundle::parse(archive.leak()).unwrap_err(), BundleError::BadHeader(0));
        let mut archive = sample();
        archive[6 + 8 * SIZE_FIELD..][..8].copy_from_slice(b"ffffffff");
        assert_eq!(Bundle::parse(archive.leak()).unwrap_err(), BundleError::Truncated(0));
        let mut archive = sample();
        archive[6 + 8 * NAME_FIELD..][..8].copy_from_slice(b"00000000");
        assert_eq!(Bundle::parse(archive.leak()).unwrap_err(), BundleError::BadName(0));
    }
}
