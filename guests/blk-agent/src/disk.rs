//! Carries out orders on a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use conformance::blkfront::orders::{Came, Order};
use conformance::blkfront::{FrontError, Sum, content};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `BLKDISCARD` of `linux/fs.h`.
const BLKDISCARD: libc::c_ulong = 0x1277;
/// How long the kernel may take to make a disk of a device.
const PATIENCE: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(2);

/// A page-aligned page in memory, as reads with `O_DIRECT` need.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Carries out an order.
pub(crate) fn carry_out(order: Order) -> Came {
    match order {
        Order::Connect(device) => connect(device),
        Order::Read(device, sector, sectors) => {
            let mut pages = pages(sectors);
            let data = &mut pages.as_mut_bytes()[..sectors * 512];
            whole(open(device, false)?.read_at(data, offset(sector)?), data.len())?;
            Ok(Some(Sum::of(data)))
        }
        Order::Write(device, sector, sectors, seed) => {
            let mut pages = pages(sectors);
            let data = &mut pages.as_mut_bytes()[..sectors * 512];
            data.copy_from_slice(&content(seed, sectors));
            whole(open(device, true)?.write_at(data, offset(sector)?), data.len())?;
            Ok(None)
        }
        Order::Flush(device) => {
            open(device, true)?.sync_all().map_err(|error| why(&error))?;
            Ok(None)
        }
        Order::Discard(device, sector, sectors) => discard(&open(device, true)?, sector, sectors),
        Order::Close(device) => {
            fs::write("/sys/bus/xen/drivers/vbd/unbind", format!("vbd-{device}"))
                .map_err(|error| why(&error))?;
            Ok(None)
        }
    }
}

fn pages(sectors: usize) -> Vec<Page> {
    vec![Page([0; 4096]); sectors.div_ceil(8)]
}

fn offset(sector: u64) -> Result<u64, FrontError> {
    sector.checked_mul(512).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or(FrontError::Refused)
}

/// Fails if a transfer was cut short at the disk's end.
fn whole(moved: io::Result<usize>, wanted: usize) -> Result<(), FrontError> {
    match moved {
        Ok(moved) if moved == wanted => Ok(()),
        Ok(_) => Err(FrontError::Refused),
        Err(error) => Err(why(&error)),
    }
}

fn why(error: &io::Error) -> FrontError {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => FrontError::Unsupported,
        Some(libc::EINVAL | libc::EROFS | libc::EACCES | libc::EPERM | libc::ENOSPC) => FrontError::Refused,
        Some(libc::ENXIO | libc::ENODEV | libc::ENOENT) => FrontError::Gone,
        _ => FrontError::Failed,
    }
}

/// The device's directory on the kernel's xenbus, in `/sys`.
fn on_the_bus(device: u32) -> PathBuf {
    format!("/sys/bus/xen/devices/vbd-{device}").into()
}

/// The disk that the kernel made of a device, if it has.
fn name(device: u32) -> Option<String> {
    let disk = fs::read_dir(on_the_bus(device).join("block")).ok()?.next()?.ok()?;
    disk.file_name().into_string().ok()
}

/// Opens the disk. The open waits until the kernel has looked for partitions.
fn open(device: u32, write: bool) -> Result<File, FrontError> {
    let name = name(device).ok_or(FrontError::Gone)?;
    let file =
        OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(format!("/dev/{name}"));
    file.map_err(|error| why(&error))
}

/// Waits until the device is a disk that can be opened.
fn connect(device: u32) -> Came {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        // The kernel shows in this file when its frontend has given a device up.
        let state = fs::read_to_string(on_the_bus(device).join("state")).unwrap_or_default();
        if matches!(state.trim(), "Closing" | "Closed") {
            return Err(FrontError::Gone);
        }
        match name(device).map(|name| (open(device, false), name)) {
            Some((Ok(_), name)) => {
                // The kernel must not merge requests or hold them back.
                let queue = PathBuf::from(format!("/sys/block/{name}/queue"));
                for (file, value) in [("nomerges", "2"), ("scheduler", "none")] {
                    fs::write(queue.join(file), value).map_err(|error| why(&error))?;
                }
                return Ok(None);
            }
            // The kernel makes the node in /dev a little later.
            Some((Err(FrontError::Gone), _)) | None => thread::sleep(LOOK),
            Some((Err(error), _)) => return Err(error),
        }
    }
    Err(FrontError::Gone)
}

#[allow(unsafe_code, reason = "the call has no other form")]
fn discard(file: &File, sector: u64, sectors: u64) -> Came {
    let range = [offset(sector)?, offset(sectors)?];
    // SAFETY: the call reads two numbers from where its argument points.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } == 0 {
        return Ok(None);
    }
    let error = io::Error::last_os_error();
    Err(if error.kind() == ErrorKind::Unsupported { FrontError::Unsupported } else { why(&error) })
}
