//! What a guest sees of traps: bounce frames, callbacks, `iret`.

use crate::error::HypercallError;
use crate::hypercall::{Current, HypercallResult};
use crate::platform::Platform;

/// `iret`: leaves a trap handler by the frame on the guest's stack.
///
/// # Errors
/// `NoSys`.
pub fn iret<P: Platform>(cur: &mut Current<'_, P>) -> HypercallResult {
    let _ = cur;
    Err(HypercallError::NoSys)
}
