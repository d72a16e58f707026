//! Charging: the account that is the current one, and bytes that are taken and given back in its name.
#![allow(unsafe_code)] // the heap keeps accounts by their address

use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use super::{Account, Record, overdraw};
use crate::global::global;

global! {
    /// The record of the current account; null: the kernel's own.
    static CURRENT: AtomicPtr<Record> = AtomicPtr::new(core::ptr::null_mut());
}

#[inline]
pub(super) fn current_record() -> *mut Record {
    CURRENT.with(|current| current.load(Relaxed))
}

/// While it lives, an account is the current one.
pub(crate) struct Scope(*mut Record);

impl Scope {
    #[inline]
    pub(crate) fn enter(account: &Account) -> Self {
        let record = account.0.map_or(core::ptr::null_mut(), |record| core::ptr::from_ref(record).cast_mut());
        Self(CURRENT.with(|current| {
            let before = current.load(Relaxed);
            current.store(record, Relaxed);
            before
        }))
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with(|current| current.store(self.0, Relaxed));
    }
}

/// Bytes that are charged to an account while this value lives: for the account's part of what all share, such as a tree.
/// Even without bytes it keeps the account, which is to be charged when the bytes come.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Charges `bytes` to the current account.
    pub(crate) fn take(bytes: usize) -> Self {
        take(|| bytes);
        Self { account: Account::current(), bytes }
    }

    /// Charges nobody.
    #[cfg(freestanding)]
    pub(crate) fn none() -> Self {
        Self { account: Account::own(), bytes: 0 }
    }

    /// Changes how many bytes it is.
    pub fn resize(&mut self, bytes: usize) {
        let before = core::mem::replace(&mut self.bytes, bytes);
        let Some(record) = self.account.0.filter(|_| bytes != before) else { return };
        let used = record
            .used
            .fetch_add(bytes.wrapping_sub(before), Relaxed)
            .wrapping_add(bytes)
            .wrapping_sub(before);
        record.peak.fetch_max(used, Relaxed);
        if used > record.limit() {
            overdraw(record);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(record) = self.account.0 {
            record.used.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// Charges `bytes` to the current account; gives what [`refund`] needs, which is null for the kernel itself.
#[inline]
pub(crate) fn take(bytes: impl FnOnce() -> usize) -> *const Record {
    let record = current_record();
    // SAFETY: null, or a record, which is never freed.
    if let Some(record) = unsafe { record.as_ref() } {
        let bytes = bytes();
        let used = record.used.fetch_add(bytes, Relaxed) + bytes;
        if used > record.peak.load(Relaxed) {
            record.peak.store(used, Relaxed);
        }
        #[cfg(not(freestanding))]
        super::testing::count(record);
    }
    record
}

/// Gives back what [`take`] charged.
///
/// # Safety
/// `record` came from [`take`] in this process.
#[inline]
pub(crate) unsafe fn refund(record: *const Record, bytes: impl FnOnce() -> usize) {
    // SAFETY: null, or a record, which is never freed: the caller promises that.
    if let Some(record) = unsafe { record.as_ref() } {
        record.used.fetch_sub(bytes(), Relaxed);
    }
}
