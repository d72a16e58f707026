//! Kernel images: their format, their notes, and the copy of their segments into a domain's memory.
//!
//! A kernel is an ELF64 file, plain or compressed, or the payload of a bzImage. The loader reads the file as a
//! stream, from start to end. The headers come first and state how much memory the segments need; the loader copies
//! the segments to their physical addresses as they pass.
//!
//! Sources: ELF-64 object file format; the Linux/x86 boot protocol (`setup_sects`, `payload_offset`);
//! `xen/include/public/elfnote.h`.

mod sections;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::ProgramHeader;

use super::notes::{KernelNotes, NoteError};
use super::payload::{Format, Limits, PayloadError, Stream};
use sections::{Payload, Table};

const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// ELF header and program headers lie in the first bytes of every kernel.
const HEAD_BYTES: usize = 64 << 10;
const MAX_SEGMENTS: u16 = 64;
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Physical addresses below this: 1 TiB is more than a domain can have.
const MAX_PADDR: u64 = 1 << 40;

/// Why a file is no kernel that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The payload cannot be read.
    Payload(PayloadError),
    /// Neither ELF nor bzImage.
    NotAKernel,
    /// The file ends before what its headers promise.
    Truncated {
        /// Inside what.
        what: &'static str,
    },
    /// The headers contradict themselves.
    Malformed(&'static str),
    /// An ELF for another machine or word size.
    WrongMachine,
    /// The notes are missing or ask for something impossible.
    Notes(NoteError),
    /// The kernel does not fit into the domain's memory.
    Memory(String),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload(error) => write!(f, "{error}"),
            Self::NotAKernel => write!(f, "neither an ELF file nor a bzImage"),
            Self::Truncated { what } => write!(f, "truncated: the file ends inside {what}"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::WrongMachine => write!(f, "not an x86_64 kernel"),
            Self::Notes(error) => write!(f, "{error}"),
            Self::Memory(what) => write!(f, "{what}"),
        }
    }
}

impl From<PayloadError> for ImageError {
    fn from(error: PayloadError) -> Self {
        Self::Payload(error)
    }
}

impl From<NoteError> for ImageError {
    fn from(error: NoteError) -> Self {
        Self::Notes(error)
    }
}

/// Where the bytes of a kernel go.
pub trait ImageSink: Send {
    /// The kernel occupies physical addresses `first..end`, both page-aligned. Memory reads as zero until written.
    ///
    /// # Errors
    /// Why it does not fit.
    fn begin(&mut self, first: u64, end: u64) -> Result<(), String>;
    /// Writes bytes at a physical address inside that range. Addresses mostly ascend from call to call.
    ///
    /// # Errors
    /// Why they cannot be written.
    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String>;
}

/// A kernel that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// First physical address, page-aligned.
    pub first: u64,
    /// End of the physical addresses, page-aligned.
    pub end: u64,
    /// What the kernel's notes ask for.
    pub notes: KernelNotes,
}

/// Finds the ELF file inside `file`: the file itself, or the payload of a bzImage. Also returns how many bytes at the
/// end are not part of the stream.
///
/// # Errors
/// `NotAKernel`, `Truncated`, `Malformed`.
fn locate(file: &[u8]) -> Result<(&[u8], usize), ImageError> {
    const SETUP_SECTS: usize = 0x1f1;
    const HEADER_MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    if file.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Ok((file, 0));
    }
    let word = |at: usize| -> Result<usize, ImageError> {
        let bytes = file.get(at..at + 4).ok_or(ImageError::Truncated { what: "the bzImage header" })?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let version = word(VERSION)? & 0xffff;
    if version < 0x208 {
        return Err(ImageError::Malformed(
            "a bzImage of a boot protocol before 2.08, which names no payload",
        ));
    }
    // Zero means four, as in files from before the field existed.
    let setup_sects = match file.get(SETUP_SECTS).copied() {
        Some(0) | None => 4,
        Some(n) => usize::from(n),
    };
    let start = (setup_sects + 1) * 512 + word(PAYLOAD_OFFSET)?; // 4 GiB and 128 KiB at most
    let len = word(PAYLOAD_LENGTH)?;
    if len < 4 {
        return Err(ImageError::Malformed("the bzImage's payload is empty"));
    }
    let payload = file
        .get(start..start.saturating_add(len))
        .ok_or(ImageError::Truncated { what: "the bzImage's payload" })?;
    Ok((payload, 4)) // the inflated size stands behind the stream
}

/// Loads the kernel in `file` into `sink`, the memory of a domain with `memory` bytes. Loading yields after a limited
/// amount of work.
///
/// # Errors
/// See [`ImageError`]; the sink may have been written to.
pub async fn load(file: &[u8], memory: u64, sink: &mut impl ImageSink) -> Result<Kernel, ImageError> {
    let (bytes, trailer) = locate(file)?;
    let file = Payload { bytes, trailer, limits: Limits::for_memory(memory) };
    let mut source = file.open()?;
    let loaded = load_from(&mut source, &file, sink).await;
    source.close().await;
    let (headers, first, end, notes) = loaded?;
    let notes = match (notes, headers.sections) {
        (Some(notes), _) => notes,
        // The kernel's note segments have no notes of Xen's.
        (None, Some(table)) => match file.section_notes(table, headers.entry).await? {
            Some(notes) if notes.paddr_offset != 0 => {
                return Err(NoteError::PaddrOffset(notes.paddr_offset).into());
            }
            notes => notes.ok_or(NoteError::Missing)?,
        },
        (None, None) => return Err(NoteError::Missing.into()),
    };
    let entry = notes.entry.wrapping_sub(notes.virt_base);
    if !(first..=end).contains(&entry) {
        return Err(NoteError::Entry(notes.entry).into());
    }
    Ok(Kernel { first, end, notes })
}

/// A kernel's headers.
struct Headers {
    /// The first instruction.
    entry: u64,
    segments: Vec<ProgramHeader>,
    sections: Option<Table>,
    /// What was subtracted from the segments' physical addresses, since those of older kernels are virtual
    /// addresses.
    offset: u64,
}

/// Makes the segments' physical addresses count from 0 where they do not. The notes say so, and must be known before
/// the segments are loaded. So the loader first looks for the notes of a kernel whose addresses exceed the domain's
/// memory, and of a kernel without note segments.
async fn place_segments(
    headers: &mut Headers,
    file: &Payload<'_>,
) -> Result<Option<KernelNotes>, ImageError> {
    let is_high = |segment: &ProgramHeader| segment.p_type == PT_LOAD && segment.p_paddr >= MAX_PADDR;
    let high = headers.segments.iter().any(is_high);
    let notes = match (headers.segments.iter().any(|segment| segment.p_type == PT_NOTE), headers.sections) {
        (true, _) if !high => return Ok(None),
        (true, _) => file.segment_notes(&headers.segments, headers.entry).await?,
        _ => None,
    };
    let notes = match (notes, headers.sections) {
        (None, Some(table)) => file.section_notes(table, headers.entry).await?,
        (notes, _) => notes,
    };
    headers.offset = notes.as_ref().map_or(0, |notes| notes.paddr_offset);
    for segment in headers.segments.iter_mut().filter(|segment| segment.p_type == PT_LOAD) {
        segment.p_paddr = segment.p_paddr.wrapping_sub(headers.offset);
    }
    Ok(notes)
}

/// What was loaded: the headers, the first physical address and the end, and the notes, unless they are still to be
/// found.
type Loaded = (Headers, u64, u64, Option<KernelNotes>);

/// Loads the kernel from `source`, a stream of `file` from its start.
async fn load_from(
    source: &mut Stream<'_>,
    file: &Payload<'_>,
    sink: &mut impl ImageSink,
) -> Result<Loaded, ImageError> {
    let mut head = zeroed(HEAD_BYTES)?;
    let got = source.read_full(&mut head).await?;
    head.truncate(got);
    let mut headers = parse_headers(&head)?;
    let notes = place_segments(&mut headers, file).await?;
    for segment in &headers.segments {
        check_segment(segment)?;
    }
    let mut loads: Vec<&ProgramHeader> =
        headers.segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz != 0).collect();
    check_overlap(&mut loads)?;
    let first =
        loads.iter().map(|load| load.p_paddr).min().ok_or(ImageError::Malformed("it has nothing to load"))?;
    let last = loads.iter().map(|load| load.p_paddr + load.p_memsz).max().unwrap_or(first);
    let (first, end) = (first & !0xfff, (last + 0xfff) & !0xfff);
    sink.begin(first, end).map_err(ImageError::Memory)?;

    let bytes = copy_segments(&head, source, &headers.segments, sink).await?;
    let notes = match notes {
        Some(notes) => Some(notes),
        None => KernelNotes::parse(&bytes, headers.entry)?,
    };
    match &notes {
        Some(notes) if notes.paddr_offset != headers.offset => {
            Err(NoteError::PaddrOffset(notes.paddr_offset).into())
        }
        _ => Ok((headers, first, end, notes)),
    }
}

/// Reads the headers, unchecked.
fn parse_headers(head: &[u8]) -> Result<Headers, ImageError> {
    const IDENT_BYTES: usize = 16;
    const HEADER_BYTES: usize = 64;
    const SEGMENT_BYTES: usize = 56;
    if !head.starts_with(b"\x7fELF") {
        return Err(ImageError::NotAKernel);
    }
    if head.len() < HEADER_BYTES {
        return Err(ImageError::Truncated { what: "the ELF header" });
    }
    let ident = parse_ident::<LittleEndian>(&head[..IDENT_BYTES]).map_err(|_| ImageError::WrongMachine)?;
    let class = ident.1;
    let header = FileHeader::parse_tail(ident, &head[IDENT_BYTES..HEADER_BYTES])
        .map_err(|_| ImageError::Malformed("the ELF header"))?;
    if class != Class::ELF64 || header.e_machine != EM_X86_64 {
        return Err(ImageError::WrongMachine);
    }
    if usize::from(header.e_phentsize) != SEGMENT_BYTES
        || header.e_phnum == 0
        || header.e_phnum > MAX_SEGMENTS
    {
        return Err(ImageError::Malformed("the number or size of its program headers"));
    }
    let at = usize::try_from(header.e_phoff)
        .map_err(|_| ImageError::Malformed("the place of its program headers"))?;
    let table = head
        .get(at..at.saturating_add(usize::from(header.e_phnum) * SEGMENT_BYTES))
        .ok_or(ImageError::Truncated { what: "the program headers" })?;
    let segments: Vec<ProgramHeader> =
        elf::segment::SegmentTable::new(LittleEndian, class, table).iter().collect();
    let notes = segments.iter().filter(|segment| segment.p_type == PT_NOTE).map(|note| note.p_filesz);
    if notes.fold(0, u64::saturating_add) > MAX_NOTE_BYTES {
        return Err(ImageError::Malformed("its notes are larger than 64 KiB"));
    }
    let sections = Table::of(&header);
    Ok(Headers { entry: header.e_entry, segments, sections, offset: 0 })
}

/// Refuses segments of which two put bytes into the same place: with many of them, the bytes of a small file would be
/// copied again and again. Each segment is compared with the furthest end before it, since segments without bytes may
/// lie between two that overlap.
fn check_overlap(loads: &mut [&ProgramHeader]) -> Result<(), ImageError> {
    loads.sort_unstable_by_key(|load| load.p_paddr);
    let mut end = 0;
    for load in loads.iter().filter(|load| load.p_filesz > 0) {
        if load.p_paddr < end {
            return Err(ImageError::Malformed("two segments have bytes for the same place"));
        }
        end = load.p_paddr + load.p_filesz;
    }
    Ok(())
}

/// `len` zero bytes.
fn zeroed(len: usize) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| PayloadError::NoMemory(Format::Plain))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn check_segment(segment: &ProgramHeader) -> Result<(), ImageError> {
    if segment.p_offset.checked_add(segment.p_filesz).is_none() {
        return Err(ImageError::Malformed("a segment's place in the file"));
    }
    if segment.p_type == PT_NOTE && segment.p_filesz > MAX_NOTE_BYTES {
        return Err(ImageError::Malformed("its notes are larger than 64 KiB"));
    }
    if segment.p_type == PT_LOAD {
        if segment.p_filesz > segment.p_memsz {
            return Err(ImageError::Malformed("a segment is larger in the file than in memory"));
        }
        if segment.p_paddr.checked_add(segment.p_memsz).is_none_or(|end| end > MAX_PADDR) {
            return Err(ImageError::Malformed("a segment's physical address"));
        }
    }
    Ok(())
}

/// Copies every byte of every segment to its place as the stream passes, and returns the bytes of each note
/// segment.
async fn copy_segments(
    head: &[u8],
    source: &mut Stream<'_>,
    segments: &[ProgramHeader],
    sink: &mut impl ImageSink,
) -> Result<Vec<Vec<u8>>, ImageError> {
    let wanted = |segment: &&ProgramHeader| matches!(segment.p_type, PT_LOAD | PT_NOTE);
    let end = segments.iter().filter(wanted).map(|s| s.p_offset + s.p_filesz).max().unwrap_or(0);
    let mut notes: Vec<Vec<u8>> = segments
        .iter()
        .filter(|segment| segment.p_type == PT_NOTE)
        .map(|segment| zeroed(segment.p_filesz as usize))
        .collect::<Result<_, _>>()?;
    let mut buffer = zeroed(HEAD_BYTES)?;
    let mut at = 0u64;
    let mut chunk = head;
    loop {
        let chunk_end = at + chunk.len() as u64;
        let mut note = 0;
        for segment in segments.iter().filter(wanted) {
            let from = segment.p_offset.max(at);
            let to = (segment.p_offset + segment.p_filesz).min(chunk_end);
            if from < to {
                let bytes = &chunk[(from - at) as usize..(to - at) as usize];
                let within = from - segment.p_offset;
                if segment.p_type == PT_NOTE {
                    notes[note][within as usize..][..bytes.len()].copy_from_slice(bytes);
                } else {
                    sink.write(segment.p_paddr + within, bytes).map_err(ImageError::Memory)?;
                    // Other tasks must not wait for a whole kernel.
                    pvrt::yield_now().await;
                }
            }
            note += usize::from(segment.p_type == PT_NOTE);
        }
        at = chunk_end;
        if at >= end {
            break;
        }
        let got = source.read_full(&mut buffer).await?;
        if got == 0 {
            return Err(ImageError::Truncated { what: "a segment" });
        }
        chunk = &buffer[..got];
    }
    source.finish(&mut buffer).await?;
    Ok(notes)
}

/// Whether a ramdisk is decompressed on its way into the domain: only a gzip file is, as with libxl.
pub fn ramdisk_is_inflated(file: &[u8]) -> bool {
    super::payload::Format::detect(file) == super::payload::Format::Gzip
}
