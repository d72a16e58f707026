//! A disk in memory that answers in an order of its own.

use std::sync::Arc;

use backends::{BlockDevice, BlockOp, Client, DiscardLimits, Geometry, Segment, SubmitError};
use pvrt::mem::map_foreign;
use ring_abi::types::DomId;
use spin::Mutex;

/// Operations that the disk takes before it must be kicked.
const DEPTH: usize = 24;

/// The disk: operations are done when they are submitted and answered at a kick.
pub(crate) struct RamDisk {
    bytes: Mutex<Vec<u8>>,
    waiting: Mutex<Vec<(Arc<Client>, u32)>>,
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
        let bytes = Mutex::new(vec![0; sectors * 512]);
        Arc::new(Self { bytes, waiting: Mutex::default(), geometry })
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
        let mut disk = self.bytes.lock();
        let mut at = sector as usize * 512;
        for segment in segments {
            let page = map_foreign(DomId::SELF, &[segment.maddr.mfn()], true).expect("a frame");
            let end = at + segment.len as usize;
            match op {
                BlockOp::Read => page.bytes().write(segment.maddr.offset(), &disk[at..end]),
                _ => page.bytes().read(segment.maddr.offset(), &mut disk[at..end]),
            }
            at = end;
        }
        if let BlockOp::Discard { sectors } = op {
            disk[at..at + sectors as usize * 512].fill(0);
        }
        let place = tag as usize % (waiting.len() + 1);
        waiting.insert(place, (client.clone(), tag));
        Ok(())
    }

    fn kick(&self) {
        let done: Vec<_> = self.waiting.lock().drain(..).collect();
        for (client, tag) in &done {
            client.complete(*tag, true);
        }
        done.iter().for_each(|(client, _)| client.room());
    }
}
