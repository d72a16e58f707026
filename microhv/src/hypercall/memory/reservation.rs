//! Giving a domain memory and taking it back.

use alloc::sync::Arc;

use ring_abi::memory::{XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP, XenMemoryReservation};
use ring_abi::types::Mfn;

use super::OPERATION_BITS;
use crate::domain::Domain;
use crate::hypercall::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Largest extent that an ordinary domain may ask for: 2 MiB.
const MAX_ORDER: u32 = 9;
/// Largest extent for a privileged one: 16 MiB, all zeroed without a look at what waits.
const MAX_ORDER_PRIVILEGED: u32 = 12;

/// `XENMEM_populate_physmap`, `XENMEM_increase_reservation`, `XENMEM_decrease_reservation`: rax gets the number of
/// extents done, which may be less than asked for.
///
/// The list has pseudo-physical frames for `populate`, in whose place the machine frames are written; machine frames
/// are written for `increase`, if there is a list, and read for `decrease`.
pub(super) fn change<P: Platform>(
    cur: &mut Current<'_, P>,
    operation: u32,
    args: &Args,
    start: u64,
) -> HypercallResult {
    // As Xen has it, what cannot even begin is so many extents done, not an error.
    let Ok(request) = cur.copy_in::<XenMemoryReservation>(args[1]) else {
        return Ok(Outcome::Done(start));
    };
    if request.nr_extents > u64::MAX >> OPERATION_BITS || start >= request.nr_extents {
        return Ok(Outcome::Done(start));
    }
    let Ok(domain) = cur.hv.domains.target(cur.domain, request.domid) else {
        return Ok(Outcome::Done(start));
    };
    let max_order = if cur.domain.privileged { MAX_ORDER_PRIVILEGED } else { MAX_ORDER };
    if request.extent_order > max_order {
        return Ok(Outcome::Done(start));
    }
    let mut done = start;
    while done < request.nr_extents {
        if done > start && cur.hv.platform.work_pending() {
            let command = u64::from(operation) | done << OPERATION_BITS;
            return Ok(cur.again([command, args[1], args[2], args[3], args[4], args[5]]));
        }
        let one = match operation {
            XENMEM_DECREASE_RESERVATION => release_extent(cur, &domain, &request, done),
            _ => add_extent(cur, &domain, &request, done, operation == XENMEM_POPULATE_PHYSMAP),
        };
        if one.is_err() {
            break;
        }
        done += 1;
    }
    Ok(Outcome::Done(done))
}

fn add_extent<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    request: &XenMemoryReservation,
    n: u64,
    populate: bool,
) -> Result<(), HypercallError> {
    let pfn = if populate { Some(cur.copy_in_at::<u64>(request.extent_start, n)?) } else { None };
    let order = request.extent_order as u8;
    let mfn = cur.hv.populate(domain, order, request.mem_flags as u8)?;
    for page in 0..1 << order {
        cur.hv.platform.set_m2p(Mfn::new(mfn.raw() + page), pfn.map(|pfn| pfn.wrapping_add(page)));
    }
    let told = if populate || request.extent_start != 0 {
        cur.copy_out_at(request.extent_start, n, &mfn.raw())
    } else {
        Ok(())
    };
    if told.is_err() {
        for page in 0..1 << order {
            // Nobody knows the frames, so they go back; what the domain guessed and refers to stays its own.
            let _ = cur.hv.release_page(domain, Mfn::new(mfn.raw() + page));
        }
    }
    told
}

fn release_extent<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    request: &XenMemoryReservation,
    n: u64,
) -> Result<(), HypercallError> {
    let first: u64 = cur.copy_in_at(request.extent_start, n)?;
    for page in 0..1u64 << request.extent_order {
        cur.hv.release_page(domain, Mfn::new(first.wrapping_add(page)))?;
    }
    Ok(())
}
