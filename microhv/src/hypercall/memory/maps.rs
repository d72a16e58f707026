//! Memory maps, the M2P's place, and pages that the hypervisor lends.

use alloc::vec::Vec;

use ring_abi::memory::{
    E820Entry, XENMEM_RESOURCE_GRANT_TABLE, XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
    XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS, XenForeignMemoryMap, XenMachphysMapping, XenMemAcquireResource,
    XenMemoryMap,
};
use ring_abi::segment::{MACH2PHYS_NR_ENTRIES, MACH2PHYS_VIRT_END, MACH2PHYS_VIRT_START};
use ring_abi::types::GuestVa;
use zerocopy::IntoBytes;

use crate::gnttab::state::{FRAMES_PER_STATUS, Part, Version};
use crate::hypercall::grant::copy_out_frames;
use crate::hypercall::{Answer, Current, HypercallError};
use crate::platform::Platform;

/// Entries of a memory map at most.
const MAX_MAP_ENTRIES: u32 = 128;
/// Frames that one `acquire_resource` gives.
const MAX_RESOURCE_FRAMES: u32 = 1024;

/// `XENMEM_machphys_mapping`: where the M2P is in every address space.
pub(super) fn machphys_mapping<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let (v_start, v_end) = (MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END);
    Ok(cur.copy_out(arg, &XenMachphysMapping { v_start, v_end, max_mfn: MACH2PHYS_NR_ENTRIES - 1 })?)
}

fn give_map<P: Platform>(cur: &Current<'_, P>, arg: GuestVa, entries: &[E820Entry]) -> Answer {
    let map: XenMemoryMap = cur.copy_in(arg)?;
    let fits = entries.len().min(map.nr_entries as usize);
    cur.copy_to_guest(GuestVa::new(map.buffer), entries[..fits].as_bytes())?;
    Ok(cur.copy_out(arg, &XenMemoryMap { nr_entries: fits as u32, ..map })?)
}

/// `XENMEM_memory_map`: the caller's map as the toolstack set it.
///
/// # Errors
/// `NoSys`: the toolstack set no map.
pub(super) fn memory_map<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let entries = cur.domain.mm.memory_map.lock().clone();
    if entries.is_empty() { Err(HypercallError::NoSys) } else { give_map(cur, arg, &entries) }
}

/// `XENMEM_machine_memory_map`: the machine's memory; without a buffer, the number of its entries.
///
/// # Errors
/// `NotPermitted`: the caller is not privileged. `Invalid`: a buffer for fewer entries than there are.
pub(super) fn machine_memory_map<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let entries = cur.hv.frames.memory_map();
    let asked: XenMemoryMap = cur.copy_in(arg)?;
    if asked.buffer == 0 {
        return Ok(cur.copy_out(arg, &XenMemoryMap { nr_entries: entries.len() as u32, ..asked })?);
    }
    HypercallError::Invalid.when((asked.nr_entries as usize) < entries.len())?;
    give_map(cur, arg, &entries)
}

/// `XENMEM_set_memory_map`: what `XENMEM_memory_map` is to tell a domain.
///
/// # Errors
/// `Invalid`: more than 128 entries.
pub(super) fn set_memory_map<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let request: XenForeignMemoryMap = cur.copy_in(arg)?;
    HypercallError::Invalid.when(request.map.nr_entries > MAX_MAP_ENTRIES)?;
    let domain = cur.hv.domains.target(cur.domain, request.domid)?;
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let mut entries = Vec::new();
    for n in 0..request.map.nr_entries {
        entries.push(cur.copy_in_at::<E820Entry>(GuestVa::new(request.map.buffer), n.into())?);
    }
    *domain.mm.memory_map.lock() = entries;
    Ok(())
}

/// `XENMEM_acquire_resource`: frames of a domain's grant table, of entries or of status words, for the domain's builder to
/// map. With no list asked for, `nr_frames` gets the size of the table.
///
/// # Errors
/// `Invalid`: too many frames, or none such; `NotSupported`: another resource; `NotPermitted`.
pub(super) fn acquire_resource<P: Platform>(cur: &Current<'_, P>, arg: GuestVa) -> Answer {
    let request: XenMemAcquireResource = cur.copy_in(arg)?;
    HypercallError::Invalid.when(request.pad != 0)?;
    let domain = cur.hv.domains.target(cur.domain, request.domid)?;
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let part = match request.id {
        XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED => Part::Entries,
        XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS => Part::Status,
        _ => return Err(HypercallError::NotSupported),
    };
    HypercallError::NotSupported.when(u32::from(request.r#type) != XENMEM_RESOURCE_GRANT_TABLE)?;
    // How many frames of entries belong to one frame of the part.
    let entries = if part == Part::Status { FRAMES_PER_STATUS } else { 1 };
    if request.frame_list == 0 {
        HypercallError::Invalid.when(request.nr_frames != 0)?;
        let nr_frames = domain.config.max_grant_frames.div_ceil(entries);
        return Ok(cur.copy_out(arg, &XenMemAcquireResource { nr_frames, ..request })?);
    }
    let end = request.frame.checked_add(request.nr_frames.into()).and_then(|end| u32::try_from(end).ok());
    let end = end.filter(|_| request.nr_frames <= MAX_RESOURCE_FRAMES).ok_or(HypercallError::Invalid)?;
    HypercallError::Invalid.when(part == Part::Status && domain.grants.version() == Version::One)?;
    // A frame of status words exists as soon as the first frame of its entries does.
    let least = end.checked_sub(1).map_or(Some(0), |last| last.checked_mul(entries)?.checked_add(1));
    cur.hv.grow_grant_table(&domain, least.ok_or(HypercallError::Invalid)?)?;
    copy_out_frames(cur, &domain, part, end - request.nr_frames..end, GuestVa::new(request.frame_list))
}
