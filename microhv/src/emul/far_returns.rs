//! IRET and returns to another segment, in ring 3. Processors execute them; QEMU's emulator before 9.1 reads their operands by the
//! rights of ring 0, which SMAP keeps off a guest's stack. There the hypervisor executes them for the guest.

use ring_abi::types::GuestVa;

use super::instruction::Instruction;
use crate::domain::Current;
use crate::platform::{GuestFault, Platform};
use crate::traps::{self, KERNEL_CS, TrapVector, USER_FLAGS, flags};

const RET_IMMEDIATE: u16 = 0xca;
const RET: u16 = 0xcb;
const IRET: u16 = 0xcf;

/// Executes the instruction at rip if that is one of these, of 64-bit code; `false`: the instruction is another.
///
/// The selectors are the guest's choice among those of ring 3: the way out to the guest loads them, and refuses what the processor
/// would.
pub fn emulate<P: Platform>(cur: &mut Current<'_, P>) -> bool {
    // The longest with all prefixes that make sense, `ret imm16`, has four bytes.
    let mut bytes = [0; 4];
    let in_page = (4096 - (cur.regs.rip & 4095) as usize).min(bytes.len());
    let (code, _) = bytes.split_at_mut(in_page);
    if cur.regs.cs != KERNEL_CS || cur.copy_from_guest(code, GuestVa::new(cur.regs.rip)).is_err() {
        return false;
    }
    let Some((opcode, is_wide, drop)) = decode(code) else { return false };
    if let Err(fault) = execute(cur, opcode, is_wide, drop) {
        traps::page_fault(cur, cur.regs.rsp.wrapping_add(fault.copied as u64), 0);
    }
    true
}

/// The opcode, whether operands have eight bytes and not four, and how many bytes behind them are dropped.
fn decode(code: &[u8]) -> Option<(u16, bool, u64)> {
    let mut code = Instruction::new(code)?;
    let drop = match code.opcode {
        RET_IMMEDIATE => code.signed(2)? & 0xffff,
        RET | IRET => 0,
        _ => return None,
    };
    (!code.lock && !code.operand16).then_some((code.opcode, code.rex & 8 != 0, drop))
}

fn execute<P: Platform>(
    cur: &mut Current<'_, P>,
    opcode: u16,
    is_wide: bool,
    drop: u64,
) -> Result<(), GuestFault> {
    let is_iret = opcode == IRET;
    if is_iret {
        let [rip, cs, rflags, rsp, ss] = words(cur, is_wide)?;
        if let Some(selector) = [cs, ss].into_iter().find(|selector| selector & 3 != 3) {
            refuse(cur, selector);
            return Ok(());
        }
        let regs = &mut *cur.regs;
        (regs.rip, regs.cs, regs.rsp, regs.ss) = (rip, cs as u16, rsp, ss as u16);
        regs.rflags = rflags & USER_FLAGS | flags::IF | 2;
        return Ok(());
    }
    let [rip, cs] = words(cur, is_wide)?;
    if cs & 3 != 3 {
        refuse(cur, cs);
        return Ok(());
    }
    let operands = if is_wide { 16 } else { 8 };
    let regs = &mut *cur.regs;
    (regs.rip, regs.cs, regs.rsp) = (rip, cs as u16, regs.rsp.wrapping_add(operands + drop));
    regs.rflags &= !flags::RF;
    traps::retired(cur);
    Ok(())
}

/// The operands, on top of the guest's stack.
fn words<P: Platform, const N: usize>(cur: &Current<'_, P>, is_wide: bool) -> Result<[u64; N], GuestFault> {
    let stack = GuestVa::new(cur.regs.rsp);
    if is_wide {
        return cur.read_frame(stack);
    }
    let mut words = [0; N];
    for (word, offset) in words.iter_mut().zip((0..).step_by(size_of::<u32>())) {
        *word = cur.copy_in::<u32>(stack.wrapping_add(offset))?.into();
    }
    Ok(words)
}

/// #GP for a selector of more rights than ring 3.
fn refuse<P: Platform>(cur: &mut Current<'_, P>, selector: u64) {
    traps::deliver_exception(cur, TrapVector::PROTECTION, Some(selector as u32 & 0xfffc));
}
