//! `mmuext_op`: pinning, base pointers, flushes, the LDT.

use core::mem::offset_of;

use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, GuestVa, Mfn};

use super::batch::{self, Batch};
use super::mmu::Subject;
use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome, flush};
use crate::domain::Domain;
use crate::frames::pte::is_guest_address;
use crate::platform::{CpuSet, Platform};

// As `perform` reads it: cmd in the low half of the first word.
const _: () = assert!(
    size_of::<MmuextOp>() == 24
        && offset_of!(MmuextOp, cmd) == 0
        && offset_of!(MmuextOp, arg1) == 8
        && offset_of!(MmuextOp, arg2) == 16
);

/// `mmuext_op(ops, count, &done, domain)`: operations on whole page tables, in order.
///
/// `domain` is whose tables are pinned and unpinned; all else is for the caller itself.
///
/// # Errors
/// `Fault`; `NoSuchDomain`, `NotPermitted`; those of the first operation that is refused: the ones before it are done,
/// and counted; `NoSys`: no such operation.
pub fn mmuext_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    // The case of each context switch of a guest: its own tables, a new list, and no count to return.
    if args[3] as u16 == DOMID_SELF && batch::is_plain(args) {
        ops_on_own(cur, args)
    } else {
        ops_on_any(cur, args)
    }
}

fn ops_on_own<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    HypercallError::NoSuchDomain.when(cur.domain.is_dying())?;
    // Each operation on tables first finishes what an earlier call left. A list without such operations, as a flush,
    // leaves nothing.
    let (done, result, long) = perform(cur, cur.domain, GuestVa::new(args[0]), args[1] as u32);
    let drained = !long || cur.hv.finish_deferred(cur.domain);
    if drained && result.is_ok() {
        Ok(Outcome::OK)
    } else {
        batch::ended::<MmuextOp, P>(cur, args, done, result, drained)
    }
}

#[inline(never)] // as `mmu::update_any`, for the registers
fn ops_on_any<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let batch = Batch::new(cur, args);
    let subject = if batch.only_finish { Subject::Caller } else { Subject::new(cur, args[3] as u16)? };
    let dom = subject.domain(cur.domain)?.clone();
    HypercallError::NoSuchDomain.when(dom.is_dying())?;
    // Finishes what an earlier call left, in the subject's tables and in the caller's own.
    for tables in [&dom, cur.domain] {
        if !cur.hv.finish_deferred(tables) {
            return Err(HypercallError::Again);
        }
    }
    if batch.only_finish {
        return Ok(batch::saved_result(args));
    }
    let (done, result, _) = perform(cur, &dom, GuestVa::new(args[0]), batch.count);
    let drained = cur.hv.finish_deferred(&dom);
    batch.tell(cur, done)?;
    batch::ended::<MmuextOp, P>(cur, args, done, result, drained)
}

/// Does operations in their order, until one cannot be or something else waits: how many, why no more, and whether one of
/// [`LONG`] was tried, which may leave tables for later.
#[inline(always)]
fn perform<P: Platform>(cur: &Current<'_, P>, dom: &Domain, ops: GuestVa, count: u32) -> (u64, Answer, bool) {
    let (mut done, mut long) = (0, false);
    while done < u64::from(count) {
        if done > 0 && cur.hv.platform.work_pending() {
            return (done, Err(HypercallError::Again), long);
        }
        let at = ops.wrapping_add(done * size_of::<MmuextOp>() as u64);
        let Ok([cmd, arg1, arg2]) = cur.read_frame(at) else {
            return (done, Err(HypercallError::Fault), long);
        };
        let is_long = 1u32.wrapping_shl(cmd as u32) & LONG != 0;
        long |= is_long;
        let result = match cmd as u32 {
            // These three work on the caller's own tables and are the most frequent, so they are compared
            // first.
            MMUEXT_NEW_BASEPTR if dom.id == cur.domain.id => {
                cur.hv.new_base(cur.domain, cur.vcpu, Mfn::new(arg1)).map_err(HypercallError::from)
            }
            MMUEXT_NEW_USER_BASEPTR if dom.id == cur.domain.id => {
                cur.hv.new_user_base(cur.domain, cur.vcpu, Mfn::new(arg1)).map_err(HypercallError::from)
            }
            MMUEXT_TLB_FLUSH_LOCAL if dom.id == cur.domain.id => {
                cur.hv.platform.flush_tlb_local();
                Ok(())
            }
            cmd => one(cur, dom, cmd, arg1, arg2),
        };
        if result.is_err() {
            return (done, result, long);
        }
        done += 1;
        // The check at the loop's start is skipped for a list of one, and a multicall may have many such
        // lists.
        if is_long && cur.hv.platform.work_pending() {
            return (done, Err(HypercallError::Again), long);
        }
    }
    (done, Ok(()), long)
}

/// Operations that may check a table or take one apart, a bit each.
const LONG: u32 = 0b11111 | 1 << MMUEXT_NEW_BASEPTR | 1 << MMUEXT_NEW_USER_BASEPTR;
const _: () = assert!(MMUEXT_PIN_L1_TABLE == 0 && MMUEXT_UNPIN_TABLE == 4);

/// The CPUs that `command` flushes, which may have a bitmap of vCPUs at `at`.
///
/// # Errors
/// `Invalid`: the bitmap is not there.
fn flushed<P: Platform>(cur: &Current<'_, P>, command: u32, at: GuestVa) -> Answer<CpuSet> {
    if matches!(command, MMUEXT_TLB_FLUSH_MULTI | MMUEXT_INVLPG_MULTI) {
        flush::cpus_of_set(cur, at).map_err(|_| HypercallError::Invalid)
    } else {
        Ok(flush::all_cpus(cur))
    }
}

fn one<P: Platform>(cur: &Current<'_, P>, dom: &Domain, cmd: u32, arg1: u64, arg2: u64) -> Answer {
    let hv = cur.hv;
    let (mfn, va) = (Mfn::new(arg1), GuestVa::new(arg1));
    match cmd {
        MMUEXT_PIN_L1_TABLE..=MMUEXT_PIN_L4_TABLE => {
            hv.pin_table(dom, mfn, (cmd - MMUEXT_PIN_L1_TABLE) as u8 + 1)?;
        }
        MMUEXT_UNPIN_TABLE => hv.unpin_table(dom, mfn)?,
        _ if dom.id != cur.domain.id => return Err(HypercallError::NotPermitted),
        MMUEXT_INVLPG_LOCAL => {
            if is_guest_address(va) {
                hv.platform.invlpg(va);
            }
        }
        MMUEXT_TLB_FLUSH_MULTI | MMUEXT_TLB_FLUSH_ALL => {
            flush::flush(cur, flushed(cur, cmd, GuestVa::new(arg2))?);
        }
        MMUEXT_INVLPG_MULTI | MMUEXT_INVLPG_ALL => {
            flush::invlpg(cur, flushed(cur, cmd, GuestVa::new(arg2))?, va);
        }
        MMUEXT_FLUSH_CACHE | MMUEXT_FLUSH_CACHE_GLOBAL => {
            // All memory is mapped write-back and no device memory is, so no cache line can be stale.
            HypercallError::Access
                .when(!cur.domain.privileged && cur.domain.permissions.lock().iomem.is_empty())?;
        }
        MMUEXT_SET_LDT => hv.set_ldt(cur.domain, cur.vcpu, arg1, arg2 as u32)?,
        MMUEXT_CLEAR_PAGE => {
            let page = hv.get_page_writable(mfn, dom)?;
            hv.platform.zero_frame(page.mfn());
        }
        MMUEXT_COPY_PAGE => {
            let from = hv.get_page(Mfn::new(arg2), dom).ok_or(HypercallError::Invalid)?;
            let to = hv.get_page_writable(mfn, dom)?;
            hv.platform.copy_bytes(to.mfn().maddr(), from.mfn().maddr(), 4096);
        }
        _ => return Err(HypercallError::NoSys),
    }
    Ok(())
}
