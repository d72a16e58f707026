//! The driver against a controller in memory.

mod lies;
mod limits;
mod lists;
mod model;

use alloc::vec::Vec;

use backends::{BlockOp, Completion};
use proptest::prelude::*;
use pvrt::executor::block_on_test;
use ring_abi::types::{Maddr, PAGE_SIZE};

use self::limits::{Lie, Limits};
use self::model::{BLOCKS, Model};
use super::*;
use crate::hw::fake::{Arena, FakeDma};

type Disk = Arc<Nvme<FakeDma>>;

fn open(arena: &Arena, model: &Model) -> Result<(Disk, Service<FakeDma>), NvmeError> {
    block_on_test(Nvme::open("nvme0n1".into(), model.registers(), REGISTER_BYTES[1], arena))
}

fn disk(limits: Limits) -> (Arena, Model, Disk, Service<FakeDma>) {
    let arena = Arena::default();
    let model = Model::new(&arena, limits);
    let (disk, service) = open(&arena, &model).unwrap();
    (arena, model, disk, service)
}

fn segment(arena: &Arena) -> Segment {
    Segment { maddr: Maddr::new(arena.pages(1).maddr(0)), len: PAGE_SIZE as u32 }
}

/// The tags and outcomes of the ended operations, in the order of the tags.
fn ends(client: &Client) -> Vec<(u32, bool)> {
    let mut out = Vec::new();
    client.take(&mut out);
    let mut ends: Vec<_> = out.iter().map(|&Completion { tag, ok }| (tag, ok)).collect();
    ends.sort_unstable();
    ends
}

/// The driver gives its commands to the controller, which does them.
fn turn(model: &Model, disk: &Disk) {
    disk.kick();
    model.run();
    disk.service().unwrap();
}

#[test]
fn what_a_usual_disk_is_like() {
    let (_, _, disk, _) = disk(Limits::default());
    let geometry = disk.geometry();
    assert_eq!((geometry.sectors, geometry.seg_max), (BLOCKS, 128));
    assert_eq!((geometry.sector_size, geometry.physical_sector_size), (512, 512));
    assert!(geometry.flush && !geometry.read_only);
    assert_eq!(geometry.discard.map(|limits| (limits.granularity, limits.max_sectors)), Some((1, 1 << 20)));
    assert_eq!(disk.names(), ("Model of a controller", "serial one"));
}

#[test]
fn other_disks() {
    let geometry = |limits| disk(limits).2.geometry();
    let large = geometry(Limits { shift: 12, range: None, ..Limits::default() });
    assert_eq!((large.sectors, large.sector_size), (8 * BLOCKS, 4096));
    assert_eq!(large.discard.map(|limits| (limits.granularity, limits.max_sectors)), Some((8, u32::MAX - 7)));
    assert_eq!(geometry(Limits { most: 1, ..Limits::default() }).seg_max, 2);
    for most in [0, 9, 63, 255] {
        assert_eq!(geometry(Limits { most, ..Limits::default() }).seg_max, 128, "{most}");
    }
    let plain = geometry(Limits { cache: false, deallocates: false, namespaces: 3, ..Limits::default() });
    assert!(!plain.flush && plain.discard.is_none());
}

/// Each is refused with its reason, in bounded time, and all memory comes back.
#[test]
fn controllers_that_are_not_for_us() {
    let usual = Limits::default();
    for (limits, error) in [
        (Limits { nvm: false, ..usual }, NvmeError::Unsupported("no NVM command set")),
        (Limits { smallest_page: 1, ..usual }, NvmeError::Unsupported("no pages of 4 KiB")),
        (Limits { entries: 1, ..usual }, NvmeError::Unsupported("queues of one entry")),
        (Limits { stride: 15, ..usual }, NvmeError::Unsupported("doorbells too far from each other")),
        (Limits { namespaces: 0, ..usual }, NvmeError::Unsupported("no namespace")),
        (Limits { metadata: 8, ..usual }, NvmeError::BadNamespace("metadata with each block")),
        (Limits { shift: 8, ..usual }, NvmeError::BadNamespace("block size")),
        (Limits { shift: 13, ..usual }, NvmeError::BadNamespace("block size")),
        (Limits { starts: false, ..usual }, NvmeError::NotReady),
        (Limits { answers: false, ..usual }, NvmeError::NoAnswer("identify controller")),
        (
            Limits { refuses: Some((6, 0x002)), ..usual },
            NvmeError::Refused("identify controller", Status::failed(2).unwrap()),
        ),
        (
            Limits { refuses: Some((1, 0x102)), ..usual },
            NvmeError::Refused("create submission queue", Status::failed(0x102).unwrap()),
        ),
    ] {
        let arena = Arena::default();
        let model = Model::new(&arena, limits);
        let before = time::now_ns();
        assert_eq!(open(&arena, &model).err(), Some(error));
        assert!(time::now_ns() - before <= 12_000_000_000, "{error}");
        assert_eq!(arena.dropped(), arena.frames(), "{error}");
    }
    let arena = Arena::default();
    let model = Model::new(&arena, usual);
    model.pull();
    assert_eq!(open(&arena, &model).err(), Some(NvmeError::Gone));
}

#[test]
fn a_disk_takes_its_memory_when_it_is_opened_or_is_not_opened() {
    let (arena, ..) = disk(Limits::default());
    let all = arena.frames();
    for pages in 0..all {
        let arena = Arena::default();
        arena.limit(pages);
        let model = Model::new(&arena, Limits::default());
        assert_eq!(open(&arena, &model).err(), Some(NvmeError::OutOfMemory), "{pages} of {all} pages");
        assert_eq!(arena.dropped(), arena.frames());
    }
}

#[test]
fn write_flush_read_discard() {
    for shift in [9, 12] {
        let (arena, model, disk, _service) = disk(Limits { shift, ..Limits::default() });
        let client = Client::new(4);
        let (from, to) = (segment(&arena), segment(&arena));
        arena.fill(from.maddr.raw(), PAGE_SIZE, 0x5a);
        disk.submit(&client, 1, BlockOp::Write, 16, &[from]).unwrap();
        turn(&model, &disk);
        assert_eq!(ends(&client), [(1, true)]);
        disk.submit(&client, 2, BlockOp::Read, 16, &[to]).unwrap();
        turn(&model, &disk);
        assert_eq!(arena.bytes(to.maddr.raw(), PAGE_SIZE), [0x5a; PAGE_SIZE]);
        disk.submit(&client, 3, BlockOp::Discard { sectors: 8 }, 16, &[]).unwrap();
        turn(&model, &disk);
        assert_eq!(model.content(16 * 512, PAGE_SIZE), [0; PAGE_SIZE]);
        assert_eq!((ends(&client), disk.in_flight()), (alloc::vec![(2, true), (3, true)], 0));
    }
}

/// The answer to a flush comes after the controller has done the flush, and then all that was answered before lies on the
/// platter: a loss of power takes nothing of that.
#[test]
fn a_flush_is_answered_when_all_is_on_the_platter() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(4);
    let from = segment(&arena);
    arena.fill(from.maddr.raw(), PAGE_SIZE, 0x77);
    disk.submit(&client, 1, BlockOp::Write, 64, &[from]).unwrap();
    turn(&model, &disk);
    assert_eq!(ends(&client), [(1, true)]);
    assert_ne!(model.platter(64 * 512, PAGE_SIZE), [0x77; PAGE_SIZE], "the cache has it");
    disk.submit(&client, 2, BlockOp::Flush, 0, &[]).unwrap();
    disk.kick();
    disk.service().unwrap();
    assert_eq!(ends(&client), [], "not before the controller");
    model.run();
    disk.service().unwrap();
    assert_eq!(ends(&client), [(2, true)]);
    assert_eq!(model.platter(64 * 512, PAGE_SIZE), [0x77; PAGE_SIZE]);
}

#[test]
fn what_goes_on_where_another_ends_is_one_command() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(4);
    let segments: Vec<_> = (0..96).map(|_| segment(&arena)).collect();
    for (tag, part) in segments.chunks(32).enumerate() {
        disk.submit(&client, tag as u32, BlockOp::Read, 8 + 256 * tag as u64, part).unwrap();
    }
    turn(&model, &disk);
    assert_eq!(ends(&client), [(0, true), (1, true), (2, true)]);
    assert_eq!(model.counts().0, 1);
    for (index, segment) in segments.iter().enumerate() {
        let expected = model.content(8 * 512 + index * PAGE_SIZE, PAGE_SIZE);
        assert_eq!(arena.bytes(segment.maddr.raw(), PAGE_SIZE), expected, "page {index}");
    }
}

#[test]
fn of_a_joined_request_only_those_fail_that_do_alone() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(8);
    model.bad_block(1000 + 11, 0x281);
    let pages: Vec<_> = (0..4).map(|_| segment(&arena)).collect();
    for (tag, page) in pages.iter().enumerate() {
        arena.fill(page.maddr.raw(), PAGE_SIZE, tag as u8 + 1);
        disk.submit(&client, tag as u32, BlockOp::Write, 1000 + 8 * tag as u64, &[*page]).unwrap();
    }
    for _ in 0..5 {
        turn(&model, &disk);
    }
    assert_eq!(ends(&client), [(0, true), (1, false), (2, true), (3, true)]);
    assert_eq!((disk.in_flight(), model.counts().0), (0, 5));
    for tag in [0, 2, 3] {
        assert_eq!(model.content((1000 + 8 * tag) * 512, 1), [tag as u8 + 1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random requests with pieces of any kind: each ends once, and the disk has what was written.
    #[test]
    fn random_traffic(
        steps in proptest::collection::vec((0u8..4, 1usize..30, 0u64..200, any::<u8>()), 1..80),
        entries in 2u32..70,
        odd in any::<bool>(),
    ) {
        let (arena, model, disk, _service) = disk(Limits { entries, ..Limits::default() });
        let client = Client::new(4);
        let (mut expected, mut ended, mut end) = (0, 0, 0);
        for (tag, (kind, count, sector, fill)) in steps.into_iter().enumerate() {
            if kind >= 2 {
                disk.kick();
                model.run_some(count);
                disk.service().unwrap();
                ended += ends(&client).iter().filter(|(_, ok)| *ok).count();
                continue;
            }
            let segments: Vec<_> = (0..count).map(|index| {
                let maddr = segment(&arena).maddr.raw();
                arena.fill(maddr, PAGE_SIZE, fill);
                let cut = if odd { (usize::from(fill) + index) % 5 } else { 0 };
                let short = usize::from(odd && index % 3 == 0);
                Segment { maddr: Maddr::new(maddr + 512 * cut as u64), len: 512 * (8 - cut - short) as u32 }
            }).collect();
            let op = if kind == 0 { BlockOp::Read } else { BlockOp::Write };
            let sector = if fill % 2 == 0 && end < 1500 { end } else { sector };
            end = sector + segments.iter().map(|s| u64::from(s.len) / 512).sum::<u64>();
            match disk.submit(&client, tag as u32, op, sector, &segments) {
                Ok(()) => expected += 1,
                Err(error) => prop_assert_eq!(error, SubmitError::Full),
            }
        }
        for _ in 0..3000 {
            turn(&model, &disk);
            ended += ends(&client).iter().filter(|(_, ok)| *ok).count();
            if disk.in_flight() == 0 {
                break;
            }
        }
        prop_assert_eq!(ended, expected);
        prop_assert_eq!(disk.in_flight(), 0);
    }
}
