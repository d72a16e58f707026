//! Traps, stacks, segments and debug registers.

use super::{Args, Current, HypercallError, HypercallResult};
use crate::platform::Platform;

/// `set_trap_table`.
///
/// # Errors
/// `NoSys`.
pub fn set_trap_table<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `stack_switch`.
///
/// # Errors
/// `NoSys`.
pub fn stack_switch<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `set_segment_base`.
///
/// # Errors
/// `NoSys`.
pub fn set_segment_base<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `set_debugreg`.
///
/// # Errors
/// `NoSys`.
pub fn set_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `get_debugreg`.
///
/// # Errors
/// `NoSys`.
pub fn get_debugreg<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `fpu_taskswitch`.
///
/// # Errors
/// `NoSys`.
pub fn fpu_taskswitch<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}

/// `vm_assist`.
///
/// # Errors
/// `NoSys`.
pub fn vm_assist<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _ = (cur, args);
    Err(HypercallError::NoSys)
}
