//! The driver against an adapter in memory.

mod answer;
mod errors;
mod model;

use alloc::format;
use alloc::vec::Vec;

use backends::Completion;
use proptest::prelude::*;
use pvrt::executor::block_on_test;
use ring_abi::types::{Maddr, PAGE_SIZE};

use self::model::{Limits, Model, SECTORS};
use super::*;
use crate::hw::fake::{Arena, FakeDma};

type Disk = Arc<AhciDisk<FakeDma>>;
type Opened = (Disk, Service<FakeDma>);

/// The adapter's disks, which get the names sda, sdb, ...; and how many names were given.
fn open(arena: &Arena, model: &Model) -> Result<(Vec<Opened>, u8), AhciError> {
    block_on_test(async {
        let mut adapter = Adapter::open(model.registers(), REGISTER_BYTES[1], arena).await?;
        let mut names = 0;
        let name = || {
            names += 1;
            format!("sd{}", char::from(b'a' + names - 1))
        };
        let disks = adapter.disks("PCI", name, arena).await;
        Ok((disks.into_iter().map(|(_, disk, service)| (disk, service)).collect(), names))
    })
}

fn disk(limits: Limits) -> (Arena, Model, Disk, Service<FakeDma>) {
    let arena = Arena::default();
    let model = Model::new(&arena, limits);
    let (mut disks, names) = open(&arena, &model).unwrap();
    assert_eq!((disks.len(), names), (1, 1));
    let (disk, service) = disks.remove(0);
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

/// The driver gives its commands to the disk, which does them.
fn turn(model: &Model, disk: &Disk) {
    disk.kick();
    model.run();
    disk.service().unwrap();
}

const PLAIN: Limits = Limits {
    wide: true,
    slots: 32,
    queue: None,
    lba48: true,
    trims: true,
    sectors: SECTORS,
    resets: true,
    stops: true,
    ready: true,
    answers: true,
    staggered: true,
    clears_failed: true,
    serial: "serial two",
};

#[test]
fn what_a_usual_disk_is_like() {
    for limits in [Limits::default(), PLAIN] {
        let (_, _, disk, _service) = disk(limits);
        let geometry = disk.geometry();
        assert_eq!((geometry.sectors, geometry.seg_max), (SECTORS, 120));
        assert_eq!((geometry.sector_size, geometry.physical_sector_size), (512, 4096));
        assert!(geometry.flush && !geometry.read_only);
        assert_eq!(geometry.discard.map(|limits| limits.max_sectors), Some(64 * 65_535));
        assert_eq!(disk.names(), ("Model of a disk", "serial two"));
    }
    assert_eq!(disk(Limits { trims: false, ..PLAIN }).2.geometry().discard, None);
}

/// Each is refused in bounded time, and all memory comes back; a disk that cannot be used has had its name.
#[test]
fn what_is_not_for_us() {
    let usual = Limits::default();
    for (limits, error) in [
        (Limits { wide: false, ..usual }, Some(AhciError::Unsupported("no way to memory above 4 GiB"))),
        (Limits { resets: false, ..usual }, Some(AhciError::ResetTimeout)),
        (Limits { lba48: false, ..usual }, None),
        (Limits { sectors: 0, ..usual }, None),
        (Limits { sectors: 1 << 60, ..usual }, None),
        (Limits { ready: false, ..usual }, None),
        (Limits { answers: false, ..usual }, None),
    ] {
        let arena = Arena::default();
        let model = Model::new(&arena, limits);
        let before = time::now_ns();
        match (open(&arena, &model), error) {
            (Err(error), Some(expected)) => assert_eq!(error, expected),
            (Ok((disks, names)), None) => assert_eq!((disks.len(), names), (0, 1)),
            (Err(error), None) => panic!("{error}"),
            (Ok(_), Some(error)) => panic!("no {error}"),
        }
        assert!(time::now_ns() - before <= 12_000_000_000);
        assert_eq!(arena.dropped(), arena.frames());
    }
}

#[test]
fn a_disk_takes_its_memory_when_it_is_opened_or_is_not_opened() {
    // A page for the list, one for the answer, sixteen for tables; and the drive's list.
    for pages in 1..19 {
        let arena = Arena::default();
        arena.limit(pages);
        let model = Model::new(&arena, Limits::default());
        let (disks, names) = open(&arena, &model).unwrap();
        assert!(disks.is_empty() && names >= 1, "{pages} pages");
        assert_eq!(arena.dropped(), arena.frames());
    }
}

#[test]
fn write_flush_read_discard() {
    for limits in [Limits::default(), PLAIN] {
        let (arena, model, disk, _service) = disk(limits);
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
        let queued = limits.queue.is_some();
        let (write, read) = if queued { (0x61, 0x60) } else { (0x35, 0x25) };
        assert_eq!(model.commands().0, [0xec, write, read, 0x06]);
    }
}

/// The answer to a flush comes after the disk has done the flush, and then all that was answered before lies on the
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
    assert_eq!(ends(&client), [], "not before the disk");
    model.run();
    disk.service().unwrap();
    assert_eq!(ends(&client), [(2, true)]);
    assert_eq!(model.platter(64 * 512, PAGE_SIZE), [0x77; PAGE_SIZE]);
}

/// Reads and writes are queued together; what does not queue waits for them, and they for it.
#[test]
fn what_does_not_queue_is_alone() {
    let (arena, model, disk, _service) = disk(Limits { queue: Some(8), ..Limits::default() });
    let client = Client::new(8);
    for tag in 0..3 {
        disk.submit(&client, tag, BlockOp::Read, 100 * u64::from(tag), &[segment(&arena)]).unwrap();
    }
    disk.submit(&client, 3, BlockOp::Flush, 0, &[]).unwrap();
    for tag in 4..8 {
        disk.submit(&client, tag, BlockOp::Write, 100 * u64::from(tag), &[segment(&arena)]).unwrap();
    }
    assert_eq!(disk.submit(&client, 9, BlockOp::Flush, 0, &[]), Err(SubmitError::Full), "eight slots");
    turn(&model, &disk);
    assert_eq!(ends(&client), [0, 1, 2].map(|tag| (tag, true)));
    turn(&model, &disk);
    assert_eq!(ends(&client), [(3, true)]);
    turn(&model, &disk);
    assert_eq!(ends(&client), [4, 5, 6, 7].map(|tag| (tag, true)));
    assert_eq!(model.commands().0, [0xec, 0x60, 0x60, 0x60, 0xea, 0x61, 0x61, 0x61, 0x61]);
}

#[test]
fn the_longest_request_and_the_longest_discard() {
    let (arena, model, disk, _service) = disk(Limits::default());
    let client = Client::new(4);
    let segments: Vec<_> = (0..120).map(|_| segment(&arena)).collect();
    disk.submit(&client, 0, BlockOp::Read, 8, &segments).unwrap();
    turn(&model, &disk);
    assert_eq!(
        arena.bytes(segments[119].maddr.raw(), PAGE_SIZE),
        model.content(512 * 8 + 119 * 4096, PAGE_SIZE)
    );
    disk.submit(&client, 1, BlockOp::Discard { sectors: SECTORS - 1 }, 1, &[]).unwrap();
    turn(&model, &disk);
    assert!(model.content(512, (SECTORS as usize - 1) * 512).iter().all(|byte| *byte == 0));
    assert_eq!(ends(&client), [(0, true), (1, true)]);
    let ranges = commands::ranges(5, 65_535 * 2 + 7);
    assert_eq!(ranges[..4], [5 | 65_535 << 48, 65_540 | 65_535 << 48, 131_075 | 7 << 48, 0]);
    assert_eq!(commands::ranges(0, commands::TRIM_MOST)[63] >> 48, 65_535);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random requests with pieces of any kind, on disks that queue or not: each ends once.
    #[test]
    fn random_traffic(
        steps in proptest::collection::vec((0u8..5, 1usize..30, 0u64..200, any::<u8>()), 1..80),
        queue in proptest::option::of(1u16..=32),
        odd in any::<bool>(),
    ) {
        let (arena, model, disk, _service) = disk(Limits { queue, ..Limits::default() });
        let client = Client::new(4);
        let (mut expected, mut ended, mut end) = (0, 0, 0);
        for (tag, (kind, count, sector, fill)) in steps.into_iter().enumerate() {
            if kind >= 3 {
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
                Segment { maddr: Maddr::new(maddr + 512 * cut as u64), len: 512 * (8 - cut) as u32 }
            }).collect();
            let op = [BlockOp::Read, BlockOp::Write, BlockOp::Flush][usize::from(kind)];
            let segments = if kind == 2 { &[][..] } else { &segments[..] };
            let sector = if fill % 2 == 0 && end < 1500 { end } else { sector };
            end = sector + segments.iter().map(|s| u64::from(s.len) / 512).sum::<u64>();
            match disk.submit(&client, tag as u32, op, if kind == 2 { 0 } else { sector }, segments) {
                Ok(()) => expected += 1,
                Err(error) => prop_assert_eq!(error, SubmitError::Full),
            }
        }
        for _ in 0..200 {
            turn(&model, &disk);
            ended += ends(&client).iter().filter(|(_, ok)| *ok).count();
        }
        prop_assert_eq!(ended, expected);
        prop_assert_eq!(disk.in_flight(), 0);
    }
}
