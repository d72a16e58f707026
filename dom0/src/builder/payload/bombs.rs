//! Small files that ask for much memory or work.

use alloc::vec::Vec;

use super::gzip::CRC32;
use super::tests::LIMITS;
use super::*;

const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Blocks of one byte, 128 KiB long, behind a header that asks for a window of 128 MiB.
fn zstd_of_repeated_bytes(blocks: usize) -> Vec<u8> {
    let mut file = [&ZSTD[..], &[0, 17 << 3]].concat();
    for n in 0..blocks {
        let header = u32::from(n + 1 == blocks) | 1 << 1 | (128 << 10) << 3;
        file.extend(&header.to_le_bytes()[..3]);
        file.push(7);
    }
    file
}

/// Blocks with the most sequences, each with the longest match: one block alone would put out gigabytes.
fn zstd_of_long_matches() -> Vec<u8> {
    let mut file = [&ZSTD[..], &[0, 17 << 3]].concat();
    // One literal; 98,047 sequences, all of the same codes: no literals, the offset 1 (code 2), matches of 65,539.
    let mut body = alloc::vec![1 << 3, b'x', 0xff, 0xff, 0xff, 0b01_01_01_00, 1, 2, 52];
    body.extend([0xff; 60_000]);
    let header = 1 | 2 << 1 | (body.len() as u32) << 3;
    file.extend(&header.to_le_bytes()[..3]);
    file.extend(body);
    file
}

/// Blocks without output.
fn zstd_of_empty_blocks(blocks: usize) -> Vec<u8> {
    let mut file = [&ZSTD[..], &[0, 0]].concat();
    file.resize(file.len() + 3 * blocks, 0);
    file
}

/// Blocks of 8 MiB of one byte, in 33 KB each.
fn lz4_of_one_byte(blocks: usize) -> Vec<u8> {
    let mut file = alloc::vec![2, 0x21, 0x4c, 0x18];
    let mut block = alloc::vec![0x1f, b'x', 1, 0];
    block.resize(block.len() + ((8 << 20) - 100) / 255, 255);
    block.extend([0, 0]);
    for _ in 0..blocks {
        file.extend((block.len() as u32).to_le_bytes());
        file.extend(&block);
    }
    file
}

/// Tokens with no literals and no match, or with the shortest match.
fn lz4_of_short_matches() -> Vec<u8> {
    let mut block = alloc::vec![0x10, b'x', 1, 0];
    block.extend([0, 1, 0].repeat(130_000));
    let mut file = alloc::vec![2, 0x21, 0x4c, 0x18];
    file.extend((block.len() as u32).to_le_bytes());
    file.extend(block);
    file
}

fn gzip_of(deflated: &[u8]) -> Vec<u8> {
    [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], deflated, &[0; 8]].concat()
}

/// 64 MiB of zeros.
fn gzip_of_zeros() -> Vec<u8> {
    gzip_of(&miniz_oxide::deflate::compress_to_vec(&alloc::vec![0; 64 << 20], 9))
}

/// Stored blocks without contents.
fn gzip_of_empty_blocks(blocks: usize) -> Vec<u8> {
    gzip_of(&[0, 0, 0, 0xff, 0xff].repeat(blocks))
}

/// An xz stream whose one block has these LZMA2 chunks; its index and checksums are wrong.
fn xz_of(dictionary: u8, chunks: &[u8]) -> Vec<u8> {
    let mut file = alloc::vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0];
    file.extend(CRC32.checksum(&[0, 0]).to_le_bytes());
    let header = [2, 0, 0x21, 1, dictionary, 0, 0, 0];
    file.extend(header);
    file.extend(CRC32.checksum(&header).to_le_bytes());
    file.extend(chunks);
    file.push(0);
    file.resize(file.len().next_multiple_of(4), 0);
    file.extend([0, 1, 0, 0]);
    file
}

/// Chunks of one byte, each of which resets the decoder.
fn xz_of_tiny_chunks(chunks: usize) -> Vec<u8> {
    xz_of(0, &[0xe0, 0, 0, 0, 5, 0x5d, 0, 0, 0, 0, 0, 0].repeat(chunks))
}

/// Steps until the end or an error. Returns the bytes of output or the error, the number of steps, and the
/// most output of one step.
fn run(file: &[u8], limits: Limits) -> (Result<u64, PayloadError>, u64, usize) {
    let mut source = match open(file, 0, limits) {
        Ok(source) => source,
        Err(error) => return (Err(error), 0, 0),
    };
    let mut buffer = alloc::vec![0; 1 << 20];
    let (mut total, mut most) = (0, 0);
    for steps in 1.. {
        match source.step(&mut buffer) {
            Ok(Step::Bytes(count)) => {
                total += count as u64;
                most = most.max(count);
            }
            Ok(Step::Busy) => {}
            Ok(Step::End) => return (Ok(total), steps, most),
            Err(error) => return (Err(error), steps, most),
        }
    }
    unreachable!()
}

#[test]
fn no_file_gives_more_than_its_domain_has() {
    let limits = Limits::for_memory(8 << 20);
    for file in [zstd_of_repeated_bytes(800), lz4_of_one_byte(3), gzip_of_zeros()] {
        let format = Format::detect(&file);
        let (result, steps, most) = run(&file, limits);
        assert_eq!(result, Err(PayloadError::TooLarge { format, limit: 8 << 20 }));
        assert!(most <= 192 << 10, "{format:?} gave {most} bytes in one step");
        assert!(steps >= 40, "{format:?} took {steps} steps");
    }
}

#[test]
fn a_window_above_the_limit_is_refused_before_it_is_taken() {
    for (file, format) in [(zstd_of_repeated_bytes(1), Format::Zstd), (xz_of(30, &[1, 0, 0, 0]), Format::Xz)]
    {
        let (result, ..) = run(&file, LIMITS);
        let Err(PayloadError::Memory { format: told, needed, limit }) = result else {
            panic!("{format:?}: {result:?}");
        };
        assert!(told == format && needed > 128 << 20 && limit == LIMITS.memory);
    }
    let error = run(&zstd_of_repeated_bytes(1), LIMITS).0.unwrap_err();
    assert_eq!(
        alloc::format!("{error}"),
        "the zstd stream needs 131328 KiB of memory to be decompressed, and may have 8192"
    );
    let huge = [&ZSTD[..], &[0, 0xff]].concat();
    assert!(matches!(run(&huge, Limits::for_memory(1 << 40)).0, Err(PayloadError::Memory { .. })));
}

#[test]
fn a_block_gives_no_more_than_it_may() {
    let (result, steps, _) = run(&zstd_of_long_matches(), Limits::for_memory(1 << 30));
    assert!(matches!(result, Err(PayloadError::Corrupt { format: Format::Zstd, .. })), "{result:?}");
    assert!(steps < 20);
    let mut large = lz4_of_one_byte(1);
    let at = large.len() - 2;
    large[at] = 255;
    let (result, ..) = run(&large, Limits::for_memory(1 << 30));
    assert!(matches!(result, Err(PayloadError::Corrupt { format: Format::Lz4, .. })), "{result:?}");
}

#[test]
fn what_puts_out_nothing_lets_others_run() {
    for (file, at_least) in [
        (zstd_of_empty_blocks(100_000), 30),
        (gzip_of_empty_blocks(100_000), 900),
        (lz4_of_short_matches(), 40),
        ([&[2, 0x21, 0x4c, 0x18], &[0; 400_000][..]].concat(), 8),
    ] {
        let format = Format::detect(&file);
        let (_, steps, _) = run(&file, LIMITS);
        assert!(steps >= at_least, "{format:?}: {steps} steps");
    }
}

#[test]
fn an_xz_stream_cut_small_lets_others_run() {
    let (result, ..) = run(&xz_of_tiny_chunks(10_000), LIMITS);
    assert!(result.is_err(), "its end is wrong");
    // A reset costs more work than the chunk's output.
    let (result, steps, _) = run(&xz_of_tiny_chunks(10_000), Limits { output: 200, ..LIMITS });
    assert!(result.is_err() && steps >= 10, "{result:?} after {steps} steps");
    // An index that claims more blocks than there are.
    let mut file = xz_of(0, &[1, 0, 0, 7]);
    let at = file.len() - 3;
    file[at] = 0x7f;
    assert!(run(&file, LIMITS).0.is_err());
}
