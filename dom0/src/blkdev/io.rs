//! Reading and writing a disk for the control domain itself.

use alloc::vec::Vec;
use core::fmt;

use backends::{BlockOp, Client, Segment, SubmitError};
use pvrt::executor::spawn_join;
use pvrt::mem::Pages;
use ring_abi::types::PAGE_SIZE;

use super::SharedDevice;

/// Bytes of a sector as counted here.
const SECTOR: u64 = 512;

/// Why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The range begins or ends beyond the disk.
    OutOfRange,
    /// The device reported an error, or is out of use.
    Device,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "beyond the end of the disk",
            Self::Device => "device error",
        })
    }
}

/// Fills `pages` with the disk's bytes from `sector` on. Bytes of `pages` that would lie behind the disk's end stay as
/// they were.
///
/// The transfer owns the pages until the device has returned them, even if the caller no longer waits.
///
/// # Errors
/// - [`IoError::OutOfRange`]: `sector` lies behind the disk's end.
/// - [`IoError::Device`]: the device reported an error, or is out of use.
pub async fn read(device: &SharedDevice, sector: u64, pages: Pages) -> Result<Pages, IoError> {
    transfer(device, BlockOp::Read, sector, pages).await
}

/// Writes all of `pages` to the disk from `sector` on.
///
/// # Errors
/// - [`IoError::OutOfRange`]: the range does not lie on the disk; nothing was written.
/// - [`IoError::Device`]: the device reported an error, or is out of use; a part of the bytes may have been written.
pub async fn write(device: &SharedDevice, sector: u64, pages: Pages) -> Result<Pages, IoError> {
    transfer(device, BlockOp::Write, sector, pages).await
}

async fn transfer(device: &SharedDevice, op: BlockOp, sector: u64, pages: Pages) -> Result<Pages, IoError> {
    let left = device.geometry().sectors.checked_sub(sector).filter(|left| *left > 0);
    let left = left.ok_or(IoError::OutOfRange)?;
    let mut bytes = pages.len() as u64;
    if bytes > left.saturating_mul(SECTOR) {
        if op == BlockOp::Write {
            return Err(IoError::OutOfRange);
        }
        bytes = left * SECTOR;
    }
    // A task of its own holds the pages: a caller that is dropped must not free pages that the device still uses.
    let task = run(device.clone(), op, sector, pages, bytes);
    spawn_join(task).await.unwrap_or(Err(IoError::Device))
}

async fn run(
    device: SharedDevice,
    op: BlockOp,
    mut sector: u64,
    pages: Pages,
    bytes: u64,
) -> Result<Pages, IoError> {
    let mut segments = Vec::with_capacity(pages.count());
    for index in 0..pages.count() {
        let from = (index * PAGE_SIZE) as u64;
        if from < bytes {
            let len = (bytes - from).min(PAGE_SIZE as u64) as u32;
            segments.push(Segment { maddr: pages.mfn(index).maddr(), len });
        }
    }
    let most = device.geometry().seg_max;
    let client = Client::new(4);
    let mut done = Vec::new();
    let (mut next, mut out, mut ok) = (0, 0, true);
    while out > 0 || (ok && next < segments.len()) {
        let chunk = &segments[next..(next + most).min(segments.len())];
        if ok && !chunk.is_empty() {
            match device.submit(&client, 0, op, sector, chunk) {
                Ok(()) => {
                    next += chunk.len();
                    sector += chunk.iter().map(|segment| u64::from(segment.len)).sum::<u64>() / SECTOR;
                    out += 1;
                    continue;
                }
                Err(SubmitError::Full) => {}
                Err(SubmitError::Failed) => {
                    ok = false;
                    continue;
                }
            }
        }
        device.kick();
        client.ready().await;
        client.take(&mut done);
        out -= done.len();
        ok &= done.iter().all(|completion| completion.ok);
        done.clear();
    }
    if ok { Ok(pages) } else { Err(IoError::Device) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use backends::{BlockDevice, Geometry};
    use pvrt::executor::block_on_test;
    use spin::Mutex;

    /// A device that answers at each kick, takes at most two operations between kicks, and records all operations.
    struct Recorder {
        log: Mutex<Vec<(u64, Vec<Segment>)>>,
        waiting: Mutex<Vec<(Arc<Client>, bool)>>,
        fail_at: u64,
    }

    impl BlockDevice for Recorder {
        fn geometry(&self) -> Geometry {
            Geometry { sectors: 100, seg_max: 3, ..crate::blkdev::tests::Silent.geometry() }
        }
        fn submit(
            &self,
            client: &Arc<Client>,
            _: u32,
            _: BlockOp,
            sector: u64,
            segments: &[Segment],
        ) -> Result<(), SubmitError> {
            if self.waiting.lock().len() == 2 {
                return Err(SubmitError::Full);
            }
            self.log.lock().push((sector, segments.to_vec()));
            self.waiting.lock().push((client.clone(), sector != self.fail_at));
            Ok(())
        }
        fn kick(&self) {
            for (client, ok) in self.waiting.lock().drain(..) {
                client.complete(0, ok);
            }
        }
    }

    fn device(fail_at: u64) -> (Arc<Recorder>, SharedDevice) {
        let recorder = Arc::new(Recorder { log: Mutex::default(), waiting: Mutex::default(), fail_at });
        (recorder.clone(), recorder)
    }

    #[test]
    fn split_and_cut_at_the_end() {
        let (recorder, device) = device(u64::MAX);
        let pages = Pages::zeroed(10).unwrap();
        let first = pages.mfn(0).maddr();
        block_on_test(async { read(&device, 33, pages).await }).unwrap();
        let log = recorder.log.lock();
        let shape: Vec<_> = log.iter().map(|(sector, segments)| (*sector, segments.len())).collect();
        assert_eq!(shape, [(33, 3), (57, 3), (81, 3)]);
        assert_eq!(log[0].1[0], Segment { maddr: first, len: 4096 });
        assert_eq!(log[2].1[2].len, 3 * 512);
    }

    #[test]
    fn ends_and_errors() {
        let (_, device) = device(24);
        let run = |sector, pages| {
            let pages = Pages::zeroed(pages).unwrap();
            block_on_test(async { read(&device, sector, pages).await }).err()
        };
        assert_eq!(run(100, 1), Some(IoError::OutOfRange));
        assert_eq!(run(u64::MAX, 1), Some(IoError::OutOfRange));
        assert_eq!(run(99, 1), None);
        assert_eq!(run(0, 9), Some(IoError::Device));
        let pages = Pages::zeroed(1).unwrap();
        let result = block_on_test(async { write(&device, 93, pages).await }).err();
        assert_eq!(result, Some(IoError::OutOfRange));
    }
}
