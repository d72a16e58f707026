//! One typed function for each hypercall. On the host, hypercalls go to the thread's [`crate::host::Hypervisor`].
//!
//! Every function returns `Err` with the hypervisor's errno, never a raw number. A function is safe when the call
//! cannot change memory of this kernel behind the compiler's back; the page-table calls are `unsafe`.
#![allow(unsafe_code)] // arguments are passed by address

pub mod console;
pub mod domctl;
pub mod event;
pub mod grant;
pub mod memory;
pub mod mmu;
pub mod physdev;
pub mod saved;
pub mod sched;
pub mod sysctl;
pub mod tools;
pub mod vcpu;
pub mod version;

use ring_abi::errno::Errno;
use ring_abi::hypercall::{__HYPERVISOR_MULTICALL, MulticallEntry};

/// The hypervisor's answer: a value of the call's own kind, or an errno.
pub type Result<T> = core::result::Result<T, Errno>;

/// Issues hypercall `number`; returns rax.
///
/// # Safety
/// Addresses among the arguments must be valid for what the call reads and writes, and the call's effect must not break
/// what Rust assumes of this kernel's memory.
#[cfg(freestanding)]
#[inline]
pub unsafe fn raw(number: u32, args: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: the hypervisor keeps every register but rax, rcx, r11 and the arguments', which a call that it interrupted
    // and took up again has changed (xen-x86_64.h, 'Clobbered'); the caller vouches for the call itself.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") u64::from(number) => result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            inlateout("r8") args[4] => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Issues hypercall `number` to the thread's stand-in.
///
/// # Safety
/// Addresses among the arguments must be valid for what the call reads and writes.
#[cfg(not(freestanding))]
pub unsafe fn raw(number: u32, args: [u64; 5]) -> i64 {
    crate::host::hypercall(number, args)
}

/// Splits rax into value and errno.
#[inline]
pub(crate) fn check(result: i64) -> Result<u64> {
    Errno::check(result)
}

/// A call whose only argument besides its sub-operation is one structure. The call reads and writes the structure in
/// place.
///
/// # Safety
/// The requirements of [`raw`], for the addresses in `arg`.
#[inline]
pub(crate) unsafe fn op<T>(number: u32, cmd: u32, arg: &mut T) -> Result<u64> {
    // SAFETY: `arg` is valid for the call's reads and writes; the caller vouches for its contents.
    check(unsafe { raw(number, [u64::from(cmd), (arg as *mut T) as u64, 0, 0, 0]) })
}

/// A call on an array of structures, each with its own status.
///
/// # Safety
/// The requirements of [`raw`], for the addresses in the entries.
#[inline]
pub(crate) unsafe fn batch<T>(number: u32, cmd: u32, entries: &mut [T]) -> Result<u64> {
    let args = [u64::from(cmd), entries.as_mut_ptr() as u64, entries.len() as u64, 0, 0];
    // SAFETY: `entries` is valid for the call's reads and writes; the caller vouches for the contents.
    check(unsafe { raw(number, args) })
}

/// `multicall`: several calls for one trap. Each entry's `result` holds the rax of the entry's call.
///
/// # Safety
/// The requirements of [`raw`], for every entry.
///
/// # Errors
/// `EFAULT`: the hypervisor could not read or write the list.
pub unsafe fn multicall(calls: &mut [MulticallEntry]) -> Result<()> {
    let args = [calls.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0];
    // SAFETY: the list is valid for reads and writes; the caller vouches for the entries.
    check(unsafe { raw(__HYPERVISOR_MULTICALL, args) }).map(|_| ())
}

/// The result of one multicall entry.
///
/// # Errors
/// The errno of the entry's call.
pub fn entry_result(entry: &MulticallEntry) -> Result<u64> {
    check(entry.result as i64)
}
