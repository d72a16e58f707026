//! A cpio archive in the "newc" format: the boot bundle's, and Linux's for a ramdisk.

/// A regular file that anyone may read.
pub const FILE: u32 = 0o100_644;
/// A regular file that anyone may read and run.
pub const PROGRAM: u32 = 0o100_755;
/// A directory that anyone may read.
pub const DIRECTORY: u32 = 0o040_755;

/// An archive as it grows.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    members: u32,
}

impl Archive {
    /// Appends a member: its type and rights as in `st_mode`, its path without a leading slash, its contents
    /// (none for a directory), which must be smaller than 4 GiB.
    pub fn add(&mut self, mode: u32, name: &str, contents: &[u8]) {
        self.members += 1;
        self.member(self.members, mode, name, contents);
    }

    /// The bytes, with the trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.member(0, 0, "TRAILER!!!", &[]);
        pad(&mut self.bytes, 512);
        self.bytes
    }

    /// A header of 110 characters, the name with its zero, the contents; each part padded to 4.
    fn member(&mut self, inode: u32, mode: u32, name: &str, contents: &[u8]) {
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [inode, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes, 4);
        self.bytes.extend_from_slice(contents);
        pad(&mut self.bytes, 4);
    }
}

fn pad(archive: &mut Vec<u8>, to: usize) {
    archive.resize(archive.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_archive_is_a_trailer() {
        let archive = Archive::default().finish();
        assert_eq!(archive.len(), 512);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(&archive[110..121], b"TRAILER!!!\0");
    }

    #[test]
    fn every_part_is_aligned() {
        let mut archive = Archive::default();
        archive.add(FILE, "a", b"new");
        archive.add(PROGRAM, "b", &[1; 5]);
        let archive = archive.finish();
        assert_eq!(&archive[14..22], b"000081A4");
        assert_eq!(&archive[54..62], b"00000003");
        assert_eq!(&archive[110..122], b"a\0new\x00070701");
        assert_eq!(&archive[122..130], b"00000002");
        assert_eq!(archive.len() % 512, 0);
    }

    #[test]
    fn a_directory_has_no_contents() {
        let mut archive = Archive::default();
        archive.add(DIRECTORY, "dev", &[]);
        let archive = archive.finish();
        assert_eq!(&archive[14..22], b"000041ED");
        assert_eq!(&archive[110..122], b"dev\0\0\x00070701");
    }
}
