//! `memory_op`. ABI: `xen/include/public/memory.h`.

use super::{Result, op};
use ring_abi::hypercall::__HYPERVISOR_MEMORY_OP as NR;
use ring_abi::memory::*;
use ring_abi::types::DomId;

/// Allocates `extents.len()` extents of `2^order` frames for `dom`. In: the first guest frame number of each; out:
/// the first machine frame number. Returns how many were done (fewer when memory ran out).
///
/// # Errors
/// `EPERM`, `ESRCH`, `EINVAL`.
pub fn populate_physmap(dom: DomId, extents: &mut [u64], order: u32) -> Result<usize> {
    let mut arg = reservation(dom, extents, order);
    // SAFETY: the hypervisor reads and writes the extent list only.
    unsafe { op(NR, XENMEM_POPULATE_PHYSMAP, &mut arg) }.map(|done| done as usize)
}

/// Gives frames of `dom` back. Returns how many were taken (a frame still mapped anywhere is kept).
///
/// # Errors
/// `EPERM`, `ESRCH`, `EINVAL`.
pub fn decrease_reservation(dom: DomId, extents: &mut [u64], order: u32) -> Result<usize> {
    let mut arg = reservation(dom, extents, order);
    // SAFETY: the hypervisor refuses frames that are mapped, so no memory in use goes away.
    unsafe { op(NR, XENMEM_DECREASE_RESERVATION, &mut arg) }.map(|done| done as usize)
}

fn reservation(dom: DomId, extents: &mut [u64], order: u32) -> XenMemoryReservation {
    XenMemoryReservation {
        extent_start: extents.as_mut_ptr() as u64,
        nr_extents: extents.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: dom.raw(),
        ..Default::default()
    }
}

/// Frames that `dom` has now.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn current_reservation(dom: DomId) -> Result<u64> {
    let mut domid = dom.raw();
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_CURRENT_RESERVATION, &mut domid) }
}

/// Frames that `dom` may have at most.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn maximum_reservation(dom: DomId) -> Result<u64> {
    let mut domid = dom.raw();
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_MAXIMUM_RESERVATION, &mut domid) }
}

/// The highest machine frame number of the machine.
///
/// # Errors
/// `ENOSYS`.
pub fn maximum_ram_page() -> Result<u64> {
    // SAFETY: no argument.
    super::check(unsafe { super::raw(NR, [u64::from(XENMEM_MAXIMUM_RAM_PAGE), 0, 0, 0, 0]) })
}

/// Sets aside `pages` frames for `dom`, so that its build cannot run short half-way; 0 cancels.
///
/// # Errors
/// `ENOMEM`: there are not that many. `EPERM`, `ESRCH`.
pub fn claim_pages(dom: DomId, pages: u64) -> Result<()> {
    let mut extents: [u64; 0] = [];
    let mut arg = reservation(dom, &mut extents, 0);
    arg.nr_extents = pages;
    arg.extent_start = 0;
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_CLAIM_PAGES, &mut arg) }.map(|_| ())
}

/// The machine frames of `dom`'s grant table, from its frame `first` on, in `frames`. The frames belong to `dom` and
/// can be mapped as foreign frames; the table grows as needed.
///
/// # Errors
/// `EINVAL`: more than the table may have. `EPERM`, `ESRCH`, `ENOMEM`.
pub fn grant_table_frames(dom: DomId, first: u64, frames: &mut [u64]) -> Result<()> {
    let mut arg = XenMemAcquireResource {
        domid: dom.raw(),
        r#type: XENMEM_RESOURCE_GRANT_TABLE as u16,
        id: XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
        nr_frames: frames.len() as u32,
        frame: first,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the hypervisor writes `nr_frames` frame numbers.
    unsafe { op(NR, XENMEM_ACQUIRE_RESOURCE, &mut arg) }.map(|_| ())
}

/// Tells a domain that its memory reaches up to `kib`, whether it has it yet or not.
///
/// # Errors
/// `EPERM`, `ESRCH`.
pub fn set_memory_map(dom: DomId, kib: u64) -> Result<()> {
    let entry = E820Entry { addr: 0, size: kib << 10, r#type: E820_RAM };
    let mut arg = XenForeignMemoryMap {
        domid: dom.raw(),
        map: XenMemoryMap { nr_entries: 1, buffer: (&raw const entry) as u64, ..Default::default() },
        ..Default::default()
    };
    // SAFETY: the one entry is only read.
    unsafe { op(NR, XENMEM_SET_MEMORY_MAP, &mut arg) }.map(|_| ())
}
