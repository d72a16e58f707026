//! Counter-measures on this machine, as `boot::speculation` chose them: entries and exits of guests, registers of each CPU.
//!
//! Entries and exits are patched before the first guest: each place holds a call, or nothing but room for one, or a return to
//! the guest with room for a jump. So a CPU that needs nothing executes nothing more. Barriers behind checks are patched, too:
//! a CPU that does not speculate executes a NOP.
#![allow(unsafe_code)] // code that is changed, and registers of the CPU

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use microhv::boot::speculation::Measures;
use microhv::return_stack;

use super::{cpu, fpu, paging, roots};

/// Opcodes, before an offset of 32 bits.
const CALL: u8 = 0xe8;
const JMP: u8 = 0xe9;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const DE_CFG: u32 = 0xc001_1029;
/// `SPEC_CTRL`.
const IBRS: u64 = 1;
/// `PRED_CMD`: forget all predictions of indirect branches.
const IBPB: u64 = 1;
/// [`CONTROL`] where there is no `SPEC_CTRL`.
const NO_CONTROL: u64 = u64::MAX;

/// What each CPU's `SPEC_CTRL` holds.
static CONTROL: AtomicU64 = AtomicU64::new(NO_CONTROL);
/// Whether [`between_domains`] does anything.
static BARRIER: AtomicBool = AtomicBool::new(false);
/// Whether [`ahead_of_idleness`] does anything.
static CLEARS_AHEAD_OF_IDLENESS: AtomicBool = AtomicBool::new(false);
/// The bits that `DE_CFG` gets.
static SET_IN_DE_CFG: AtomicU64 = AtomicU64::new(0);
/// What `SPEC_CTRL` holds while the hypervisor runs, and while a guest does, where these differ.
pub(super) static HYPERVISOR_CONTROL: AtomicU32 = AtomicU32::new(0);
pub(super) static GUEST_CONTROL: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    static __barriers_start: i32;
    static __barriers_end: i32;
    // Places, and what they are to lead to instead.
    static call_syscall: u8;
    static call_compat_syscall: u8;
    static call_trap: u8;
    fn cleared_syscall();
    fn cleared_compat_syscall();
    fn cleared_trap();
    fn guarded_syscall();
    fn guarded_compat_syscall();
    fn guarded_trap();
    fn guard_entry();
    static refused_guard: u8;
    static guard_predictions: u8;
    fn forget_predictions();
    static guard_return_stack: u8;
    fn overwrite_return_stack();
    fn fill_return_stack();
    /// Where the compiler's code for indirect calls is.
    static indirect_thunk: *const u8;
    fn fill_behind_indirect();
    static guard_history: u8;
    fn clear_history();
    static guard_control: u8;
    fn set_hypervisor_control();
    static guard_exit_control: u8;
    fn set_guest_control();
    static guard_divider: u8;
    fn scrub_divider();
    fn leave_by_sysret();
    fn leave_by_iret();
    fn guarded_sysret();
    fn guarded_iret();
    static call_ist_guard: u8;
    fn guard_ist();
    static guard_ist_control: u8;
    fn keep_control();
    static call_ist_end: u8;
    fn restore_control();
    static return_by_ist: u8;
    fn verw_ist();
    fn verw_idle();
    static return_by_sysret: u8;
    fn guest_iret();
    fn verw_sysret();
    fn verw_iret();
    // The same of page tables for guests.
    fn trap_common();
    fn own_trap();
    static own_call_syscall: u8;
    static own_call_compat_syscall: u8;
    static own_call_trap: u8;
    fn ist_common();
    fn own_ist();
    static own_ist_guard: u8;
    static own_ist_end: u8;
    static own_return_by_ist: u8;
    static refused_tables: u8;
    fn own_refused();
    fn own_leave_by_sysret();
    fn own_leave_by_iret();
    fn own_guarded_sysret();
    fn own_guarded_iret();
    static own_return_by_sysret: u8;
    fn own_guest_iret();
}

/// Does what was chosen, on the boot CPU: before other CPUs start, and before guests and interrupts.
pub(crate) fn apply(measures: &Measures) {
    if measures.clear_registers {
        let (guarded, is_guarded) = (
            [guarded_syscall, guarded_compat_syscall, guarded_trap] as [unsafe extern "C" fn(); 3],
            measures.guards_entry(),
        );
        let [syscall, compat_syscall, trap] =
            if is_guarded { guarded } else { [cleared_syscall, cleared_compat_syscall, cleared_trap] };
        for (place, target) in [
            (&raw const call_syscall, syscall),
            (&raw const call_compat_syscall, compat_syscall),
            (&raw const call_trap, trap),
            (&raw const own_call_syscall, syscall),
            (&raw const own_call_compat_syscall, compat_syscall),
            (&raw const own_call_trap, trap),
            (&raw const call_ist_guard, guard_ist),
            (&raw const own_ist_guard, guard_ist),
        ] {
            patch(place, CALL, target);
        }
        if is_guarded {
            patch(&raw const refused_guard, CALL, guard_entry);
        }
    }
    if measures.ibpb_entry {
        patch(&raw const guard_predictions, CALL, forget_predictions);
    }
    if measures.overwrite_return_stack {
        patch(&raw const guard_return_stack, CALL, overwrite_return_stack);
    }
    if measures.keep_return_stack {
        patch(fill_return_stack as *const u8, JMP, overwrite_return_stack);
        // SAFETY: the word is the image's, and never changes.
        patch(unsafe { indirect_thunk }, JMP, fill_behind_indirect);
    }
    if measures.clear_history {
        patch(&raw const guard_history, CALL, clear_history);
    }
    if measures.verw {
        patch(&raw const return_by_sysret, JMP, verw_sysret);
        patch(guest_iret as *const u8, JMP, verw_iret);
        patch(&raw const return_by_ist, JMP, verw_ist);
        patch(&raw const own_return_by_sysret, JMP, verw_sysret);
        patch(own_guest_iret as *const u8, JMP, verw_iret);
        patch(&raw const own_return_by_ist, JMP, verw_ist);
    }
    if measures.ibrs_entry {
        patch_control(measures.control.unwrap_or(0));
    }
    if measures.scrub_divider {
        patch(&raw const guard_divider, CALL, scrub_divider);
    }
    let guards_exit = measures.ibrs_entry || measures.scrub_divider;
    if measures.own_tables {
        roots::begin();
        patch(trap_common as *const u8, JMP, own_trap);
        patch(ist_common as *const u8, JMP, own_ist);
        patch(&raw const refused_tables, CALL, own_refused);
        patch(leave_by_sysret as *const u8, JMP, own_leave_by_sysret);
        patch(leave_by_iret as *const u8, JMP, own_leave_by_iret);
        if guards_exit {
            patch(own_leave_by_sysret as *const u8, JMP, own_guarded_sysret);
            patch(own_leave_by_iret as *const u8, JMP, own_guarded_iret);
        }
    } else if guards_exit {
        patch(leave_by_sysret as *const u8, JMP, guarded_sysret);
        patch(leave_by_iret as *const u8, JMP, guarded_iret);
    }
    if measures.harden_branches {
        patch_barriers();
    }
    if measures.overwrite_fpu_pointers {
        fpu::overwrite_pointers();
    }
    BARRIER.store(measures.ibpb, Ordering::Relaxed);
    CLEARS_AHEAD_OF_IDLENESS.store(measures.verw, Ordering::Relaxed);
    SET_IN_DE_CFG.store(measures.set_in_de_cfg, Ordering::Relaxed);
    CONTROL.store(measures.control.unwrap_or(NO_CONTROL), Ordering::Relaxed);
    set_up();
}

/// Has entries set IBRS beside the bits of `control`, and returns to guests take it back.
fn patch_control(control: u64) {
    HYPERVISOR_CONTROL.store((control | IBRS) as u32, Ordering::Relaxed);
    GUEST_CONTROL.store(control as u32, Ordering::Relaxed);
    patch(&raw const guard_control, CALL, set_hypervisor_control);
    patch(&raw const guard_exit_control, CALL, set_guest_control);
    patch(&raw const guard_ist_control, CALL, keep_control);
    patch(&raw const call_ist_end, CALL, restore_control);
    patch(&raw const own_ist_end, CALL, restore_control);
}

/// Makes each [`microhv::nospec::barrier`] an LFENCE.
fn patch_barriers() {
    const LFENCE: [u8; 3] = [0x0f, 0xae, 0xe8];
    let (start, end) = (&raw const __barriers_start, &raw const __barriers_end);
    // SAFETY: the linker script puts both symbols around words of 4 bytes, aligned so, which nobody writes.
    let offsets = unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) };
    for offset in offsets {
        patch_bytes((core::ptr::from_ref(offset) as u64).wrapping_add_signed((*offset).into()), LFENCE);
    }
}

/// Makes the five bytes at `place` a jump or call of `target`.
fn patch(place: *const u8, opcode: u8, target: unsafe extern "C" fn()) {
    patch_bytes(place as u64, with_offset(place as u64, opcode, target as *const () as u64));
}

/// Makes the five bytes at `place` a jump to `target`.
pub(super) fn patch_jump(place: u64, target: u64) {
    patch_bytes(place, with_offset(place, JMP, target));
}

/// An instruction at `place` that leads to `target`.
const fn with_offset(place: u64, opcode: u8, target: u64) -> [u8; 5] {
    let [a, b, c, d] = (target as u32).wrapping_sub(place as u32 + 5).to_le_bytes();
    [opcode, a, b, c, d]
}

/// Puts other code at `place`.
pub(super) fn patch_bytes<const N: usize>(place: u64, code: [u8; N]) {
    let at = paging::direct(paging::machine_address(place)) as *mut [u8; N];
    // SAFETY: the place is code of the image, bytes that nobody executes or reads meanwhile, and the direct map lets them
    // be written. What goes there keeps the registers and the stack as the place's contract has them.
    unsafe { at.write_volatile(code) };
    // CPUID serialises: no CPU has older bytes of the place decoded ahead.
    cpu::cpuid(0, 0);
}

/// Sets this CPU's registers, and has this CPU's guests run on tables for guests.
pub(crate) fn set_up() {
    roots::set_up();
    let control = CONTROL.load(Ordering::Relaxed);
    if control != NO_CONTROL {
        // SAFETY: the register was enumerated with the bits that are set; they change nothing but what the CPU predicts.
        unsafe { cpu::write_msr(SPEC_CTRL, control) };
    }
    let bits = SET_IN_DE_CFG.load(Ordering::Relaxed);
    if bits != 0 {
        // SAFETY: the CPU is one of AMD's that has the register; the bits change how fast vector registers move, and what waits
        // for an LFENCE.
        unsafe { cpu::write_msr(DE_CFG, cpu::read_msr(DE_CFG) | bits) };
    }
}

/// This CPU is about to halt: another thread of the core may get what this one's buffers hold.
#[inline]
pub(crate) fn ahead_of_idleness() {
    if CLEARS_AHEAD_OF_IDLENESS.load(Ordering::Relaxed) {
        // SAFETY: VERW changes flags and nothing else that software sees.
        unsafe { verw_idle() };
    }
}

/// This CPU goes from one domain to another: the next is not to run by predictions that the former trained.
#[inline]
pub(crate) fn between_domains() {
    if BARRIER.load(Ordering::Relaxed) {
        // SAFETY: the register was enumerated; a CPU that has no predictions makes new ones.
        unsafe { cpu::write_msr(PRED_CMD, IBPB) };
        // The CPU may have forgotten the return stack, too.
        return_stack::fill();
    }
}
