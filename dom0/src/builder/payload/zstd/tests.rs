use super::super::tests::{packed_zstd, read_within};
use super::super::{Format, Limits, PayloadError};
use super::*;
use proptest::prelude::*;
use ruzstd::io::Read as _;

const LIMITS: Limits = Limits { output: 64 << 20, memory: 80 << 20 };

fn read(file: &[u8]) -> Result<Vec<u8>, PayloadError> {
    read_within(file, 0, 40_000, LIMITS)
}

/// Decodes the file by the crate's decoder.
fn read_by_crate(file: &[u8]) -> Option<Vec<u8>> {
    let mut source = ruzstd::decoding::StreamingDecoder::new(file).ok()?;
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
    let header =
        |more: &[u8]| Header::read(&[&[0x28, 0xb5, 0x2f, 0xfd], more].concat()).map(|h| (h.window, h.bytes));
    assert_eq!(header(&[0, 17 << 3]), Ok((1 << 27, 6)));
    assert_eq!(header(&[0, 17 << 3 | 7]), Ok(((1 << 27) / 8 * 15, 6)));
    assert_eq!(header(&[0xa0, 1, 2, 3, 4]), Ok((0x0403_0201, 9)));
    assert_eq!(header(&[0x61, 0, 1, 2]), Ok((0x0201 + 256, 8)));
    assert_eq!(header(&[0x20, 9]), Ok((9, 6)));
    assert!(header(&[8, 0]).is_err() && header(&[0x21, 7, 9]).is_err());
    assert_eq!(header(&[0]), Err(PayloadError::Truncated(Format::Zstd)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn it_reads_what_the_crate_wrote(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..30),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20_000),
    ) {
        let data: Vec<u8> = picks.iter().flat_map(|pick| pick.get(&words).clone()).collect();
        prop_assert!(read(&packed_zstd(&data)) == Ok(data));
    }

    #[test]
    fn a_change_is_noticed_or_means_what_it_means_to_others(
        at in any::<prop::sample::Index>(), bit in 0u32..8, cut in any::<bool>(),
    ) {
        let data: Vec<u8> = (0..60_000u32).flat_map(|n| (n / 5 * (n % 17)).to_le_bytes()).collect();
        let mut file = packed_zstd(&data);
        let at = at.index(file.len());
        if cut { file.truncate(at) } else { file[at] ^= 1 << bit }
        let (ours, theirs) = (read(&file), read_by_crate(&file));
        if let Ok(ours) = ours {
            prop_assert!(theirs == Some(ours));
        }
    }
}
