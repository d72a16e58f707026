//! Writes of a guest's kernel to its own level 1 tables fault, since tables are mapped read-only. This module decodes the
//! instruction and changes the entry under the rules of `mmu_update`.
//!
//! Linux writes so with `VMASST_TYPE_writable_pagetables`: by `xchg` above all, by `lock and` and `mov`. Other instructions
//! that write one aligned operand of up to 8 bytes are emulated as well. The guest gets the fault of an unknown one.

mod decode;

use core::sync::atomic::Ordering;

use decode::{
    ARITHMETIC, CF, Decoded, Operation, Register, Source, compute, decode, mask, read_register,
    write_register,
};

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::{GuestVa, Mfn};
use ring_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;

use super::instruction::MAX_INSTRUCTION_BYTES;
use crate::domain::Current;
use crate::frames::pte::{self, Pte};
use crate::mem::session::Mm;
use crate::mem::{FrameOwner, MemError, Update};
use crate::platform::Platform;
use crate::traps;

/// Tries at most: each fails only if a processor changed the entry between its load and its exchange.
const TRIES: usize = 8;

const EC_PRESENT: u32 = 1;
const EC_WRITE: u32 = 2;
const EC_RESERVED: u32 = 8;
const EC_FETCH: u32 = 16;

/// Goes past the instruction, and clears the resume flag, which was meant for this instruction.
fn step(regs: &mut CpuUserRegs, length: u8) {
    regs.rip = regs.rip.wrapping_add(u64::from(length));
    regs.rflags &= !traps::flags::RF;
}

/// Whether a page fault may be a write to a page table by the guest's kernel. `error_code` is the processor's.
#[inline(always)]
pub fn may_be<P: Platform>(cur: &Current<'_, P>, cr2: u64, error_code: u32) -> bool {
    let wanted = EC_PRESENT | EC_WRITE;
    error_code & (wanted | EC_RESERVED | EC_FETCH) == wanted
        && !cur.vcpu.user_mode.load(Ordering::Relaxed)
        && pte::is_guest_address(GuestVa::new(cr2))
        && cur.domain.assists(VMASST_TYPE_WRITABLE_PAGETABLES)
}

/// Looks at a page fault of which [`may_be`] says so before it is bounced: `true` when the write was done and the guest goes on.
pub fn emulate<P: Platform>(cur: &mut Current<'_, P>, cr2: u64) -> bool {
    let is_done = emulate_write(cur, cr2).is_some();
    if is_done {
        traps::retired(cur);
    }
    is_done
}

/// The entry that the instruction writes, in a level 1 table.
struct Entry<'a, 'b, P: Platform> {
    mm: Mm<'a, P>,
    owner: FrameOwner<'b>,
    table: Mfn,
    /// Where the guest writes.
    address: u64,
}

impl<P: Platform> Entry<'_, '_, P> {
    /// The entry's slot. Made of the address at each use: the compiler sees that the slot is below 512.
    #[inline(always)]
    const fn slot(&self) -> usize {
        (self.address & 0xfff) as usize / 8
    }

    #[inline(always)]
    fn value(&self) -> u64 {
        self.mm.entry(self.table, self.slot()).raw()
    }

    /// Replaces the value `old` by `new`: `Some(false)` when the entry holds another value by now, `None` when `new` is
    /// refused.
    #[inline(always)]
    fn replace(&mut self, old: u64, new: u64) -> Option<bool> {
        let (update, new) = (Update::CompareExchange(Pte::new(old)), Pte::new(new));
        match self.mm.update_leaf(self.table, self.slot(), new, self.owner, update) {
            Ok(()) => Some(true),
            Err(MemError::Mismatch) => Some(false),
            Err(_) => None,
        }
    }
}

fn emulate_write<P: Platform>(cur: &mut Current<'_, P>, cr2: u64) -> Option<()> {
    let (base, owner) = (cur.vcpu.cr3_kernel.get()?, FrameOwner::Domain(cur.domain));
    let (mm, regs) = cur.own_tables();
    let (map, map_slot) = mm.find_leaf(base, GuestVa::new(cr2)).ok()?;
    let mapping = mm.entry(map, map_slot);
    let table = mapping.frame();
    if !mapping.is_present() || mapping.has(pte::RW) || mm.table_level(table) != Some(1) {
        return None;
    }
    let mut entry = Entry { mm, owner, table, address: cr2 };
    if let Some((register, length)) = fetch_exchange(&mut entry.mm, regs, cr2) {
        for _ in 0..TRIES {
            let old = entry.value();
            if entry.replace(old, *regs.general(register))? {
                *regs.general(register) = old;
                step(regs, length);
                return Some(());
            }
        }
        return None;
    }
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    let fetched = fetch(&mut entry.mm, &mut bytes, regs.rip);
    let decoded = decode(&bytes[..fetched], regs)?;
    if decoded.address != cr2 || !cr2.is_multiple_of(u64::from(decoded.size)) {
        return None;
    }
    execute(&mut entry, regs, &decoded)
}

/// Does what the instruction does to its operand, registers and flags.
fn execute<P: Platform>(
    entry: &mut Entry<'_, '_, P>,
    regs: &mut CpuUserRegs,
    decoded: &Decoded,
) -> Option<()> {
    let shift = (decoded.address % 8) * 8;
    let all = mask(decoded.size);
    let source = match decoded.source {
        Source::Immediate(value) => value,
        Source::Register(which) => read_register(regs, which, decoded.size),
    };
    for _ in 0..TRIES {
        let whole = entry.value();
        let old = whole >> shift & all;
        let (new, flags) = compute(decoded.operation, decoded.size, old, source, regs.rax & all);
        let merged = whole & !(all << shift) | new << shift;
        // A marked entry has no RW for the guest to take away, and the mark goes with the guest's write.
        if (merged != whole || whole & pte::MARK != 0) && !entry.replace(whole, merged)? {
            continue;
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

/// The register and the length of the instruction at rip, if that is an `xchg` of a whole register with the entry at `cr2`.
/// Kernels take entries out by it, so this way is tried before the decoder.
fn fetch_exchange<P: Platform>(mm: &mut Mm<'_, P>, regs: &mut CpuUserRegs, cr2: u64) -> Option<(u8, u8)> {
    if regs.rip & 0xfff > 0x1000 - size_of::<u64>() as u64 || !cr2.is_multiple_of(8) {
        return None;
    }
    let [word] = mm.hv.platform.read_frame(mm.settle(), GuestVa::new(regs.rip)).ok()?;
    decode::exchange(word, regs, cr2)
}

/// Reads the instruction at `rip`, up to the end of its page if the next page is not mapped. Returns the
/// number of bytes.
fn fetch<P: Platform>(mm: &mut Mm<'_, P>, bytes: &mut [u8; MAX_INSTRUCTION_BYTES], rip: u64) -> usize {
    let first = ((0x1000 - (rip & 0xfff)) as usize).min(MAX_INSTRUCTION_BYTES);
    if mm.hv.platform.copy_from_guest(mm.settle(), &mut bytes[..first], GuestVa::new(rip)).is_err() {
        return 0;
    }
    let next = rip.wrapping_add(first as u64);
    if first < MAX_INSTRUCTION_BYTES
        && mm.hv.platform.copy_from_guest(mm.settle(), &mut bytes[first..], GuestVa::new(next)).is_err()
    {
        return first;
    }
    MAX_INSTRUCTION_BYTES
}
