//! A PV kernel's ELF file: its segments, and the Xen notes that say how it wants to be started. The notes
//! stand in note segments, or else in note sections alone. Older kernels have the section `__xen_guest` instead, with
//! `KEY=VALUE,...`.
//!
//! ABI: `xen/include/public/elfnote.h`.
#![forbid(unsafe_code)]

use core::fmt;

use arrayvec::ArrayVec;
use elf::ElfBytes;
use elf::abi::{PT_LOAD, PT_NOTE, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::note::{Note, NoteIterator};
use ring_abi::elfnote::{
    NAME, XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_INIT_P2M, XEN_ELFNOTE_MOD_START_PFN,
    XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_VIRT_BASE, XEN_ELFNOTE_XEN_VERSION,
};
use ring_abi::types::GuestVa;

/// Loadable segments at most.
const MAX_SEGMENTS: usize = 16;
/// Virtual or physical size of a kernel at most.
const MAX_SPAN: u64 = 1 << 30;

/// Why a file cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF file of this machine, or cut off.
    Malformed,
    /// No Xen notes: the file is no PV kernel.
    NotParavirtual,
    /// The notes ask for another interface than "xen-3.0".
    WrongVersion,
    /// No loadable segment, too many, or one that lies nowhere sensible.
    BadSegment,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not an x86_64 ELF file, or cut off (a bzImage must be unpacked first)",
            Self::NotParavirtual => "no Xen ELF notes: not a PV kernel",
            Self::WrongVersion => "its notes do not ask for interface xen-3.0",
            Self::BadSegment => "its loadable segments lie nowhere sensible",
        })
    }
}

/// What a kernel is and wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage<'a> {
    /// Loadable segments, in the file's order: the virtual address of the first byte, and the bytes from the file. Memory behind
    /// those is zero.
    pub segments: ArrayVec<(GuestVa, &'a [u8]), MAX_SEGMENTS>,
    /// One past the last byte used.
    pub end: GuestVa,
    /// Where execution begins.
    pub entry: GuestVa,
    /// Virtual address of pseudo-physical address 0.
    pub virt_base: GuestVa,
    /// Virtual address of the page to fill with hypercall stubs.
    pub hypercall_page: Option<GuestVa>,
    /// Where the P2M list is wanted.
    pub init_p2m: Option<GuestVa>,
    /// The ramdisk need not be mapped.
    pub mod_start_pfn: bool,
}

/// A note's text, without the NUL that may end it.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\0").unwrap_or(bytes)
}

/// A note's number: little-endian, 4 or 8 bytes.
fn number(desc: &[u8]) -> Option<u64> {
    match *desc {
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        _ => Some(u64::from_le_bytes(desc.try_into().ok()?)),
    }
}

/// A number as C's `strtoull` reads it: `0x` before hexadecimal digits, `0` before octal ones.
fn c_number(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("0x").map(|digits| (digits, 16));
    let (digits, radix) = hex.unwrap_or((text, if text.starts_with('0') { 8 } else { 10 }));
    u64::from_str_radix(digits, radix).ok()
}

/// The interface that is asked for; more may follow.
const VERSION: &[u8] = b"xen-3.0";

/// What notes said, besides what is the image's.
#[derive(Default)]
struct Said {
    /// Anything.
    any: bool,
    /// The right interface is asked for.
    version: bool,
    /// What physical addresses have more than those that count from 0.
    paddr_offset: u64,
}

impl<'a> KernelImage<'a> {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::Malformed)?;
        if elf.ehdr.e_machine != elf::abi::EM_X86_64 {
            return Err(ImageError::Malformed);
        }
        let table = elf.segments().ok_or(ImageError::Malformed)?;
        let mut image = Self {
            segments: ArrayVec::new(),
            end: GuestVa::new(0),
            entry: GuestVa::new(elf.ehdr.e_entry),
            virt_base: GuestVa::new(0),
            hypercall_page: None,
            init_p2m: None,
            mod_start_pfn: false,
        };
        let mut said = Said::default();
        for header in table.iter().filter(|header| header.p_type == PT_NOTE) {
            let notes = elf.segment_data_as_notes(&header).map_err(|_| ImageError::Malformed)?;
            image.take_notes(notes, &mut said);
        }
        let sections = elf.section_headers().filter(|_| !said.any).into_iter().flatten();
        for header in sections.filter(|header| header.sh_type == SHT_NOTE) {
            let notes = elf.section_data_as_notes(&header).map_err(|_| ImageError::Malformed)?;
            image.take_notes(notes, &mut said);
        }
        if !said.any
            && let Ok(Some(header)) = elf.section_header_by_name("__xen_guest")
        {
            let (text, _) = elf.section_data(&header).map_err(|_| ImageError::Malformed)?;
            image.take_text(text, &mut said).ok_or(ImageError::Malformed)?;
        }
        match (said.any, said.version) {
            (false, _) => return Err(ImageError::NotParavirtual),
            (true, false) => return Err(ImageError::WrongVersion),
            _ => {}
        }
        for header in table.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz != 0) {
            let bytes = elf.segment_data(&header).map_err(|_| ImageError::Malformed)?;
            // The address is computed from p_paddr, since a per-CPU segment may have any virtual address.
            let va = image.virt_base.wrapping_add(header.p_paddr.wrapping_sub(said.paddr_offset));
            let end = va.checked_add(header.p_memsz).ok_or(ImageError::BadSegment)?;
            if va < image.virt_base
                || header.p_memsz < bytes.len() as u64
                || end.bytes_from(image.virt_base) > MAX_SPAN
            {
                return Err(ImageError::BadSegment);
            }
            image.segments.try_push((va, bytes)).map_err(|_| ImageError::BadSegment)?;
            image.end = image.end.max(end);
        }
        if image.segments.is_empty() || image.virt_base.offset() != 0 {
            return Err(ImageError::BadSegment);
        }
        Ok(image)
    }

    fn take_notes(&mut self, notes: NoteIterator<'_, LittleEndian>, said: &mut Said) {
        for note in notes {
            let Note::Unknown(note) = note else { continue };
            if text(note.name) != NAME {
                continue;
            }
            said.any = true;
            let value = number(note.desc);
            let address = value.map(GuestVa::new);
            match note.n_type as u32 {
                XEN_ELFNOTE_ENTRY => self.entry = address.unwrap_or(self.entry),
                XEN_ELFNOTE_HYPERCALL_PAGE => self.hypercall_page = address,
                XEN_ELFNOTE_VIRT_BASE => self.virt_base = address.unwrap_or_default(),
                XEN_ELFNOTE_PADDR_OFFSET => said.paddr_offset = value.unwrap_or(0),
                XEN_ELFNOTE_XEN_VERSION => said.version = text(note.desc).starts_with(VERSION),
                XEN_ELFNOTE_INIT_P2M => self.init_p2m = address,
                XEN_ELFNOTE_MOD_START_PFN => self.mod_start_pfn = value.is_some_and(|value| value != 0),
                _ => {}
            }
        }
    }

    /// Reads the older form of notes; `None`: the text is malformed. Physical addresses are virtual ones
    /// unless the text says otherwise.
    fn take_text(&mut self, bytes: &[u8], said: &mut Said) -> Option<()> {
        let text = core::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()?;
        let value = |key| {
            let mut words = text.split(',').filter_map(|word| word.split_once('='));
            words.find(|(name, _)| *name == key).map(|(_, value)| value)
        };
        let number = |key| value(key).map_or(Some(None), |text| c_number(text).map(Some));
        said.any = true;
        said.version = value("XEN_VER").is_some_and(|version| version.as_bytes().starts_with(VERSION));
        let base = number("VIRT_BASE")?.unwrap_or(0);
        self.virt_base = GuestVa::new(base);
        said.paddr_offset = number("ELF_PADDR_OFFSET")?.unwrap_or(base);
        self.entry = number("VIRT_ENTRY")?.map_or(self.entry, GuestVa::new);
        // The note gives a page number, counted from the image's start.
        self.hypercall_page =
            number("HYPERCALL_PAGE")?.map(|page| GuestVa::new(base.wrapping_add(page << 12)));
        Some(())
    }
}

/// Makes small kernels for tests.
#[cfg(test)]
pub(crate) mod test_image {
    use std::vec::Vec;

    /// A note by type and value.
    pub(crate) fn note(kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [4, desc.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"Xen\0");
        bytes.extend(desc);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// An ELF file with one loadable segment at physical address `paddr` and these notes.
    pub(crate) fn elf(paddr: u64, contents: &[u8], memory_bytes: u64, notes: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for word in [0x42u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 2, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let data = 64 + 2 * 56u64;
        for (kind, offset, paddr, size, memory) in [
            (1u32, data, paddr, contents.len() as u64, memory_bytes),
            (4, data + contents.len() as u64, 0, notes.len() as u64, 0),
        ] {
            file.extend(kind.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for word in [offset, paddr, paddr, size, memory, 4] {
                file.extend(word.to_le_bytes());
            }
        }
        file.extend(contents);
        file.extend(notes);
        file
    }

    /// The same file without its note segment: `bytes` are a section of that name and type.
    pub(crate) fn with_section(mut file: Vec<u8>, name: &str, kind: u32, bytes: &[u8]) -> Vec<u8> {
        file[64 + 56..64 + 60].fill(0);
        let names = [b"\0", name.as_bytes(), b"\0"].concat();
        let bytes_at = file.len();
        file.extend(bytes);
        let names_at = file.len();
        file.extend(&names);
        let table = file.len() as u64;
        for (name, kind, at, size) in
            [(0u32, 0u32, 0, 0), (1, kind, bytes_at, bytes.len()), (0, 3, names_at, names.len())]
        {
            file.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
            // Flags, address, offset, size, link and info, alignment, the size of an entry.
            for word in [0, 0, at as u64, size as u64, 0, 4, 0] {
                file.extend(word.to_le_bytes());
            }
        }
        file[40..48].copy_from_slice(&table.to_le_bytes());
        for (at, half) in [(58, 64u16), (60, 3), (62, 2)] {
            file[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        file
    }

    /// The notes of a kernel at the top 2 GiB, and `more`.
    pub(crate) fn notes(more: &[Vec<u8>]) -> Vec<u8> {
        let base = 0xffff_ffff_8000_0000u64;
        let mut notes = note(5, b"xen-3.0\0");
        notes.extend(note(3, &base.to_le_bytes()));
        notes.extend(note(4, &0u64.to_le_bytes()));
        notes.extend(note(1, &(base + 0x1010).to_le_bytes()));
        more.iter().for_each(|note| notes.extend(note));
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::test_image::{elf, note, notes, with_section};
    use super::*;

    const BASE: u64 = 0xffff_ffff_8000_0000;

    #[test]
    fn reads_a_kernel() {
        let more = [note(15, &0x80_0000_0000u64.to_le_bytes()), note(16, &1u32.to_le_bytes()), note(99, b"")];
        let file = elf(0x1000, b"code", 0x2345, &notes(&more));
        let image = KernelImage::parse(&file).unwrap();
        assert_eq!((image.end, image.entry), (GuestVa::new(BASE + 0x3345), GuestVa::new(BASE + 0x1010)));
        assert_eq!(image.init_p2m, Some(GuestVa::new(0x80_0000_0000)));
        assert!(image.mod_start_pfn && image.hypercall_page.is_none());
        assert_eq!(image.segments[0].1, b"code");
    }

    #[test]
    fn refuses_what_is_no_pv_kernel() {
        assert_eq!(KernelImage::parse(b""), Err(ImageError::Malformed));
        assert_eq!(KernelImage::parse(&[0; 100]), Err(ImageError::Malformed));
        assert_eq!(KernelImage::parse(&elf(0, b"x", 1, &[])), Err(ImageError::NotParavirtual));
        assert_eq!(
            KernelImage::parse(&elf(0, b"x", 1, &note(5, b"xen-2.0\0"))),
            Err(ImageError::WrongVersion)
        );
        assert_eq!(KernelImage::parse(&elf(0, b"xy", 1, &notes(&[]))), Err(ImageError::BadSegment));
        assert_eq!(KernelImage::parse(&elf(0, b"x", u64::MAX, &notes(&[]))), Err(ImageError::BadSegment));
        assert_eq!(KernelImage::parse(&elf(0, b"x", MAX_SPAN + 1, &notes(&[]))), Err(ImageError::BadSegment));
        assert_eq!(KernelImage::parse(&elf(0x8000_0000, b"x", 1, &notes(&[]))), Err(ImageError::BadSegment));
    }

    #[test]
    fn notes_may_stand_in_sections() {
        let read = |paddr, name, kind, bytes: &[u8]| {
            let file = with_section(elf(paddr, b"code", 0x2000, &[]), name, kind, bytes);
            KernelImage::parse(&file).map(|image| {
                let at = image.segments[0].0.raw();
                (at, image.entry.raw(), image.hypercall_page.map(GuestVa::raw), image.virt_base.raw())
            })
        };
        assert_eq!(read(0x1000, ".notes", 7, &notes(&[])), Ok((BASE + 0x1000, BASE + 0x1010, None, BASE)));
        assert_eq!(read(0x1000, ".notes", 1, &notes(&[])), Err(ImageError::NotParavirtual));
        let old = |text: &str| read(0x1000, "__xen_guest", 1, text.as_bytes());
        assert_eq!(
            old("XEN_VER=xen-3.0,VIRT_BASE=0x0,HYPERCALL_PAGE=0x2,PAE=yes,LOADER=generic\0,XEN_VER=x"),
            Ok((0x1000, 0x42, Some(0x2000), 0))
        );
        // Physical addresses are virtual ones unless they are said to be others; numbers as C reads them.
        let high = |paddr, more| {
            let text = format!("VIRT_BASE={BASE:#x},XEN_VER=xen-3.0-x86_64,HYPERCALL_PAGE=10,{more}");
            read(paddr, "__xen_guest", 1, text.as_bytes())
        };
        assert_eq!(
            high(BASE + 0x1000, "LOADER=generic"),
            Ok((BASE + 0x1000, 0x42, Some(BASE + 0xa000), BASE))
        );
        let offset = "ELF_PADDR_OFFSET=0,VIRT_ENTRY=010";
        assert_eq!(high(0x1000, offset), Ok((BASE + 0x1000, 8, Some(BASE + 0xa000), BASE)));
        assert_eq!(old("XEN_VER=xen-2.0"), Err(ImageError::WrongVersion));
        assert_eq!(old("XEN_VER=xen-3.0,VIRT_BASE=zero"), Err(ImageError::Malformed));
        assert_eq!(read(0, "__xen_guest", 1, b"\xff"), Err(ImageError::Malformed));
        // A note segment comes first.
        let mut both = with_section(elf(0x1000, b"x", 1, &notes(&[])), "__xen_guest", 1, b"XEN_VER=x");
        both[64 + 56] = 4;
        assert!(KernelImage::parse(&both).is_ok());
    }

    #[test]
    fn a_cut_off_file_is_malformed() {
        let file = elf(0x1000, &[7; 500], 500, &notes(&[]));
        for length in 0..file.len() {
            assert!(KernelImage::parse(&file[..length]).is_err(), "{length}");
        }
    }
}
