//! Lists of requests that are done in their order, and go on after what waits: what `mmu_update` and `mmuext_op` share.
//! Both are `(list, count, &done, domain)`.

use ring_abi::types::GuestVa;

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::Platform;

/// Set in a count: the call goes on where it was interrupted.
const PREEMPTED: u32 = 1 << 31;

/// Whether a call begins here, and wants no figure of requests done.
#[inline(always)]
pub(super) const fn is_plain(args: &Args) -> bool {
    args[2] == 0 && args[1] as u32 & PREEMPTED == 0
}

/// A call of any kind.
#[must_use = "the caller's figure is owed: `tell` it how many requests were done"]
pub(super) struct Batch {
    /// Requests.
    pub(super) count: u32,
    /// The requests are done, and tables were left unfinished. The fourth argument holds the result.
    pub(super) only_finish: bool,
    done_at: Option<GuestVa>,
    /// Requests done before it was interrupted, as the caller's figure has them.
    before: u32,
}

impl Batch {
    pub(super) fn new<P: Platform>(cur: &Current<'_, P>, args: &Args) -> Self {
        let [list, count, done_at, ..] = *args;
        let done_at = (done_at != 0).then(|| GuestVa::new(done_at));
        let resumed = count as u32 & PREEMPTED != 0;
        let count = count as u32 & !PREEMPTED;
        let before = done_at.filter(|_| resumed).map_or(0, |at| cur.copy_in(at).unwrap_or(0));
        Self { count, only_finish: resumed && count == 0 && list == 0, done_at, before }
    }

    /// Tells the caller's figure, if there is one, of a call that did `done` requests.
    pub(super) fn tell<P: Platform>(&self, cur: &Current<'_, P>, done: u64) -> Answer {
        if let Some(at) = self.done_at {
            cur.copy_out(at, &self.before.wrapping_add(done as u32))?;
        }
        Ok(())
    }
}

/// What a call gives that did `done` of its requests, each a `T`; `drained`: no table is left unfinished. The callers' loops
/// count `done` up to the count in `args` at most.
#[cold]
#[inline(never)]
pub(super) fn ended<T, P: Platform>(
    cur: &Current<'_, P>,
    args: &Args,
    done: u64,
    result: Answer,
    drained: bool,
) -> HypercallResult {
    let mut rest = *args;
    match result {
        Ok(()) if drained => return Ok(Outcome::OK),
        Ok(()) | Err(HypercallError::Again) => {
            let left = u64::from(args[1] as u32 & !PREEMPTED) - done;
            rest[0] = args[0].wrapping_add(done * size_of::<T>() as u64);
            rest[1] = left | u64::from(PREEMPTED);
        }
        Err(error) if drained => return Err(error),
        Err(error) => {
            (rest[0], rest[1], rest[2], rest[3]) = (0, PREEMPTED.into(), 0, error.errno() as u64);
        }
    }
    Ok(cur.again(rest))
}

/// The result of a call whose last error waited for interrupted work.
pub(super) const fn saved_result(args: &Args) -> Outcome {
    Outcome::Done(args[3] as i32 as i64 as u64)
}
