//! Grant tables: decoding of `grant_table_op` and its arrays.
//!
//! Every operation of an array gets its own `status`; the call itself fails only where the array cannot be read or
//! written, or the operation is unknown. Long arrays are interrupted and go on where they stopped.
//!
//! ABI: `xen/include/public/grant_table.h`.

use alloc::sync::Arc;
use core::mem::offset_of;
use core::ops::Range;

use ring_abi::grant::*;
use ring_abi::types::{GrantRef, GuestVa};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{Domain, DomainError};
use crate::gnttab::state::{GrantError, Part, Version};
use crate::gnttab::{CopyCache, DomainCache, GrowError, UNMAP_BATCH, UnmapBatch};
use crate::platform::{GuestFault, Platform};

/// Operations between two looks for pending work.
const PREEMPT_EVERY: u64 = 8;
/// Copies that are read together.
const COPIES: usize = PREEMPT_EVERY as usize;
/// Frames of a grant table that are told together.
const FRAMES_TOGETHER: usize = 64;

/// `grant_table_op(cmd, array, count)`.
///
/// # Errors
/// - `Fault`: the array cannot be read or written.
/// - `Invalid`: `count` is negative.
/// - `NotPermitted`, `NoSuchDomain`: another domain's table, for operations without a `status`.
/// - `NotSupported`: `GNTTABOP_transfer`, `GNTTABOP_cache_flush`.
/// - `NoSys`: no such operation, and version 2 for a domain that may not have it.
/// - `Busy`, `Range`, `NoMemory`: the version cannot be changed.
pub fn grant_table_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let [cmd, array, count, ..] = *args;
    let array = GuestVa::new(array);
    let count = count & 0xffff_ffff;
    HypercallError::Invalid.when(count > i32::MAX as u64)?;
    match u32::try_from(cmd).map_err(|_| HypercallError::NoSys)? {
        GNTTABOP_MAP_GRANT_REF => map(cur, args, array, count),
        GNTTABOP_UNMAP_GRANT_REF => unmap(cur, args, array, count),
        GNTTABOP_UNMAP_AND_REPLACE => unmap_and_replace(cur, args, array, count),
        GNTTABOP_COPY => copy(cur, args, array, count),
        GNTTABOP_SETUP_TABLE => single(cur, args, setup_table),
        GNTTABOP_QUERY_SIZE => single(cur, args, query_size),
        GNTTABOP_SET_VERSION => set_version(cur, args, array),
        GNTTABOP_GET_VERSION => get_version(cur, array),
        GNTTABOP_GET_STATUS_FRAMES => single(cur, args, get_status_frames),
        GNTTABOP_SWAP_GRANT_REF => swap(cur, args, array, count),
        GNTTABOP_TRANSFER | GNTTABOP_CACHE_FLUSH => Err(HypercallError::NotSupported),
        _ => Err(HypercallError::NoSys),
    }
}

/// The `status` of an operation.
fn status_of<T>(result: &Result<T, GrantError>) -> i16 {
    let Err(error) = result else { return GNTST_OKAY };
    match error {
        GrantError::General | GrantError::NotMapped | GrantError::NotWhole => GNTST_GENERAL_ERROR,
        GrantError::BadDomain => GNTST_BAD_DOMAIN,
        GrantError::BadGrantRef => GNTST_BAD_GNTREF,
        GrantError::BadHandle => GNTST_BAD_HANDLE,
        GrantError::NoDeviceSpace => GNTST_NO_DEVICE_SPACE,
        GrantError::PermissionDenied => GNTST_PERMISSION_DENIED,
        GrantError::BadPage => GNTST_BAD_PAGE,
        GrantError::BadCopyArg => GNTST_BAD_COPY_ARG,
        GrantError::Again => GNTST_EAGAIN,
    }
}

/// Calls `each` for the operations of an array of `T`, with a look for pending work now and then.
fn array<P: Platform, T: FromBytes + IntoBytes>(
    cur: &mut Current<'_, P>,
    args: &Args,
    array: GuestVa,
    count: u64,
    mut each: impl FnMut(&mut Current<'_, P>, GuestVa, &T) -> Result<(), GuestFault>,
) -> HypercallResult {
    let mut op = T::new_zeroed();
    for n in 0..count {
        if n != 0 && n.is_multiple_of(PREEMPT_EVERY) && cur.hv.platform.work_pending() {
            return Ok(cur.again(resume::<T>(args, array, count, n)));
        }
        cur.copy_in_place(array, n, &mut op)?;
        let at = array.wrapping_add(n * size_of::<T>() as u64); // the copy checked that it does not wrap
        each(cur, at, &op)?;
    }
    Ok(Outcome::OK)
}

/// The arguments without the first `done` operations.
fn resume<T>(args: &Args, array: GuestVa, count: u64, done: u64) -> Args {
    let mut args = *args;
    // An array that reaches the end of the address space continues at address 0, where reading it may fault.
    args[1] = array.wrapping_add(done * size_of::<T>() as u64).raw();
    args[2] = count - done;
    args
}

#[inline(never)]
fn map<P: Platform>(cur: &mut Current<'_, P>, args: &Args, at: GuestVa, count: u64) -> HypercallResult {
    /// From `dom` on, as one copy.
    #[derive(IntoBytes, zerocopy::Immutable)]
    #[repr(C)]
    struct Told {
        dom: u16,
        status: i16,
        handle: u32,
        dev_bus_addr: u64,
    }
    const _: () =
        assert!(offset_of!(GnttabMapGrantRef, dom) + size_of::<Told>() == size_of::<GnttabMapGrantRef>());
    let mut cache = DomainCache::default();
    array(cur, args, at, count, |cur, at, op: &GnttabMapGrantRef| {
        let result = cur.hv.map_grant(cur, &mut cache, op);
        let (handle, dev_bus_addr) =
            result.as_ref().map_or((op.handle, op.dev_bus_addr), |(handle, at)| (handle.raw(), at.raw()));
        let told = Told { dom: op.dom, status: status_of(&result), handle, dev_bus_addr };
        cur.copy_out(at.wrapping_add(offset_of!(GnttabMapGrantRef, dom) as u64), &told)
    })
}

#[inline(never)]
fn unmap<P: Platform>(cur: &mut Current<'_, P>, args: &Args, array: GuestVa, count: u64) -> HypercallResult {
    const STATUS: usize = offset_of!(GnttabUnmapGrantRef, status);
    unmap_all(cur, args, array, count, STATUS, |op: &GnttabUnmapGrantRef| (*op, None))
}

#[inline(never)]
fn unmap_and_replace<P: Platform>(
    cur: &mut Current<'_, P>,
    args: &Args,
    array: GuestVa,
    count: u64,
) -> HypercallResult {
    const STATUS: usize = offset_of!(GnttabUnmapAndReplace, status);
    unmap_all(cur, args, array, count, STATUS, |op: &GnttabUnmapAndReplace| {
        let unmap = GnttabUnmapGrantRef {
            host_addr: op.host_addr,
            handle: op.handle,
            ..GnttabUnmapGrantRef::default()
        };
        (unmap, Some(op.new_addr).filter(|va| *va != 0))
    })
}

/// Unmaps by an array of `T`: `meaning` gives the unmap, and the address whose entry comes into its place; the status
/// is at byte `status_at` of each.
#[inline(always)]
fn unmap_all<P: Platform, T: FromBytes + IntoBytes>(
    cur: &mut Current<'_, P>,
    args: &Args,
    array: GuestVa,
    count: u64,
    status_at: usize,
    meaning: impl Fn(&T) -> (GnttabUnmapGrantRef, Option<u64>),
) -> HypercallResult {
    let mut op = T::new_zeroed();
    let mut done = 0;
    while done < count {
        if done != 0 && cur.hv.platform.work_pending() {
            return Ok(cur.again(resume::<T>(args, array, count, done)));
        }
        let end = count.min(done + UNMAP_BATCH as u64);
        // The batch gives back the frames of ended mappings when it is dropped, even if the array faults
        // half-way.
        let mut batch = UnmapBatch::new(cur.hv, cur.domain);
        for n in done..end {
            cur.copy_in_place(array, n, &mut op)?;
            let (op, replacement) = meaning(&op);
            let status = status_of(&batch.unmap(cur.vcpu, &op, replacement));
            let at = array.wrapping_add(n * size_of::<T>() as u64);
            cur.copy_out(at.wrapping_add(status_at as u64), &status)?;
        }
        batch.finish();
        core::mem::forget(batch);
        done = end;
    }
    Ok(Outcome::OK)
}

#[inline(never)]
fn copy<P: Platform>(cur: &mut Current<'_, P>, args: &Args, array: GuestVa, count: u64) -> HypercallResult {
    // One needs no room for more.
    if count == 1 {
        copy_by::<P, 1>(cur, args, array, count)
    } else {
        copy_by::<P, COPIES>(cur, args, array, count)
    }
}

/// Copies by an array, of which `N` operations are read together.
#[inline(always)]
fn copy_by<P: Platform, const N: usize>(
    cur: &mut Current<'_, P>,
    args: &Args,
    array: GuestVa,
    count: u64,
) -> HypercallResult {
    let mut cache = CopyCache::default();
    let mut ops = [GnttabCopy::new_zeroed(); N];
    let mut done = 0;
    while done < count {
        if done != 0 && cur.hv.platform.work_pending() {
            return Ok(cur.again(resume::<GnttabCopy>(args, array, count, done)));
        }
        let at = array.element::<GnttabCopy>(done).ok_or(HypercallError::Fault)?;
        let mut read = &mut ops[..((count - done) as usize).min(N)];
        // Where not all can be read, those before the fault are done.
        if cur.copy_from_guest(read.as_mut_bytes(), at).is_err() {
            read = &mut ops[..1];
            cur.copy_from_guest(read.as_mut_bytes(), at)?;
        }
        copy_read(cur, &mut cache, read, at)?;
        done += read.len() as u64;
    }
    Ok(Outcome::OK)
}

/// Does copies that were read from `at` on.
#[inline(always)]
fn copy_read<P: Platform>(
    cur: &Current<'_, P>,
    cache: &mut CopyCache,
    mut ops: &[GnttabCopy],
    mut at: GuestVa,
) -> Result<(), GuestFault> {
    let size = size_of::<GnttabCopy>() as u64;
    let place = |at: GuestVa, n: usize| at.wrapping_add((n as u64).wrapping_mul(size)); // as far as was read
    while !ops.is_empty() {
        let done = cur.hv.copy_grants(cur, cache, ops, |n, result| {
            let status = place(at, n).wrapping_add(offset_of!(GnttabCopy, status) as u64);
            cur.copy_out(status, &status_of(&result))
        })?;
        ops = &ops[done..];
        at = place(at, done);
    }
    Ok(())
}

#[inline(never)]
fn swap<P: Platform>(cur: &mut Current<'_, P>, args: &Args, at: GuestVa, count: u64) -> HypercallResult {
    array(cur, args, at, count, |cur, at, op: &GnttabSwapGrantRef| {
        let status = status_of(&cur.domain.grants.swap(GrantRef::new(op.ref_a), GrantRef::new(op.ref_b)));
        cur.copy_out(at.wrapping_add(offset_of!(GnttabSwapGrantRef, status) as u64), &status)
    })
}

/// An operation that the ABI defines for arrays of one. Where `work` says `Again`, it is to be done again, from what the
/// caller's structure was at first.
fn single<P: Platform, T: FromBytes + IntoBytes + zerocopy::Immutable>(
    cur: &mut Current<'_, P>,
    args: &Args,
    work: impl FnOnce(&Current<'_, P>, &mut T) -> Answer,
) -> HypercallResult {
    let [_, at, count, ..] = *args;
    let at = GuestVa::new(at);
    HypercallError::Invalid.when(count as u32 != 1)?;
    let mut op: T = cur.copy_in(at)?;
    match work(cur, &mut op) {
        Ok(()) => cur.copy_out(at, &op)?,
        Err(HypercallError::Again) => return Ok(cur.again(*args)),
        Err(error) => return Err(error),
    }
    Ok(Outcome::OK)
}

/// The domain that an operation on a whole table names: the caller, or any for a privileged caller.
fn table_of<P: Platform>(cur: &Current<'_, P>, dom: u16) -> Result<Arc<Domain>, GrantError> {
    cur.hv.domains.target(cur.domain, dom).map_err(|error| match error {
        DomainError::NoSuchDomain => GrantError::BadDomain,
        DomainError::NotPermitted => GrantError::PermissionDenied,
    })
}

fn setup_table<P: Platform>(cur: &Current<'_, P>, op: &mut GnttabSetupTable) -> Answer {
    let domain = table_of(cur, op.dom);
    op.status = status_of(&domain);
    let Ok(domain) = domain else { return Ok(()) };
    op.status = match cur.hv.grow_grant_table(&domain, op.nr_frames.max(1)) {
        Ok(()) => tell_frames(cur, &domain, Part::Entries, op.nr_frames, op.frame_list),
        Err(GrowError::Again) => return Err(HypercallError::Again),
        Err(_) => GNTST_GENERAL_ERROR,
    };
    Ok(())
}

/// `GNTTABOP_get_status_frames`: as many as the table has, and no more.
fn get_status_frames<P: Platform>(cur: &Current<'_, P>, op: &mut GnttabGetStatusFrames) -> Answer {
    let domain = table_of(cur, op.dom);
    op.status = status_of(&domain);
    if let Ok(domain) = domain {
        op.status = tell_frames(cur, &domain, Part::Status, op.nr_frames, op.frame_list);
    }
    Ok(())
}

/// Writes the first frames of a domain's table to a list: the operation's status.
fn tell_frames<P: Platform>(cur: &Current<'_, P>, domain: &Domain, part: Part, count: u32, list: u64) -> i16 {
    match copy_out_frames(cur, domain, part, 0..count, GuestVa::new(list)) {
        Ok(()) => GNTST_OKAY,
        Err(HypercallError::Fault) => GNTST_BAD_VIRT_ADDR,
        Err(_) => GNTST_GENERAL_ERROR,
    }
}

/// Writes some frames of a domain's table to a list.
///
/// # Errors
/// `Fault`; `Invalid`: the table has not so many.
pub(super) fn copy_out_frames<P: Platform>(
    cur: &Current<'_, P>,
    domain: &Domain,
    part: Part,
    which: Range<u32>,
    list: GuestVa,
) -> Answer {
    // Many at a time, since a table may have thousands.
    let mut frames = [0u64; FRAMES_TOGETHER];
    let mut next = which.start;
    while next < which.end {
        let wanted = ((which.end - next) as usize).min(FRAMES_TOGETHER);
        let count = domain.grants.frames_from(part, next, &mut frames[..wanted]);
        HypercallError::Invalid.when(count == 0)?;
        let at = list.element::<u64>((next - which.start).into()).ok_or(HypercallError::Fault)?;
        cur.copy_to_guest(at, frames[..count].as_bytes())?;
        next += count as u32;
    }
    Ok(())
}

fn query_size<P: Platform>(cur: &Current<'_, P>, op: &mut GnttabQuerySize) -> Answer {
    let domain = table_of(cur, op.dom);
    op.status = status_of(&domain);
    if let Ok(domain) = domain {
        op.nr_frames = domain.grants.frame_count();
        op.max_nr_frames = domain.config.max_grant_frames;
    }
    Ok(())
}

/// `GNTTABOP_set_version`: in pieces. The structure is written when all is done, so that the call can go on from it.
fn set_version<P: Platform>(cur: &mut Current<'_, P>, args: &Args, at: GuestVa) -> HypercallResult {
    let op: GnttabSetVersion = cur.copy_in(at)?;
    let result = match op.version {
        1 => cur.hv.set_grant_version(cur.domain, Version::One).map_err(HypercallError::from),
        2 if cur.domain.config.max_grant_version < 2 => Err(HypercallError::NoSys),
        2 => cur.hv.set_grant_version(cur.domain, Version::Two).map_err(HypercallError::from),
        _ => Err(HypercallError::Invalid),
    };
    if result == Err(HypercallError::Again) {
        return Ok(cur.again(*args));
    }
    cur.copy_out(at, &GnttabSetVersion { version: cur.domain.grants.version() as u32 })?;
    result.map(|()| Outcome::OK)
}

fn get_version<P: Platform>(cur: &Current<'_, P>, at: GuestVa) -> HypercallResult {
    let mut op: GnttabGetVersion = cur.copy_in(at)?;
    op.version = cur.hv.domains.target(cur.domain, op.dom)?.grants.version() as u32;
    cur.copy_out(at, &op)?;
    Ok(Outcome::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_that_ends_with_the_address_space_goes_on_behind_it() {
        let raw = 0u64.wrapping_sub(16 * size_of::<GnttabMapGrantRef>() as u64);
        let array = GuestVa::new(raw);
        assert_eq!(resume::<GnttabMapGrantRef>(&[0, raw, 20, 1, 2, 3], array, 20, 16), [0, 0, 4, 1, 2, 3]);
    }
}
