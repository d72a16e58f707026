use super::super::tests::{read_within, xz};
use super::super::{Limits, PayloadError};
use super::*;
use lzma_rust2::Read as _;
use proptest::prelude::*;

const LIMITS: Limits = Limits { output: 64 << 20, memory: 80 << 20 };

/// Of the stream header's magic (The .xz File Format 1.2, 2.1.1.1).
const MAGIC_BYTES: usize = 6;

fn read(file: &[u8]) -> Result<Vec<u8>, PayloadError> {
    read_within(file, 0, 1500, LIMITS)
}

struct Slice<'a>(&'a [u8]);

impl lzma_rust2::Read for Slice<'_> {
    fn read(&mut self, to: &mut [u8]) -> lzma_rust2::Result<usize> {
        let (now, rest) = self.0.split_at(to.len().min(self.0.len()));
        to[..now.len()].copy_from_slice(now);
        self.0 = rest;
        Ok(now.len())
    }
}

/// Decodes the file by the crate's decoder.
fn read_by_crate(file: &[u8]) -> Option<Vec<u8>> {
    let mut source = lzma_rust2::XzReader::new(Slice(file), false);
    let (mut out, mut buffer) = (Vec::new(), alloc::vec![0; 40_000]);
    loop {
        match source.read(&mut buffer).ok()? {
            0 => return Some(out),
            n => out.extend_from_slice(&buffer[..n]),
        }
    }
}

#[test]
fn windows_are_read_from_the_header() {
    let window = |bits: u8| Header::read(&[2, 0, 0x21, 1, bits, 0, 0, 0]).map(|header| header.window);
    assert_eq!((window(0), window(1), window(30)), (Ok(4096), Ok(6144), Ok(128 << 20)));
    assert_eq!(window(40), Ok(u64::from(u32::MAX)));
    assert!(window(41).is_err());
    assert!(Header::read(&[2, 1, 3, 1, 0, 0x21, 1, 0]).is_err(), "another filter");
    for cut in 0..8 {
        let _ = Header::read(&[2, 1, 4, 0, 0x21, 1, 9, 0][..cut]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn it_reads_what_the_crate_wrote(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..30),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..10_000),
    ) {
        let data: Vec<u8> = picks.iter().flat_map(|pick| pick.get(&words).clone()).collect();
        prop_assert!(read(&xz(&data)) == Ok(data));
    }

    #[test]
    fn a_change_is_noticed_or_means_what_it_means_to_others(
        at in any::<prop::sample::Index>(), bit in 0u32..8, cut in any::<bool>(),
    ) {
        let data: Vec<u8> = (0..9_000u32).flat_map(|n| (n / 5 * (n % 17)).to_le_bytes()).collect();
        let mut file = xz(&data);
        // Without its first bytes, by which a file is known, this is no compressed file.
        let at = MAGIC_BYTES + at.index(file.len() - MAGIC_BYTES);
        if cut { file.truncate(at) } else { file[at] ^= 1 << bit }
        if let Ok(ours) = read(&file) {
            prop_assert!(read_by_crate(&file) == Some(ours));
        }
    }

    #[test]
    fn the_filter_takes_back_what_the_encoder_did(
        picks in prop::collection::vec(prop_oneof![Just(0xe8u8), Just(0xe9), Just(0), Just(0xff), any::<u8>()], 0..9_000),
    ) {
        prop_assert!(read(&xz(&picks)) == Ok(picks));
    }
}
