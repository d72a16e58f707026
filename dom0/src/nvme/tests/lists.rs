//! Lists of pages: any pieces of memory, against a reader that knows nothing of how the lists are made.

use super::*;
use crate::blkqueue::Part;
use crate::nvme::prp::{Extent, LIST_BYTES, MOST_BYTES, Pages, continues};

/// The bytes' addresses, as pieces of 512 bytes.
fn sectors(pieces: impl IntoIterator<Item = (u64, usize)>) -> Vec<u64> {
    pieces.into_iter().flat_map(|(maddr, len)| (maddr..maddr + len as u64).step_by(512)).collect()
}

/// What the controller reads from the entries and the list of `pages`.
fn read_back(pages: &Pages, bytes: u64) -> Vec<u64> {
    let arena = Arena::default();
    let list = arena.pages(1).maddr(0) + 4096 - LIST_BYTES as u64;
    for (index, entry) in pages.list().iter().enumerate() {
        arena.write(list + 8 * index as u64, &entry.to_le_bytes());
    }
    let model = Model::new(&arena, Limits::default());
    let [first, second] = pages.entries(list);
    sectors(model.pieces(first, second, bytes as usize))
}

fn part(page: u64, sector: u64, sectors: u32) -> Part {
    Part { maddr: page * 4096 + sector * 512, len: 512 * sectors }
}

fn filled(parts: &[Part], most: u64, block: u64) -> Option<(usize, u64, Vec<u64>)> {
    let mut pages = Pages::new();
    let Extent { parts, bytes } = pages.fill(parts, most, block)?;
    Some((parts, bytes, read_back(&pages, bytes)))
}

#[test]
fn pieces_and_their_lists() {
    // A piece amid a page; with one whole page behind; pages in a row; the end cut; the end and the start cut.
    for parts in [
        &[part(7, 3, 2)][..],
        &[part(7, 3, 5), part(9, 0, 8)],
        &[part(1, 0, 8), part(2, 0, 8), part(3, 0, 8)],
        &[part(5, 0, 8), part(1, 0, 8), part(9, 0, 3)],
        &[part(5, 7, 1), part(1, 0, 8), part(9, 0, 1)],
        &[part(5, 2, 2), part(5, 4, 2), part(5, 6, 2)],
        &[part(5, 6, 8), part(6, 6, 2), part(9, 0, 8)],
    ] {
        let (taken, bytes, read) = filled(parts, MOST_BYTES, 512).unwrap();
        assert_eq!(taken, parts.len());
        assert_eq!(bytes, parts.iter().map(|part| u64::from(part.len)).sum::<u64>());
        assert_eq!(read, sectors(parts.iter().map(|part| (part.maddr, part.len as usize))));
    }
}

#[test]
fn where_a_command_must_end() {
    let whole = part(3, 0, 8);
    for (parts, most, taken) in [
        (&[part(1, 0, 4), whole][..], MOST_BYTES, 1),
        (&[whole, part(4, 1, 2), whole], MOST_BYTES, 1),
        (&[whole, part(9, 1, 2)], MOST_BYTES, 1),
        (&[whole; 129], MOST_BYTES, 128),
        (&[whole; 3], 8192, 2),
        (&[whole; 3], 12287, 2),
    ] {
        assert_eq!(filled(parts, most, 512).map(|(parts, ..)| parts), Some(taken), "{most}: {parts:?}");
    }
    // Blocks of 4 KiB from two pieces: possible where the pieces make one run of pages, else not.
    assert_eq!(filled(&[part(1, 4, 4), part(9, 0, 4)], MOST_BYTES, 4096).map(|(parts, ..)| parts), Some(2));
    assert_eq!(filled(&[part(1, 0, 4), part(9, 4, 4)], MOST_BYTES, 4096), None);
    assert_eq!(filled(&[whole, part(1, 0, 4), part(9, 4, 4)], MOST_BYTES, 4096).map(|(p, ..)| p), Some(1));
    assert_eq!(filled(&[], MOST_BYTES, 512), None);
}

proptest! {
    /// Whatever the pieces: the controller reads exactly the first of them, as many as are whole blocks, and no more than
    /// the controller takes.
    #[test]
    fn a_list_is_what_it_was_made_of(
        pieces in proptest::collection::vec((0u64..12, 0u64..8, 1u32..9), 1..160),
        most in 1u64..=128,
        shift in 9u32..=12,
        smooth in any::<bool>(),
    ) {
        let parts: Vec<Part> = pieces.into_iter().enumerate().map(|(index, (page, sector, count))| {
            if smooth && index > 0 { part(page, 0, 8) } else { part(page, sector, count.min(8 - sector as u32)) }
        }).collect();
        let (most, block) = (most * 4096, 1u64 << shift);
        let Some((taken, bytes, read)) = filled(&parts, most, block) else {
            // Not even a block can be told of: the pieces before a break are less than a block.
            let run = 1 + parts.windows(2).take_while(|pair| continues(&pair[0], &pair[1])).count();
            let mut sum = 0;
            let sums = parts[..run].iter().map(|part| { sum += u64::from(part.len); sum });
            prop_assert!(!sums.into_iter().any(|bytes| bytes <= most && bytes.is_multiple_of(block)));
            return Ok(());
        };
        prop_assert!(taken > 0 && bytes > 0 && bytes <= most && bytes.is_multiple_of(block));
        prop_assert_eq!(bytes, parts[..taken].iter().map(|part| u64::from(part.len)).sum::<u64>());
        prop_assert_eq!(read, sectors(parts[..taken].iter().map(|part| (part.maddr, part.len as usize))));
    }
}

/// A request whose pieces make no run of pages is done piece by piece, and nothing of it is lost.
#[test]
fn odd_pieces_are_several_commands_one_after_the_other() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(4);
    let pages: Vec<_> = (0..6).map(|_| arena.pages(1).maddr(0)).collect();
    let segments = [(0, 0, 3), (1, 5, 2), (2, 0, 8), (3, 0, 8), (4, 7, 1), (5, 0, 8)];
    let segments = segments.map(|(page, sector, sectors)| Segment {
        maddr: Maddr::new(pages[page] + 512 * sector),
        len: 512 * sectors,
    });
    disk.submit(&client, 5, BlockOp::Read, 100, &segments).unwrap();
    let mut turns = 0;
    while disk.in_flight() > 0 {
        turn(&model, &disk);
        turns += 1;
        assert!(turns < 10);
    }
    assert_eq!((ends(&client), model.counts().0), (alloc::vec![(5, true)], 4));
    let mut at = 100 * 512;
    for segment in segments {
        let len = segment.len as usize;
        assert_eq!(arena.bytes(segment.maddr.raw(), len), model.content(at, len));
        at += len;
    }
}
