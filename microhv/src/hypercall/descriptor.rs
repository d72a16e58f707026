//! Descriptor tables.

use arrayvec::ArrayVec;
use ring_abi::types::{GuestVa, Maddr, Mfn};

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::mem::descriptors::MAX_GDT_ENTRIES;
use crate::platform::Platform;

/// In place of the number of entries, which has 32 bits: the call was done, and was to end only after what waited.
const DONE: u64 = 1 << 63;

/// `set_gdt(frames, entries)`: the caller's GDT, at most 7168 entries in the frames listed.
///
/// # Errors
/// `Fault`; `Invalid`: too many entries, or a frame that cannot hold descriptors.
pub fn set_gdt<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let [list, entries, ..] = *args;
    if entries == DONE {
        return Ok(Outcome::OK);
    }
    let entries = entries as u32;
    HypercallError::Invalid.when(entries > MAX_GDT_ENTRIES)?;
    let mut frames = ArrayVec::<Mfn, 14>::new();
    for n in 0..entries.div_ceil(512) {
        frames.push(Mfn::new(cur.copy_in_at::<u64>(GuestVa::new(list), n.into())?));
    }
    cur.hv.set_gdt(cur.domain, cur.vcpu, &frames, entries)?;
    // This call checked pages of descriptors, and a multicall may have many such calls, so pending work is done
    // before the next.
    if entries > 512 && cur.hv.platform.work_pending() {
        return Ok(cur.again([list, DONE, args[2], args[3], args[4], args[5]]));
    }
    Ok(Outcome::OK)
}

/// `update_descriptor(machine address, descriptor)`: writes one descriptor of the caller's.
///
/// # Errors
/// `Invalid`: not aligned, not the caller's frame, a page table, or a descriptor that it may not have.
pub fn update_descriptor<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    cur.hv.update_descriptor(cur.domain, Maddr::new(args[0]), args[1])?;
    Ok(Outcome::OK)
}
