//! Grant tables.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `grant_table_op`.
///
/// # Errors
/// `NoSys`.
pub fn grant_table_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
