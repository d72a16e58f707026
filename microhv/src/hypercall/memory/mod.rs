//! `memory_op`: what memory a domain has, and what the machine has.

mod exchange;
mod maps;
mod reservation;

use ring_abi::memory::*;
use ring_abi::types::GuestVa;

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Bits of the command that name the operation; above it stands where an interrupted one goes on.
const OPERATION_BITS: u32 = 6;
/// Byte offset of `arch.max_pfn` in `shared_info`.
const SHARED_INFO_MAX_PFN: usize = 0xc10;

/// `memory_op(cmd, arg)`.
///
/// # Errors
/// As each operation says; `Fault`; `NoSuchDomain`, `NotPermitted` for the domain named; `NoSys`: no such operation.
pub fn memory_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let [command, arg, ..] = *args;
    let arg = GuestVa::new(arg);
    let (start, ok) = (command >> OPERATION_BITS, |()| Outcome::OK);
    match (command & ((1 << OPERATION_BITS) - 1)) as u32 {
        operation @ (XENMEM_INCREASE_RESERVATION | XENMEM_DECREASE_RESERVATION | XENMEM_POPULATE_PHYSMAP) => {
            reservation::change(cur, operation, args, start)
        }
        XENMEM_EXCHANGE => exchange::exchange(cur, args),
        XENMEM_MAXIMUM_RAM_PAGE => Ok(Outcome::Done(cur.hv.frames.end().raw())),
        operation @ (XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION | XENMEM_MAXIMUM_GPFN) => {
            let asked: XenMemoryDomain = cur.copy_in(arg)?;
            let domain = cur.hv.domains.target(cur.domain, asked.domid)?;
            Ok(Outcome::Done(match operation {
                XENMEM_CURRENT_RESERVATION => domain.mm.tot_pages(),
                XENMEM_MAXIMUM_RESERVATION => domain.mm.max_pages(),
                _ => domain.shared_info.load_u64(SHARED_INFO_MAX_PFN).saturating_sub(1),
            }))
        }
        XENMEM_MACHPHYS_MAPPING => maps::machphys_mapping(cur, arg).map(ok),
        XENMEM_MEMORY_MAP => maps::memory_map(cur, arg).map(ok),
        XENMEM_MACHINE_MEMORY_MAP => maps::machine_memory_map(cur, arg).map(ok),
        XENMEM_SET_MEMORY_MAP => maps::set_memory_map(cur, arg).map(ok),
        XENMEM_CLAIM_PAGES => {
            let claim: XenMemoryReservation = cur.copy_in(arg)?;
            HypercallError::NotPermitted.when(!cur.domain.privileged)?;
            HypercallError::Invalid
                .when(claim.extent_start != 0 || claim.extent_order != 0 || claim.mem_flags != 0)?;
            let domain = cur.hv.domains.target(cur.domain, claim.domid)?;
            cur.hv.claim_pages(&domain, claim.nr_extents)?;
            Ok(Outcome::OK)
        }
        XENMEM_ACQUIRE_RESOURCE => maps::acquire_resource(cur, arg).map(ok),
        // No page of a domain is ever shared with another by contents.
        XENMEM_GET_SHARING_FREED_PAGES | XENMEM_GET_SHARING_SHARED_PAGES => Ok(Outcome::Done(0)),
        XENMEM_GET_VNUMAINFO => Err(HypercallError::NotSupported),
        // These are for domains whose physical map the hypervisor keeps, which PV domains are not.
        XENMEM_ADD_TO_PHYSMAP | XENMEM_ADD_TO_PHYSMAP_BATCH => Err(HypercallError::Access),
        XENMEM_REMOVE_FROM_PHYSMAP => Err(HypercallError::NotSupported),
        XENMEM_SET_POD_TARGET | XENMEM_GET_POD_TARGET => Err(HypercallError::Invalid),
        _ => Err(HypercallError::NoSys),
    }
}
