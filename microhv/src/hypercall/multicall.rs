//! Several calls in one.

use core::mem::offset_of;

use ring_abi::hypercall::{self as nr, __HYPERVISOR_MULTICALL, MulticallEntry};
use ring_abi::types::GuestVa;

use super::{Args, Current, HypercallError, HypercallResult, Outcome, call};
use crate::platform::Platform;
use crate::return_stack;

/// Entries between two looks at what waits, all of them [`BRIEF`] calls.
const LOOK_EVERY: u32 = 8;

/// The calls of which eight do not take long, a bit for each number: each is a few hundred instructions, or has looked
/// itself after what takes longer. After any other call the list looks: a call that is too short to look itself is long
/// eight times over (I13).
const BRIEF: u64 = 1 << nr::__HYPERVISOR_MMU_UPDATE
    | 1 << nr::__HYPERVISOR_STACK_SWITCH
    | 1 << nr::__HYPERVISOR_FPU_TASKSWITCH
    | 1 << nr::__HYPERVISOR_UPDATE_DESCRIPTOR
    | 1 << nr::__HYPERVISOR_UPDATE_VA_MAPPING
    | 1 << nr::__HYPERVISOR_SET_TIMER_OP
    | 1 << nr::__HYPERVISOR_XEN_VERSION
    | 1 << nr::__HYPERVISOR_SET_SEGMENT_BASE
    | 1 << nr::__HYPERVISOR_MMUEXT_OP;
const _: () = assert!(BRIEF >> __HYPERVISOR_MULTICALL & 1 == 0);

const ENTRY: u64 = size_of::<MulticallEntry>() as u64;

/// `multicall(list, count)`: executes each entry and writes its result there. `iret` as an entry ends the list; a
/// multicall in a multicall is refused.
///
/// # Errors
/// `Fault`: an entry cannot be read, or its result written.
pub fn multicall<P: Platform>(cur: &mut Current<'_, P>, outer: &Args) -> HypercallResult {
    let _filled = return_stack::fill_at_end();
    let (mut at, mut left) = (GuestVa::new(outer[0]), outer[1] as u32);
    if left == 0 {
        return Ok(Outcome::OK);
    }
    let mut words = [0; 8];
    let mut until_look = LOOK_EVERY;
    loop {
        cur.read_words(&mut words, at)?;
        let (op, args) = (words[0], words.last_chunk().expect("six of the eight words"));
        let is_brief = BRIEF.wrapping_shr(op as u32) & 1 != 0;
        if !is_brief {
            until_look = 1;
        }
        let result = if !is_brief && op == u64::from(__HYPERVISOR_MULTICALL) {
            Err(HypercallError::Invalid)
        } else {
            call(cur, op, args)
        };
        let value = match result {
            Ok(Outcome::Done(value)) => value,
            _ => match no_value(cur, result, rest_of(outer, at, left))? {
                Outcome::Done(value) => value,
                ended => return Ok(ended),
            },
        };
        cur.copy_out(at.wrapping_add(offset_of!(MulticallEntry, result) as u64), &value)?;
        at = at.wrapping_add(ENTRY);
        left -= 1;
        if left == 0 {
            return Ok(Outcome::OK);
        }
        until_look -= 1;
        if until_look == 0 {
            if cur.hv.platform.work_pending() {
                return Ok(cur.again(rest_of(outer, at, left)));
            }
            until_look = LOOK_EVERY;
        }
    }
}

/// The arguments for the `left` entries from `at` on. The caller keeps the registers that hold none.
fn rest_of(outer: &Args, at: GuestVa, left: u32) -> Args {
    let mut rest = *outer;
    rest[0] = at.raw();
    rest[1] = left.into();
    rest
}

/// What becomes of the list when the first entry of `rest` failed (its `-errno`), is to be continued, or ends it.
#[cold]
#[inline(never)]
fn no_value<P: Platform>(cur: &Current<'_, P>, result: HypercallResult, rest: Args) -> HypercallResult {
    match result {
        Ok(Outcome::Continue) => {
            let args = cur.vcpu.continuation();
            let at = GuestVa::new(rest[0]).wrapping_add(offset_of!(MulticallEntry, args) as u64);
            cur.copy_out(at, &args)?;
            Ok(cur.again(rest))
        }
        Err(HypercallError::Again) => Ok(cur.again(rest)),
        Err(error) => Ok(Outcome::Done(error.errno() as u64)),
        other => other,
    }
}
