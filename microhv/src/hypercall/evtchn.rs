//! Event channels.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `event_channel_op`.
///
/// # Errors
/// `NoSys`.
pub fn event_channel_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
