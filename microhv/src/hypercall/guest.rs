//! Copies between a handler and its caller's memory: each argument is read once.

use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Current, HypercallError};
use crate::platform::Platform;

impl<P: Platform> Current<'_, P> {
    /// Reads a `T` at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_in<T: FromBytes + IntoBytes>(&self, va: u64) -> Result<T, HypercallError> {
        let mut value = T::new_zeroed();
        self.hv.platform.copy_from_guest(value.as_mut_bytes(), va)?;
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
        Ok(self.hv.platform.copy_from_guest(value.as_mut_bytes(), element::<T>(array, index)?)?)
    }

    /// Writes `value` at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    #[inline]
    pub fn copy_out<T: IntoBytes + Immutable>(&self, va: u64, value: &T) -> Result<(), HypercallError> {
        Ok(self.hv.platform.copy_to_guest(va, value.as_bytes())?)
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
        self.hv.platform.copy_from_guest(&mut bytes, va)?;
        Ok(bytes)
    }

    /// Writes bytes at guest address `va`.
    ///
    /// # Errors
    /// `Fault`.
    pub fn copy_out_bytes(&self, va: u64, bytes: &[u8]) -> Result<(), HypercallError> {
        Ok(self.hv.platform.copy_to_guest(va, bytes)?)
    }
}

/// Address of entry `index`; an array that wraps round is a fault.
fn element<T>(array: u64, index: u64) -> Result<u64, HypercallError> {
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| array.checked_add(offset))
        .ok_or(HypercallError::Fault)
}
