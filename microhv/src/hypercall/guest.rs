//! Copies between a handler and its caller's memory: each argument is read once.

use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Current, HypercallError};
use crate::platform::{GuestFault, Platform, Settled};

/// The platform's copies, for the vCPU whose tables are loaded. A session on page tables borrows the `Current`, so that
/// none is open here, and no flush is owed.
impl<P: Platform> Current<'_, P> {
    #[inline(always)]
    fn settled(&self) -> Settled<'_> {
        Settled::new()
    }

    /// Reads guest memory with the rights of the guest's kernel; stops at the first fault.
    ///
    /// # Errors
    /// Where it stopped.
    #[inline(always)]
    pub fn copy_from_guest(&self, to: &mut [u8], va: u64) -> Result<(), GuestFault> {
        self.hv.platform.copy_from_guest(self.settled(), to, va)
    }

    /// Writes guest memory with the rights of the guest's kernel; stops at the first fault.
    ///
    /// # Errors
    /// Where it stopped.
    #[inline(always)]
    pub fn copy_to_guest(&self, va: u64, from: &[u8]) -> Result<(), GuestFault> {
        self.hv.platform.copy_to_guest(self.settled(), va, from)
    }

    /// Writes the words of a trap frame at guest address `va`.
    ///
    /// # Errors
    /// Where it stopped.
    #[inline(always)]
    pub fn write_frame<const N: usize>(&self, va: u64, words: [u64; N]) -> Result<(), GuestFault> {
        self.hv.platform.write_frame(self.settled(), va, words)
    }

    /// Reads a few words at guest address `va`.
    ///
    /// # Errors
    /// Where it stopped.
    #[inline(always)]
    pub fn read_words(&self, to: &mut [u64], va: u64) -> Result<(), GuestFault> {
        self.hv.platform.read_words(self.settled(), to, va)
    }

    /// Reads the words of a frame at guest address `va`.
    ///
    /// # Errors
    /// Where it stopped.
    #[inline(always)]
    pub fn read_frame<const N: usize>(&self, va: u64) -> Result<[u64; N], GuestFault> {
        self.hv.platform.read_frame(self.settled(), va)
    }
}

impl<P: Platform> Current<'_, P> {
    /// Reads a `T` at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_in<T: FromBytes + IntoBytes>(&self, va: u64) -> Result<T, HypercallError> {
        let mut value = T::new_zeroed();
        self.copy_from_guest(value.as_mut_bytes(), va)?;
        Ok(value)
    }

    /// Reads entry `index` of an array of `T` at guest address `array` into `value`, where the compiler would move the
    /// result of [`Current::copy_in_at`] about.
    ///
    /// # Errors
    /// `Fault`; `value` may have been written in part.
    #[inline]
    pub fn copy_in_place<T: FromBytes + IntoBytes>(
        &self,
        array: u64,
        index: u64,
        value: &mut T,
    ) -> Result<(), HypercallError> {
        Ok(self.copy_from_guest(value.as_mut_bytes(), element::<T>(array, index)?)?)
    }

    /// Writes `value` at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_out<T: IntoBytes + Immutable>(&self, va: u64, value: &T) -> Result<(), HypercallError> {
        Ok(self.copy_to_guest(va, value.as_bytes())?)
    }

    /// Reads entry `index` of an array of `T` at guest address `array`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_in_at<T: FromBytes + IntoBytes>(&self, array: u64, index: u64) -> Result<T, HypercallError> {
        self.copy_in(element::<T>(array, index)?)
    }

    /// Writes entry `index` of an array of `T` at guest address `array`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_out_at<T: IntoBytes + Immutable>(
        &self,
        array: u64,
        index: u64,
        value: &T,
    ) -> Result<(), HypercallError> {
        self.copy_out(element::<T>(array, index)?, value)
    }

    /// Reads `len` bytes at guest address `va`. The caller has checked `len` against a limit of its own.
    ///
    /// # Errors
    /// `Fault`.
    pub fn copy_in_bytes(&self, va: u64, len: usize) -> Result<Vec<u8>, HypercallError> {
        let mut bytes = alloc::vec![0; len];
        self.copy_from_guest(&mut bytes, va)?;
        Ok(bytes)
    }

    /// Writes bytes at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    pub fn copy_out_bytes(&self, va: u64, bytes: &[u8]) -> Result<(), HypercallError> {
        Ok(self.copy_to_guest(va, bytes)?)
    }
}

/// Address of entry `index`; an array that wraps round is a fault.
fn element<T>(array: u64, index: u64) -> Result<u64, HypercallError> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| array.checked_add(offset))
        .ok_or(HypercallError::Fault)
}
