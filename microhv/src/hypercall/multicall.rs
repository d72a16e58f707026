//! Several calls in one.

use core::mem::offset_of;

use ring_abi::hypercall::{__HYPERVISOR_MULTICALL, MulticallEntry};

use super::{Args, Current, HypercallError, HypercallResult, Outcome, call};
use crate::platform::Platform;

/// Entries between two looks at what waits: few, since each looks itself when it takes long.
const LOOK_EVERY: u32 = 8;

const ENTRY: u64 = size_of::<MulticallEntry>() as u64;

/// `multicall(list, count)`: executes each entry and writes its result there. `iret` as an entry ends the list; a
/// multicall in a multicall is refused.
///
/// # Errors
/// `Fault`: an entry cannot be read, or its result written.
pub fn multicall<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let (mut at, mut left) = (args[0], args[1] as u32);
    while left > 0 {
        let [op, _, args @ ..] = cur.hv.platform.read_frame::<8>(at)?;
        let outcome = if op == u64::from(__HYPERVISOR_MULTICALL) {
            Err(HypercallError::Invalid)
        } else {
            call(cur, op, &args)
        };
        let result = match outcome {
            Ok(Outcome::Done(value)) => value,
            Err(error) => error.errno() as u64,
            Ok(Outcome::Continue) => {
                let args = cur.vcpu.continuation();
                cur.copy_out(at.wrapping_add(offset_of!(MulticallEntry, args) as u64), &args)?;
                return Ok(cur.again([at, u64::from(left), 0, 0, 0, 0]));
            }
            Ok(Outcome::NoReturn) => return Ok(Outcome::NoReturn),
        };
        cur.copy_out(at.wrapping_add(offset_of!(MulticallEntry, result) as u64), &result)?;
        at = at.wrapping_add(ENTRY);
        left -= 1;
        if left > 0 && left.is_multiple_of(LOOK_EVERY) && cur.hv.platform.work_pending() {
            return Ok(cur.again([at, u64::from(left), 0, 0, 0, 0]));
        }
    }
    Ok(Outcome::OK)
}
