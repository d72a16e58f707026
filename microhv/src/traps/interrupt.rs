//! Instructions by which a guest calls its own kernel: `syscall`, `sysenter`, `int`.

use core::sync::atomic::Ordering;

use ring_abi::types::GuestVa;

use super::TrapVector;
use super::bounce::{call, deliver_exception};
use crate::domain::{CallbackCell, Current, EntryPoints};
use crate::platform::Platform;

/// Bytes of `syscall` and of `int n`.
const INSTRUCTION_BYTES: u64 = 2;
/// First byte of `int n`.
const INT: u8 = 0xcd;
/// `int1`.
const INT1: u8 = 0xf1;

/// Calls a callback, or does what `without` says for a guest that gave none.
#[inline(always)]
fn call_or<P: Platform>(
    cur: &mut Current<'_, P>,
    pick: impl FnOnce(&EntryPoints) -> &CallbackCell,
    without: impl FnOnce(&mut Current<'_, P>),
) {
    let handler = pick(&cur.vcpu.entries).get();
    if handler.address == 0 {
        return without(cur);
    }
    call(cur, false, |_| handler);
}

/// `syscall` from 64-bit user mode. Without a callback: #UD at the instruction.
pub fn syscall<P: Platform>(cur: &mut Current<'_, P>) {
    call_or(cur, |entries| &entries.syscall, undefined);
}

/// `syscall` from 32-bit user mode.
pub fn syscall32<P: Platform>(cur: &mut Current<'_, P>) {
    call_or(cur, |entries| &entries.syscall32, undefined);
}

/// `sysenter`, which leaves no trace of rip and rsp, and clears IF. Without a callback: #GP(0).
pub fn sysenter<P: Platform>(cur: &mut Current<'_, P>) {
    cur.regs.rflags = cur.regs.rflags & !super::flags::NT | super::flags::IF;
    call_or(cur, |entries| &entries.sysenter, |cur| deliver_exception(cur, TrapVector::PROTECTION, Some(0)));
}

fn undefined<P: Platform>(cur: &mut Current<'_, P>) {
    cur.regs.rip = cur.regs.rip.wrapping_sub(INSTRUCTION_BYTES);
    deliver_exception(cur, TrapVector::UNDEFINED, None);
}

/// The error code of a #GP for interrupt `vector` of the IDT.
const fn idt_error(vector: TrapVector) -> u32 {
    vector.0 as u32 * 8 + 2
}

/// `int 0x80`, which arrives by its own gate.
pub fn int80<P: Platform>(cur: &mut Current<'_, P>) {
    const VECTOR: TrapVector = TrapVector(0x80);
    if cur.vcpu.entries.traps[0x80].address() == 0 {
        cur.regs.rip = cur.regs.rip.wrapping_sub(INSTRUCTION_BYTES);
        return deliver_exception(cur, TrapVector::PROTECTION, Some(idt_error(VECTOR)));
    }
    deliver_exception(cur, VECTOR, None);
}

/// The first bytes of the instruction at rip, if they can be read.
fn instruction<P: Platform, const N: usize>(cur: &Current<'_, P>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    cur.copy_from_guest(&mut bytes, GuestVa::new(cur.regs.rip)).ok()?;
    Some(bytes)
}

/// A #UD at `int1`, which QEMU's emulator does not know: processors raise #DB behind `int1`. `false`: the instruction was
/// another.
pub fn int1<P: Platform>(cur: &mut Current<'_, P>) -> bool {
    if instruction(cur) != Some([INT1]) {
        return false;
    }
    cur.regs.rip = cur.regs.rip.wrapping_add(1);
    deliver_exception(cur, TrapVector::DEBUG, None);
    true
}

/// A #GP whose error code names the IDT: `int n` of a vector whose gate is not for ring 3. Delivered by the guest's
/// trap table if its gate allows. `false`: the instruction was another.
///
/// The vector is taken from the instruction: QEMU's emulator gives another error code than processors do.
pub fn software_interrupt<P: Platform>(cur: &mut Current<'_, P>, error: u32) -> bool {
    if error & 2 == 0 {
        return false;
    }
    let Some([INT, vector]) = instruction(cur) else { return false };
    let vector = TrapVector(vector);
    let gate = cur.vcpu.entries.traps[usize::from(vector.0)].get();
    let ring = if cur.vcpu.user_mode.load(Ordering::Relaxed) { 3 } else { 1 };
    if gate.address == 0 || gate.dpl < ring {
        deliver_exception(cur, TrapVector::PROTECTION, Some(idt_error(vector)));
    } else {
        cur.regs.rip = cur.regs.rip.wrapping_add(INSTRUCTION_BYTES);
        deliver_exception(cur, vector, None);
    }
    true
}
