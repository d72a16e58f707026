//! The serial console, for the domain that has it.

use ring_abi::console_io::{ASKS_WHETHER_BUSY, CONSOLEIO_READ, CONSOLEIO_WRITE};
use ring_abi::types::GuestVa;

use super::{Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Bytes copied at a time.
const CHUNK: usize = 128;
/// How long a writer sleeps when the line has no room.
const FULL_NS: u64 = 1_000_000;

/// `console_io(cmd, count, buffer)`: writes, or reads what was typed. Only a privileged domain may.
///
/// A write that the line has no room for goes on by itself after the caller's vCPU has slept. A caller that would rather
/// do something else asks first, by a write of no bytes at [`ASKS_WHETHER_BUSY`].
///
/// # Errors
/// `NotPermitted`; `Fault`; `NoSys`: no such command; `Again`: the line is busy, and the caller asked.
pub fn console_io<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let [command, count, buffer, ..] = *args;
    let (mut left, mut at) = (count as u32, GuestVa::new(buffer));
    let mut chunk = [0u8; CHUNK];
    match command as u32 {
        CONSOLEIO_WRITE if left == 0 && buffer == ASKS_WHETHER_BUSY && cur.hv.platform.console_is_busy() => {
            Ok(Outcome::Done(HypercallError::Again.errno() as u64))
        }
        CONSOLEIO_WRITE => {
            while left > 0 {
                let len = (left as usize).min(CHUNK);
                cur.copy_from_guest(&mut chunk[..len], at)?;
                let taken = cur.hv.platform.console_write(&chunk[..len]);
                left -= taken as u32;
                at = at.wrapping_add(taken as u64);
                if taken < len {
                    super::sched::wait(cur, &[], cur.hv.platform.now_ns() + FULL_NS);
                }
                if taken < len || (left > 0 && cur.hv.platform.work_pending()) {
                    return Ok(cur.again([command, left.into(), at.raw(), args[3], args[4], args[5]]));
                }
            }
            Ok(Outcome::OK)
        }
        CONSOLEIO_READ => {
            let mut done = 0;
            while left > 0 {
                let len = cur.hv.console.take(&mut chunk[..(left as usize).min(CHUNK)]);
                if len == 0 {
                    break;
                }
                cur.copy_to_guest(at, &chunk[..len])?;
                left -= len as u32;
                at = at.wrapping_add(len as u64);
                done += len as u64;
            }
            Ok(Outcome::Done(done))
        }
        _ => Err(HypercallError::NoSys),
    }
}
