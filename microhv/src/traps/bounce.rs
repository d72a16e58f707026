//! Delivery: a frame on the guest kernel's stack, and the registers set to its handler.

use core::sync::atomic::Ordering;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::shared_info::UPCALL_MASK_OFFSET;
use ring_abi::types::GuestVa;
use ring_abi::vm_assist::VMASST_TYPE_ARCHITECTURAL_IOPL;
use zerocopy::IntoBytes;

use super::mode::leave_user_mode;
use super::{ENTRY_SYSCALL, KERNEL_CS, KERNEL_SS, TrapVector, flags};
use crate::domain::{Callback, Current, MAX_FRAME, Vcpu};
use crate::platform::{GuestFault, Platform};

/// Offset of `arch.cr2` in `vcpu_info`.
const INFO_CR2: usize = 16;
/// In the debug status register: an instruction was executed with the trap flag set.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// The U bit of a page fault's error code.
const FAULT_USER: u32 = 4;

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

/// Gathers what was interrupted, once kernel mode is entered. `masks`: the delivery sets the mask. An event upcall comes only while
/// none is masked.
#[inline(always)]
fn interrupt<P: Platform>(cur: &Current<'_, P>, was_user: bool, masks: bool, is_event: bool) -> Interrupted {
    // Without a vcpu_info, events are masked.
    let mask = cur.vcpu.info.get().map_or(1, |info| {
        let mask = if is_event { 0 } else { info.load_u8(UPCALL_MASK_OFFSET) };
        if masks {
            info.store_u8(UPCALL_MASK_OFFSET, 1);
        }
        mask
    });
    let regs: &CpuUserRegs = cur.regs;
    let (cs, stack) = if was_user { (regs.cs, cur.vcpu.kernel_stack.sp()) } else { (regs.cs & !3, regs.rsp) };
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
        // By the vCPU's own memory, since a frame on the stack would cost all traps.
        for (kept, word) in cur.vcpu.kept_frame.iter().zip(frame) {
            kept.store(word, Ordering::Relaxed);
        }
        let parts = Current { hv: cur.hv, domain: cur.domain, vcpu: cur.vcpu, regs: cur.regs };
        return enter_again(parts, sp, N, handler);
    }
    go_to(cur.regs, sp, handler);
}

/// [`enter`] where the frame, of so many words, could not be written: its page may have lost RW for dirty tracking.
#[cold]
#[inline(never)]
fn enter_again<P: Platform>(mut cur: Current<'_, P>, sp: u64, words: usize, handler: u64) {
    let kept: [u64; MAX_FRAME] = cur.vcpu.kept_frame.each_ref().map(|word| word.load(Ordering::Relaxed));
    let frame = kept.get(..words).unwrap_or(&[]).as_bytes();
    let fault = GuestFault { copied: 0 };
    if cur.hv.write_again(cur.domain, cur.vcpu, GuestVa::new(sp), frame, fault).is_err() {
        return crash(&mut cur, "cannot write a trap frame");
    }
    go_to(cur.regs, sp, handler);
}

/// The vCPU goes on at its handler.
#[inline(always)]
const fn go_to(regs: &mut CpuUserRegs, sp: u64, handler: u64) {
    regs.rsp = sp;
    regs.ss = KERNEL_SS;
    regs.cs = KERNEL_CS;
    regs.rip = handler;
    regs.rflags &= !(flags::AC | flags::VM | flags::RF | flags::NT | flags::TF);
    regs.entry_vector = ENTRY_SYSCALL;
}

/// A function that takes parts keeps the `Current` of its callers out of memory.
#[inline(always)]
pub(super) fn crash<P: Platform>(cur: &mut Current<'_, P>, why: &str) {
    crash_apart(Current { hv: cur.hv, domain: cur.domain, vcpu: cur.vcpu, regs: cur.regs }, why);
}

#[cold]
#[inline(never)]
fn crash_apart<P: Platform>(cur: Current<'_, P>, why: &str) {
    cur.crash(format_args!("{why}"));
}

/// The handler of `vector` in the guest's trap table.
#[inline(always)]
fn trap_handler(vcpu: &Vcpu, vector: TrapVector) -> Callback {
    let gate = vcpu.entries.traps[usize::from(vector.0)].get();
    Callback { address: gate.address, masks_events: gate.masks_events }
}

/// Enters a handler: `frame` makes its frame of rcx and r11 and of the words that every frame ends with.
#[inline(always)]
fn deliver<P: Platform, const N: usize>(
    cur: &mut Current<'_, P>,
    is_event: bool,
    handler: impl FnOnce(&Vcpu) -> Callback,
    frame: impl FnOnce([u64; 2], [u64; 5]) -> [u64; N],
) {
    // First, since that may call functions: what is read before would be kept in memory meanwhile.
    let was_user = leave_user_mode(cur);
    let handler = handler(cur.vcpu);
    let Interrupted { tail, stack } = interrupt(cur, was_user, handler.masks_events, is_event);
    enter(cur, stack, frame([cur.regs.rcx, cur.regs.r11], tail), handler.address);
}

/// Delivers a frame without an error code.
#[inline(always)]
pub(super) fn call<P: Platform>(
    cur: &mut Current<'_, P>,
    is_event: bool,
    handler: impl FnOnce(&Vcpu) -> Callback,
) {
    deliver(cur, is_event, handler, |[rcx, r11], [a, b, c, d, e]| [rcx, r11, a, b, c, d, e]);
}

/// Delivers exception `vector`, which has no error code, through the guest's trap table.
///
/// A guest without a handler, or whose stack cannot be written, crashes.
#[inline(always)]
pub fn deliver_plain<P: Platform>(cur: &mut Current<'_, P>, vector: TrapVector) {
    call(cur, false, |vcpu| trap_handler(vcpu, vector));
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
    deliver(
        cur,
        false,
        |vcpu| trap_handler(vcpu, vector),
        |[rcx, r11], [a, b, c, d, e]| [rcx, r11, u64::from(error), a, b, c, d, e],
    );
}

/// Delivers a page fault at `cr2`. The processor sets the U bit of the error code in guest kernel mode too, since that is
/// ring 3: the guest sees the bit only for its user mode.
#[inline(always)]
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
    call(cur, true, |vcpu| Callback { masks_events: true, ..vcpu.entries.event.get() });
}

/// Delivers an NMI that waits for the vCPU, when the vCPU begins to run. The upcall mask does not hold an NMI back; a guest
/// without a handler for NMIs gets none.
pub fn deliver_nmi<P: Platform>(cur: &mut Current<'_, P>) {
    if cur.vcpu.nmi_pending.swap(false, Ordering::AcqRel)
        && trap_handler(cur.vcpu, TrapVector::NMI).address != 0
    {
        deliver_plain(cur, TrapVector::NMI);
    }
}

/// Delivers the failsafe callback: a selector could not be loaded on the way back. `selectors`: ds, es, fs, gs.
pub fn deliver_failsafe<P: Platform>(cur: &mut Current<'_, P>, selectors: [u16; 4]) {
    let [ds, es, fs, gs] = selectors.map(u64::from);
    deliver(
        cur,
        false,
        |vcpu| vcpu.entries.failsafe.get(),
        |[rcx, r11], [a, b, c, d, e]| [rcx, r11, ds, es, fs, gs, a, b, c, d, e],
    );
}
