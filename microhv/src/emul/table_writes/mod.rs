//! Writes of a guest's kernel to its own level 1 tables that fault, since tables are mapped read-only: the
//! instruction is decoded, and its effect done as `mmu_update` does it.
//!
//! Linux does so with `VMASST_TYPE_writable_pagetables`: `xchg` above all, `lock and` and `mov`. Others that write one
//! aligned operand of up to 8 bytes are done as well; what is not known is bounced to the guest as the fault it was.

mod decode;

use core::sync::atomic::Ordering;

use decode::{
    ARITHMETIC, CF, Operation, Register, Source, compute, decode, mask, read_register, write_register,
};

use ring_abi::guest_context::CpuUserRegs;

use super::instruction::MAX_INSTRUCTION_BYTES;
use crate::Hypervisor;
use crate::domain::Current;
use crate::mem::tables::Mm;
use crate::mem::{FrameOwner, Update, UpdateError, pte};
use crate::platform::Platform;
use crate::traps;

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// It was cared for: the guest goes on.
    Handled,
    /// It is the guest's.
    Bounce,
}

/// `VMASST_TYPE_writable_pagetables`.
const WRITABLE_PAGETABLES: u32 = 2;
/// Tries against accessed and dirty bits that the processor sets meanwhile.
const TRIES: usize = 8;

const EC_PRESENT: u32 = 1;
const EC_WRITE: u32 = 2;
const EC_RESERVED: u32 = 8;
const EC_FETCH: u32 = 16;

const RF: u64 = 1 << 16;

/// The instruction is done, and a resume flag meant for it has served.
fn step(regs: &mut CpuUserRegs, length: u8) {
    regs.rip = regs.rip.wrapping_add(u64::from(length));
    regs.rflags &= !RF;
}

impl<P: Platform> Hypervisor<P> {
    /// Looks at a page fault of the guest's kernel or user mode before it is bounced. `error_code` is the
    /// processor's.
    pub fn handle_guest_page_fault(
        &self,
        cur: &mut Current<'_, P>,
        cr2: u64,
        error_code: u32,
    ) -> FaultOutcome {
        let wanted = EC_PRESENT | EC_WRITE;
        if error_code & (wanted | EC_RESERVED | EC_FETCH) != wanted
            || cur.vcpu.user_mode.load(Ordering::Relaxed)
            || !pte::is_guest_address(cr2)
            || !cur.domain.assists(WRITABLE_PAGETABLES)
        {
            return FaultOutcome::Bounce;
        }
        if emulate_table_write(cur, cr2).is_none() {
            return FaultOutcome::Bounce;
        }
        traps::retired(cur);
        FaultOutcome::Handled
    }
}

fn emulate_table_write<P: Platform>(cur: &mut Current<'_, P>, cr2: u64) -> Option<()> {
    let (base, owner) = (cur.vcpu.cr3_kernel()?, FrameOwner::Domain(cur.domain));
    let (mut mm, regs) = cur.own_tables();
    let (map, map_slot) = mm.find_leaf(base, cr2).ok()?;
    let mapping = mm.entry(map, map_slot);
    if mapping & (pte::P | pte::RW) != pte::P {
        return None;
    }
    let table = pte::frame(mapping);
    if mm.table_level(table) != Some(1) {
        return None;
    }
    let slot = (cr2 & 0xfff) as usize / 8;
    if let Some((register, length)) = fetch_exchange(&mut mm, regs, cr2) {
        for _ in 0..TRIES {
            let (old, new) = (mm.entry(table, slot), *regs.general(register));
            match mm.update_leaf(table, slot, new, owner, Update::CompareExchange(old)) {
                Ok(()) => {}
                Err(UpdateError::Mismatch(_)) => continue,
                Err(UpdateError::Table(_) | UpdateError::Interrupted) => return None,
            }
            *regs.general(register) = old;
            step(regs, length);
            return Some(());
        }
        return None;
    }
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    let fetched = fetch(&mut mm, &mut bytes, regs.rip);
    let decoded = decode(&bytes[..fetched], regs)?;
    let size = u64::from(decoded.size);
    if decoded.address != cr2 || !cr2.is_multiple_of(size) {
        return None;
    }
    let shift = (cr2 % 8) * 8;
    let all = mask(decoded.size);
    let source = match decoded.source {
        Source::Immediate(value) => value,
        Source::Register(which) => read_register(regs, which, decoded.size),
    };
    for _ in 0..TRIES {
        let whole = mm.entry(table, slot);
        let old = whole >> shift & all;
        let (new, flags) = compute(decoded.operation, decoded.size, old, source, regs.rax & all);
        let merged = whole & !(all << shift) | new << shift;
        if merged != whole {
            match mm.update_leaf(table, slot, merged, owner, Update::CompareExchange(whole)) {
                Ok(()) => {}
                Err(UpdateError::Mismatch(_)) => continue,
                Err(UpdateError::Table(_) | UpdateError::Interrupted) => return None,
            }
        }
        match (decoded.operation, decoded.source) {
            (Operation::Xchg, Source::Register(which)) => write_register(regs, which, decoded.size, old),
            (Operation::CmpXchg, _) if new == old && old != regs.rax & all => {
                write_register(regs, Register::RAX, decoded.size, old);
            }
            _ => {}
        }
        if let Some(flags) = flags {
            let changed = match decoded.operation {
                Operation::SetBit | Operation::ResetBit | Operation::FlipBit => CF,
                _ => ARITHMETIC,
            };
            regs.rflags = regs.rflags & !changed | flags;
        }
        step(regs, decoded.length);
        return Some(());
    }
    None
}

/// The register and the length of the instruction at rip if it is `xchg` of a whole register with the entry at
/// `cr2`, by which kernels take entries out. Ahead of the decoder for all others.
#[inline]
fn fetch_exchange<P: Platform>(mm: &mut Mm<'_, P>, regs: &mut CpuUserRegs, cr2: u64) -> Option<(u8, u8)> {
    if regs.rip & 0xfff > 0x1000 - size_of::<u64>() as u64 || !cr2.is_multiple_of(8) {
        return None;
    }
    let [word] = mm.read_frame(regs.rip).ok()?;
    decode::exchange(word, regs, cr2)
}

/// Reads the instruction at `rip`, up to the end of its page if the next is not there; how many bytes.
fn fetch<P: Platform>(mm: &mut Mm<'_, P>, bytes: &mut [u8; MAX_INSTRUCTION_BYTES], rip: u64) -> usize {
    let first = ((0x1000 - (rip & 0xfff)) as usize).min(MAX_INSTRUCTION_BYTES);
    if mm.copy_from_guest(&mut bytes[..first], rip).is_err() {
        return 0;
    }
    let next = rip.wrapping_add(first as u64);
    if first < MAX_INSTRUCTION_BYTES && mm.copy_from_guest(&mut bytes[first..], next).is_err() {
        return first;
    }
    MAX_INSTRUCTION_BYTES
}
