//! Streams on a disk that loses power.

use alloc::sync::Arc;

use backends::{BlockDevice, Geometry, Segment, SubmitError};
use migration::format::PageEntry;
use migration::{Reader, Record, VcpuPart, Writer};
use pvrt::executor::block_on_test;
use pvrt::mem::map_foreign;
use ring_abi::types::DomId;
use spin::Mutex;

use super::*;

/// What a disk was told, in order: bytes at a place, or a flush.
enum Told {
    Write(usize, Vec<u8>),
    Flush,
}

/// A disk in memory with a cache that is lost without power.
struct Platter {
    bytes: Mutex<Vec<u8>>,
    told: Mutex<Vec<Told>>,
    waiting: Mutex<Vec<(Arc<Client>, u32, bool)>>,
    /// Writes at and beyond this byte fail.
    bad_from: usize,
}

impl Platter {
    fn new(bytes: usize, bad_from: usize) -> Arc<Self> {
        let (told, waiting) = (Mutex::default(), Mutex::default());
        Arc::new(Self { bytes: Mutex::new(alloc::vec![0xee; bytes]), told, waiting, bad_from })
    }
}

impl BlockDevice for Platter {
    fn geometry(&self) -> Geometry {
        let sectors = self.bytes.lock().len() as u64 / SECTOR;
        Geometry { sectors, seg_max: 8, ..crate::blkdev::tests::Silent.geometry() }
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let mut at = (sector * SECTOR) as usize;
        let is_good = op != BlockOp::Write || at < self.bad_from;
        for segment in segments.iter().filter(|_| is_good) {
            let page = map_foreign(DomId::SELF, &[segment.maddr.mfn()], true).unwrap();
            let mut disk = self.bytes.lock();
            let place = &mut disk[at..at + segment.len as usize];
            if op == BlockOp::Read {
                page.bytes().write(segment.maddr.offset(), place);
            } else {
                page.bytes().read(segment.maddr.offset(), place);
                self.told.lock().push(Told::Write(at, place.to_vec()));
            }
            at += segment.len as usize;
        }
        if op == BlockOp::Flush {
            self.told.lock().push(Told::Flush);
        }
        self.waiting.lock().push((client.clone(), tag, is_good));
        Ok(())
    }

    fn kick(&self) {
        for (client, tag, is_good) in self.waiting.lock().drain(..) {
            client.complete(tag, is_good);
        }
    }
}

const PAGES_SAVED: u64 = 150;

fn page(pfn: u64) -> [u8; PAGE_SIZE] {
    core::array::from_fn(|at| (pfn as usize + at / 7) as u8)
}

async fn save(device: SharedDevice) -> Result<(), String> {
    let sink = DiskSink::begin(device).await.map_err(|failure| failure.to_string())?;
    let sink = async {
        let mut writer = Writer::begin(sink, "{}").await?;
        writer.static_data(&[], &[]).await?;
        writer.p2m_frames(PAGES_SAVED as u32 - 1, &[0]).await?;
        for pfn in 0..PAGES_SAVED {
            writer.pages(&[PageEntry::new(pfn, 0)]).await?;
            writer.page(&page(pfn)).await?;
        }
        writer.shared_info(&page(0)).await?;
        writer.vcpu(0, VcpuPart::Basic, &[7; 16]).await?;
        writer.end().await
    };
    let sink = sink.await.map_err(|error| error.to_string())?;
    sink.finish().await.map_err(|failure| failure.to_string())
}

/// Reads a stream to its end; `false`: no whole one is there.
async fn is_whole(source: impl Source + Send) -> bool {
    let Ok((_, mut reader)) = Reader::open(source).await else { return false };
    loop {
        match reader.next().await {
            Err(_) => return false,
            Ok(Record::End) => return true,
            Ok(Record::Pages(list)) => {
                for entry in list {
                    let mut bytes = [0; PAGE_SIZE];
                    if reader.page(&mut bytes).await.is_err() || bytes != page(entry.pfn()) {
                        return false;
                    }
                }
            }
            Ok(_) => {}
        }
    }
}

#[test]
fn what_is_written_is_read() {
    block_on_test(async {
        let disk = Platter::new(800 << 10, usize::MAX);
        save(disk.clone()).await.unwrap();
        assert!(is_whole(DiskSource::new(disk.clone())).await);
        assert!(is_whole(&disk.bytes.lock().clone()[..]).await, "a host sees the stream as a file");
    });
}

/// Whatever the disk has done when the power goes, of what was not flushed any part: there is no stream, until the save is over.
#[test]
fn a_power_cut_leaves_no_stream_or_the_whole() {
    block_on_test(async {
        let disk = Platter::new(800 << 10, usize::MAX);
        // A stream of an earlier save is there.
        save(disk.clone()).await.unwrap();
        let mut before = disk.bytes.lock().clone();
        // Behind the first page, the earlier stream has other bytes.
        before[PAGE_SIZE..].iter_mut().for_each(|byte| *byte ^= 0x55);
        disk.told.lock().clear();
        save(disk.clone()).await.unwrap();
        let told = core::mem::take(&mut *disk.told.lock());
        let mut platter = before;
        let mut cached: Vec<(usize, &[u8])> = Vec::new();
        let zeroed = told.iter().position(|told| matches!(told, Told::Flush)).unwrap();
        for (step, told) in told.iter().enumerate() {
            match told {
                Told::Write(at, bytes) => cached.push((*at, bytes)),
                Told::Flush => {
                    for (at, bytes) in cached.drain(..) {
                        platter[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            // All of the cache is kept, or its newest part, or nothing.
            for kept in [0, 1, cached.len()] {
                let mut after = platter.clone();
                for (at, bytes) in cached.iter().rev().take(kept) {
                    after[*at..at + bytes.len()].copy_from_slice(bytes);
                }
                let was_begun = step >= zeroed;
                let is_there = is_whole(&after[..]).await;
                let is_empty = after[..PAGE_SIZE].iter().all(|byte| *byte == 0);
                assert!(!was_begun || is_there || is_empty, "a part of a stream, at step {step}");
            }
        }
        assert!(is_whole(&platter[..]).await, "when the save is over, all is on the platter");
    });
}

#[test]
fn a_disk_that_fails_or_is_full_is_said() {
    block_on_test(async {
        let full = Platter::new(300 << 10, usize::MAX);
        assert!(save(full.clone()).await.unwrap_err().ends_with("the disk is full"));
        assert!(!is_whole(DiskSource::new(full)).await);
        for bad_from in [0, 8 << 10, 400 << 10] {
            let bad = Platter::new(800 << 10, bad_from);
            assert!(save(bad.clone()).await.unwrap_err().ends_with("device error"), "{bad_from}");
            assert!(!is_whole(DiskSource::new(bad)).await);
        }
    });
}
