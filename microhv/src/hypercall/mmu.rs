//! Page-table updates.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `mmu_update`.
///
/// # Errors
/// `NoSys`.
pub fn mmu_update<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `update_va_mapping`.
///
/// # Errors
/// `NoSys`.
pub fn update_va_mapping<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `update_va_mapping_otherdomain`.
///
/// # Errors
/// `NoSys`.
pub fn update_va_mapping_otherdomain<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
