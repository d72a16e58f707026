//! Charging: which account is the current one, and the bytes that are taken and given back in an account's name.
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

/// Makes an account the current one for as long as this value lives.
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

/// Bytes that are charged to an account while this value lives. The bytes are the account's part of something that
/// accounts share, such as a tree. A value without bytes keeps the account, too, so that bytes can be charged to the
/// account later.
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

    /// Charges no account.
    #[cfg(freestanding)]
    pub(crate) fn none() -> Self {
        Self { account: Account::own(), bytes: 0 }
    }

    /// Changes the number of bytes charged.
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

/// Charges `bytes` to the current account. The result is what [`refund`] needs; null stands for the kernel itself.
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
    // SAFETY: the caller promises null or a record, and a record is never freed.
    if let Some(record) = unsafe { record.as_ref() } {
        record.used.fetch_sub(bytes(), Relaxed);
    }
}
