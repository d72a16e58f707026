//! A kernel's Xen ELF notes, or the text that older kernels have instead.
//!
//! ABI: `xen/include/public/elfnote.h`. The older form is a section `__xen_guest` with `KEY=VALUE,...`.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use ring_abi::elfnote::*;

/// Required features that no PV domain has.
const UNMEETABLE: [&str; 3] = ["auto_translated_physmap", "supervisor_mode_kernel", "hvm_callback_vector"];

/// Why a kernel with these notes cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteError {
    /// There are no notes: the file is no PV kernel.
    Missing,
    /// The notes contradict their own lengths, or a value is not of its type: which value.
    Malformed(&'static str),
    /// The kernel is for another interface than `xen-3.0`.
    Version(String),
    /// The kernel wants another loader than the generic one.
    Loader(String),
    /// The kernel requires a feature that PV domains do not have.
    Feature(String),
    /// The kernel's physical addresses do not begin at 0, and the loader used them before it found the note that
    /// says so.
    PaddrOffset(u64),
    /// The first instruction is not in the image.
    Entry(u64),
}

impl fmt::Display for NoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "no Xen notes: not a kernel for PV"),
            Self::Malformed(what) => write!(f, "its Xen note {what} is malformed"),
            Self::Version(version) => write!(f, "it is for the interface `{version}`, not `xen-3.0`"),
            Self::Loader(loader) => write!(f, "it wants the loader `{loader}`, not `generic`"),
            Self::Feature(feature) => write!(f, "it requires `{feature}`, which PV domains do not have"),
            Self::PaddrOffset(offset) => write!(f, "its physical addresses begin at {offset:#x}, not at 0"),
            Self::Entry(entry) => write!(f, "its entry, {entry:#x}, lies outside its image"),
        }
    }
}

/// What a kernel's notes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelNotes {
    /// Virtual address of pseudo-physical address 0; page-aligned.
    pub virt_base: u64,
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// Virtual address of the page to be filled with hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// Virtual address at which the P2M list is wanted; otherwise it goes behind the image.
    pub init_p2m: Option<u64>,
    /// The ramdisk need not be mapped: its first pfn is enough.
    pub mod_start_pfn: bool,
    /// The difference between the segments' physical addresses and addresses that count from 0.
    pub paddr_offset: u64,
}

/// The values of either form, before they are checked.
#[derive(Default)]
struct Raw {
    version: Option<String>,
    loader: Option<String>,
    os: Option<String>,
    features: Option<String>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    entry: Option<u64>,
    hypercall_page: Option<u64>,
    init_p2m: Option<u64>,
    mod_start_pfn: bool,
}

impl KernelNotes {
    /// Reads the notes from the bytes of note segments; `None` if no note is Xen's. `entry` is that of the ELF
    /// header.
    ///
    /// # Errors
    /// See [`NoteError`].
    pub fn parse(segments: &[Vec<u8>], entry: u64) -> Result<Option<Self>, NoteError> {
        let mut raw = Raw::default();
        let mut any = false;
        for segment in segments {
            let mut rest = segment.as_slice();
            while let Some((name, kind, value, after)) = next_note(rest)? {
                rest = after;
                if name == NAME {
                    any = true;
                    raw.note(kind, value)?;
                }
            }
        }
        if !any || (raw.version.is_none() && raw.loader.is_none() && raw.entry.is_none()) {
            return Ok(None);
        }
        raw.check(entry).map(Some)
    }

    /// Reads the notes from the text of the section `__xen_guest`.
    ///
    /// # Errors
    /// See [`NoteError`].
    pub fn from_text(text: &[u8], entry: u64) -> Result<Self, NoteError> {
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        let text = core::str::from_utf8(text).map_err(|_| NoteError::Malformed("__xen_guest"))?;
        Raw::legacy(text)?.check(entry)
    }
}

/// A note's name, type and value, and what follows it.
type Note<'a> = (&'a [u8], u32, &'a [u8], &'a [u8]);

/// The first note of `bytes`.
fn next_note(bytes: &[u8]) -> Result<Option<Note<'_>>, NoteError> {
    if bytes.len() < 12 {
        return Ok(None);
    }
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let (name_len, value_len) = (word(0), word(4));
    let value_at = 12 + name_len.next_multiple_of(4);
    let end = value_at.saturating_add(value_len);
    let malformed = NoteError::Malformed("header");
    let name = bytes.get(12..12 + name_len).ok_or_else(|| malformed.clone())?;
    let value = bytes.get(value_at..end).ok_or(malformed)?;
    let after = bytes.get(end.next_multiple_of(4)..).unwrap_or_default();
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Ok(Some((name, word(8) as u32, value, after)))
}

fn number(value: &[u8], what: &'static str) -> Result<u64, NoteError> {
    if !matches!(value.len(), 1 | 2 | 4 | 8) {
        return Err(NoteError::Malformed(what));
    }
    Ok(value.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn text(value: &[u8], what: &'static str) -> Result<String, NoteError> {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    core::str::from_utf8(text).map(ToOwned::to_owned).map_err(|_| NoteError::Malformed(what))
}

/// A number as C's `strtoull` reads it: `0x` before hexadecimal digits, `0` before octal ones.
fn c_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

impl Raw {
    fn note(&mut self, kind: u32, value: &[u8]) -> Result<(), NoteError> {
        match kind {
            XEN_ELFNOTE_ENTRY => self.entry = Some(number(value, "ENTRY")?),
            XEN_ELFNOTE_HYPERCALL_PAGE => self.hypercall_page = Some(number(value, "HYPERCALL_PAGE")?),
            XEN_ELFNOTE_VIRT_BASE => self.virt_base = Some(number(value, "VIRT_BASE")?),
            XEN_ELFNOTE_PADDR_OFFSET => self.paddr_offset = Some(number(value, "PADDR_OFFSET")?),
            XEN_ELFNOTE_XEN_VERSION => self.version = Some(text(value, "XEN_VERSION")?),
            XEN_ELFNOTE_GUEST_OS => self.os = Some(text(value, "GUEST_OS")?),
            XEN_ELFNOTE_LOADER => self.loader = Some(text(value, "LOADER")?),
            XEN_ELFNOTE_FEATURES => self.features = Some(text(value, "FEATURES")?),
            XEN_ELFNOTE_INIT_P2M => self.init_p2m = Some(number(value, "INIT_P2M")?),
            XEN_ELFNOTE_MOD_START_PFN => self.mod_start_pfn = number(value, "MOD_START_PFN")? != 0,
            _ => {}
        }
        Ok(())
    }

    fn legacy(text: &str) -> Result<Self, NoteError> {
        let mut raw = Self::default();
        let mut page = None;
        for word in text.split(',') {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || c_number(value).ok_or(NoteError::Malformed("__xen_guest"));
            match key.trim() {
                "XEN_VER" => raw.version = Some(value.to_owned()),
                "LOADER" => raw.loader = Some(value.to_owned()),
                "GUEST_OS" => raw.os = Some(value.to_owned()),
                "FEATURES" => raw.features = Some(value.to_owned()),
                "VIRT_BASE" => raw.virt_base = Some(number()?),
                "ELF_PADDR_OFFSET" => raw.paddr_offset = Some(number()?),
                "VIRT_ENTRY" => raw.entry = Some(number()?),
                "HYPERCALL_PAGE" => page = Some(number()?),
                _ => {}
            }
        }
        // In this form the physical addresses are virtual ones, unless the text says otherwise.
        raw.paddr_offset = raw.paddr_offset.or(raw.virt_base);
        raw.hypercall_page = page.map(|page| raw.virt_base.unwrap_or(0).wrapping_add(page << 12));
        Ok(raw)
    }

    fn check(self, entry: u64) -> Result<KernelNotes, NoteError> {
        match self.version {
            // Kernels for other word sizes have a suffix behind this.
            Some(version) if version.starts_with("xen-3.0") => {}
            other => return Err(NoteError::Version(other.unwrap_or_default())),
        }
        let says = |text: &Option<String>, want| text.as_deref().is_some_and(|text| text.starts_with(want));
        if !says(&self.loader, "generic") && !says(&self.os, "linux") {
            return Err(NoteError::Loader(self.loader.unwrap_or_default()));
        }
        for feature in self.features.as_deref().unwrap_or_default().split('|') {
            if let Some(required) = feature.strip_prefix('!')
                && UNMEETABLE.contains(&required)
            {
                return Err(NoteError::Feature(required.to_owned()));
            }
        }
        let virt_base = self.virt_base.unwrap_or(0);
        if virt_base & 0xfff != 0 {
            return Err(NoteError::Malformed("VIRT_BASE"));
        }
        if self.init_p2m.is_some_and(|address| address & 0xfff != 0) {
            return Err(NoteError::Malformed("INIT_P2M"));
        }
        if self.paddr_offset.is_some() && self.virt_base.is_none() {
            return Err(NoteError::Malformed("PADDR_OFFSET without VIRT_BASE"));
        }
        Ok(KernelNotes {
            virt_base,
            entry: self.entry.unwrap_or(entry),
            hypercall_page: self.hypercall_page,
            init_p2m: self.init_p2m,
            mod_start_pfn: self.mod_start_pfn,
            paddr_offset: self.paddr_offset.unwrap_or(0),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A note in bytes.
    pub(crate) fn note(kind: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [4, value.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"Xen\0");
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn linux() -> Vec<u8> {
        [
            note(XEN_ELFNOTE_GUEST_OS, b"linux\0"),
            note(XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0"),
            note(XEN_ELFNOTE_VIRT_BASE, &0xffff_ffff_8000_0000u64.to_le_bytes()),
            note(XEN_ELFNOTE_INIT_P2M, &0x80_0000_0000u64.to_le_bytes()),
            note(XEN_ELFNOTE_ENTRY, &0xffff_ffff_8307_91c0u64.to_le_bytes()),
            note(XEN_ELFNOTE_FEATURES, b"!writable_page_tables|pae_pgdir_above_4gb\0"),
            note(XEN_ELFNOTE_LOADER, b"generic\0"),
            note(XEN_ELFNOTE_MOD_START_PFN, &1u32.to_le_bytes()),
            note(99, b"?"),
        ]
        .concat()
    }

    #[test]
    fn linux_is_understood() {
        let other = [4u32.to_le_bytes(), 0u32.to_le_bytes(), 3u32.to_le_bytes(), *b"GNU\0"].concat();
        let notes = KernelNotes::parse(&[other, linux()], 7).unwrap().unwrap();
        let want = KernelNotes {
            virt_base: 0xffff_ffff_8000_0000,
            entry: 0xffff_ffff_8307_91c0,
            hypercall_page: None,
            init_p2m: Some(0x80_0000_0000),
            mod_start_pfn: true,
            paddr_offset: 0,
        };
        assert_eq!(notes, want);
    }

    #[test]
    fn absent_notes_are_none_and_cut_ones_an_error() {
        assert_eq!(KernelNotes::parse(&[], 0), Ok(None));
        assert_eq!(KernelNotes::parse(&[Vec::new()], 0), Ok(None));
        let bytes = linux();
        for end in 0..bytes.len() {
            let _ = KernelNotes::parse(&[bytes[..end].to_vec()], 0);
        }
        let mut huge = bytes;
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(KernelNotes::parse(&[huge], 0), Err(NoteError::Malformed("header")));
    }

    #[test]
    fn demands_that_cannot_be_met_are_named() {
        let base =
            || [note(XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0"), note(XEN_ELFNOTE_LOADER, b"generic\0")].concat();
        let with = |more: Vec<u8>| KernelNotes::parse(&[[base(), more].concat()], 0);
        assert_eq!(
            with(note(XEN_ELFNOTE_FEATURES, b"!auto_translated_physmap")),
            Err(NoteError::Feature("auto_translated_physmap".into()))
        );
        assert_eq!(
            with(note(XEN_ELFNOTE_XEN_VERSION, b"xen-2.0")),
            Err(NoteError::Version("xen-2.0".into()))
        );
        assert_eq!(with(note(XEN_ELFNOTE_LOADER, b"other")), Err(NoteError::Loader("other".into())));
        let offset = note(XEN_ELFNOTE_PADDR_OFFSET, &[1, 0, 0, 0]);
        assert!(matches!(with(offset.clone()), Err(NoteError::Malformed("PADDR_OFFSET without VIRT_BASE"))));
        let based = [offset, note(XEN_ELFNOTE_VIRT_BASE, &[0])].concat();
        assert_eq!(with(based).unwrap().unwrap().paddr_offset, 1);
        assert_eq!(with(note(XEN_ELFNOTE_VIRT_BASE, &[1, 0, 0])), Err(NoteError::Malformed("VIRT_BASE")));
        assert_eq!(with(note(XEN_ELFNOTE_VIRT_BASE, &[1])), Err(NoteError::Malformed("VIRT_BASE")));
        assert!(with(Vec::new()).is_ok());
    }

    #[test]
    fn the_older_form() {
        let read = |text: &str| KernelNotes::from_text(text.as_bytes(), 0x123);
        let text = "GUEST_OS=Mini-OS,XEN_VER=xen-3.0,VIRT_BASE=0x0,HYPERCALL_PAGE=0x2,PAE=yes,LOADER=generic";
        let notes = read(text).unwrap();
        assert_eq!((notes.virt_base, notes.entry, notes.hypercall_page), (0, 0x123, Some(0x2000)));
        assert_eq!(notes.paddr_offset, 0);
        // The text ends at a zero byte. Physical addresses are virtual ones unless the text says otherwise.
        let high =
            "XEN_VER=xen-3.0-x86_64,LOADER=generic,VIRT_BASE=0xffffffff80000000,HYPERCALL_PAGE=10\0,PAE=x";
        let notes = read(high).unwrap();
        assert_eq!(notes.hypercall_page, Some(0xffff_ffff_8000_a000));
        assert_eq!((notes.virt_base, notes.paddr_offset), (0xffff_ffff_8000_0000, 0xffff_ffff_8000_0000));
        let notes =
            read("XEN_VER=xen-3.0,GUEST_OS=linux,VIRT_BASE=0x1000,ELF_PADDR_OFFSET=0x0,VIRT_ENTRY=010")
                .unwrap();
        assert_eq!((notes.virt_base, notes.paddr_offset, notes.entry), (0x1000, 0, 8));
        for (bad, want) in [
            ("VIRT_BASE=zz", NoteError::Malformed("__xen_guest")),
            ("", NoteError::Version(String::new())),
            ("XEN_VER=xen-3.0,GUEST_OS=Mini-OS", NoteError::Loader(String::new())),
            (
                "XEN_VER=xen-3.0,LOADER=generic,ELF_PADDR_OFFSET=0",
                NoteError::Malformed("PADDR_OFFSET without VIRT_BASE"),
            ),
            ("XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0x10", NoteError::Malformed("VIRT_BASE")),
        ] {
            assert_eq!(read(bad), Err(want), "{bad}");
        }
        assert_eq!(KernelNotes::from_text(b"\xff", 0), Err(NoteError::Malformed("__xen_guest")));
    }
}
