//! Views of memory that others change.

use alloc::vec::Vec;

use super::*;

#[test]
fn copies_of_every_length_and_alignment() {
    let bytes = leaked_pages(1);
    let pattern: Vec<u8> = (0..600).map(|i| (i * 7 + 1) as u8).collect();
    for offset in [0, 1, 3, 4, 8, 9, 2047] {
        for len in (0..40).chain([255, 256, 257, 263, 264, 600]) {
            bytes.fill(0, PAGE_SIZE, 0xee);
            bytes.write(offset, &pattern[..len]);
            let mut back = alloc::vec![0; len];
            bytes.read(offset, &mut back);
            assert_eq!(back, pattern[..len], "{offset} {len}");
            let (page, to) = (leaked_pages(1), 8 + len % 3);
            bytes.copy_to(offset, &page, to, len);
            page.read(to, &mut back);
            assert_eq!(back, pattern[..len], "{offset} {len} to {to}");
            assert_eq!((page.load_u8(to - 1), page.load_u8(to + len)), (0, 0));
            assert_eq!(bytes.load_u8(offset + len), 0xee);
            if offset > 0 {
                assert_eq!(bytes.load_u8(offset - 1), 0xee);
            }
        }
    }
}

#[test]
fn last_byte_is_inside_and_next_is_not() {
    let bytes = leaked_pages(1);
    bytes.store_u32(PAGE_SIZE - 4, 7);
    assert_eq!(bytes.read_value::<u32>(PAGE_SIZE - 4), 7);
    assert!(bytes.slice(0, PAGE_SIZE).is_some());
    assert!(bytes.slice(8, PAGE_SIZE).is_none());
    assert!(bytes.slice(usize::MAX - 7, 8).is_none());
    assert!(SharedPage::of(bytes, 0).is_some());
    assert!(SharedPage::of(bytes, 1).is_none());
    assert!(SharedPage::of(bytes, usize::MAX).is_none());
}

#[test]
#[should_panic = "outside"]
fn one_past_the_end() {
    let _ = leaked_pages(1).load_u8(PAGE_SIZE);
}

#[test]
#[should_panic = "outside"]
fn length_that_wraps() {
    leaked_pages(1).fill(usize::MAX, 2, 0);
}

#[test]
#[should_panic = "outside"]
fn a_copy_past_the_target() {
    leaked_pages(2).copy_to(0, &leaked_pages(1), 8, PAGE_SIZE);
}

#[test]
#[should_panic = "misaligned"]
fn misaligned() {
    let _ = leaked_pages(1).load_u32(2);
}

#[test]
fn read_modify_write() {
    let bytes = leaked_pages(1);
    assert_eq!(bytes.or_u64(8, 1 << 63), 0);
    assert_eq!(bytes.and_u64(8, !0 >> 1), 1 << 63);
    assert_eq!(bytes.compare_exchange_u32(8, 0, 5), Ok(0));
    assert_eq!(bytes.compare_exchange_u32(8, 0, 6), Err(5));
    assert_eq!(bytes.swap_u8(8, 9), 5);
    assert_eq!(bytes.load_u64(8), 9);
}
