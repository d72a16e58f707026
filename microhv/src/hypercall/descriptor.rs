//! Descriptor tables.

use arrayvec::ArrayVec;
use ring_abi::types::{Maddr, Mfn};

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::mem::descriptors::MAX_GDT_ENTRIES;
use crate::platform::Platform;

/// `set_gdt(frames, entries)`: the caller's GDT, at most 7168 entries in the frames listed.
///
/// # Errors
/// `Fault`; `Invalid`: too many entries, or a frame that cannot hold descriptors.
pub fn set_gdt<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let [list, entries, ..] = *args;
    let entries = entries as u32;
    if entries > MAX_GDT_ENTRIES {
        return Err(HypercallError::Invalid);
    }
    let mut frames = ArrayVec::<Mfn, 14>::new();
    for n in 0..entries.div_ceil(512) {
        frames.push(Mfn::new(cur.copy_in_at::<u64>(list, n.into())?));
    }
    cur.hv.set_gdt(cur.domain, cur.vcpu, &frames, entries)?;
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
