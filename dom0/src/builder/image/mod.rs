//! Kernel images: what they are, what their notes ask for, and their bytes on the way into a domain's memory.
//!
//! A kernel is an ELF64 file, plain or compressed, or the payload of a bzImage. It is read as a stream, in file order:
//! the headers come first and say how much memory the segments need; the segments are copied to their physical
//! addresses as they pass.
//!
//! Sources: ELF-64 object file format; the Linux/x86 boot protocol (`setup_sects`, `payload_offset`);
//! `xen/include/public/elfnote.h`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::ProgramHeader;

use super::notes::{KernelNotes, NoteError};
use super::payload::{Format, Limits, PayloadError, Stream, open};

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
    /// The notes are missing or ask for what cannot be.
    Notes(NoteError),
    /// The domain's memory cannot take it.
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
    /// Writes bytes at a physical address inside that range. Consecutive calls ascend, by and large.
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
    /// What it asks for.
    pub notes: KernelNotes,
}

/// The ELF file inside `file`: itself, or the payload of a bzImage, and the bytes after it that are not the stream's.
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
    // Zero means four: so it was before the field was there.
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

/// Loads the kernel in `file` into `sink`, the memory of a domain with `memory` bytes. It does a limited amount of work at
/// a time; others run between.
///
/// # Errors
/// See [`ImageError`]; the sink may have been written to.
pub async fn load(file: &[u8], memory: u64, sink: &mut impl ImageSink) -> Result<Kernel, ImageError> {
    let (payload, trailer) = locate(file)?;
    let mut source = open(payload, trailer, Limits::for_memory(memory))?;
    let kernel = load_from(&mut source, payload, sink).await;
    source.close().await;
    kernel
}

/// Loads the kernel that `source` gives; `payload` is the stream as the file has it.
async fn load_from(
    source: &mut Stream<'_>,
    payload: &[u8],
    sink: &mut impl ImageSink,
) -> Result<Kernel, ImageError> {
    let mut head = zeroed(HEAD_BYTES)?;
    let got = source.read_full(&mut head).await?;
    head.truncate(got);
    let (entry, segments) = parse_headers(&head)?;
    let mut loads: Vec<&ProgramHeader> =
        segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_memsz != 0).collect();
    check_overlap(&mut loads)?;
    let first =
        loads.iter().map(|load| load.p_paddr).min().ok_or(ImageError::Malformed("it has nothing to load"))?;
    let last = loads.iter().map(|load| load.p_paddr + load.p_memsz).max().unwrap_or(first);
    let (first, end) = (first & !0xfff, (last + 0xfff) & !0xfff);
    sink.begin(first, end).map_err(ImageError::Memory)?;

    let notes = copy_segments(&head, source, &segments, sink).await?;
    let mut parsed = KernelNotes::parse(&notes, entry)?;
    if parsed.is_none() && payload.starts_with(b"\x7fELF") {
        parsed = KernelNotes::from_legacy_section(payload, entry)?;
    }
    let notes = parsed.ok_or(NoteError::Missing)?;
    Ok(Kernel { first, end, notes })
}

/// The entry and the program headers, each checked by itself.
fn parse_headers(head: &[u8]) -> Result<(u64, Vec<ProgramHeader>), ImageError> {
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
    for segment in &segments {
        check_segment(segment)?;
    }
    let notes = segments.iter().filter(|segment| segment.p_type == PT_NOTE).map(|note| note.p_filesz);
    if notes.sum::<u64>() > MAX_NOTE_BYTES {
        return Err(ImageError::Malformed("its notes are larger than 64 KiB"));
    }
    Ok((header.e_entry, segments))
}

/// Refuses segments of which several put bytes into the same place: with many of them a small file would be copied over
/// and over. Each is held against the furthest end before it, since segments without bytes may lie between two that meet.
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

/// Copies every byte of every segment to its place as the stream passes, and gives the bytes of each note segment.
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
                    // Others must not wait for a whole kernel.
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

/// A ramdisk as it goes into the domain: inflated if it is a gzip file, as the reference toolstack does.
pub fn ramdisk_is_inflated(file: &[u8]) -> bool {
    super::payload::Format::detect(file) == super::payload::Format::Gzip
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::notes::tests::note;
    use alloc::boxed::Box;
    use core::task::{Context, Poll, Waker};
    use proptest::prelude::*;
    use pvrt::executor::block_on_test;
    use pvrt::{Account, yield_now};
    use ring_abi::elfnote::{XEN_ELFNOTE_LOADER, XEN_ELFNOTE_XEN_VERSION};

    const MEMORY: u64 = 1 << 20;
    /// Of a window.
    const PIECE: usize = 256 << 10;

    /// A domain of 1 MiB.
    #[derive(Default)]
    struct Memory {
        bytes: Vec<u8>,
        range: Option<(u64, u64)>,
    }

    impl ImageSink for Memory {
        fn begin(&mut self, first: u64, end: u64) -> Result<(), String> {
            if end > MEMORY {
                return Err("too large".into());
            }
            self.bytes = alloc::vec![0; end as usize];
            self.range = Some((first, end));
            Ok(())
        }

        fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), String> {
            let (first, end) = self.range.expect("begun");
            assert!(paddr >= first && paddr + bytes.len() as u64 <= end, "{paddr:#x}");
            self.bytes[paddr as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    /// `type, offset, paddr, bytes in the file, bytes in memory`.
    type Segment = (u32, u64, u64, u64, u64);

    fn elf(segments: &[Segment], body: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(2u16.to_le_bytes());
        file.extend(EM_X86_64.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for word in [0x1234u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for &(kind, offset, paddr, filesz, memsz) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, paddr, paddr, filesz, memsz, 8] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(0x200, 0);
        file.extend(body);
        file
    }

    fn notes() -> Vec<u8> {
        [note(XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0"), note(XEN_ELFNOTE_LOADER, b"generic\0")].concat()
    }

    /// Notes at 0x200, then 100,000 bytes, so that segments end behind the first chunk.
    fn sample() -> Vec<u8> {
        let notes = notes();
        let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let at = 0x200 + notes.len() as u64;
        let segments = [
            (PT_LOAD, at, 0x1000, 90_000, 95_000),
            (PT_LOAD, at + 90_000, 0x2_0800, 10_000, 10_000),
            (PT_NOTE, 0x200, 0, notes.len() as u64, notes.len() as u64),
        ];
        elf(&segments, &[notes, data].concat())
    }

    fn run(file: &[u8]) -> (Result<Kernel, ImageError>, Memory) {
        let mut memory = Memory::default();
        let result = block_on_test(load(file, MEMORY, &mut memory));
        (result, memory)
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = alloc::vec![0; 2 * 512];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        file.extend([0; 16]);
        file.extend(payload);
        file.extend([0; 4]);
        file
    }

    fn check(result: Result<Kernel, ImageError>, memory: &Memory) {
        let kernel = result.unwrap();
        assert_eq!((kernel.first, kernel.end), (0x1000, 0x2_3000));
        assert_eq!(kernel.notes.entry, 0x1234);
        let want = |n: u64| (n % 251) as u8;
        assert!((0..90_000).all(|n| memory.bytes[0x1000 + n as usize] == want(n)));
        assert!((0..10_000).all(|n| memory.bytes[0x2_0800 + n as usize] == want(90_000 + n)));
        assert!(memory.bytes[0x1000 + 90_000..0x2_0800].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn segments_go_to_their_physical_addresses() {
        let (result, memory) = run(&sample());
        check(result, &memory);
        let packed =
            ruzstd::encoding::compress_to_vec(&*sample(), ruzstd::encoding::CompressionLevel::Fastest);
        let (result, memory) = run(&packed);
        check(result, &memory);
        let (result, memory) = run(&bzimage(&packed));
        check(result, &memory);
    }

    /// A zstd stream of the sample kernel and 10 MiB behind it, with a window of 16 MiB.
    fn with_a_large_window() -> Vec<u8> {
        const REPEATED: u32 = 1 << 1 | (128 << 10) << 3;
        let kernel = sample();
        let mut file = alloc::vec![0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3];
        file.extend(&((kernel.len() as u32) << 3).to_le_bytes()[..3]);
        file.extend(&kernel);
        for n in 0..80 {
            file.extend(&(REPEATED | u32::from(n == 79)).to_le_bytes()[..3]);
            file.push(7);
        }
        file
    }

    /// Runs `future` for the account, for so many polls at most. Gives its result, the most bytes that the account used
    /// after a poll, and the most that the account got back in one poll, until no piece of a window was left.
    fn watch<T>(account: &Account, polls: usize, future: impl Future<Output = T>) -> (Option<T>, [usize; 2]) {
        let used = || account.figures().map_or(0, |figures| figures.used);
        let (before, mut most, mut dearest) = (used(), 0, 0);
        let mut future = Some(Box::pin(account.charge_future(future)));
        block_on_test(async {
            let mut result = None;
            for poll in 0.. {
                let at = used();
                if let Some(running) = &mut future {
                    let mut context = Context::from_waker(Waker::noop());
                    match running.as_mut().poll(&mut context) {
                        Poll::Ready(value) => (result, future) = (Some(value), None),
                        Poll::Pending if poll == polls => future = None,
                        Poll::Pending => {}
                    }
                } else if used() < before + PIECE {
                    // What is left is the result, and the sink's bytes.
                    break;
                } else {
                    // One turn of the task that gives the rest back.
                    yield_now().await;
                }
                (most, dearest) = (most.max(used()), dearest.max(at.saturating_sub(used())));
            }
            (result, [most, dearest])
        })
    }

    #[test]
    fn no_poll_gives_a_whole_window_back() {
        pvrt::host::set_memory(256 << 20);
        let account = Account::claim(64 << 20).unwrap();
        let file = with_a_large_window();
        let run = |memory, polls| {
            let mut sink = Memory::default();
            watch(&account, polls, load(&file, memory, &mut sink))
        };
        // Loaded; refused, since it puts out more than the domain has; dropped on the way.
        for (memory, polls, pieces) in
            [(64 << 20, usize::MAX, 40), (4 << 20, usize::MAX, 16), (64 << 20, 100, 20)]
        {
            let (result, [most, dearest]) = run(memory, polls);
            assert!(most > pieces * PIECE, "{most} bytes");
            assert!(dearest < 10 * PIECE, "{dearest} bytes back in one poll, of {most}");
            match result {
                Some(Ok(_)) => assert_eq!((memory, polls), (64 << 20, usize::MAX)),
                Some(Err(error)) => {
                    let limit = 4 << 20;
                    assert_eq!(error, PayloadError::TooLarge { format: Format::Zstd, limit }.into());
                }
                None => assert_eq!(polls, 100),
            }
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        let file = sample();
        for end in (0..600).chain((600..file.len()).step_by(997)) {
            assert!(run(&file[..end]).0.is_err(), "cut at {end}");
        }
        let packed = ruzstd::encoding::compress_to_vec(&*file, ruzstd::encoding::CompressionLevel::Fastest);
        let image = bzimage(&packed);
        for end in (0..image.len() - 1).step_by(61) {
            assert!(run(&image[..end]).0.is_err(), "bzImage cut at {end}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(run(b"#!/bin/sh").0, Err(ImageError::NotAKernel));
        assert_eq!(run(b"").0, Err(ImageError::NotAKernel));
        assert_eq!(
            run(&elf(&[], b"")).0,
            Err(ImageError::Malformed("the number or size of its program headers"))
        );
        let mut other = sample();
        other[18] = 3;
        assert_eq!(run(&other).0, Err(ImageError::WrongMachine));
        let no_notes = elf(&[(PT_LOAD, 0x200, 0, 16, 16)], &[0; 16]);
        assert_eq!(run(&no_notes).0, Err(ImageError::Notes(NoteError::Missing)));
        for segment in [
            (PT_LOAD, 0x200, 0, 17, 16),
            (PT_LOAD, u64::MAX, 0, 16, 16),
            (PT_LOAD, 0x200, u64::MAX - 8, 16, 16),
            (PT_LOAD, 0x200, 0, 0, u64::MAX),
            (PT_NOTE, 0x200, 0, u64::MAX / 2, 0),
        ] {
            assert!(
                matches!(run(&elf(&[segment], &[0; 16])).0, Err(ImageError::Malformed(_))),
                "{segment:x?}"
            );
        }
        // A small file that would be copied over and over.
        let same = [(PT_LOAD, 0x200, 0x1000, 16, 16); 64];
        let overlap = Err(ImageError::Malformed("two segments have bytes for the same place"));
        assert_eq!(run(&elf(&same, &[0; 8192])).0, overlap);
        let by_a_byte = [(PT_LOAD, 0x200, 0x2000, 16, 16), (PT_LOAD, 0x200, 0x1ff1, 16, 16)];
        assert_eq!(run(&elf(&by_a_byte, &[0; 16])).0, overlap);
        // One without bytes between the two, or many.
        let apart = [
            (PT_LOAD, 0x200, 0x2000, 16, 16),
            (PT_LOAD, 0x200, 0x2004, 0, 1),
            (PT_LOAD, 0x200, 0x2008, 16, 16),
        ];
        assert_eq!(run(&elf(&apart, &[0; 16])).0, overlap);
        let mut pairs = Vec::new();
        for at in 0..32 {
            pairs.extend([
                (PT_LOAD, 0x200, 0x2000 + 2 * at, 4096, 4096),
                (PT_LOAD, 0x200, 0x2001 + 2 * at, 0, 1),
            ]);
        }
        assert_eq!(run(&elf(&pairs, &[0; 8192])).0, overlap);
        let many_notes = [(PT_NOTE, 0x200, 0, MAX_NOTE_BYTES / 2 + 1, 0); 2];
        assert!(matches!(run(&elf(&many_notes, &[0; 16])).0, Err(ImageError::Malformed(_))));
        let large = elf(&[(PT_LOAD, 0x200, MEMORY, 16, 16)], &[0; 16]);
        assert_eq!(run(&large).0, Err(ImageError::Memory("too large".into())));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn no_header_can_make_it_panic(changes in prop::collection::vec((0usize..0x260, any::<u8>()), 1..6)) {
            let mut file = sample();
            for (at, byte) in changes {
                file[at] = byte;
            }
            let _ = run(&file);
        }
    }
}
