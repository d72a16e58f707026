//! Notes in sections. Kernels whose linker made no note segment, and older ones that have a section with text, say
//! only there that they are PV kernels.
//!
//! The section headers are at the end of a file, so a compressed kernel is decompressed once for each step: for the
//! headers, for the notes and the sections' names, and for the text. Such kernels are small.

use alloc::vec::Vec;

use elf::endian::LittleEndian;
use elf::file::FileHeader;
use elf::segment::ProgramHeader;

use super::{ImageError, zeroed};
use crate::builder::notes::KernelNotes;
use crate::builder::payload::{Format, Limits, Stream, open};

const HEADER_BYTES: usize = 64;
const SHT_NOTE: u64 = 7;
/// Limits on the number of sections, and on the bytes of notes, names and text: more than any kernel has.
const MAX_SECTIONS: u16 = 1024;
const MAX_NOTE_BYTES: u64 = 64 << 10;
const MAX_NAME_BYTES: u64 = 64 << 10;
const MAX_TEXT_BYTES: u64 = 4 << 10;

/// The name of the section with text, with its NUL.
const GUEST: &[u8] = b"__xen_guest\0";

/// A kernel's file, which can be read from its start several times.
#[derive(Clone, Copy)]
pub(super) struct Payload<'a> {
    pub(super) bytes: &'a [u8],
    /// Bytes at its end that are not part of the stream.
    pub(super) trailer: usize,
    pub(super) limits: Limits,
}

/// A stretch of the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    bytes: u64,
}

/// Where the headers of the sections are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    place: Place,
    /// The section with the names.
    names: usize,
}

impl Table {
    /// Reads the place from the file's header; `None`: there are no sections.
    pub(super) fn of(header: &FileHeader<LittleEndian>) -> Option<Self> {
        let sound = usize::from(header.e_shentsize) == HEADER_BYTES && header.e_shnum > 0;
        let bytes = u64::from(header.e_shnum.min(MAX_SECTIONS)) * HEADER_BYTES as u64;
        let place = Place { offset: header.e_shoff, bytes };
        sound.then_some(Self { place, names: header.e_shstrndx.into() })
    }
}

impl<'a> Payload<'a> {
    pub(super) fn open(&self) -> Result<Stream<'a>, ImageError> {
        Ok(open(self.bytes, self.trailer, self.limits)?)
    }

    /// Reads the notes of the note segments.
    ///
    /// # Errors
    /// The file ends before them, or they are malformed.
    pub(super) async fn segment_notes(
        &self,
        segments: &[ProgramHeader],
        entry: u64,
    ) -> Result<Option<KernelNotes>, ImageError> {
        let notes = segments.iter().filter(|segment| segment.p_type == super::PT_NOTE);
        let places = notes.map(|note| Place { offset: note.p_offset, bytes: note.p_filesz });
        let read = self.read(&places.collect::<Vec<_>>()).await?;
        Ok(KernelNotes::parse(&read, entry)?)
    }

    /// Reads the notes of the note sections; if there are none, the text of the section of older kernels. `entry` is
    /// that of the file header.
    ///
    /// # Errors
    /// The file ends before them, or they are malformed.
    pub(super) async fn section_notes(
        &self,
        table: Table,
        entry: u64,
    ) -> Result<Option<KernelNotes>, ImageError> {
        let headers = self.read(&[table.place]).await?.concat();
        let (headers, _) = headers.as_chunks::<HEADER_BYTES>();
        // The first section header is a placeholder.
        let notes = headers.iter().skip(1).filter(|header| number(*header, 4, 4) == SHT_NOTE).map(place);
        let mut places: Vec<Place> = notes.collect();
        if places.iter().fold(0u64, |sum, place| sum.saturating_add(place.bytes)) > MAX_NOTE_BYTES {
            return Err(ImageError::Malformed("its notes are larger than 64 KiB"));
        }
        let names = headers.get(table.names).map(place).map(|names| names.at_most(MAX_NAME_BYTES));
        places.extend(names);
        let mut read = self.read(&places).await?;
        let names = if names.is_some() { read.pop() } else { None }.unwrap_or_default();
        if let Some(notes) = KernelNotes::parse(&read, entry)? {
            return Ok(Some(notes));
        }
        let called = |header: &&[u8; HEADER_BYTES]| {
            let name = usize::try_from(number(*header, 0, 4)).ok().and_then(|at| names.get(at..));
            name.is_some_and(|name| name.starts_with(GUEST))
        };
        let Some(guest) = headers.iter().find(called) else { return Ok(None) };
        let text = self.read(&[place(guest).at_most(MAX_TEXT_BYTES)]).await?.concat();
        Ok(Some(KernelNotes::from_text(&text, entry)?))
    }

    /// Reads the bytes of some places, in one pass through the file.
    async fn read(&self, places: &[Place]) -> Result<Vec<Vec<u8>>, ImageError> {
        let mut found: Vec<Vec<u8>> =
            places.iter().map(|place| zeroed(place.bytes as usize)).collect::<Result<_, _>>()?;
        if Format::detect(self.bytes) == Format::Plain {
            for (place, bytes) in places.iter().zip(&mut found) {
                let start = usize::try_from(place.offset).ok();
                let there = start.and_then(|at| self.bytes.get(at..)?.get(..bytes.len()));
                bytes.copy_from_slice(there.ok_or(CUT)?);
            }
            return Ok(found);
        }
        let mut source = self.open()?;
        let copied = copy(&mut source, places, &mut found).await;
        source.close().await;
        copied.map(|()| found)
    }
}

const CUT: ImageError = ImageError::Truncated { what: "its sections" };

impl Place {
    fn at_most(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }
}

fn number(header: &[u8], at: usize, len: usize) -> u64 {
    header[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn place(header: &[u8; HEADER_BYTES]) -> Place {
    Place { offset: number(header, 0x18, 8), bytes: number(header, 0x20, 8) }
}

/// Copies the places out of the stream as it passes.
async fn copy(source: &mut Stream<'_>, places: &[Place], found: &mut [Vec<u8>]) -> Result<(), ImageError> {
    let ends = places.iter().map(|place| place.offset.checked_add(place.bytes).ok_or(CUT));
    let end = ends.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or(0);
    let mut buffer = zeroed(super::HEAD_BYTES)?;
    let mut at = 0u64;
    while at < end {
        let got = source.read_full(&mut buffer).await? as u64;
        if got == 0 {
            return Err(CUT);
        }
        for (place, bytes) in places.iter().zip(&mut *found) {
            let (from, to) = (place.offset.max(at), (place.offset + place.bytes).min(at + got));
            if from < to {
                let there = &buffer[(from - at) as usize..(to - at) as usize];
                bytes[(from - place.offset) as usize..][..there.len()].copy_from_slice(there);
            }
        }
        at += got;
    }
    Ok(())
}
