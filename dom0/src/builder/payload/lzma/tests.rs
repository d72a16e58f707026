use alloc::string::ToString;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::tests::{LIMITS, lzma, read_within};
use super::*;

fn read(file: &[u8]) -> Result<Vec<u8>, PayloadError> {
    read_within(file, 0, 1500, LIMITS)
}

#[test]
fn headers_are_checked() {
    let file = lzma(b"some bytes, some bytes, some bytes", true);
    assert_eq!(file[..3], [0x5d, 0, 0]);
    let mut huge = file.clone();
    huge[4] = 0x20;
    assert!(matches!(read(&huge), Err(PayloadError::Memory { format: Format::Lzma, .. })));
    // Invalid properties; properties with more context than any tool writes; another first byte.
    for (at, byte) in [(0, 225), (0, 4 + 9), (HEADER_BYTES, 1)] {
        let mut bad = file.clone();
        bad[at] = byte;
        let opened = LzmaAlone::new(&bad, &LIMITS).err();
        assert!(matches!(opened, Some(PayloadError::Corrupt { .. })), "byte {at}");
    }
    for cut in 3..HEADER_BYTES + 5 {
        assert_eq!(read(&file[..cut]), Err(PayloadError::Truncated(Format::Lzma)), "cut at {cut}");
    }
    let empty = lzma(b"", true);
    assert_eq!(read(&empty), Ok(Vec::new()));
}

#[test]
fn a_stream_ends_where_its_file_does() {
    let data: Vec<u8> = (0..9_000u32).flat_map(|n| (n / 5 * (n % 17)).to_le_bytes()).collect();
    for sized in [false, true] {
        let file = lzma(&data, sized);
        assert!(read(&file) == Ok(data.clone()));
        for cut in (HEADER_BYTES + 5..file.len() - 1).step_by(97).chain([file.len() - 1]) {
            assert!(read(&file[..cut]).is_err(), "{sized}: cut at {cut}");
        }
        let longer = [file, alloc::vec![0]].concat();
        assert!(read(&longer).is_err(), "{sized}");
    }
    // An end mark comes although the length is stated, before that length or behind it.
    let marked = |size: usize| {
        let mut file = lzma(&data, false);
        file[5..HEADER_BYTES].copy_from_slice(&(size as u64).to_le_bytes());
        read(&file)
    };
    assert!(marked(data.len()) == Ok(data.clone()));
    let error = marked(data.len() + 1).unwrap_err().to_string();
    assert_eq!(error, "the lzma stream is corrupt: it is shorter than it states");
    assert!(marked(data.len() - 1).is_err());
}

#[test]
fn no_step_gives_much() {
    let file = lzma(&alloc::vec![0; 8 << 20], false);
    let mut source = LzmaAlone::new(&file, &Limits { output: 8 << 20, ..LIMITS }).unwrap();
    let (mut buffer, mut total, mut steps) = (alloc::vec![0; 1 << 20], 0, 0);
    loop {
        match source.step(&mut buffer).unwrap() {
            Step::Bytes(count) => {
                assert!(count < MAX_WAITING + LONGEST);
                total += count;
            }
            Step::Busy => {}
            Step::End => break,
        }
        steps += 1;
    }
    assert!(total == 8 << 20 && steps >= total / (MAX_WAITING + LONGEST));
    let error = read_within(&file, 0, 4096, LIMITS).unwrap_err();
    assert_eq!(error, PayloadError::TooLarge { format: Format::Lzma, limit: LIMITS.output });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn it_reads_what_the_crate_wrote(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..30),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..10_000),
        sized in any::<bool>(),
    ) {
        let data: Vec<u8> = picks.iter().flat_map(|pick| pick.get(&words).clone()).collect();
        prop_assert!(read(&lzma(&data, sized)) == Ok(data));
    }

    #[test]
    fn any_change_is_survived(at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let data: Vec<u8> = (0..9_000u32).flat_map(|n| (n / 5 * (n % 17)).to_le_bytes()).collect();
        let mut file = lzma(&data, false);
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        let _ = read(&file);
    }
}
