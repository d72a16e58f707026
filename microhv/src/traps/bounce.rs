//! Delivery: a frame on the guest kernel's stack, and the registers set to its handler.

use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::shared_info::UPCALL_MASK_OFFSET;
use ring_abi::types::GuestVa;
use ring_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;

use super::mode::leave_user_mode;
use super::{ENTRY_SYSCALL, KERNEL_CS, KERNEL_SS, TrapVector, flags};
use crate::domain::{Callback, Current, GuestCpu};
use crate::platform::Platform;

/// Offset of `arch.cr2` in `vcpu_info`.
const INFO_CR2: usize = 16;
/// In the debug status register: an instruction was executed with the trap flag set.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// The U bit of a page fault's error code.
const FAULT_USER: u32 = 4;

/// The event upcall mask of the vCPU; 1 when it has no `vcpu_info`.
pub(super) fn upcall_mask<P: Platform>(cur: &Current<'_, P>) -> u8 {
    cur.vcpu.info.get().map_or(1, |info| info.load_u8(UPCALL_MASK_OFFSET))
}

pub(super) fn set_upcall_mask<P: Platform>(cur: &Current<'_, P>, mask: u8) {
    if let Some(info) = cur.vcpu.info.get() {
        info.store_u8(UPCALL_MASK_OFFSET, mask);
    }
}

/// The five words that every frame ends with, and where the frame goes.
struct Interrupted {
    tail: [u64; 5],
    stack: u64,
}

/// Enters kernel mode and gathers what was interrupted. `mask` is the upcall mask before. `masks`: the delivery sets
/// the mask.
#[inline(always)]
fn interrupt<P: Platform>(cur: &mut Current<'_, P>, mask: u8, masks: bool, kernel_sp: u64) -> Interrupted {
    let was_user = leave_user_mode(cur);
    if masks {
        set_upcall_mask(cur, 1);
    }
    let regs: &CpuUserRegs = cur.regs;
    let (cs, stack) = if was_user { (regs.cs, kernel_sp) } else { (regs.cs & !3, regs.rsp) };
    // The real IF is always set in ring 3 and the real IOPL is 0. The guest sees its event mask as IF, and its own level
    // if it asked for that.
    let mut rflags = if mask == 0 { regs.rflags } else { regs.rflags & !flags::IF };
    if cur.domain.assists(VMASST_TYPE_ARCHITECTURAL_IOPL) {
        rflags |= cur.vcpu.iopl.load(Ordering::Relaxed);
    }
    let tail = [regs.rip, u64::from(cs) | u64::from(mask) << 32, rflags, regs.rsp, u64::from(regs.ss)];
    Interrupted { tail, stack: stack & !15 }
}

/// Writes the frame and sets the registers to the handler; crashes the domain when that cannot be.
#[inline(always)]
fn enter<P: Platform, const N: usize>(cur: &mut Current<'_, P>, stack: u64, frame: [u64; N], handler: u64) {
    let sp = stack.wrapping_sub(size_of_val(&frame) as u64);
    if handler == 0 {
        return crash(cur, "no handler for a trap");
    }
    if cur.write_frame(GuestVa::new(sp), frame).is_err() {
        return crash(cur, "cannot write a trap frame");
    }
    let regs = &mut *cur.regs;
    regs.rsp = sp;
    regs.ss = KERNEL_SS;
    regs.cs = KERNEL_CS;
    regs.rip = handler;
    regs.rflags &= !(flags::AC | flags::VM | flags::RF | flags::NT | flags::TF);
    regs.entry_vector = ENTRY_SYSCALL;
}

#[cold]
#[inline(never)]
pub(super) fn crash<P: Platform>(cur: &mut Current<'_, P>, why: &str) {
    cur.crash(format_args!("{why}"));
}

/// What `pick` finds of the vCPU's handlers, and the stack that its kernel is entered on.
#[inline(always)]
pub(super) fn handler<P: Platform, T>(cur: &Current<'_, P>, pick: impl FnOnce(&GuestCpu) -> T) -> (T, u64) {
    (pick(&cur.vcpu.cpu.lock()), cur.vcpu.kernel_stack.sp())
}

/// The handler of `vector` in the guest's trap table.
#[inline(always)]
fn trap_handler<P: Platform>(cur: &Current<'_, P>, vector: TrapVector) -> (Callback, u64) {
    let (gate, kernel_sp) = handler(cur, |cpu| cpu.traps[usize::from(vector.0)]);
    (Callback { address: gate.address, masks_events: gate.masks_events }, kernel_sp)
}

/// Enters a handler: `frame` makes its frame of rcx and r11 and of the words that every frame ends with.
#[inline(always)]
fn deliver<P: Platform, const N: usize>(
    cur: &mut Current<'_, P>,
    mask: u8,
    (handler, kernel_sp): (Callback, u64),
    frame: impl FnOnce([u64; 2], [u64; 5]) -> [u64; N],
) {
    let saved = [cur.regs.rcx, cur.regs.r11];
    let Interrupted { tail, stack } = interrupt(cur, mask, handler.masks_events, kernel_sp);
    enter(cur, stack, frame(saved, tail), handler.address);
}

/// Delivers a frame without an error code.
#[inline(always)]
pub(super) fn call<P: Platform>(cur: &mut Current<'_, P>, mask: u8, handler: (Callback, u64)) {
    deliver(cur, mask, handler, |[rcx, r11], [a, b, c, d, e]| [rcx, r11, a, b, c, d, e]);
}

/// Delivers exception `vector`, which has no error code, through the guest's trap table.
///
/// A guest without a handler, or whose stack cannot be written, crashes.
#[inline(always)]
pub fn deliver_plain<P: Platform>(cur: &mut Current<'_, P>, vector: TrapVector) {
    let handler = trap_handler(cur, vector);
    call(cur, upcall_mask(cur), handler);
}

/// Delivers exception `vector` with its error code, if it has one, through the guest's trap table.
///
/// A guest without a handler, or whose stack cannot be written, crashes.
pub fn deliver_exception<P: Platform>(cur: &mut Current<'_, P>, vector: TrapVector, error: Option<u32>) {
    match error {
        Some(error) => deliver_with_error(cur, vector, error),
        None => deliver_plain(cur, vector),
    }
}

#[inline(always)]
fn deliver_with_error<P: Platform>(cur: &mut Current<'_, P>, vector: TrapVector, error: u32) {
    let handler = trap_handler(cur, vector);
    deliver(cur, upcall_mask(cur), handler, |[rcx, r11], [a, b, c, d, e]| {
        [rcx, r11, u64::from(error), a, b, c, d, e]
    });
}

/// Delivers a page fault at `cr2`. The processor sets the U bit of the error code in guest kernel mode too, since that is
/// ring 3: the guest sees the bit only for its user mode.
pub fn page_fault<P: Platform>(cur: &mut Current<'_, P>, cr2: u64, error: u32) {
    let is_user = cur.vcpu.user_mode.load(Ordering::Relaxed);
    let error = if is_user { error | FAULT_USER } else { error & !FAULT_USER };
    if let Some(info) = cur.vcpu.info.get() {
        info.store_u64(INFO_CR2, cr2);
    }
    cur.vcpu.cr2.store(cr2, Ordering::Relaxed);
    deliver_with_error(cur, TrapVector::PAGE_FAULT, error);
}

/// Delivers #NM, and clears TS as the ABI has it: the guest's handler need not.
pub fn device_not_available<P: Platform>(cur: &mut Current<'_, P>) {
    cur.set_task_switched(false);
    deliver_plain(cur, TrapVector::NO_DEVICE);
}

/// The hypervisor executed an instruction for the guest: with the trap flag set, the guest gets the trap that the processor
/// would raise behind the instruction.
pub fn retired<P: Platform>(cur: &mut Current<'_, P>) {
    if cur.regs.rflags & flags::TF != 0 {
        single_step(cur);
    }
}

#[cold]
fn single_step<P: Platform>(cur: &mut Current<'_, P>) {
    let status = {
        let mut cpu = cur.vcpu.cpu.lock();
        cpu.debug[6] |= DR6_SINGLE_STEP;
        cpu.debug[6]
    };
    cur.hv.platform.set_debug_register(6, status);
    deliver_plain(cur, TrapVector::DEBUG);
}

/// Delivers the event upcall, which masks further ones. Only when one is due, so that none is masked.
pub fn deliver_event<P: Platform>(cur: &mut Current<'_, P>) {
    let handler = handler(cur, |cpu| Callback { masks_events: true, ..cpu.event });
    call(cur, 0, handler);
}

/// Delivers an NMI that waits for the vCPU, when the vCPU begins to run. The upcall mask does not hold an NMI back; a guest
/// without a handler for NMIs gets none.
pub fn deliver_nmi<P: Platform>(cur: &mut Current<'_, P>) {
    if cur.vcpu.nmi_pending.swap(false, Ordering::AcqRel) && trap_handler(cur, TrapVector::NMI).0.address != 0
    {
        deliver_plain(cur, TrapVector::NMI);
    }
}

/// Delivers the failsafe callback: a selector could not be loaded on the way back. `selectors`: ds, es, fs, gs.
pub fn deliver_failsafe<P: Platform>(cur: &mut Current<'_, P>, selectors: [u16; 4]) {
    let handler = handler(cur, |cpu| cpu.failsafe);
    let [ds, es, fs, gs] = selectors.map(u64::from);
    deliver(cur, upcall_mask(cur), handler, |[rcx, r11], [a, b, c, d, e]| {
        [rcx, r11, ds, es, fs, gs, a, b, c, d, e]
    });
}

/// The last thing before a return to the guest: an event upcall that is due is delivered.
pub fn return_to_guest<P: Platform>(cur: &mut Current<'_, P>) {
    if cur.vcpu.upcall_due() {
        deliver_event(cur);
    }
}
