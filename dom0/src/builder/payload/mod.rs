//! A kernel or ramdisk file as a stream of bytes, decompressed as it is read.
//!
//! dom0 has little memory, kernels are large, and a kernel file may come from anybody. So three things are limited
//! for every file ([`Limits`] has the first two):
//!
//! - the output: no more than the domain has memory;
//! - the memory: a window of 128 MiB, and of no more than the output's limit; dom0 allocates the window piece by
//!   piece, as the output reaches it, and a lack of memory is an error;
//! - the work at a time: a [`ByteSource::step`] ends after some [`STEP_WORK`] instructions, and other tasks run; the
//!   window is freed piece by piece too ([`Stream::close`]).
//!
//! A decompressor in a domain of its own would limit all three from outside, and survive a panic of its own. There is
//! no such domain: its making costs more than the whole of a small domain's creation, it needs an image and a protocol
//! of its own, and its memory must be found beside the domain's. What runs here instead is safe code that takes memory
//! by asking.
//!
//! Formats: RFC 1952 (gzip), RFC 8878 (zstd), the XZ file format 1.2 with the x86 BCJ filter, LZMA as the tool of that name
//! writes it, the LZ4 "legacy" frame. Not bzip2: the crates for it turn a block of 900 kB back in one go, which is many
//! steps; and not lzo, for which there is no crate in safe code that stops where it is told.

mod gzip;
mod lz4;
mod lzma;
mod window;
mod xz;
mod zstd;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use gzip::Gzip;
use lz4::Lz4;
use lzma::LzmaAlone;
use window::Window;
use xz::Xz;
use zstd::Zstd;

/// The largest window that a compressed stream may ask for.
pub const MAX_WINDOW_BYTES: u64 = 128 << 20;
/// The most instructions of a step, as the decoders estimate them. Other tasks then wait at most a millisecond
/// even if an instruction takes three times as long as estimated.
const STEP_WORK: u64 = 300_000;

/// The limits of a stream. (I27)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of output.
    pub output: u64,
    /// Bytes of memory, for the window.
    pub memory: u64,
}

impl Limits {
    /// The limits of a file whose contents go into `bytes` of a domain's memory.
    pub fn for_memory(bytes: u64) -> Self {
        Self { output: bytes, memory: Window::bytes_for(MAX_WINDOW_BYTES) }
    }

    /// Checks that a stream may refer `window` bytes back. A window need not be larger than the limit of the
    /// output.
    fn check_window(&self, format: Format, window: u64) -> Result<(), PayloadError> {
        let needed = Window::bytes_for(window.min(1 << 48));
        if needed > self.memory {
            return Err(PayloadError::Memory { format, needed, limit: self.memory });
        }
        Ok(())
    }
}

/// The format of a file, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Anything else: the file is used unchanged.
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

    /// The format's name for messages.
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
    /// The format is one that dom0 does not decompress.
    Unsupported(Format),
    /// The bytes contradict the format.
    Corrupt {
        /// The stream's format.
        format: Format,
        /// In what way.
        what: String,
    },
    /// The file ends inside the stream.
    Truncated(Format),
    /// The file needs more memory than its limit.
    Memory {
        /// The stream's format.
        format: Format,
        /// Bytes that the file needs.
        needed: u64,
        /// Bytes that the file may use.
        limit: u64,
    },
    /// dom0 lacks the memory now.
    NoMemory(Format),
    /// The file's output exceeds its limit.
    TooLarge {
        /// The stream's format.
        format: Format,
        /// Bytes that the file may put out.
        limit: u64,
    },
}

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(format) => write!(f, "{} compression is not supported", format.name()),
            Self::Corrupt { format, what } => write!(f, "the {} stream is corrupt: {what}", format.name()),
            Self::Truncated(format) => write!(f, "the {} stream ends too early", format.name()),
            Self::Memory { format, needed, limit } => write!(
                f,
                "the {} stream needs {} KiB of memory to be decompressed, and may have {}",
                format.name(),
                needed >> 10,
                limit >> 10
            ),
            Self::NoMemory(format) => {
                write!(f, "not enough memory to decompress the {} stream", format.name())
            }
            Self::TooLarge { format, limit } => {
                write!(f, "the {} stream holds more than {limit} bytes", format.name())
            }
        }
    }
}

fn corrupt(format: Format, what: impl Into<String>) -> PayloadError {
    PayloadError::Corrupt { format, what: what.into() }
}

fn truncated(format: Format) -> PayloadError {
    PayloadError::Truncated(format)
}

/// `len` zero bytes.
fn filled(len: usize, format: Format) -> Result<Vec<u8>, PayloadError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| PayloadError::NoMemory(format))?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The number of bytes put out, at least one.
    Bytes(usize),
    /// No bytes yet: the stream needs further steps.
    Busy,
    /// The stream has ended.
    End,
}

/// A stream of bytes, made step by step.
pub trait ByteSource {
    /// Does a limited amount of work, and fills the start of `to`, which is not empty.
    ///
    /// # Errors
    /// What ended the stream early.
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError>;

    /// Frees a limited part of the stream's memory; there must be no further step. Returns whether more is left.
    fn release(&mut self) -> bool {
        false
    }
}

/// A stream whose output is limited.
pub struct Stream<'a> {
    source: Box<dyn ByteSource + Send + 'a>,
    format: Format,
    limit: u64,
    given: u64,
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("format", &self.format)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

/// Opens `bytes` in the format that its first bytes show. `trailer` bytes at the end are not part of the
/// stream.
///
/// # Errors
/// `Unsupported`, or an error in the format's header.
pub fn open(bytes: &[u8], trailer: usize, limits: Limits) -> Result<Stream<'_>, PayloadError> {
    let format = Format::detect(bytes);
    let body = &bytes[..bytes.len().saturating_sub(trailer)];
    let mut limit = limits.output;
    let source: Box<dyn ByteSource + Send + '_> = match format {
        Format::Plain => {
            // A plain file is in memory already, so its output needs no limit.
            limit = u64::MAX;
            Box::new(Plain(bytes))
        }
        Format::Gzip => Box::new(Gzip::new(body)?),
        Format::Xz => Box::new(Xz::new(body, &limits)?),
        Format::Zstd => Box::new(Zstd::new(body, &limits)?),
        Format::Lz4 => Box::new(Lz4::new(body)?),
        Format::Lzma => Box::new(LzmaAlone::new(body, &limits)?),
        Format::Bzip2 | Format::Lzo => return Err(PayloadError::Unsupported(format)),
    };
    Ok(Stream { source, format, limit, given: 0 })
}

impl Stream<'_> {
    /// Fills `to` as far as the stream goes, and returns how many bytes that were. Yields after each step.
    ///
    /// # Errors
    /// What ended the stream early; `TooLarge`.
    pub async fn read_full(&mut self, to: &mut [u8]) -> Result<usize, PayloadError> {
        let mut done = 0;
        while done < to.len() {
            match self.step(&mut to[done..])? {
                Step::Bytes(count) => done += count,
                Step::Busy => {}
                Step::End => break,
            }
            pvrt::yield_now().await;
        }
        Ok(done)
    }

    /// Reads to the end, where the checksum is checked.
    ///
    /// # Errors
    /// The errors of [`Stream::read_full`].
    pub async fn finish(&mut self, buffer: &mut [u8]) -> Result<(), PayloadError> {
        while self.format != Format::Plain && self.read_full(buffer).await? > 0 {}
        Ok(())
    }

    /// Frees the stream's memory piece by piece, with yields between. (A drop leaves that to a task.)
    pub async fn close(mut self) {
        while self.source.release() {
            pvrt::yield_now().await;
        }
    }
}

impl ByteSource for Stream<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let step = self.source.step(to)?;
        if let Step::Bytes(count) = step {
            self.given += count as u64;
            if self.given > self.limit {
                return Err(PayloadError::TooLarge { format: self.format, limit: self.limit });
            }
        }
        Ok(step)
    }
}

struct Plain<'a>(&'a [u8]);

impl ByteSource for Plain<'_> {
    fn step(&mut self, to: &mut [u8]) -> Result<Step, PayloadError> {
        let (now, rest) = self.0.split_at(to.len().min(self.0.len()));
        to[..now.len()].copy_from_slice(now);
        self.0 = rest;
        Ok(if now.is_empty() { Step::End } else { Step::Bytes(now.len()) })
    }
}

#[cfg(test)]
mod bombs;
#[cfg(test)]
mod tests;
