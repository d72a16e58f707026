//! `grant_table_op`. ABI: `xen/include/public/grant_table.h`.

use super::{Result, batch, op};
use ring_abi::errno::Errno;
use ring_abi::grant::*;
use ring_abi::hypercall::__HYPERVISOR_GRANT_TABLE_OP as NR;
use ring_abi::types::DomId;

/// Maps each entry's grant; each entry has its own status.
///
/// # Safety
/// Entries with `GNTMAP_HOST_MAP` change this kernel's mapping at `host_addr`, which must be the caller's own
/// window. Entries with `GNTMAP_DEVICE_MAP` alone are harmless.
///
/// # Errors
/// The list could not be read or written.
pub unsafe fn map(entries: &mut [GnttabMapGrantRef]) -> Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { batch(NR, GNTTABOP_MAP_GRANT_REF, entries) }.map(|_| ())
}

/// Ends mappings; each entry has its own status.
///
/// # Safety
/// Nothing may use the addresses that entries with a `host_addr` unmap.
///
/// # Errors
/// The list could not be read or written.
pub unsafe fn unmap(entries: &mut [GnttabUnmapGrantRef]) -> Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { batch(NR, GNTTABOP_UNMAP_GRANT_REF, entries) }.map(|_| ())
}

/// Copies between frames and grants; each entry has its own status.
///
/// # Safety
/// A target that is a frame of this kernel must be memory that others may change (a page shared through
/// `SharedBytes`, or exclusively borrowed by the caller for the call).
///
/// # Errors
/// The list could not be read or written.
pub unsafe fn copy(entries: &mut [GnttabCopy]) -> Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { batch(NR, GNTTABOP_COPY, entries) }.map(|_| ())
}

/// Grows this domain's table to `frames.len()` frames and lists their machine frames.
///
/// # Errors
/// `EINVAL`: beyond the limit, or another failure (its grant status is logged).
pub fn setup_table(frames: &mut [u64]) -> Result<()> {
    let mut arg = GnttabSetupTable {
        dom: DomId::SELF.raw(),
        nr_frames: frames.len() as u32,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the hypervisor writes `nr_frames` words to the list.
    unsafe { batch(NR, GNTTABOP_SETUP_TABLE, core::slice::from_mut(&mut arg)) }?;
    if arg.status == GNTST_OKAY {
        return Ok(());
    }
    log::warn!("grant table of {} frames refused: {}", frames.len(), arg.status);
    Err(Errno::EINVAL)
}

/// Frames the table has, and may have at most.
///
/// # Errors
/// `EINVAL`: refused.
pub fn query_size() -> Result<(u32, u32)> {
    let mut arg = GnttabQuerySize { dom: DomId::SELF.raw(), ..Default::default() };
    // SAFETY: plain data in and out.
    unsafe { batch(NR, GNTTABOP_QUERY_SIZE, core::slice::from_mut(&mut arg)) }?;
    if arg.status == GNTST_OKAY { Ok((arg.nr_frames, arg.max_nr_frames)) } else { Err(Errno::EINVAL) }
}

/// Chooses the entries' layout, 1 or 2.
///
/// # Errors
/// `EBUSY`: entries are in use. `ENOSYS`, `EINVAL`.
pub fn set_version(version: u32) -> Result<()> {
    let mut arg = GnttabSetVersion { version };
    // SAFETY: plain data in and out.
    unsafe { op(NR, GNTTABOP_SET_VERSION, &mut arg) }.map(|_| ())
}

/// The version of this domain's table.
///
/// # Errors
/// `ENOSYS`: the hypervisor knows version 1 alone.
pub fn get_version() -> Result<u32> {
    let mut arg = GnttabGetVersion { dom: DomId::SELF.raw(), ..Default::default() };
    // SAFETY: plain data in and out.
    unsafe { op(NR, GNTTABOP_GET_VERSION, &mut arg) }?;
    Ok(arg.version)
}

/// The machine frames of version 2's status words, as many as `frames` has room for.
///
/// # Errors
/// `EINVAL`: the table has not so many.
pub fn status_frames(frames: &mut [u64]) -> Result<()> {
    let mut arg = GnttabGetStatusFrames {
        dom: DomId::SELF.raw(),
        nr_frames: frames.len() as u32,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the hypervisor writes `nr_frames` words to the list.
    unsafe { batch(NR, GNTTABOP_GET_STATUS_FRAMES, core::slice::from_mut(&mut arg)) }?;
    if arg.status == GNTST_OKAY { Ok(()) } else { Err(Errno::EINVAL) }
}
