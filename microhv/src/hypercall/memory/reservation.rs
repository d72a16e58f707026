//! Giving a domain memory and taking it back.

use alloc::sync::Arc;

use ring_abi::memory::{XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP, XenMemoryReservation};
use ring_abi::types::{GuestVa, Mfn, Pfn};

use super::OPERATION_BITS;
use crate::domain::Domain;
use crate::hypercall::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Largest extent that an ordinary domain may ask for: 2 MiB.
const MAX_ORDER: u32 = 9;
/// Largest extent for a privileged domain: 4 MiB. The extent's frames get their owner and their numbers without a look at
/// what waits.
const MAX_ORDER_PRIVILEGED: u32 = 10;
/// Pages that are given back between two looks at what waits.
const LOOK_EVERY: u64 = 32;
/// In the place where an interrupted call goes on: extents done, and from this bit on the pages of the next one.
const PAGES_SHIFT: u32 = 42;

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
    // As in Xen, a call that cannot even begin returns the number of extents done, not an error.
    let Ok(request) = cur.copy_in::<XenMemoryReservation>(GuestVa::new(args[1])) else {
        return Ok(Outcome::Done(start));
    };
    let (mut done, mut page) = place(operation, &request, start);
    let max_order = if cur.domain.privileged { MAX_ORDER_PRIVILEGED } else { MAX_ORDER };
    let is_possible = request.nr_extents <= u64::MAX >> OPERATION_BITS && request.extent_order <= max_order;
    let (Ok(domain), true) = (cur.hv.domains.target(cur.domain, request.domid), is_possible) else {
        return Ok(Outcome::Done(done));
    };
    let first = done;
    while done < request.nr_extents {
        let one = if done > first && cur.hv.platform.work_pending() {
            Err(HypercallError::Again)
        } else if operation == XENMEM_DECREASE_RESERVATION {
            release_extent(cur, &domain, &request, done, &mut page)
        } else {
            add_extent(cur, &domain, &request, done, operation == XENMEM_POPULATE_PHYSMAP)
        };
        match one {
            Ok(()) => (done, page) = (done + 1, 0),
            Err(HypercallError::Again) => {
                let command = u64::from(operation) | (done | page << PAGES_SHIFT) << OPERATION_BITS;
                return Ok(cur.again([command, args[1], args[2], args[3], args[4], args[5]]));
            }
            Err(_) => break,
        }
    }
    Ok(Outcome::Done(done))
}

/// Where a call begins that says `start`: extents that are done, and pages of the next one that are given back.
///
/// A caller that makes this up skips what it says is done, nothing else.
fn place(operation: u32, request: &XenMemoryReservation, start: u64) -> (u64, u64) {
    let (done, page) = (start & ((1 << PAGES_SHIFT) - 1), start >> PAGES_SHIFT);
    let pages = 1u64.checked_shl(request.extent_order).unwrap_or(0);
    if operation == XENMEM_DECREASE_RESERVATION && page < pages { (done, page) } else { (start, 0) }
}

fn add_extent<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    request: &XenMemoryReservation,
    n: u64,
    populate: bool,
) -> Answer {
    let list = GuestVa::new(request.extent_start);
    let first = if populate { Some(cur.copy_in_at::<u64>(list, n)?) } else { None };
    let order = request.extent_order as u8;
    let mfn = cur.hv.populate(domain, order, request.mem_flags as u8)?;
    for page in 0..1 << order {
        let pfn = first.map_or(Pfn::INVALID, |first| Pfn::new(first.wrapping_add(page)));
        cur.hv.platform.set_m2p(Mfn::new(mfn.raw() + page), pfn);
    }
    if !populate && request.extent_start == 0 {
        return Ok(());
    }
    let told = cur.copy_out_at(list, n, &mfn.raw());
    if told.is_err() {
        for page in 0..1 << order {
            // The caller cannot learn the numbers of these frames, so they go back. A frame that the domain
            // guessed and refers to stays the domain's.
            let _ = cur.hv.release_page(domain, Mfn::new(mfn.raw() + page));
        }
    }
    Ok(told?)
}

/// Gives an extent back, from page `page` on, which becomes the first that is not given back where this is interrupted.
fn release_extent<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Arc<Domain>,
    request: &XenMemoryReservation,
    n: u64,
    page: &mut u64,
) -> Answer {
    let first: u64 = cur.copy_in_at(GuestVa::new(request.extent_start), n)?;
    let begun_at = *page;
    while *page < 1 << request.extent_order {
        if *page > begun_at && page.is_multiple_of(LOOK_EVERY) && cur.hv.platform.work_pending() {
            return Err(HypercallError::Again);
        }
        cur.hv.release_page(domain, Mfn::new(first.wrapping_add(*page)))?;
        *page += 1;
    }
    Ok(())
}
