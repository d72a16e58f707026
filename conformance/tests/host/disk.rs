//! A disk in memory that answers in an order of its own.

use std::collections::HashMap;
use std::sync::Arc;

use backends::{BlockDevice, BlockOp, Client, DiscardLimits, Geometry, Segment, SubmitError};
use pvrt::mem::map_foreign;
use ring_abi::types::DomId;
use spin::Mutex;

/// Bytes of a sector, as operations count.
const SECTOR: usize = 512;
/// Operations that the disk takes before it must be kicked.
const DEPTH: usize = 24;

/// What waits for a kick.
struct Waiting {
    client: Arc<Client>,
    tag: u32,
    op: BlockOp,
    sector: u64,
    segments: Vec<Segment>,
}

/// The disk: operations are done and answered at a kick, the last one first. A caller that wants them in order must wait.
pub(crate) struct RamDisk {
    /// By number; what was never written is not there, and zero: most cases touch little of their disks.
    sectors: Mutex<HashMap<u64, [u8; SECTOR]>>,
    waiting: Mutex<Vec<Waiting>>,
    geometry: Geometry,
}

impl RamDisk {
    /// A disk of `sectors` sectors of 512 bytes, which `change` may make another.
    pub(crate) fn new(sectors: usize, change: impl FnOnce(&mut Geometry)) -> Arc<Self> {
        let mut geometry = Geometry {
            sectors: sectors as u64,
            sector_size: 512,
            physical_sector_size: 512,
            read_only: false,
            flush: true,
            discard: Some(DiscardLimits { granularity: 8, alignment: 0, max_sectors: 64 }),
            seg_max: 30,
        };
        change(&mut geometry);
        Arc::new(Self { sectors: Mutex::default(), waiting: Mutex::default(), geometry })
    }

    fn perform(&self, operation: &Waiting) {
        let mut disk = self.sectors.lock();
        let bytes: u64 = operation.segments.iter().map(|segment| u64::from(segment.len)).sum();
        let discarded = if let BlockOp::Discard { sectors } = operation.op { sectors } else { 0 };
        // Nothing else would show that a backend lets such an operation through.
        let end = operation.sector + bytes / SECTOR as u64 + discarded;
        assert!(end <= self.geometry.sectors, "sector {end} of {}", self.geometry.sectors);
        let mut sector = operation.sector;
        for segment in &operation.segments {
            let page = map_foreign(DomId::SELF, &[segment.maddr.mfn()], true).expect("a frame");
            for at in (segment.maddr.offset()..).step_by(SECTOR).take(segment.len as usize / SECTOR) {
                match operation.op {
                    BlockOp::Read => page.bytes().write(at, disk.get(&sector).unwrap_or(&[0; SECTOR])),
                    _ => page.bytes().read(at, disk.entry(sector).or_insert([0; SECTOR])),
                }
                sector += 1;
            }
        }
        for sector in sector..sector + discarded {
            disk.remove(&sector);
        }
    }
}

impl BlockDevice for RamDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(
        &self,
        client: &Arc<Client>,
        tag: u32,
        op: BlockOp,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(), SubmitError> {
        let mut waiting = self.waiting.lock();
        if waiting.len() == DEPTH {
            return Err(SubmitError::Full);
        }
        waiting.push(Waiting { client: client.clone(), tag, op, sector, segments: segments.to_vec() });
        Ok(())
    }

    fn kick(&self) {
        let due: Vec<_> = self.waiting.lock().drain(..).rev().collect();
        for operation in &due {
            self.perform(operation);
            operation.client.complete(operation.tag, true);
        }
        due.iter().for_each(|operation| operation.client.room());
    }
}
