//! Bytes of a kernel or ramdisk file as a stream, decompressed on the way.
//!
//! dom0 is small and kernels are not: nothing here holds a whole image. The memory that a format needs is its own
//! window: 32 KiB for gzip, what the frame says for zstd (at most [`MAX_WINDOW_BYTES`]) and xz, one block of 8 MiB for
//! the kernel's lz4.
//!
//! Formats: RFC 1952 (gzip), RFC 8878 (zstd), the XZ file format 1.2 with the x86 BCJ filter, the LZ4 "legacy" frame.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use lzma_rust2::Read as _;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::io::Read as _;

/// The most memory that a compressed stream may ask for.
pub const MAX_WINDOW_BYTES: u32 = 128 << 20;

/// What a file's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Anything else: taken as it is.
    Plain,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
    /// lz4 in the kernel's legacy frame.
    Lz4,
    /// bzip2.
    Bzip2,
    /// lzma, without a container.
    Lzma,
    /// lzo in lzop's container.
    Lzo,
}

impl Format {
    /// The format of a file that starts with `bytes`.
    pub fn detect(bytes: &[u8]) -> Self {
        const MAGICS: [(&[u8], Format); 8] = [
            (&[0x1f, 0x8b, 0x08], Format::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
            (b"BZh", Format::Bzip2),
            (&[0x5d, 0, 0], Format::Lzma),
            (&[0x89, b'L', b'Z', b'O', 0], Format::Lzo),
            (&[0x1f, 0x9e], Format::Gzip),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map_or(Format::Plain, |(_, format)| *format)
    }

    /// Its name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        }
    }
}

/// Why a stream ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadError {
    /// The format is one that is not decompressed here.
    Unsupported(Format),
    /// The bytes contradict the format.
    Corrupt {
        /// Of this format.
        format: Format,
        /// How.
        what: String,
    },
    /// The file ends inside the stream.
    Truncated(Format),
    /// It asks for more memory than there is or than is allowed.
    Memory(Format),
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(format) => write!(f, "{} compression is not supported", format.name()),
            Self::Corrupt { format, what } => write!(f, "the {} stream is corrupt: {what}", format.name()),
            Self::Truncated(format) => write!(f, "the {} stream ends too early", format.name()),
            Self::Memory(format) => write!(f, "not enough memory to decompress the {} stream", format.name()),
        }
    }
}

/// A stream of bytes.
pub trait ByteSource {
    /// Fills the start of `to`; 0 only at the end of the stream or for an empty `to`.
    ///
    /// # Errors
    /// Whatever ends the stream before its end.
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError>;

    /// Fills `to` as far as the stream goes, and gives how far.
    ///
    /// # Errors
    /// As [`ByteSource::read`].
    fn read_full(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        let mut done = 0;
        while done < to.len() {
            match self.read(&mut to[done..])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }
}

/// Opens `bytes` as what its first bytes say. `trailer` bytes at the end are not the stream's.
///
/// # Errors
/// `Unsupported`, or what the format's header gives.
pub fn open<'a>(bytes: &'a [u8], trailer: usize) -> Result<Box<dyn ByteSource + Send + 'a>, PayloadError> {
    let format = Format::detect(bytes);
    let body = &bytes[..bytes.len().saturating_sub(trailer)];
    Ok(match format {
        Format::Plain => Box::new(Plain(bytes)),
        Format::Gzip => Box::new(Gzip::new(body)?),
        Format::Xz => {
            // A stream that does not say is refused by the decoder.
            ensure(format, xz_window(body).unwrap_or(0))?;
            Box::new(Xz(lzma_rust2::XzReader::new_mem_limit(Slice(body), false, MAX_WINDOW_BYTES / 1024)))
        }
        Format::Zstd => Box::new(Zstd::new(body)?),
        Format::Lz4 => Box::new(Lz4::new(body)?),
        Format::Bzip2 | Format::Lzma | Format::Lzo => return Err(PayloadError::Unsupported(format)),
    })
}

/// What a decoder needs besides its window.
const DECODER_BYTES: u64 = 1 << 20;

/// Fails when there is no memory for a window: the decoders take theirs without asking.
fn ensure(format: Format, window: u64) -> Result<(), PayloadError> {
    if window > u64::from(MAX_WINDOW_BYTES) {
        return Err(PayloadError::Memory(format));
    }
    let mut trial: Vec<u8> = Vec::new();
    trial.try_reserve_exact((window + DECODER_BYTES) as usize).map_err(|_| PayloadError::Memory(format))
}

/// The dictionary that the first block of an xz stream asks for.
fn xz_window(bytes: &[u8]) -> Option<u64> {
    const STREAM_HEADER_BYTES: usize = 12;
    const LZMA2: u8 = 0x21;
    let (_, mut rest) = bytes.get(STREAM_HEADER_BYTES..)?.split_first()?;
    let mut next = || {
        let (byte, after) = rest.split_first()?;
        rest = after;
        Some(*byte)
    };
    let flags = next()?;
    for present in [0x40, 0x80] {
        // A size, in groups of seven bits.
        while flags & present != 0 && next()? & 0x80 != 0 {}
    }
    for _ in 0..=flags & 3 {
        let (id, size) = (next()?, next()?);
        let first = if size > 0 { next()? } else { 0 };
        if id == LZMA2 {
            let bits = u32::from(first & 0x3f);
            return Some(if bits >= 40 {
                u64::from(u32::MAX)
            } else {
                u64::from(2 | bits & 1) << (bits / 2 + 11)
            });
        }
        for _ in 1..size {
            next()?;
        }
    }
    None
}

/// The window that a zstd frame asks for.
fn zstd_window(bytes: &[u8]) -> Option<u64> {
    const SINGLE_SEGMENT: u8 = 0x20;
    let descriptor = *bytes.get(4)?;
    if descriptor & SINGLE_SEGMENT == 0 {
        let window = u64::from(*bytes.get(5)?);
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * (window & 7));
    }
    // Then it is the size of the contents, behind the number of the dictionary.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let field =
        |len: usize| Some(bytes.get(at..at + len)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)));
    match descriptor >> 6 {
        0 => field(1),
        1 => Some(field(2)? + 256),
        2 => field(4),
        _ => field(8),
    }
}

struct Plain<'a>(&'a [u8]);

impl ByteSource for Plain<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        let (now, rest) = self.0.split_at(to.len().min(self.0.len()));
        to[..now.len()].copy_from_slice(now);
        self.0 = rest;
        Ok(now.len())
    }
}

/// How far back deflate refers.
const DEFLATE_WINDOW_BYTES: usize = 32 << 10;

struct Gzip<'a> {
    input: &'a [u8],
    state: Box<DecompressorOxide>,
    /// The last output, as a ring.
    window: Vec<u8>,
    /// What of the window was not yet taken.
    ready: Range<usize>,
    crc: crc::Digest<'static, u32, crc::Table<16>>,
    len: u32,
    done: bool,
}

static CRC32: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISO_HDLC);

impl<'a> Gzip<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let input = gzip_body(bytes).ok_or(PayloadError::Truncated(Format::Gzip))?;
        let window = alloc::vec![0; DEFLATE_WINDOW_BYTES];
        Ok(Self {
            input,
            state: Box::default(),
            window,
            ready: 0..0,
            crc: CRC32.digest(),
            len: 0,
            done: false,
        })
    }

    /// Fills the window from where it ended.
    fn inflate(&mut self) -> Result<(), PayloadError> {
        let start = self.ready.end % DEFLATE_WINDOW_BYTES;
        let (status, consumed, written) = decompress(&mut self.state, self.input, &mut self.window, start, 0);
        self.input = &self.input[consumed..];
        self.ready = start..start + written;
        self.crc.update(&self.window[self.ready.clone()]);
        self.len = self.len.wrapping_add(written as u32);
        match status {
            TINFLStatus::Done => {
                self.done = true;
                self.check_trailer()
            }
            TINFLStatus::HasMoreOutput => Ok(()),
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => {
                Err(PayloadError::Truncated(Format::Gzip))
            }
            other => Err(PayloadError::Corrupt { format: Format::Gzip, what: alloc::format!("{other:?}") }),
        }
    }

    fn check_trailer(&mut self) -> Result<(), PayloadError> {
        let word = |at: usize| Some(u32::from_le_bytes(self.input.get(at..at + 4)?.try_into().ok()?));
        let (Some(crc), Some(len)) = (word(0), word(4)) else {
            return Err(PayloadError::Truncated(Format::Gzip));
        };
        let corrupt = |what: &str| PayloadError::Corrupt { format: Format::Gzip, what: what.to_string() };
        if len != self.len {
            return Err(corrupt("its length is not the one it states"));
        }
        if crc != self.crc.clone().finalize() {
            return Err(corrupt("its checksum is not the one it states"));
        }
        Ok(())
    }
}

/// What follows the gzip header.
fn gzip_body(bytes: &[u8]) -> Option<&[u8]> {
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const HEADER_CRC: u8 = 2;
    let flags = *bytes.get(3)?;
    let mut rest = bytes.get(10..)?;
    if flags & EXTRA != 0 {
        let len = usize::from(u16::from_le_bytes(rest.get(..2)?.try_into().ok()?));
        rest = rest.get(2 + len..)?;
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            let end = rest.iter().position(|&byte| byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

impl ByteSource for Gzip<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        if to.is_empty() {
            return Ok(0);
        }
        while self.ready.is_empty() {
            if self.done {
                return Ok(0);
            }
            self.inflate()?;
        }
        let n = to.len().min(self.ready.len());
        to[..n].copy_from_slice(&self.window[self.ready.start..self.ready.start + n]);
        self.ready.start += n;
        Ok(n)
    }
}

/// A slice as the xz decoder reads it.
struct Slice<'a>(&'a [u8]);

impl lzma_rust2::Read for Slice<'_> {
    fn read(&mut self, to: &mut [u8]) -> lzma_rust2::Result<usize> {
        let (now, rest) = self.0.split_at(to.len().min(self.0.len()));
        to[..now.len()].copy_from_slice(now);
        self.0 = rest;
        Ok(now.len())
    }
}

struct Xz<'a>(lzma_rust2::XzReader<Slice<'a>>);

impl ByteSource for Xz<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        self.0.read(to).map_err(|error| match error {
            lzma_rust2::Error::Eof => PayloadError::Truncated(Format::Xz),
            lzma_rust2::Error::OutOfMemory(_) => PayloadError::Memory(Format::Xz),
            other => PayloadError::Corrupt { format: Format::Xz, what: alloc::format!("{other:?}") },
        })
    }
}

struct Zstd<'a>(ruzstd::decoding::StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>);

impl<'a> Zstd<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        ensure(Format::Zstd, zstd_window(bytes).unwrap_or(0))?;
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(bytes, u64::from(MAX_WINDOW_BYTES))
            .map(Self)
            .map_err(|error| PayloadError::Corrupt { format: Format::Zstd, what: alloc::format!("{error}") })
    }
}

impl ByteSource for Zstd<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        self.0.read(to).map_err(|error| {
            if error.kind() == ruzstd::io::ErrorKind::UnexpectedEof {
                PayloadError::Truncated(Format::Zstd)
            } else {
                PayloadError::Corrupt { format: Format::Zstd, what: alloc::format!("{error}") }
            }
        })
    }
}

/// Blocks of at most 8 MiB, each behind its compressed size.
struct Lz4<'a> {
    input: &'a [u8],
    block: Vec<u8>,
    at: usize,
}

impl<'a> Lz4<'a> {
    const BLOCK_BYTES: usize = 8 << 20;

    fn new(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        let input = bytes.get(4..).ok_or(PayloadError::Truncated(Format::Lz4))?;
        Ok(Self { input, block: Vec::new(), at: 0 })
    }

    fn next_block(&mut self) -> Result<bool, PayloadError> {
        if self.input.is_empty() {
            return Ok(false);
        }
        let truncated = || PayloadError::Truncated(Format::Lz4);
        let (size, rest) = self.input.split_at_checked(4).ok_or_else(truncated)?;
        let size = u32::from_le_bytes(size.try_into().map_err(|_| truncated())?) as usize;
        let (block, rest) = rest.split_at_checked(size).ok_or_else(truncated)?;
        if self.block.is_empty() {
            self.block.try_reserve_exact(Self::BLOCK_BYTES).map_err(|_| PayloadError::Memory(Format::Lz4))?;
        }
        self.block.resize(Self::BLOCK_BYTES, 0);
        let len = lz4_flex::block::decompress_into(block, &mut self.block).map_err(|error| {
            PayloadError::Corrupt { format: Format::Lz4, what: alloc::format!("{error}") }
        })?;
        self.block.truncate(len);
        (self.input, self.at) = (rest, 0);
        Ok(true)
    }
}

impl ByteSource for Lz4<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        if to.is_empty() {
            return Ok(0);
        }
        while self.at == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let n = to.len().min(self.block.len() - self.at);
        to[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        (0..300_000u32).map(|n| ((n / 7).wrapping_mul(n) % 251) as u8).collect()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = alloc::vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
        out.extend_from_slice(b"name\0");
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
        out.extend(CRC32.checksum(data).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        use lzma_rust2::Write;
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
        let mut writer = lzma_rust2::XzWriter::new(StdVec(Vec::new()), options).unwrap();
        writer.write_all(data).unwrap();
        writer.finish().unwrap().0
    }

    struct StdVec(Vec<u8>);
    impl lzma_rust2::Write for StdVec {
        fn write(&mut self, bytes: &[u8]) -> lzma_rust2::Result<usize> {
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> lzma_rust2::Result<()> {
            Ok(())
        }
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn lz4(data: &[u8]) -> Vec<u8> {
        let mut out = alloc::vec![2, 0x21, 0x4c, 0x18];
        for block in data.chunks(100_000) {
            let packed = lz4_flex::block::compress(block);
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn read_all(bytes: &[u8], trailer: usize, step: usize) -> Result<Vec<u8>, PayloadError> {
        let mut source = open(bytes, trailer)?;
        let mut out = Vec::new();
        let mut buffer = alloc::vec![0; step];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(out),
                n => out.extend_from_slice(&buffer[..n]),
            }
        }
    }

    #[test]
    fn every_format_gives_the_bytes_back_with_and_without_trailer() {
        let data = sample();
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4(&data)] {
            let format = Format::detect(&packed);
            assert!(read_all(&packed, 0, 4096).unwrap() == data, "{format:?}");
            let mut with_size = packed.clone();
            with_size.extend((data.len() as u32).to_le_bytes());
            assert!(read_all(&with_size, 4, 777).unwrap() == data, "{format:?} with trailer");
        }
        assert!(read_all(b"\x7fELF...", 0, 3).unwrap() == b"\x7fELF...");
    }

    #[test]
    fn truncation_is_an_error_everywhere() {
        let data = sample();
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4(&data)] {
            let format = Format::detect(&packed);
            for cut in [packed.len() - 1, packed.len() / 2, 12] {
                assert!(read_all(&packed[..cut], 0, 4096).is_err(), "{format:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn corruption_never_panics_and_checked_formats_notice() {
        let data = sample();
        for packed in [gzip(&data), xz(&data), zstd(&data), lz4(&data)] {
            let format = Format::detect(&packed);
            for at in (8..packed.len()).step_by(packed.len() / 61) {
                let mut bad = packed.clone();
                bad[at] ^= 0x55;
                let result = read_all(&bad, 0, 65536);
                if matches!(format, Format::Gzip | Format::Xz) && at > 20 {
                    assert!(result.is_err() || result.as_deref() == Ok(&data), "{format:?} byte {at}");
                }
            }
        }
    }

    #[test]
    fn windows_are_read_from_the_headers() {
        let data = sample();
        // Preset 1 has 1 MiB.
        assert_eq!(xz_window(&xz(&data)), Some(1 << 20));
        let window = zstd_window(&zstd(&data)).unwrap();
        assert!((1 << 10..=8 << 20).contains(&window), "{window}");
        assert_eq!(zstd_window(&[0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3]), Some(1 << 27));
        assert_eq!(zstd_window(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 1, 2, 3, 4]), Some(0x0403_0201));
        for cut in 0..20 {
            let _ = (xz_window(&xz(&data)[..cut]), zstd_window(&zstd(&data)[..cut]));
        }
        let huge = [0x28, 0xb5, 0x2f, 0xfd, 0, 0xff];
        assert_eq!(open(&huge, 0).err(), Some(PayloadError::Memory(Format::Zstd)));
    }

    #[test]
    fn unsupported_formats_are_named() {
        let error = open(b"BZh91AY&SY", 0).err().unwrap();
        assert_eq!(error.to_string(), "bzip2 compression is not supported");
    }
}
