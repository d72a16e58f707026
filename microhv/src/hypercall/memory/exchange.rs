//! `XENMEM_exchange`: a domain's frames for others, contiguous or at lower addresses.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::memory::XenMemoryExchange;
use ring_abi::types::{GuestVa, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::OPERATION_BITS;
use crate::domain::Domain;
use crate::hypercall::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Byte offset of `nr_exchanged`.
const NR_EXCHANGED: u64 = 0x40;
/// Largest extent: 2 MiB.
const MAX_ORDER: u32 = 9;

/// `XENMEM_exchange`: gives frames that nothing refers to back, and gets as many zeroed ones in extents of another
/// order. `nr_exchanged` counts extents of the input; the output list has pseudo-physical frames, in whose place the
/// machine frames are written.
///
/// # Errors
/// `Invalid`: the two sizes differ, or an input frame is not the domain's or referred to. `NotPermitted`: extents larger
/// than 2 MiB. `NoMemory`: no such extent is free, or not without what others claimed; what was exchanged before is counted.
pub(super) fn exchange<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let at = GuestVa::new(args[1]);
    let request: XenMemoryExchange = cur.copy_in(at)?;
    let (input, output) = (request.r#in, request.out);
    HypercallError::NotPermitted.when(input.extent_order > MAX_ORDER || output.extent_order > MAX_ORDER)?;
    let frames = |extents: u64, order: u32| extents.checked_mul(1 << order);
    let total = frames(input.nr_extents, input.extent_order);
    let limit = u64::MAX >> OPERATION_BITS;
    let same = total == frames(output.nr_extents, output.extent_order) && input.domid == output.domid;
    HypercallError::Invalid
        .when(!same || total.is_none_or(|total| total > limit) || request.nr_exchanged > input.nr_extents)?;
    let domain = cur.hv.domains.target(cur.domain, input.domid)?;
    // Both sides advance by the larger of the two extents.
    let order = input.extent_order.max(output.extent_order);
    let (per_input, per_output) = (1 << (order - input.extent_order), 1 << (order - output.extent_order));
    HypercallError::Invalid.when(
        !request.nr_exchanged.is_multiple_of(per_input) || !input.nr_extents.is_multiple_of(per_input),
    )?;
    let mut done = request.nr_exchanged;
    let mut result = Ok(());
    while result.is_ok() && done < input.nr_extents {
        // The frames that the step before took are released first, so that they do not make this step longer.
        let has_time = cur.hv.release_given(&domain);
        result = if !has_time || (done > request.nr_exchanged && cur.hv.platform.work_pending()) {
            Err(HypercallError::Again)
        } else {
            let first_output = done / per_input * per_output;
            let (inputs, outputs) = (done..done + per_input, first_output..first_output + per_output);
            exchange_some(cur, &domain, &request, inputs, outputs).inspect(|()| done += per_input)
        };
    }
    cur.copy_out(at.wrapping_add(NR_EXCHANGED), &done)?;
    // Frames that stay unreleased after a refusal are released by the domain's next call.
    let is_done = result != Err(HypercallError::Again) && cur.hv.release_given(&domain);
    result?;
    if is_done { Ok(Outcome::OK) } else { Err(HypercallError::Again) }
}

fn exchange_some<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    request: &XenMemoryExchange,
    inputs: core::ops::Range<u64>,
    outputs: core::ops::Range<u64>,
) -> Answer {
    let hv = cur.hv;
    let (r#in, out) = (&request.r#in, &request.out);
    // Two of the three lists may stay with the domain until it calls again: room for all is asked for at once.
    let bytes = 3 * size_of::<Mfn>() << r#in.extent_order.max(out.extent_order);
    HypercallError::NoMemory.when(!hv.platform.heap_has_room(bytes))?;
    let mut given = Vec::new();
    for first in read_list(cur, r#in.extent_start, &inputs)? {
        given.extend((0..1u64 << r#in.extent_order).map(|page| Mfn::new(first.wrapping_add(page))));
    }
    let order = out.extent_order as u8;
    let mut places = read_list(cur, out.extent_start, &outputs)?;
    // All frames are checked before the first is taken. A later failure can then only be a race, or a frame
    // that is named twice.
    HypercallError::Invalid.when(!given.iter().all(|&mfn| hv.is_stealable(domain, mfn)))?;
    let taken = hv.take_clean(domain, order, out.mem_flags as u8, places.len())?;
    let mut stolen = 0;
    let all = given.iter().try_for_each(|&mfn| hv.steal_page(domain, mfn).inspect(|()| stolen += 1));
    if let Err(error) = all {
        given[..stolen].iter().for_each(|&mfn| hv.give_page_back(domain, mfn));
        taken.iter().for_each(|&mfn| hv.frames.release(mfn, order));
        return Err(error.into());
    }
    given.iter().for_each(|&mfn| hv.platform.set_m2p(mfn, Pfn::INVALID));
    hv.keep_given(domain, given);
    for (&mfn, place) in taken.iter().zip(&mut places) {
        for page in 0..1u64 << order {
            hv.platform.set_m2p(mfn.add(page), Pfn::new(place.wrapping_add(page)));
        }
        *place = mfn.raw();
    }
    // A domain that is being destroyed gets nothing any more.
    if !hv.assign(domain, &taken, 1 << order, false) {
        taken.iter().for_each(|&mfn| hv.frames.release(mfn, order));
    }
    Ok(cur.copy_to_guest(list_at(out.extent_start, outputs.start), places.as_bytes())?)
}

const fn list_at(list: u64, n: u64) -> GuestVa {
    GuestVa::new(list).wrapping_add(n.wrapping_mul(size_of::<u64>() as u64))
}

/// Reads some numbers of a list, all together.
fn read_list<P: Platform>(
    cur: &Current<'_, P>,
    list: u64,
    which: &core::ops::Range<u64>,
) -> Answer<Vec<u64>> {
    let mut numbers = alloc::vec![0; (which.end - which.start) as usize];
    cur.copy_from_guest(numbers.as_mut_bytes(), list_at(list, which.start))?;
    Ok(numbers)
}
