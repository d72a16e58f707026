//! `memory_op`. ABI: `xen/include/public/memory.h`.

use super::{Result, op};
use ring_abi::hypercall::__HYPERVISOR_MEMORY_OP as NR;
use ring_abi::memory::*;
use ring_abi::types::DomId;

/// Allocates `extents.len()` extents of `2^order` frames for `dom`. In: the first guest frame number of each extent.
/// Out: the first machine frame number of each extent. The result is the number of extents done, which is smaller when
/// memory ran out.
///
/// # Errors
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the hypervisor does not give extents of this order.
pub fn populate_physmap(dom: DomId, extents: &mut [u64], order: u32) -> Result<usize> {
    let mut arg = reservation(dom, extents, order);
    // SAFETY: the hypervisor reads and writes the extent list only.
    unsafe { op(NR, XENMEM_POPULATE_PHYSMAP, &mut arg) }.map(|done| done as usize)
}

/// Gives frames of `dom` back. The result is the number of frames that the hypervisor took: a frame that is still
/// mapped anywhere stays with `dom`.
///
/// # Errors
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
/// - `EINVAL`: the hypervisor does not take extents of this order.
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

/// Number of frames that `dom` has now.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EPERM`: the caller has no right over the domain.
pub fn current_reservation(dom: DomId) -> Result<u64> {
    let mut domid = dom.raw();
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_CURRENT_RESERVATION, &mut domid) }
}

/// Number of frames that `dom` may have at most.
///
/// # Errors
/// - `ESRCH`: there is no such domain.
/// - `EPERM`: the caller has no right over the domain.
pub fn maximum_reservation(dom: DomId) -> Result<u64> {
    let mut domid = dom.raw();
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_MAXIMUM_RESERVATION, &mut domid) }
}

/// The highest machine frame number of the machine.
///
/// # Errors
/// `ENOSYS`: the hypervisor does not know the call.
pub fn maximum_ram_page() -> Result<u64> {
    // SAFETY: no argument.
    super::check(unsafe { super::raw(NR, [u64::from(XENMEM_MAXIMUM_RAM_PAGE), 0, 0, 0, 0]) })
}

/// Sets aside `pages` frames for `dom`, so that memory cannot run out halfway through the domain's build; 0 cancels the
/// claim.
///
/// # Errors
/// - `ENOMEM`: there are not so many free frames.
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
pub fn claim_pages(dom: DomId, pages: u64) -> Result<()> {
    let mut extents: [u64; 0] = [];
    let mut arg = reservation(dom, &mut extents, 0);
    arg.nr_extents = pages;
    arg.extent_start = 0;
    // SAFETY: plain data in.
    unsafe { op(NR, XENMEM_CLAIM_PAGES, &mut arg) }.map(|_| ())
}

/// Writes the machine frames of `dom`'s grant table, from the table's frame `first` on, into `frames`. The frames
/// belong to `dom` and can be mapped as foreign frames. The hypervisor makes the table larger as needed.
///
/// # Errors
/// - `EINVAL`: the table may not have so many frames.
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
/// - `ENOMEM`: memory for the table is missing.
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

/// Tells a domain that its memory reaches up to `kib`, whether the domain has so much yet or not.
///
/// # Errors
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
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
