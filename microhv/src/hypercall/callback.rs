//! Entry points of the guest: where events, failed segment loads and system calls go.

use ring_abi::callback::*;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::types::GuestVa;

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::{Callback, TrapGate};
use crate::frames::pte::is_canonical;
use crate::platform::Platform;

fn register<P: Platform>(cur: &Current<'_, P>, kind: u16, callback: Callback) -> Answer {
    HypercallError::Invalid.when(!is_canonical(callback.address))?;
    let entries = &cur.vcpu.entries;
    match kind {
        CALLBACKTYPE_EVENT => entries.event.set(Callback { masks_events: true, ..callback }),
        CALLBACKTYPE_FAILSAFE => entries.failsafe.set(callback),
        // The same as its gate in the trap table.
        CALLBACKTYPE_NMI => {
            let cs = FLAT_KERNEL_CS;
            entries.traps[2].set(TrapGate { address: callback.address, cs, dpl: 0, masks_events: false });
        }
        CALLBACKTYPE_SYSCALL => entries.syscall.set(callback),
        CALLBACKTYPE_SYSENTER => entries.sysenter.set(callback),
        CALLBACKTYPE_SYSCALL32 => entries.syscall32.set(callback),
        _ => return Err(HypercallError::NoSys),
    }
    Ok(())
}

/// `set_callbacks(event, failsafe, syscall)`: all three addresses, without flags.
///
/// # Errors
/// `Invalid`: an address that is not canonical.
#[inline(never)]
pub fn set_callbacks<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let kinds = [CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE, CALLBACKTYPE_SYSCALL];
    for (kind, address) in kinds.into_iter().zip(*args) {
        register(cur, kind, Callback { address, masks_events: false })?;
    }
    Ok(Outcome::OK)
}

/// `callback_op(cmd, arg)`.
///
/// # Errors
/// `Fault`; `NoSys`: no such command or type; `Invalid`: an address that is not canonical, or a callback that cannot
/// be unregistered.
pub fn callback_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let arg = GuestVa::new(args[1]);
    match args[0] as u32 {
        CALLBACKOP_REGISTER => {
            let op: CallbackRegister = cur.copy_in(arg)?;
            let masks_events = op.flags & CALLBACKF_MASK_EVENTS != 0;
            register(cur, op.r#type, Callback { address: op.address, masks_events })?;
            Ok(Outcome::OK)
        }
        CALLBACKOP_UNREGISTER => {
            let op: CallbackUnregister = cur.copy_in(arg)?;
            match op.r#type {
                CALLBACKTYPE_NMI => {
                    cur.vcpu.entries.traps[2].set(TrapGate::default());
                    Ok(Outcome::OK)
                }
                CALLBACKTYPE_EVENT..=CALLBACKTYPE_SYSCALL
                | CALLBACKTYPE_SYSENTER
                | CALLBACKTYPE_SYSCALL32 => Err(HypercallError::Invalid),
                _ => Err(HypercallError::NoSys),
            }
        }
        _ => Err(HypercallError::NoSys),
    }
}
