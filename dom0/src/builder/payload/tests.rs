//! All formats alike: whole, cut, changed.

use super::gzip::CRC32;
use super::*;
use alloc::string::ToString;

pub(super) const LIMITS: Limits = Limits { output: 1 << 20, memory: 8 << 20 };

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

pub(super) fn xz(data: &[u8]) -> Vec<u8> {
    use lzma_rust2::Write;
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut writer = lzma_rust2::XzWriter::new(StdVec(Vec::new()), options).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap().0
}

/// A stream as the `lzma` tool writes it, with the length stated or with an end mark.
pub(super) fn lzma(data: &[u8], sized: bool) -> Vec<u8> {
    use lzma_rust2::Write;
    let options = lzma_rust2::LzmaOptions::with_preset(1);
    let size = sized.then_some(data.len() as u64);
    let mut writer = lzma_rust2::LzmaWriter::new_use_header(StdVec(Vec::new()), &options, size).unwrap();
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

pub(super) fn packed_zstd(data: &[u8]) -> Vec<u8> {
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
    read_within(bytes, trailer, step, LIMITS)
}

pub(super) fn read_within(
    bytes: &[u8],
    trailer: usize,
    step: usize,
    limits: Limits,
) -> Result<Vec<u8>, PayloadError> {
    let mut source = open(bytes, trailer, limits)?;
    let mut out = Vec::new();
    let mut buffer = alloc::vec![0; step];
    loop {
        match source.step(&mut buffer)? {
            Step::End => return Ok(out),
            Step::Busy => {}
            Step::Bytes(n) => out.extend_from_slice(&buffer[..n]),
        }
    }
}

#[test]
fn every_format_gives_the_bytes_back_with_and_without_trailer() {
    let data = sample();
    for packed in
        [gzip(&data), xz(&data), packed_zstd(&data), lz4(&data), lzma(&data, true), lzma(&data, false)]
    {
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
    for packed in
        [gzip(&data), xz(&data), packed_zstd(&data), lz4(&data), lzma(&data, true), lzma(&data, false)]
    {
        let format = Format::detect(&packed);
        for cut in [packed.len() - 1, packed.len() / 2, 12] {
            assert!(read_all(&packed[..cut], 0, 4096).is_err(), "{format:?} cut at {cut}");
        }
    }
}

#[test]
fn corruption_never_panics_and_checked_formats_notice() {
    let data = sample();
    for packed in
        [gzip(&data), xz(&data), packed_zstd(&data), lz4(&data), lzma(&data, true), lzma(&data, false)]
    {
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
fn unsupported_formats_are_named() {
    let error = open(b"BZh91AY&SY", 0, LIMITS).err().unwrap();
    assert_eq!(error.to_string(), "bzip2 compression is not supported");
}
