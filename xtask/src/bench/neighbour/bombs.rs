//! Files that are no kernels but cost dom0 the most before dom0 finds that out: an ELF header and zeros for its one
//! segment, compressed.

use lzma_rust2::Write;

/// Bytes of the header's page, where the segment begins.
const HEAD: usize = 4096;
/// Bytes of the segment.
const SEGMENT: usize = 96 << 20;
/// Bytes of the segment for xz, fewer since compressing takes long here.
const SMALL_SEGMENT: usize = 16 << 20;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// An ELF header that claims `count` program headers, and the headers `segments`: kind, offset, bytes.
fn head(count: u16, segments: &[(u32, usize, usize)]) -> Vec<u8> {
    let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    head.resize(16, 0);
    head.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [1u64 << 20, 64, 0] {
        head.extend(word.to_le_bytes());
    }
    head.extend([0, 0, 0, 0, 64, 0, 56, 0]);
    head.extend(count.to_le_bytes());
    head.resize(64, 0);
    for (kind, offset, bytes) in segments {
        head.extend([kind.to_le_bytes(), 7u32.to_le_bytes()].concat());
        let (offset, bytes) = (*offset as u64, *bytes as u64);
        for word in [offset, 1 << 20, 1 << 20, bytes, bytes, 4096] {
            head.extend(word.to_le_bytes());
        }
    }
    head.resize(head.len().max(HEAD), 0);
    head
}

fn kernel(bytes: usize) -> Vec<u8> {
    head(1, &[(PT_LOAD, HEAD, bytes)])
}

/// zstd: a raw block, then RLE blocks of 128 KiB.
pub(super) fn zstd() -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let header = |last: bool, kind: u32, bytes: usize| {
        let word = u32::from(last) | kind << 1 | (bytes as u32) << 3;
        word.to_le_bytes()[..3].to_vec()
    };
    // A window of 8 MiB.
    let mut file =
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3][..], &header(false, 0, HEAD), &kernel(SEGMENT)].concat();
    let blocks = SEGMENT / BLOCK;
    for n in 1..=blocks {
        file.extend([header(n == blocks, 1, BLOCK), vec![0]].concat());
    }
    file
}

/// The legacy format: in each block of 8 MiB literals, and a match that repeats the last of them.
pub(super) fn lz4() -> Vec<u8> {
    const BLOCK: usize = 8 << 20;
    let length = |over: usize| [vec![255; over / 255], vec![(over % 255) as u8]].concat();
    let block = |literals: &[u8], bytes: usize| {
        // The last literals of a block are empty here.
        let matched = bytes - literals.len();
        [&[0xff][..], &length(literals.len() - 15), literals, &[1, 0], &length(matched - 19), &[0]].concat()
    };
    let mut file = vec![2, 0x21, 0x4c, 0x18];
    let kernel = kernel(SEGMENT);
    for n in 0..=SEGMENT / BLOCK {
        let packed = match n {
            0 => block(&kernel, BLOCK),
            _ => block(&[0; 16], BLOCK),
        };
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(packed);
    }
    file
}

/// A stored block, then one of the longest matches: 13 bits for 258 bytes.
pub(super) fn gzip() -> Vec<u8> {
    let stored = [&[0][..], &(HEAD as u16).to_le_bytes(), &(!(HEAD as u16)).to_le_bytes()].concat();
    let mut file = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &stored, &kernel(SEGMENT)].concat();
    let (mut word, mut used) = (0b011u64, 3);
    // Code 285 (a length of 258) most significant bit first, then distance code 0.
    let code = u64::from(0b1100_0101u8.reverse_bits());
    for _ in 0..SEGMENT.div_ceil(258) {
        word |= code << used;
        used += 13;
        while used >= 8 {
            file.push(word as u8);
            word >>= 8;
            used -= 8;
        }
    }
    // The end of the block is seven zeros; the sums are wrong.
    file.extend(word.to_le_bytes());
    file.extend([0; 16]);
    file
}

/// xz, compressed by a library.
pub(super) fn xz() -> Vec<u8> {
    let plain = [kernel(SMALL_SEGMENT), vec![0; SMALL_SEGMENT]].concat();
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
    let packed = lzma_rust2::XzWriter::new(Vec::new(), options).and_then(|mut writer| {
        writer.write_all(&plain)?;
        writer.finish()
    });
    packed.unwrap_or_default()
}

/// As many segments as dom0 reads, all full of the shortest notes.
pub(super) fn elf() -> Vec<u8> {
    const SEGMENTS: usize = 64;
    const BYTES: usize = 64 << 10;
    let mut segments = vec![(PT_LOAD, HEAD, BYTES)];
    segments.extend((1..SEGMENTS).map(|n| (PT_NOTE, HEAD + n * BYTES, BYTES)));
    [head(SEGMENTS as u16, &segments), vec![0; SEGMENTS * BYTES]].concat()
}

/// More program headers than there are bytes.
pub(super) fn elf_headers() -> Vec<u8> {
    let segments = vec![(PT_LOAD, HEAD, HEAD); 1170];
    [head(u16::MAX, &segments), vec![0; 4 << 20]].concat()
}
